"""The control machine against a model that knows only the promises, under random schedules."""

from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
)

from interlatent_live.control.commands import ANSWERING, Change, Command, Operation
from interlatent_live.control.machine import (
    REMEMBERED,
    ControlLimits,
    ControlMachine,
    Fate,
    Mode,
)
from interlatent_live.control.turns import TurnReader
from interlatent_live.errors import UserError
from interlatent_live.interventions.values import FeatureCondition, Intervention, Kind

SECOND = 1_000_000_000
LIMITS = ControlLimits(
    max_norm={"net.0": 2.0, "net.2": 1.0},
    transcoders={"net.0": "sha256:aa", "net.2": "sha256:bb"},
    features={"net.0": 64, "net.2": 64},
    max_ttl_ns=10 * SECOND,
    lease_ns=2 * SECOND,
    max_hold_ns=30 * SECOND,
    max_active=8,
    safe_action=True,
)


def change(feature=3, kind=Kind.STEER, value=1.0, point="net.0", norm=1.0, **more):
    value = 0.0 if kind is Kind.ABLATE else value
    return Change(
        point, LIMITS.transcoders[point], Intervention(feature, kind, value, **more), norm
    )


def command(operation, command_id="c1", *, ttl=5.0, **fields):
    fields.setdefault("lease", "L")
    return Command(command_id, operation, "ada", "a test", int(ttl * SECOND), **fields)


def begin_step(machine, now, reader=None):
    """What the acting thread does: its turn, and what happened until then."""
    reader = reader or TurnReader()
    machine.tick(now)
    turn = reader.read(machine.decision, now)
    machine.used(reader.take(machine.decision, turn))
    return turn, machine.happened()


@pytest.fixture
def machine():
    made = ControlMachine(LIMITS, now_ns=0)
    assert made.receive(command(Operation.RENEW, "renew"), 0).accepted
    return made


def intervene(machine, command_id="c1", changes=None, now=0, **fields):
    fields.setdefault("base_version", machine.version)
    asked = command(Operation.INTERVENE, command_id, changes=changes or (change(),), **fields)
    return machine.receive(asked, now)


def test_an_intervention_is_in_force_from_the_next_step_and_ends_at_its_deadline(machine):
    assert intervene(machine, ttl=1.0).accepted
    decision, happened = begin_step(machine, 1)
    assert [plan.hook_point for plan in decision.plans] == ["net.0"]
    assert machine.decision.until_ns == SECOND
    assert (happened[-1].version, happened[-1].fate, happened[-1].command_id) == (
        machine.version,
        Fate.APPLIED,
        "c1",
    )
    decision, happened = begin_step(machine, SECOND)
    assert decision.plans == ()
    assert [item.fate for item in happened] == [Fate.EXPIRED]


def test_losing_the_lease_ends_its_interventions_and_no_others(machine):
    machine.receive(command(Operation.RENEW, "r2", lease="M"), 0)
    intervene(machine, "mine", ttl=9.0)
    intervene(machine, "theirs", (change(point="net.2"),), ttl=9.0, lease="M")
    machine.receive(command(Operation.RENEW, "r3", lease="M"), SECOND)
    decision, happened = begin_step(machine, 2 * SECOND)
    assert [plan.hook_point for plan in decision.plans] == ["net.2"]
    assert (happened[-1].command_id, happened[-1].fate) == ("mine", Fate.LEASE_LOST)


def test_the_tightest_bound_holds_for_the_sum(machine):
    intervene(machine, "a", (change(1, norm=2.0),))
    intervene(machine, "b", (change(2, norm=0.5),))
    (plan,) = machine.decision.plans
    assert len(plan.interventions) == 2
    assert plan.max_norm == 0.5


