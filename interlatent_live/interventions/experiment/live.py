"""The live side: an agent under control, the service, and an operator that brings arms into force.

The service is a process of its own with the experiment's audit; the agent acts in this process, and
every arm is an ``intervene`` command that the service permits, the agent obeys, and a revert ends.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
import urllib.request
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np

from interlatent_live.agent.attach import attach
from interlatent_live.agent.control import ControlOptions
from interlatent_live.config import on_free_ports, resolve
from interlatent_live.console.secrets import load_token, state_folder
from interlatent_live.control.client import ControlClient
from interlatent_live.control.commands import Change, Operation
from interlatent_live.control.wire import Role, control_key
from interlatent_live.errors import UserError
from interlatent_live.interventions.experiment.setup import When
from interlatent_live.interventions.values import FeatureCondition, Intervention, Kind

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from types import TracebackType

    from numpy.typing import NDArray

    from interlatent_live.agent.tap import Tap
    from interlatent_live.interventions.experiment.playing import Stage, Start
    from interlatent_live.transcoders.acting import ActingPolicy
    from interlatent_live.transcoders.native import LoadedTranscoder

AGENT: Final = "experiment"
LEASE_S: Final = 60.0
TTL_S: Final = 7200.0
READY_S: Final = 180.0
RENEW_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Arm:
    """One intervention at one hook point; none when ``value`` is 0."""

    name: str
    point: str = ""
    feature: int = 0
    value: float = 0.0
    when: When = When.ALWAYS
    of: int = 0
    """The feature whose being on the moment depends on."""


@dataclass(frozen=True, slots=True, eq=False)
class Played:
    """What an arm measured."""

    values: NDArray[np.float64]
    """[starts, metrics]."""
    steered: float
    """Share of the agent's rows in which something was added."""
    largest_norm: float


