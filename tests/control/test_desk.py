"""The control desk: what is written before what is sent, and who is refused."""

import pytest

from interlatent_live.control.commands import Change, Command, Operation
from interlatent_live.control.desk import (
    ANSWER_NS,
    BURST,
    FRESH_NS,
    SECOND_PERSON_NS,
    ControlDesk,
    ToAgentPeer,
    ToOperatorPeer,
    Write,
)
from interlatent_live.control.machine import Fate, Mode
from interlatent_live.control.wire import (
    AgentAnswer,
    AgentEvent,
    AgentEvents,
    AgentHello,
    AgentState,
    Do,
    EventsKept,
    HookOffer,
    Look,
    QuestionShown,
    Role,
    Second,
    Submit,
    Told,
)
from interlatent_live.interventions.values import Intervention, Kind
from interlatent_live.wire.speaking import may_speak

SECOND = 1_000_000_000
STEER = Change("net.0", "sha256:aa", Intervention(3, Kind.STEER, 1.0), 1.0)


def hello(boot="b1", agent="walker"):
    return AgentHello(
        agent=agent, run_id="r", boot_id=boot, policy_hash="p", safe_action=True,
        hook_points=[HookOffer(name="net.0", transcoder="sha256:aa", features=64, max_norm=2.0)],
        require_oversight=False, lease_ms=2000, max_ttl_ms=60_000,
    )  # fmt: skip


def command(operation, command_id="c1", actor="ada", **fields):
    changes = (STEER,) if operation is Operation.INTERVENE else ()
    return Command(command_id, operation, actor, "a test", 5 * SECOND, "L", 0, changes, **fields)


class Desk:
    """A desk with one agent, and the disk under a test's control."""

    def __init__(self, **fields):
        self.desk = ControlDesk(**fields)
        self.now = 0
        self.wall = 10**18
        self.to_agent, self.to_operator, self.writes, self.waiting = [], [], [], []
        self.take(self.desk.from_agent(b"agent", "", hello(), 0))

    def take(self, instructions):
        for one in instructions:
            match one:
                case ToAgentPeer(_, message):
                    self.to_agent.append(message)
                case ToOperatorPeer(_, message):
                    self.to_operator.append(message)
                case Write():
                    self.writes.append(one)
                    self.waiting.append(one)

    def submit(self, made, role=Role.OPERATOR, boot="b1", request="", sent=None, peer=b"op"):
        asked = Submit(
            id=request or f"r-{made.command_id}", sent_ns=self.wall if sent is None else sent,
            agent="walker", boot_id=boot, role=role, command=made,
        )  # fmt: skip
        self.take(self.desk.from_operator(peer, asked, self.now, self.wall))

    def disk(self, problem=""):
        waiting, self.waiting = self.waiting, []
        for one in waiting:
            self.take(self.desk.written(one.token, f"seal{one.token}", problem, self.now))

    def agent_says(self, message, peer=b"agent"):
        self.take(self.desk.from_agent(peer, "", message, self.now))

    @property
    def done(self):
        return [one for one in self.to_agent if isinstance(one, Do)]

    @property
    def result(self):
        return self.to_operator[-1]

    @property
    def kinds(self):
        return [one.kind for one in self.writes]


@pytest.fixture
def desk():
    return Desk()


@pytest.mark.parametrize(
    "operation", [Operation.INTERVENE, Operation.STEP, Operation.RESUME, Operation.APPROVE]
)
def test_what_adds_energy_is_sent_only_after_its_entry_is_on_the_disk(desk, operation):
    targets = ("q",) if operation is Operation.APPROVE else ()
    desk.submit(command(operation, targets=targets))
    assert desk.done == []
    assert desk.kinds[-1] == "permitted"
    desk.disk()
    (do,) = desk.done
    assert do.seal == f"seal{desk.writes[-1].token}"
    assert do.boot_id == "b1"


def test_without_an_audit_nothing_that_adds_energy_happens(desk):
    desk.submit(command(Operation.INTERVENE))
    desk.disk("no space left")
    assert desk.done == []
    assert "no space left" in desk.result.reason


@pytest.mark.parametrize(
    "operation", [Operation.STOP, Operation.HOLD, Operation.REVERT, Operation.RELEASE]
)
def test_what_takes_energy_out_waits_for_nothing(desk, operation):
    desk.desk.from_agent(b"second", "", hello("b2"), 0)
    desk.submit(command(operation), boot="", sent=0)
    assert [do.boot_id for do in desk.done] == ["b1", "b2"], "every life of the agent"
    assert desk.kinds[-1] == "commanded"


def test_a_viewer_commands_nothing_not_even_a_stop(desk):
    for operation in (Operation.STOP, Operation.INTERVENE, Operation.RENEW):
        desk.submit(command(operation, f"c-{operation}"), role=Role.VIEWER)
        assert "viewer" in desk.result.reason
    desk.disk()
    assert desk.done == []


