from __future__ import annotations

from interlatent_live.config import Settings
from interlatent_live.engine.port import (
    EngineEvent,
    EventKind,
    Phase,
    ServiceSpec,
    ServiceStatus,
)
from interlatent_live.engine.sharded import Shards, Sizing, head_specs, shard_spec
from interlatent_live.engine.slots import SLOTS, parse_slots


class FakeEngine:
    """Starts and stops at once, and remembers."""

    def __init__(self) -> None:
        self.running: dict[str, ServiceSpec] = {}
        self.stopped: list[str] = []

    def start(self, spec: ServiceSpec) -> None:
        assert spec.name not in self.running
        self.running[spec.name] = spec

    def stop(self, name: str) -> None:
        del self.running[name]
        self.stopped.append(name)

    def stop_all(self, *, at_once: bool = False) -> None:
        raise AssertionError("nobody asked for that")

    def status(self) -> tuple[ServiceStatus, ...]:
        names = {*self.running, *self.stopped}
        phases = {True: Phase.READY, False: Phase.STOPPED}
        return tuple(ServiceStatus(name, phases[name in self.running], 0.0) for name in names)

    def events(self, after: int = 0, timeout_s: float = 0.0) -> tuple[EngineEvent, ...]:
        return (EngineEvent(after + 1, 0.0, "", EventKind.STARTED),)

    def close(self) -> None:
        raise AssertionError("nobody asked for that")

    def slots(self) -> dict[str, frozenset[int]]:
        return {name: parse_slots(spec.command[-1]) for name, spec in self.running.items()}


def test_every_slot_has_a_shard_however_many_there_are() -> None:
    engine = FakeEngine()
    shards = Shards(engine, Settings())
    for count in (1, 3, 2, 5, 1):
        shards.resize(count)
        owned = engine.slots()
        assert len(owned) == count
        assert sorted(slot for slots in owned.values() for slot in slots) == list(range(SLOTS))


def test_only_shards_whose_slots_change_start_anew() -> None:
    engine = FakeEngine()
    shards = Shards(engine, Settings())
    assert set(shards.resize(3)) == {"shard-0", "shard-1", "shard-2"}
    assert shards.resize(3) == ()
    assert engine.stopped == []
    assert set(shards.resize(4)) == {"shard-0", "shard-1", "shard-2", "shard-3"}
    assert set(engine.stopped) == {"shard-0", "shard-1", "shard-2"}


def test_nodes_that_come_count_at_once_and_those_that_went_when_they_stay_away() -> None:
    sizing = Sizing(shrink_after_s=60.0)
    assert sizing.wanted(2, 3, 0.0) == 3
    assert sizing.wanted(3, 2, 10.0) == 3
    assert sizing.wanted(3, 3, 40.0) == 3  # it came back
    assert sizing.wanted(3, 2, 50.0) == 3
    assert sizing.wanted(3, 2, 109.0) == 3
    assert sizing.wanted(3, 2, 110.0) == 2
    assert sizing.wanted(2, 0, 120.0) == 2
    assert sizing.wanted(2, 0, 200.0) == 1


def test_the_gateway_stands_in_for_encoder_and_correlator() -> None:
    names = [spec.name for spec in head_specs(Settings())]
    assert names == ["gateway", "explainer", "console", "control"]
    spec = shard_spec(Settings(), "shard-0", frozenset({1}), gpus=0.5)
    assert (spec.cpus, spec.gpus) == (1.0, 0.5)
    assert parse_slots(spec.command[-1]) == {1}
