"""Random schedules of commands, losses and crashes in virtual time keep every promise, and each
check of theirs notices the defect that it is there for."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from interlatent_live.bench.interventions.virtual import (
    MS,
    SECOND,
    Schedule,
    World,
    run_schedules,
    steering,
)
from interlatent_live.control.commands import Operation
from interlatent_live.control.desk import ControlDesk
from interlatent_live.control.machine import ControlMachine, Mode
from interlatent_live.control.turns import Turn, TurnReader
from interlatent_live.control.wire import Role
from interlatent_live.interventions.values import Kind

leases = st.sampled_from("LM")
lifetimes = st.integers(100, 8000).map(lambda ms: ms * MS)
pauses = st.integers(1, 1500).map(lambda ms: ms * MS)


class Oversight(RuleBasedStateMachine):
    """Hypothesis says what people and fate do; the world's promises are the invariant."""

    @initialize(seed=st.integers(0, 2**32))
    def begin(self, seed):
        self.world = World(seed)
        self.world.ask(Operation.RENEW, ttl_ns=60 * SECOND)
        self.world.advance(200 * MS)

    @rule(lease=leases, ttl=lifetimes, pause=pauses)
    def renew(self, lease, ttl, pause):
        self.world.ask(Operation.RENEW, lease=lease, ttl_ns=ttl)
        self.world.advance(pause)

    @rule(
        lease=leases, ttl=lifetimes, old=st.booleans(), role=st.sampled_from(Role),
        feature=st.integers(0, 66), kind=st.sampled_from([Kind.STEER, Kind.CLAMP, Kind.SCALE]),
        norm=st.floats(0.1, 3.0), pause=pauses,
    )  # fmt: skip
    def intervene(self, lease, ttl, old, role, feature, kind, norm, pause):
        self.world.ask(Operation.RENEW, lease=lease, ttl_ns=60 * SECOND)
        self.world.advance(100 * MS)
        change = steering(feature, kind, norm)
        self.world.ask(
            Operation.INTERVENE, lease=lease, ttl_ns=ttl, old=old, role=role, change=change
        )
        self.world.advance(pause)

    @rule(
        operation=st.sampled_from(sorted(set(Operation) - {Operation.INTERVENE, Operation.RENEW})),
        lease=leases, ttl=lifetimes, old=st.booleans(), role=st.sampled_from(Role), pause=pauses,
    )  # fmt: skip
    def command(self, operation, lease, ttl, old, role, pause):
        self.world.ask(operation, lease=lease, ttl_ns=ttl, old=old, role=role)
        self.world.advance(pause)

    @rule(pause=pauses)
    def the_agent_restarts(self, pause):
        self.world.restart_agent()
        self.world.advance(pause)

    @rule(pause=pauses)
    def the_service_restarts(self, pause):
        self.world.restart_service()
        self.world.advance(pause)

    @rule(pause=pauses)
    def the_control_thread_stalls(self, pause):
        self.world.stall(2 * pause)
        self.world.advance(pause)

    @rule(pause=pauses)
    def the_disk_fills_or_empties(self, pause):
        self.world.turn_disk()
        self.world.advance(pause)

    @rule(pause=pauses)
    def a_rule_fires(self, pause):
        self.world.fire_rule()
        self.world.advance(pause)

    @invariant()
    def nothing_is_broken(self):
        if hasattr(self, "world"):
            assert self.world.broken == []


TestOversight = Oversight.TestCase
TestOversight.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)


def test_random_schedules_break_nothing_and_do_what_they_are_to_try():
    broken, happened = run_schedules(40, 7)
    assert broken == []
    for what in (
        "steered steps", "intervene", "stop", "hold", "step", "resume", "approve", "questions",
        "agent restarts", "service restarts", "full disks", "operators gone", "lost messages",
        "stalls of the control thread",
    ):  # fmt: skip
        assert happened[what] > 0, what


def broken_by(monkeypatch, owner, name, replacement):
    monkeypatch.setattr(owner, name, replacement)
    broken, _ = run_schedules(30, 7)
    return " ".join(broken)


def test_a_reader_that_trusts_an_old_decision_is_caught(monkeypatch):
    def read(self, decision, now_ns):
        return Turn(decision.version, decision.mode, decision.plans)

    said = broken_by(monkeypatch, TurnReader, "read", read)
    assert "past its lifetime" in said or "without its lease" in said


def test_a_reader_that_moves_although_stopped_is_caught(monkeypatch):
    def read(self, decision, now_ns):
        return Turn(decision.version, Mode.RUNNING)

    said = broken_by(monkeypatch, TurnReader, "read", read)
    assert "a stopped agent moved" in said
    assert "a held agent moved" in said


def test_a_grant_that_is_good_for_two_steps_is_caught(monkeypatch):
    def take(self, decision, turn):
        return 0

    assert "a held agent moved" in broken_by(monkeypatch, TurnReader, "take", take)


def test_a_desk_that_forwards_before_it_writes_is_caught(monkeypatch):
    permit = ControlDesk._permit

    def hasty(self, asked):
        permit(self, asked)
        self._forward(asked, "", 0)

    said = broken_by(monkeypatch, ControlDesk, "_permit", hasty)
    assert "without its audit entry" in said


def test_a_latch_that_forgets_is_caught(monkeypatch):
    said = broken_by(monkeypatch, World, "_keep_latch", lambda self, agent: None)
    assert "a stopped agent moved" in said


def test_a_machine_that_ends_nothing_by_the_clock_is_caught(monkeypatch):
    decide = ControlMachine._decide

    def forgetful(self):
        made = decide(self)
        return type(made)(
            **{name: getattr(made, name) for name in made.__slots__} | {"until_ns": 2**63 - 1}
        )

    def tick(self, now_ns):
        self._now = max(self._now, now_ns)
        self._decision = self._decide()

    monkeypatch.setattr(ControlMachine, "_decide", forgetful)
    said = broken_by(monkeypatch, ControlMachine, "tick", tick)
    assert "past its lifetime" in said or "without its lease" in said


@pytest.mark.parametrize("seed", range(3))
def test_a_schedule_is_the_same_again(seed):
    first, second = Schedule(seed), Schedule(seed)
    assert (first.run(), first.count) == (second.run(), second.count)