def test_a_request_again_or_replayed_has_no_second_effect(desk):
    made = command(Operation.INTERVENE)
    desk.submit(made)
    desk.disk()
    desk.submit(made)
    desk.submit(made, request="another request")
    assert len(desk.done) == 1
    desk.agent_says(AgentAnswer(boot_id="b1", command_id="c1", accepted=True, reason="", version=1))
    assert desk.result.accepted
    desk.submit(made)
    assert desk.result.accepted, "the first answer again"
    desk.submit(made, request="yet another")
    assert "forwarded before" in desk.result.reason
    desk.disk()
    assert len(desk.done) == 1


def test_an_old_request_a_dead_life_and_no_agent_are_refused(desk):
    desk.submit(command(Operation.RESUME, "old"), sent=desk.wall - FRESH_NS - 1)
    assert "older than a minute" in desk.result.reason
    desk.submit(command(Operation.RESUME, "dead"), boot="b0")
    assert "no agent" in desk.result.reason
    desk.submit(command(Operation.RESUME, "none"), boot="")
    assert "no agent" in desk.result.reason
    desk.disk()
    assert desk.done == []


def test_who_asks_too_often_is_slowed_but_can_always_stop(desk):
    for i in range(BURST + 1):
        desk.submit(command(Operation.RESUME, f"c{i}"))
    assert "too often" in desk.result.reason
    desk.submit(command(Operation.STOP, "stop"))
    assert desk.done[-1].command.operation is Operation.STOP


def test_a_large_intervention_waits_for_another_person():
    desk = Desk(second_above=0.4)
    desk.submit(command(Operation.INTERVENE))
    assert desk.result.waits_for_second
    desk.disk()
    assert desk.done == []
    for actor, role, why in (("ada", Role.ADMIN, "another"), ("eve", Role.VIEWER, "viewer")):
        second = Second(id=f"s-{actor}", sent_ns=0, command_id="c1", actor=actor, role=role)
        desk.take(desk.desk.from_operator(b"op2", second, 1, desk.wall))
        assert why in desk.result.reason
    second = Second(id="s", sent_ns=0, command_id="c1", actor="bob", role=Role.OPERATOR)
    desk.take(desk.desk.from_operator(b"op2", second, 1, desk.wall))
    assert desk.writes[-1].body["second"] == "bob"
    desk.disk()
    assert len(desk.done) == 1


def test_a_second_person_who_never_comes_is_a_no():
    desk = Desk(second_above=0.4)
    desk.submit(command(Operation.INTERVENE))
    desk.take(desk.desk.tick(SECOND_PERSON_NS + 1))
    assert [one for one in desk.to_operator if "no second person" in getattr(one, "reason", "")]
    desk.disk()
    assert desk.done == []


def test_an_escalated_question_is_for_an_admin(desk):
    question = QuestionShown(question_id="q", rule="edge", left_ms=9, escalated=True)
    desk.agent_says(
        AgentState(
            boot_id="b1", version=1, mode=Mode.HELD, row=0, obeyed=True, latched=True,
            question=question,
        )
    )  # fmt: skip
    desk.submit(command(Operation.APPROVE, "c1", targets=("q",)))
    assert "admin" in desk.result.reason
    desk.submit(command(Operation.APPROVE, "c2", targets=("q",)), role=Role.ADMIN)
    desk.disk()
    assert len(desk.done) == 1


def test_events_are_kept_once_and_confirmed_when_they_are_on_the_disk(desk):
    event = AgentEvent(
        number=1, version=1, row=5, command_id="c1", operation=Operation.HOLD, fate=Fate.APPLIED,
        actor="ada", detail="", time_ns=1,
    )  # fmt: skip
    desk.take(desk.desk.from_operator(b"op", Look(id="l", sent_ns=0, follow=True), 0, 0))
    desk.agent_says(AgentEvents(boot_id="b1", events=[event]))
    assert isinstance(desk.result, Told)
    assert desk.kinds[-1] == "applied"
    assert not [one for one in desk.to_agent if isinstance(one, EventsKept)]
    desk.disk()
    assert EventsKept(boot_id="b1", number=1) in desk.to_agent
    desk.agent_says(AgentEvents(boot_id="b1", events=[event]))
    assert desk.kinds.count("applied") == 1


def test_a_silent_agent_is_said_to_be_silent(desk):
    desk.submit(command(Operation.STOP))
    desk.take(desk.desk.tick(ANSWER_NS + 1))
    assert [one for one in desk.to_operator if "did not answer" in getattr(one, "reason", "")]


def test_a_stranger_cannot_speak_for_an_agent(desk):
    assert may_speak("agent/walker/ab", "walker")
    assert may_speak("service/any/ab", "walker")
    assert not may_speak("agent/other/ab", "walker")
    assert not may_speak("viewer/walker/ab", "walker")
    desk.take(desk.desk.from_agent(b"x", "agent/other/ab", hello("b9"), 0))
    assert desk.desk.refused["name"] == 1
    forged = AgentAnswer(boot_id="b1", command_id="c1", accepted=True, reason="", version=1)
    desk.submit(command(Operation.STOP))
    desk.agent_says(forged, peer=b"x")
    assert not [one for one in desk.to_operator if getattr(one, "accepted", False)]
