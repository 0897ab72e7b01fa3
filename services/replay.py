"""Replaying recordings into services of their own, on free ports, beside whatever runs here.

The same engine, the same services, the same feeds as in a live run; only the encoder's place is
taken by a :class:`~interlatent_live.services.player.Player`. Nothing is remembered from earlier
runs, and nobody is called: snapshots, the store and the receivers of alerts are a replay's own.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final, Self

from interlatent_live.config import on_free_ports
from interlatent_live.engine.launch import service_specs
from interlatent_live.engine.local import LocalEngine
from interlatent_live.engine.port import Phase, wait_ready
from interlatent_live.errors import UserError
from interlatent_live.feed.client import FeedClient
from interlatent_live.feed.documents import Topic
from interlatent_live.feed.state import FeedState
from interlatent_live.services.network import Network
from interlatent_live.services.player import Player

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from interlatent_live.config import ServiceName, Settings
    from interlatent_live.engine.port import OutputLine
    from interlatent_live.recordings.playing import Played
    from interlatent_live.services.player import PlayCounts

SERVICES: Final[tuple[ServiceName, ...]] = ("correlator", "explainer", "console")
READY_WITHIN_S: Final = 120.0
_SHOWN: Final = tuple(topic for topic in Topic if topic is not Topic.FEATURES)


def replay_settings(settings: Settings, looks: Sequence[Path], state: Path) -> Settings:
    """The settings under which recordings are replayed beside a system that may be running.

    Args:
        settings: as configured, and as recorded (:mod:`interlatent_live.recordings.origins`).
        looks: recordings whose looks are followed; none: claims are scored in the rows' time.
        state: folder of the replay's own store.
    """
    correlator: dict[str, Any] = {
        "snapshots": None, "replay": (), "alertmanager": None, "webhook": None,
    }  # fmt: skip
    sections = {
        "correlator": correlator,
        "explainer": {"writer": "builtin", "second_opinion": False, "looks": tuple(looks)},
        "console": {"state": state, "store": None},
        "recorder": {"folder": None},
        "security": {"keys": None},
    }
    changed = {
        name: getattr(settings, name).model_copy(update=values) for name, values in sections.items()
    }
    return on_free_ports(settings.model_copy(update=changed))


class ReplaySystem:
    """Correlator, explainer and console under an engine, and a player before them.

    A context manager; on leaving it every process has ended.

    Args:
        settings: of :func:`replay_settings`.
        on_line: hears what the services write.

    Raises:
        UserError: when a service does not start.
    """

    def __init__(
        self, settings: Settings, on_line: Callable[[OutputLine], None] = lambda _: None
    ) -> None:
        self.settings = settings
        self.state = FeedState()
        self._on_line = on_line
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        settings, endpoints = self.settings, self.settings.endpoints
        with ExitStack() as stack:
            self._engine = stack.enter_context(LocalEngine(on_line=self._on_line))
            for spec in service_specs(settings):
                if spec.name in SERVICES:
                    self._engine.start(spec)
            wait_ready(self._engine, SERVICES, READY_WITHIN_S)
            network = stack.enter_context(Network(None))
            self._player = Player(
                network,
                (endpoints.correlator, endpoints.explainer),
                endpoints.encoder_feed,
                settings.limits.consumer_bytes,
            )
            stack.callback(self._player.close)
            self._client = stack.enter_context(FeedClient(endpoints.feeds(), _SHOWN))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    @property
    def page(self) -> str:
        """The console's address."""
        return f"http://{self.settings.console.http}"

    def play(
        self,
        messages: Iterator[Played],
        *,
        speed: float | None,
        on_progress: Callable[[PlayCounts], None] = lambda _: None,
    ) -> PlayCounts:
        """As :meth:`Player.play`; the feeds are followed meanwhile.

        Raises:
            UserError: when a service fails, or takes nothing for half a minute.
        """

        def told(counts: PlayCounts) -> None:
            self._follow()
            on_progress(counts)

        return self._player.play(messages, speed=speed, stopping=self._failed, on_progress=told)

    def settle(self, within_s: float) -> bool:
        """Wait until statistics and claims have seen all of every run; whether they have."""
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            self._player.show()
            self._follow()
            self._failed()
            if self.runs and all(self.state.settled(run_id) for run_id in self.runs):
                return True
        return False

    def show(self) -> None:
        """Serve viewers for a moment."""
        self._player.show()
        self._follow()
        self._failed()

    @property
    def runs(self) -> tuple[str, ...]:
        """Runs that were played."""
        agents = self.state.agents
        return () if agents is None else tuple(status.run_id for status in agents.agents)

    def _follow(self) -> None:
        for event in self._client.events(0.0):
            self.state.take(event)

    def _failed(self) -> bool:
        for status in self._engine.status():
            if status.phase is Phase.FAILED:
                raise UserError(f"{status.name} failed: {status.reason}")
        return False