@pytest.mark.parametrize(
    ("changes", "fields", "why"),
    [
        ((change(norm=2.1),), {}, "exceeds this agent's bound"),
        ((change(64),), {}, "feature 64 does not exist"),
        ((change(condition=FeatureCondition(64)),), {}, "feature 64 does not exist"),
        ((replace(change(), hook_point="net.4"),), {}, "no interventions are allowed"),
        ((replace(change(), transcoder_hash="sha256:cc"),), {}, "has transcoder sha256:aa"),
        ((change(predicate="x > 1"),), {}, "no metrics"),
        ((change(kind=Kind.CLAMP), change(kind=Kind.ABLATE)), {}, "already set"),
        (tuple(change(i) for i in range(9)), {}, "of at most 8"),
        ((change(),), {"ttl": 11.0}, "exceeds 10 s"),
        ((change(),), {"lease": "nobody"}, "live lease"),
        ((change(),), {"base_version": 99}, "look again"),
        ((change(),), {"base_version": None}, "look again"),
    ],
)
def test_an_intervention_outside_the_limits_is_refused_and_has_no_effect(
    machine, changes, fields, why
):
    before = machine.decision
    answer = intervene(machine, changes=changes, **fields)
    assert not answer.accepted
    assert why in answer.reason
    assert machine.decision == before


def test_a_condition_is_parsed_where_it_will_be_evaluated():
    machine = ControlMachine(
        LIMITS, now_ns=0, check_predicate=lambda text: "" if text == "x > 1" else "no such metric"
    )
    machine.receive(command(Operation.RENEW, "r"), 0)
    assert intervene(machine, "a", (change(predicate="x > 1"),)).accepted
    assert intervene(machine, "b", (change(predicate="y > 1"),)).reason == "no such metric"


def test_a_dry_run_needs_the_version_of_nothing_and_is_never_applied(machine):
    answer = intervene(machine, dry_run=True, base_version=None)
    assert answer.accepted
    decision, _ = begin_step(machine, 0)
    assert decision.plans == ()
    assert len(decision.shadows) == 1
    assert decision.mode is Mode.RUNNING


def test_the_same_command_twice_has_one_effect_and_one_answer(machine):
    version = machine.version
    first = intervene(machine, base_version=version)
    again = intervene(machine, base_version=version)
    assert first == again
    assert len(machine.active) == 1
    other = intervene(machine, changes=(change(5),), base_version=machine.version)
    assert not other.accepted
    assert "another command" in other.reason


def test_a_command_from_long_ago_is_not_obeyed_again(machine):
    version = machine.version
    intervene(machine, "old", ttl=1.0, base_version=version)
    for i in range(REMEMBERED):
        machine.receive(command(Operation.REVERT, f"revert {i}"), 0)
    assert not intervene(machine, "old", ttl=1.0, base_version=version).accepted
    assert machine.active == ()


def test_a_hold_expires_into_a_stop_and_a_second_hold_does_not_postpone_that(machine):
    assert machine.receive(command(Operation.HOLD, "h", ttl=4.0), 0).accepted
    assert machine.receive(command(Operation.HOLD, "h2", ttl=9.0), 3 * SECOND).accepted
    assert begin_step(machine, 3 * SECOND)[0].mode is Mode.HELD
    decision, happened = begin_step(machine, 4 * SECOND)
    assert decision.mode is Mode.STOPPED
    assert happened[-1].detail == "the hold expired"


def test_a_held_agent_takes_single_steps(machine):
    machine.receive(command(Operation.HOLD, "h"), 0)
    step = command(Operation.STEP, "s", base_version=machine.version)
    assert machine.receive(step, 0).accepted
    decision, _ = begin_step(machine, 10)
    assert decision.mode is Mode.RUNNING
    assert begin_step(machine, 20)[0].mode is Mode.HELD


def test_a_stop_is_never_refused_and_ends_by_a_resume_alone(machine):
    intervene(machine)
    stop = command(Operation.STOP, "s", lease="", base_version=-5)
    assert machine.receive(stop, 0).accepted
    for other in (Operation.HOLD, Operation.REVERT, Operation.RENEW, Operation.RELEASE):
        machine.receive(command(other, f"then {other}"), 1)
    decision, _ = begin_step(machine, 500 * SECOND)
    assert decision.mode is Mode.STOPPED
    assert decision.plans == ()
    stale = command(Operation.RESUME, "r0", base_version=0)
    assert not machine.receive(stale, 501 * SECOND).accepted
    resume = command(Operation.RESUME, "r1", base_version=machine.version)
    assert machine.receive(resume, 501 * SECOND).accepted
    assert begin_step(machine, 501 * SECOND)[0].mode is Mode.RUNNING


