from __future__ import annotations

import random
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interlatent_live.engine.port import (
    FINAL_PHASES,
    EventKind,
    HttpReady,
    LineReady,
    Phase,
    Restart,
    RestartPolicy,
    ServiceSpec,
    ServiceStatus,
)
from interlatent_live.engine.supervisor import (
    Answered,
    Event,
    Exited,
    Report,
    Signal,
    Spawn,
    Spawned,
    SpawnFailed,
    Start,
    Stop,
    StopAll,
    Supervisor,
    Tick,
    describe_exit,
)
from interlatent_live.errors import UserError

STEADY = RestartPolicy(initial_s=1.0, factor=2.0, maximum_s=8.0, jitter=0.0, crash_limit=5)


def spec(name: str, **fields: Any) -> ServiceSpec:
    return replace(
        ServiceSpec(name, ("run",), readiness=LineReady("up"), restart=STEADY, grace_s=3.0),
        **fields,
    )


@dataclass
class World:
    """A machine in virtual time: carries out instructions and remembers what runs."""

    supervisor: Supervisor = field(default_factory=lambda: Supervisor(random.Random(0)))
    now: float = 0.0
    running: dict[str, int] = field(default_factory=dict)
    told: list[tuple[float, str, str]] = field(default_factory=list)
    spawned: list[tuple[float, str]] = field(default_factory=list)
    reports: list[tuple[str, EventKind, str]] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)

    def send(self, event: Event) -> None:
        todo = list(self.supervisor.handle(event, self.now))
        while todo:
            match todo.pop(0):
                case Spawn(one, attempt):
                    assert one.name not in self.running, "two processes of one name"
                    self.running[one.name] = attempt
                    self.spawned.append((self.now, one.name))
                    todo += self.supervisor.handle(
                        Spawned(one.name, attempt, 1000 + attempt), self.now
                    )
                case Signal(name, attempt, how):
                    assert self.running.get(name) == attempt, "a signal to nobody"
                    self.told.append((self.now, name, how))
                case Report(report):
                    self.reports.append((report.service, report.kind, report.message))
                    self.numbers.append(report.sequence)

    def answer(self, name: str) -> None:
        self.send(Answered(name, self.running[name]))

    def end(self, name: str, code: int, words: str = "") -> None:
        self.send(Exited(name, self.running.pop(name), code, words))

    def wait(self, seconds: float) -> None:
        end = self.now + seconds
        while (due := self.supervisor.deadline()) is not None and due <= end:
            self.now = max(self.now, due)
            self.send(Tick())
        self.now = end

    def of(self, name: str) -> ServiceStatus:
        return next(one for one in self.supervisor.status() if one.name == name)


@pytest.fixture
def world() -> World:
    return World()


def test_backoff_doubles_up_to_its_maximum_and_starts_anew_after_a_settled_time(
    world: World,
) -> None:
    policy = replace(STEADY, crash_limit=50, settled_s=10.0)
    world.send(Start(spec("a", restart=policy)))
    for _ in range(6):
        world.end("a", 1)
        world.wait(30.0)
    starts = [at for at, _ in world.spawned]
    ends = [0.0, *[30.0 * i for i in range(1, 6)]]
    assert [s - e for s, e in zip(starts[1:], ends, strict=True)] == [1, 2, 4, 8, 8, 8]
    world.answer("a")
    world.wait(11.0)
    world.end("a", 1)
    crashed_at = world.now
    world.wait(30.0)
    assert world.spawned[-1][0] - crashed_at == 1.0


def test_crashes_far_apart_are_no_crash_loop(world: World) -> None:
    world.send(Start(spec("a", restart=replace(STEADY, crash_limit=2, crash_window_s=60.0))))
    for _ in range(10):
        world.answer("a")
        world.end("a", -11)
        world.wait(61.0)
    assert world.of("a").phase is Phase.STARTING
    assert world.of("a").restarts == 10
    for _ in range(3):
        world.end("a", -11, "stack smashed")
        world.wait(9.0)
    status = world.of("a")
    assert status.phase is Phase.FAILED
    assert status.reason == (
        "ended 3 times within 60 s; the last time: was ended by SIGSEGV: stack smashed"
    )
    assert "a" not in world.running