class Service:
    """A control service with an audit of its own; a context manager.

    Raises:
        UserError: when it does not get ready.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "state"
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = {
            "console.state": str(self._folder),
            "control.audit": str(folder / "audit"),
            "logging.level": "error",
        }
        self.settings = on_free_ports(resolve(flags=flags, environment={}).settings)
        self.key = control_key(load_token(state_folder(self.settings)))

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "interlatent_live", "control"],
            env={**os.environ, **self.settings.environment()},
            # Ctrl-C ends the experiment, which ends the service when nothing is in force any more.
            start_new_session=True,
        )
        url = f"http://{self.settings.endpoints.control_health}/healthz"
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(url, timeout=1) as answer:
                    if answer.status == 200:
                        return self
            except OSError:
                time.sleep(0.05)
            if self._process.poll() is not None:
                break
        self._process.kill()
        raise UserError("the experiment's control service did not start")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def client(self) -> ControlClient:
        """An operator."""
        return ControlClient(
            self.settings.endpoints.control_requests, self.key, actor="experiment",
            role=Role.OPERATOR, timeout_s=30.0,
        )  # fmt: skip


class Live:
    """An agent under control in this process; a context manager.

    Args:
        service: runs already.
        policy: acts.
        dictionaries: by hook point.
        bounds: by hook point, the agent's own bound on ‖Δy‖₂.
        copies: rows of each forward.
        folder: for latch and journal.
    """

    def __init__(
        self,
        service: Service,
        policy: ActingPolicy,
        dictionaries: dict[str, LoadedTranscoder],
        bounds: dict[str, float],
        *,
        copies: int,
        folder: Path,
    ) -> None:
        self._service, self._policy, self._copies = service, policy, copies
        self._dictionaries, self._bounds = dictionaries, bounds
        self._options = ControlOptions(
            endpoint=service.settings.endpoints.control,
            transcoders=dictionaries,
            max_norm=bounds,
            lease_s=LEASE_S,
            max_ttl_s=TTL_S,
            state=folder,
            key=service.key,
        )
        self._over = threading.Event()
        self._rows = 0
        self._version: int | None = None
        """Of the agent's control, as its last answer said."""

    def __enter__(self) -> Self:
        self._tap: Tap = attach(
            self._policy.module, list(self._dictionaries), ["reward"], endpoint=None, agent=AGENT,
            env_count=self._copies, autoreset="disabled", control=self._options,
        )  # fmt: skip
        self._client = self._service.client()
        deadline = time.monotonic() + READY_S
        while not any(one.state for one in self._client.look(follow=True).agents):
            if time.monotonic() > deadline:
                raise UserError("the experiment's agent did not reach its control service")
            time.sleep(0.05)
        self._keeper = threading.Thread(target=self._keep, args=(self._client.lease,), daemon=True)
        self._keeper.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._keeper.join(10.0)
        self._client.close()
        self._tap.close()

    def play(self, arm: Arm, starts: Sequence[Start], stage: Stage, reason: str) -> Played:
        """Bring an arm into force, play the starts, and end it.

        Raises:
            UserError: when the agent refuses, or ended the intervention before the play was over.
        """
        control = self._tap.control
        if control is None:
            raise ValueError("the agent has no control")
        rows = self._rows
        if not arm.value:
            return Played(stage.play(starts, self), 0.0, 0.0)
        command_id = self._intervene(arm, reason)
        values = stage.play(starts, self)
        effect = control.effects.get((arm.point, ""))
        active = [one.command_id for one in self._active()]
        self._revert(command_id)
        if command_id not in active:
            raise UserError(f"the intervention of {arm.name} ended before its play did")
        applied = 0 if effect is None else effect.rows
        norm = 0.0 if effect is None else effect.largest_norm
        return Played(values, applied / max(1, self._rows - rows), norm)

    def act(self, obs: NDArray[Any]) -> NDArray[Any]:
        """As the policy does, steered by what is in force, through the agent's gate."""
        control = self._tap.control
        actions = self._policy.act(obs)
        return actions if control is None else np.asarray(control.gate(actions))

    def done(self, rewards: NDArray[np.float64], ended: NDArray[np.bool_]) -> None:
        """The row of the step."""
        self._rows += self._copies
        if self._copies == 1:
            self._tap.step(rewards, terminated=bool(ended[0]))
        else:
            self._tap.step(rewards[:, None], terminated=ended)

    def _intervene(self, arm: Arm, reason: str) -> str:
        condition = (
            None if arm.when is When.ALWAYS else FeatureCondition(arm.of, above=arm.when is When.ON)
        )
        change = Change(
            arm.point,
            self._dictionaries[arm.point].transcoder.identity,
            Intervention(arm.feature, Kind.STEER, arm.value, condition),
            self._bounds[arm.point],
        )
        for _ in range(20):
            shown = self._client.agent(AGENT)
            self._client.renew(AGENT)
            result = self._client.command(
                Operation.INTERVENE, shown, reason=reason, ttl_s=TTL_S, changes=(change,),
                base_version=self._version,
            )  # fmt: skip
            if result.accepted:
                self._version = result.version
                return result.command_id
            if "look again" not in result.reason:
                break
            self._version = None
            time.sleep(0.1)
        raise UserError(f"the agent refused {arm.name}: {result.reason}")

    def _revert(self, command_id: str) -> None:
        result = self._client.command(
            Operation.REVERT, AGENT, reason="the arm was played", targets=(command_id,)
        )
        if not result.accepted:
            raise UserError(f"the agent did not revert: {result.reason}")
        self._version = result.version
        self._client.told.clear()

    def _active(self) -> list[Any]:
        shown = self._client.agent(AGENT)
        return [] if shown.state is None else list(shown.state.active)

    def _keep(self, lease: str) -> None:
        """Renew the lease from a connection of its own: the operator's waits while an arm plays."""
        with self._service.client() as client:
            client.lease = lease
            while not self._over.is_set():
                # The lease outlives several renewals that got lost.
                with contextlib.suppress(UserError):
                    client.renew(AGENT)
                self._over.wait(RENEW_S)