def test_a_latched_stop_is_there_from_the_start():
    machine = ControlMachine(LIMITS, now_ns=0, stopped=True)
    assert begin_step(machine, 0)[0].mode is Mode.STOPPED


def test_without_a_safe_action_there_is_no_hold_and_no_stop_but_a_reason():
    machine = ControlMachine(replace(LIMITS, safe_action=False), now_ns=0)
    for operation in (Operation.HOLD, Operation.STOP):
        answer = machine.receive(command(operation, operation), 0)
        assert "needs a safe action" in answer.reason
    assert begin_step(machine, 0)[0].mode is Mode.RUNNING
    with pytest.raises(UserError, match="needs a safe action"):
        ControlMachine(replace(LIMITS, safe_action=False, require_oversight=True), now_ns=0)


def test_an_agent_that_requires_oversight_holds_without_it():
    machine = ControlMachine(replace(LIMITS, require_oversight=True), now_ns=0)
    decision, happened = begin_step(machine, 0)
    assert decision.mode is Mode.HELD
    assert happened[0].detail == "nobody oversees this agent yet"
    resume = command(Operation.RESUME, "early", base_version=machine.version)
    assert "oversight" in machine.receive(resume, 0).reason
    machine.receive(command(Operation.RENEW, "r"), 0)
    resume = command(Operation.RESUME, "now", base_version=machine.version)
    assert machine.receive(resume, 1).accepted
    assert begin_step(machine, 1)[0].mode is Mode.RUNNING
    assert begin_step(machine, 3 * SECOND)[0].mode is Mode.HELD


def test_a_flood_of_commands_to_an_agent_that_does_not_step_is_bounded(machine):
    for i in range(2 * REMEMBERED):
        machine.receive(command(Operation.REVERT, f"flood {i}"), 0)
    assert len(begin_step(machine, 0)[1]) == REMEMBERED


@pytest.fixture
def asking(machine):
    machine.ask("q1", "near the edge", 4 * SECOND, 0)
    return machine


def answering(machine, operation, now=SECOND, **fields):
    fields.setdefault("base_version", machine.version)
    fields.setdefault("targets", ("q1",))
    return machine.receive(command(operation, f"{operation} {now}", **fields), now)


def test_a_question_holds_until_it_is_approved(asking):
    assert begin_step(asking, 1)[0].mode is Mode.HELD
    resume = command(Operation.RESUME, "r", base_version=asking.version)
    assert "approve or refuse" in asking.receive(resume, 1).reason
    assert "does not ask" in answering(asking, Operation.APPROVE, targets=("q0",)).reason
    assert "look again" in answering(asking, Operation.APPROVE, 2, base_version=0).reason
    assert answering(asking, Operation.APPROVE, 3).accepted
    assert begin_step(asking, 4)[0].mode is Mode.RUNNING


def test_an_approval_may_give_another_action_for_one_step(asking):
    assert answering(asking, Operation.APPROVE, action=(0.5, -1.0)).accepted
    reader = TurnReader()
    assert begin_step(asking, 2 * SECOND, reader)[0].action == (0.5, -1.0)
    assert begin_step(asking, 2 * SECOND, reader)[0].action == ()


def test_a_question_that_nobody_answers_or_that_is_refused_becomes_a_stop(asking):
    assert answering(asking, Operation.REFUSE).accepted
    assert begin_step(asking, 3 * SECOND)[0].mode is Mode.HELD
    assert begin_step(asking, 4 * SECOND)[0].mode is Mode.STOPPED


def test_a_question_is_escalated_once_with_its_time_begun_anew(asking):
    assert answering(asking, Operation.ESCALATE, ttl=4.0).accepted
    assert "already" in answering(asking, Operation.ESCALATE, 2).reason
    assert begin_step(asking, 4 * SECOND)[0].mode is Mode.HELD
    assert begin_step(asking, 5 * SECOND)[0].mode is Mode.STOPPED