@given(
    tries=st.integers(1, 200),
    jitter=st.floats(0.0, 0.99),
    seed=st.integers(0, 2**32),
)
def test_the_wait_stays_within_its_jitter(tries: int, jitter: float, seed: int) -> None:
    policy = RestartPolicy(
        initial_s=0.5, factor=3.0, maximum_s=20.0, jitter=jitter, crash_limit=999
    )
    world = World(Supervisor(random.Random(seed)))
    world.send(Start(spec("a", restart=policy)))
    for _ in range(tries - 1):
        world.end("a", 1)
        world.wait(100.0)
    world.end("a", 1)
    due = world.supervisor.deadline()
    assert due is not None
    plain = min(20.0, 0.5 * 3.0 ** min(tries - 1, 20))
    assert plain * (1 - jitter) - 1e-9 <= due - world.now <= plain * (1 + jitter) + 1e-9


def test_an_answer_of_a_dead_process_makes_no_service_ready(world: World) -> None:
    world.send(Start(spec("a")))
    old = world.running["a"]
    world.end("a", 1)
    world.send(Answered("a", old))
    assert world.of("a").phase is Phase.BACKOFF
    world.wait(1.0)
    world.send(Answered("a", old))
    world.send(Exited("a", old, 1))
    assert world.of("a").phase is Phase.STARTING


def test_a_stop_during_backoff_needs_no_process(world: World) -> None:
    world.send(Start(spec("a")))
    world.end("a", 1)
    world.send(Stop("a"))
    world.wait(100.0)
    assert world.of("a").phase is Phase.STOPPED
    assert len(world.spawned) == 1
    assert world.told == []
    assert world.supervisor.idle()


def test_grace_then_kill_and_the_second_stop_changes_nothing(world: World) -> None:
    world.send(Start(spec("a")))
    world.answer("a")
    world.send(Stop("a"))
    world.wait(1.0)
    world.send(Stop("a"))
    world.wait(10.0)
    assert world.told == [(0.0, "a", "terminate"), (3.0, "a", "kill")]
    world.end("a", -9)
    assert world.of("a").phase is Phase.STOPPED


def test_a_chain_starts_forwards_and_stops_backwards(world: World) -> None:
    world.send(Start(spec("a")))
    world.send(Start(spec("b", depends_on=("a",))))
    world.send(Start(spec("c", depends_on=("b", "a"))))
    assert set(world.running) == {"a"}
    world.answer("a")
    world.answer("b")
    world.answer("c")
    assert [name for _, name in world.spawned] == ["a", "b", "c"]
    world.send(StopAll())
    assert [name for _, name, _ in world.told] == ["c"]
    world.end("c", 0)
    world.end("b", 0)
    world.end("a", 0)
    assert [name for _, name, _ in world.told] == ["c", "b", "a"]
    assert world.supervisor.idle()


def test_a_crashed_dependency_leaves_its_dependents_up(world: World) -> None:
    world.send(Start(spec("a")))
    world.answer("a")
    world.send(Start(spec("b", depends_on=("a",))))
    world.answer("b")
    world.end("a", -9)
    world.wait(1.0)
    assert world.of("b").phase is Phase.READY
    assert set(world.running) == {"a", "b"}


def test_what_waits_for_a_failed_service_fails_and_says_for_whom(world: World) -> None:
    world.send(Start(spec("a")))
    world.send(Start(spec("b", depends_on=("a",))))
    world.end("a", 2, "the key is missing")
    assert world.of("a").reason == "the key is missing"
    assert world.of("b").reason == "it needs a, which is not running"
    assert world.supervisor.idle()


def test_a_finished_job_lets_its_dependents_start(world: World) -> None:
    world.send(Start(spec("job", restart=RestartPolicy(when=Restart.ON_FAILURE))))
    world.send(Start(spec("b", depends_on=("job",))))
    world.end("job", 0)
    assert world.of("job").phase is Phase.STOPPED
    assert "b" in world.running


