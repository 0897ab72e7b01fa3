"""A system of several shards behind a gateway: its services, and how many shards there are."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final, Protocol, Self

from interlatent_live.engine.launch import service_specs
from interlatent_live.engine.local import LocalEngine
from interlatent_live.engine.port import (
    FINAL_PHASES,
    Engine,
    HttpReady,
    LineReady,
    Phase,
    ServiceSpec,
    service_command,
    wait_ready,
)
from interlatent_live.engine.slots import assign, slots_text
from interlatent_live.errors import UserError

if TYPE_CHECKING:
    from interlatent_live.config import Settings

SHARDED: Final = frozenset({"encoder", "correlator"})
"""Services that a shard has of its own."""
SHRINK_AFTER_S: Final = 60.0
"""How long nodes may be fewer than shards before there is a shard less."""
LOOK_EVERY_S: Final = 2.0
SERVING: Final = "shard: takes rows"
"""What a shard prints when it is ready; its ports are its own, so nobody can ask it."""


def head_specs(settings: Settings) -> tuple[ServiceSpec, ...]:
    """What there is once in a system with shards: the gateway, and all that is no shard's."""
    gateway = ServiceSpec(
        name="gateway",
        command=service_command("gateway"),
        environment=settings.environment(),
        readiness=HttpReady(f"http://{settings.endpoints.encoder_health}/healthz"),
        ready_within_s=120.0,
        hang_after_s=60.0,
    )
    return (gateway, *(one for one in service_specs(settings) if one.name not in SHARDED))


def shard_spec(
    settings: Settings, name: str, slots: frozenset[int], *, gpus: float = 0.0
) -> ServiceSpec:
    """One shard, which takes a CPU and, where its encoder is to have one, a GPU."""
    return ServiceSpec(
        name=name,
        command=service_command("shard", name, "--slots", slots_text(slots)),
        environment=settings.environment(),
        readiness=LineReady(SERVING),
        ready_within_s=120.0,
        grace_s=15.0,
        cpus=1.0,
        gpus=gpus,
    )


class ClusterEngine(Engine, Protocol):
    """An engine with several nodes."""

    def room(self) -> int:
        """Nodes that can take a shard, whether they have one or not."""
        ...


class Sizing:
    """How many shards there should be: one for each node, and one less only when a node stays away.

    A shard whose node died starts again on another one at once, which costs its own runs a few
    seconds; a shard less costs all of them that. So nodes that come count at once, and those that
    went only after ``shrink_after_s``.
    """

    def __init__(self, shrink_after_s: float = SHRINK_AFTER_S) -> None:
        self._shrink_after_s = shrink_after_s
        self._fewer_since: float | None = None

    def wanted(self, shards: int, nodes: int, now: float) -> int:
        """The number of shards, where there are ``shards`` on ``nodes`` at ``now`` seconds."""
        if nodes >= shards:
            self._fewer_since = None
            return nodes
        if self._fewer_since is None:
            self._fewer_since = now
        if now - self._fewer_since < self._shrink_after_s:
            return shards
        self._fewer_since = None
        return max(1, nodes)


class Shards:
    """The shards of a system under an engine, as many as are asked for.

    Args:
        engine: that places them.
        settings: of the whole system.
        gpus: that each of them is to have.
    """

    def __init__(self, engine: Engine, settings: Settings, gpus: float = 0.0) -> None:
        self._engine = engine
        self._settings = settings
        self._gpus = gpus
        self._assigned: dict[str, frozenset[int]] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """The shards there are to be."""
        return tuple(self._assigned)

    def resize(self, count: int) -> tuple[str, ...]:
        """Have so many shards, at least one; returns those that are started anew.

        A shard whose slots change ends, which saves its statistics, and starts again with the new
        ones: what it takes over it restores and replays, as after any restart.
        """
        wanted = assign(f"shard-{number}" for number in range(max(1, count)))
        changed = tuple(name for name in wanted if wanted[name] != self._assigned.get(name))
        before, self._assigned = self._assigned, wanted
        leaving = [name for name in before if before[name] != wanted.get(name)]
        for name in leaving:
            self._engine.stop(name)
        for name in leaving:
            self._wait_stopped(name)
        for name in changed:
            self._engine.start(shard_spec(self._settings, name, wanted[name], gpus=self._gpus))
        return changed

    def _wait_stopped(self, name: str) -> None:
        seen = 0
        while True:
            status = {one.name: one for one in self._engine.status()}[name]
            if status.phase in FINAL_PHASES:
                return
            for event in self._engine.events(seen, timeout_s=1.0):
                seen = event.sequence


class System:
    """All services of a system, in shards or not; a context manager that leaves no process.

    Args:
        settings: of the system.
        shards: how many; ``None`` without ``cluster``: one encoder and one correlator instead, as
            services like the others; ``None`` with it: as many as it has nodes.
        cluster: places the shards; without one they run here.
        gpus: that each shard is to have.
    """

    def __init__(
        self,
        settings: Settings,
        shards: int | None = None,
        cluster: ClusterEngine | None = None,
        gpus: float = 0.0,
    ) -> None:
        self._settings = settings
        self._wanted = shards
        self._cluster = cluster
        self._stack = ExitStack()
        self.head = LocalEngine()
        workers: Engine = self.head if cluster is None else cluster
        sharded = shards is not None or cluster is not None
        self.shards = Shards(workers, settings, gpus) if sharded else None
        self._engines: tuple[Engine, ...] = (
            (self.head,) if cluster is None else (self.head, cluster)
        )

    def __enter__(self) -> Self:
        self._stack.enter_context(self.head)
        if self._cluster is not None:
            self._stack.callback(self._cluster.close)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def start(self, within_s: float = 180.0) -> None:
        """Start everything, and wait until it takes work.

        Raises:
            UserError: when a service fails, or the time is over.
        """
        specs = service_specs(self._settings)
        if self.shards is not None:
            specs = head_specs(self._settings)
        for spec in specs:
            self.head.start(spec)
        if self.shards is not None:
            count = self._wanted or (self._cluster.room() if self._cluster is not None else 1)
            self.shards.resize(count)
            wait_ready(self._engines[-1], self.shards.names, within_s)
        wait_ready(self.head, [spec.name for spec in specs], within_s)

    def watch(self) -> None:
        """Wait for as long as every service is up or coming back; follow the number of nodes.

        Raises:
            UserError: when one has failed for good, with its own words.
        """
        sizing = Sizing()
        seen = 0
        while True:
            for status in (one for engine in self._engines for one in engine.status()):
                if status.phase is Phase.FAILED:
                    raise UserError(f"{status.name} failed: {status.reason}")
            if self.shards is not None and self._cluster is not None and self._wanted is None:
                now, there = len(self.shards.names), self._cluster.room()
                if (wanted := sizing.wanted(now, there, time.monotonic())) != now:
                    self.shards.resize(wanted)
            for event in self.head.events(after=seen, timeout_s=LOOK_EVERY_S):
                seen = event.sequence