def test_a_person_who_holds_takes_the_question_over(asking):
    assert asking.receive(command(Operation.HOLD, "h"), 1).accepted
    assert "does not ask" in answering(asking, Operation.APPROVE).reason


def test_an_agent_that_asked_holds_before_the_control_thread_knows(machine):
    reader = TurnReader()
    reader.questions = 1
    assert reader.read(machine.decision, 0).mode is Mode.HELD


def test_without_oversight_an_agent_holds_although_the_control_thread_died():
    machine = ControlMachine(replace(LIMITS, require_oversight=True), now_ns=0)
    machine.receive(command(Operation.RENEW, "r"), 0)
    machine.receive(command(Operation.RESUME, "now", base_version=machine.version), 1)
    reader = TurnReader()
    assert reader.read(machine.decision, SECOND).mode is Mode.RUNNING
    assert reader.read(machine.decision, 2 * SECOND).mode is Mode.HELD


class Schedules(RuleBasedStateMachine):
    """Random commands, retries, pauses and steps; the model keeps deadlines of its own."""

    commands = Bundle("commands")

    def __init__(self):
        super().__init__()
        self.now = 0
        self.seq = 0
        self.count = 0
        self.machine = ControlMachine(LIMITS, now_ns=0)
        self.deadlines = {}
        self.leases = {}
        self.owner = {}
        self.stopped = False
        self.hold_until = None

        self.reader = TurnReader()
        self.old = (self.machine.decision, dict(self.deadlines))

    def _name(self):
        self.count += 1
        return f"c{self.count}"

    def _let_time_end_things(self):
        self.leases = {name: until for name, until in self.leases.items() if until > self.now}
        self.deadlines = {
            name: until
            for name, until in self.deadlines.items()
            if until > self.now and self.owner[name] in self.leases
        }
        if self.hold_until is not None and self.now >= self.hold_until:
            self.hold_until, self.stopped = None, True

    @rule(
        target=commands,
        lease=st.sampled_from("LM"),
        ttl=st.integers(1, 12),
        feature=st.integers(0, 70),
        norm=st.sampled_from([0.5, 1.0, 3.0]),
        kind=st.sampled_from(list(Kind)),
        stale=st.booleans(),
        dry=st.booleans(),
    )
    def intervene(self, lease, ttl, feature, norm, kind, stale, dry):
        base = self.machine.version - (1 if stale else 0)
        changes = (change(feature, kind, norm=norm),)
        made = Command(
            self._name(),
            Operation.INTERVENE,
            "ada",
            "fuzz",
            ttl * SECOND,
            lease,
            base,
            changes,
            dry_run=dry,
        )
        running = not self.stopped and self.hold_until is None
        answer = self.machine.receive(made, self.now)
        if answer.accepted:
            assert running
            assert lease in self.leases
            assert dry or not stale
            assert ttl <= 10
            assert feature < 64
            assert norm <= 2.0
            self.deadlines[made.command_id] = self.now + ttl * SECOND
            self.owner[made.command_id] = lease
        return made

    @rule(
        target=commands,
        operation=st.sampled_from(
            [o for o in Operation if o is not Operation.INTERVENE and o not in ANSWERING]
        ),
        lease=st.sampled_from("LM"),
        ttl=st.integers(1, 12),
        fresh=st.booleans(),
    )
    def ask(self, operation, lease, ttl, fresh):
        made = Command(
            self._name(),
            operation,
            "bob",
            "fuzz",
            ttl * SECOND,
            lease,
            self.machine.version if fresh else -1,
        )
        answer = self.machine.receive(made, self.now)
        if operation not in {Operation.STEP, Operation.RESUME}:
            assert answer.accepted
        elif answer.accepted:
            assert fresh
        match operation:
            case Operation.STOP:
                self.stopped, self.hold_until = True, None
                self.deadlines.clear()
            case Operation.HOLD:
                self.deadlines.clear()
                until = self.now + ttl * SECOND
                if not self.stopped:
                    self.hold_until = min(until, self.hold_until or until)
            case Operation.REVERT:
                self.deadlines.clear()
            case Operation.RENEW:
                self.leases[lease] = self.now + min(ttl, 2) * SECOND
            case Operation.RELEASE:
                self.leases.pop(lease, None)
                self._let_time_end_things()
            case Operation.RESUME if answer.accepted:
                self.stopped, self.hold_until = False, None
        return made

    @rule(made=commands)
    @precondition(lambda self: self.count > 0)
    def arrives_again(self, made):
        if made.operation is Operation.RENEW:
            return  # a renewal again is a renewal
        before = self.machine.decision
        self.machine.receive(made, self.now)
        assert self.machine.decision == before

    @rule(pause=st.integers(1, 5 * SECOND))
    def time_goes_by(self, pause):
        self.now += pause
        self._let_time_end_things()
        self.machine.tick(self.now)

    @rule(back=st.integers(1, SECOND))
    def the_clock_runs_backwards(self, back):
        before = self.machine.decision
        self.machine.tick(self.now - back)
        assert self.machine.decision == before

    @rule(timeout=st.integers(1, 12))
    def a_rule_of_the_agent_fires(self, timeout):
        self.reader.questions += 1
        if not self.machine.decision.grant:
            assert self.reader.read(self.machine.decision, self.now).mode is not Mode.RUNNING
        self.machine.ask(self._name(), "near the edge", timeout * SECOND, self.now)
        if not self.stopped and self.hold_until is None:
            self.deadlines.clear()
            self.hold_until = self.now + timeout * SECOND

    @rule(
        target=commands,
        operation=st.sampled_from(sorted(ANSWERING)),
        fresh=st.booleans(),
        right=st.booleans(),
        ttl=st.integers(1, 12),
    )
    def somebody_answers(self, operation, fresh, right, ttl):
        question = self.machine.question
        made = Command(
            self._name(), operation, "bob", "fuzz", ttl * SECOND,
            base_version=self.machine.version if fresh else -1,
            targets=(question.question_id if question and right else "another",),
        )  # fmt: skip
        answer = self.machine.receive(made, self.now)
        if answer.accepted:
            assert question is not None
            assert right
            assert self.hold_until is not None
            if operation is Operation.APPROVE:
                assert fresh
                self.hold_until = None
            if operation is Operation.ESCALATE:
                assert not question.escalated
                self.hold_until = self.now + ttl * SECOND
        return made

    @rule()
    def the_agent_steps(self):
        granted = self.machine.decision.grant
        turn, _ = begin_step(self.machine, self.now, self.reader)
        if turn.mode is Mode.RUNNING and not granted:
            assert not self.stopped
            assert self.hold_until is None
        if self.stopped:
            assert turn.mode is Mode.STOPPED
        if turn.mode is not Mode.RUNNING or granted:
            assert not turn.plans
        if granted and self.hold_until is not None:
            assert self.reader.read(self.machine.decision, self.now).mode is Mode.HELD

    @rule()
    def a_decision_is_published(self):
        self.old = (self.machine.decision, dict(self.deadlines))

    @rule()
    def the_agent_steps_while_the_control_thread_is_late(self):
        decision, deadlines = self.old
        turn = self.reader.read(decision, self.now)
        if turn.plans or turn.shadows:
            assert self.now < min(deadlines.values())
        if self.now >= decision.hold_until_ns:
            assert turn.mode is Mode.STOPPED

    @invariant()
    def exactly_what_should_be_in_force_is(self):
        assert {one.command.command_id for one in self.machine.active} == set(self.deadlines)
        if self.deadlines:
            assert self.machine.decision.until_ns <= min(self.deadlines.values())
        expected = (
            Mode.STOPPED
            if self.stopped
            else Mode.HELD
            if self.hold_until is not None
            else Mode.RUNNING
        )
        assert self.machine.mode is expected
        for plan in self.machine.decision.plans:
            assert plan.max_norm <= LIMITS.max_norm[plan.hook_point]


TestSchedules = Schedules.TestCase
TestSchedules.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