def test_a_job_that_failed_is_not_ready(world: World) -> None:
    world.send(Start(spec("job", restart=RestartPolicy(when=Restart.NEVER))))
    world.end("job", 3, "no such file")
    assert world.of("job").reason == "exited with 3: no such file"
    assert world.of("job").phase is Phase.STOPPED


def test_a_hung_service_is_ended_and_comes_back(world: World) -> None:
    world.send(Start(spec("a", readiness=HttpReady("http://x"), hang_after_s=5.0)))
    world.answer("a")
    for _ in range(5):
        world.wait(4.0)
        world.answer("a")
    assert world.told == []
    world.wait(5.0)
    assert world.told == [(25.0, "a", "terminate")]
    world.end("a", -15)
    assert world.of("a").reason == "has not answered for 5 s"
    world.wait(1.0)
    assert world.of("a").phase is Phase.STARTING


def test_a_failed_spawn_is_final(world: World) -> None:
    supervisor = world.supervisor
    spawn = supervisor.handle(Start(spec("a")), 0.0)[-1]
    assert isinstance(spawn, Spawn)
    supervisor.handle(SpawnFailed("a", spawn.attempt, "no such command"), 0.0)
    assert supervisor.status()[0].reason == "no such command"
    assert supervisor.deadline() is None


def test_nothing_starts_while_everything_stops(world: World) -> None:
    world.send(Start(spec("a")))
    world.send(StopAll())
    with pytest.raises(UserError, match="while everything is being stopped"):
        world.send(Start(spec("b")))
    world.end("a", 0)
    world.send(Start(spec("b")))
    assert "b" in world.running


def test_specs_that_could_not_be_honoured_are_refused() -> None:
    with pytest.raises(ValueError, match="healthz"):
        spec("a", hang_after_s=1.0)
    with pytest.raises(ValueError, match="a name and a command"):
        ServiceSpec("a", ())
    with pytest.raises(ValueError, match="initial_s"):
        RestartPolicy(initial_s=0.0)
    with pytest.raises(ValueError, match="jitter"):
        RestartPolicy(jitter=1.0)


def test_exits_in_words() -> None:
    assert describe_exit(0) == "exited with 0"
    assert describe_exit(-15) == "was ended by SIGTERM"
    assert describe_exit(-99) == "was ended by signal 99"


DEPENDS: dict[str, tuple[str, ...]] = {"a": (), "b": ("a",), "c": ("a", "b")}
ACTIONS = st.tuples(
    st.sampled_from(
        ["start", "stop", "stop_all", "at_once", "answer", "end0", "end1", "end2", "kill", "wait"]
    ),
    st.sampled_from(sorted(DEPENDS)),
    st.floats(0.0, 20.0),
)


def act(world: World, action: str, name: str, seconds: float) -> None:
    runs = name in world.running
    match action:
        case "start":
            world.send(Start(spec(name, depends_on=DEPENDS[name])))
        case "stop":
            world.send(Stop(name))
        case "stop_all" | "at_once":
            world.send(StopAll(at_once=action == "at_once"))
        case "wait":
            world.wait(seconds)
        case "answer" if runs:
            world.answer(name)
        case "kill" if runs:
            world.end(name, -9)
        case "end0" | "end1" | "end2" if runs:
            world.end(name, int(action[-1]))


@settings(max_examples=300)
@given(st.lists(ACTIONS, max_size=60))
def test_whatever_happens_the_rules_hold(actions: list[tuple[str, str, float]]) -> None:
    """No two processes of a name, no signal to nobody, no event lost, and a stop always ends."""
    world = World()
    for action, name, seconds in actions:
        with suppress(UserError):  # a refused request changes nothing, which the rules show
            act(world, action, name, seconds)
        alive = {s.name for s in world.supervisor.status() if s.pid is not None}
        assert alive == set(world.running)
    world.send(StopAll())
    for _ in range(4):
        world.wait(100.0)
        killed = {name for _, name, how in world.told if how == "kill"}
        for name in sorted(set(world.running) & killed):
            world.end(name, -9)
    assert world.running == {}
    assert world.supervisor.idle()
    assert all(s.phase in FINAL_PHASES for s in world.supervisor.status())
    assert world.numbers == list(range(1, len(world.numbers) + 1))
