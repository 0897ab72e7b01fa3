"""A renewal that lay in a frozen process lengthens no lease, in virtual time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from interlatent_live.control.commands import Change, Command, Operation
from interlatent_live.control.delays import WINDOW_NS, Delays
from interlatent_live.control.desk import ControlDesk, ToAgentPeer
from interlatent_live.control.machine import ControlLimits, ControlMachine, Fate
from interlatent_live.control.wire import AgentHello, Beat, Do, HookOffer, Look, Role, Submit
from interlatent_live.interventions.values import Intervention, Kind

MS = 1_000_000
SECOND = 1000 * MS
LEASE = SECOND
RENEWED = 300 * MS
"""How often a live operator renews."""
WAY = 2 * MS
LIMITS = ControlLimits(
    max_norm={"net.0": 2.0}, transcoders={"net.0": "sha256:aa"}, features={"net.0": 64},
    max_ttl_ns=60 * SECOND, lease_ns=LEASE, safe_action=True,
)  # fmt: skip
HELLO = AgentHello(
    agent="walker", run_id="r", boot_id="b", policy_hash="p", safe_action=True,
    hook_points=[HookOffer(name="net.0", transcoder="sha256:aa", features=64, max_norm=2.0)],
    require_oversight=False, lease_ms=LEASE // MS, max_ttl_ms=60_000,
)  # fmt: skip


class Road:
    """An operator, the service and an agent, each with a clock of its own.

    ``frozen`` are [from, to) in which the service, or the agent's control thread, does nothing:
    what comes meanwhile waits and is read at the end.
    """

    def __init__(self, *, frozen_service=(0, 0), frozen_agent=(0, 0), service=0, agent=0):
        self.desk, self.delays = ControlDesk(), Delays()
        self.machine = ControlMachine(LIMITS, now_ns=agent)
        self.frozen_service, self.frozen_agent = frozen_service, frozen_agent
        self.service, self.agent = service, agent
        self.desk.from_agent(b"agent", "", HELLO, 0)
        self.ends = 0
        """When what is in force ends, by the newest decision that has something in force."""
        self.refused = []

    def at_service(self, made, sent):
        """When the service reads what an operator sent, and what it then tells the agent."""
        at = self._read(sent + WAY, self.frozen_service)
        clock = at + self.service
        told = self.desk.from_operator(b"op", made, clock, clock)
        return at, [one.message for one in told if isinstance(one, ToAgentPeer)]

    def at_agent(self, message, sent):
        at = self._read(sent + WAY, self.frozen_agent)
        clock = at + self.agent
        late = self.delays.late_ns(message.sent_ns, clock)
        if isinstance(message, Do):
            answer = self.machine.receive(message.command, clock, late_ns=message.late_ns + late)
            self.refused += [] if answer.accepted else [answer.reason]
            if self.machine.active:
                # What the acting thread ends it by, whatever becomes of the control thread.
                self.ends = self.machine.decision.until_ns - self.agent

    def send(self, made, sent):
        at, told = self.at_service(made, sent)
        for message in told:
            self.at_agent(message, at)

    def _read(self, at, frozen):
        return frozen[1] if frozen[0] <= at < frozen[1] else at


def request(number, operation, sent, version=0):
    steering = Change("net.0", "sha256:aa", Intervention(3, Kind.STEER, 1.0), 1.0)
    changes = (steering,) if operation is Operation.INTERVENE else ()
    made = Command(
        f"c{number}", operation, "ada", "a test", 30 * SECOND, "L", version, changes,
        dry_run=bool(changes),
    )  # fmt: skip
    return Submit(
        id=f"r{number}", sent_ns=sent, agent="walker", boot_id="b", role=Role.OPERATOR,
        command=made,
    )  # fmt: skip


def lived(road, *, dies):
    """An operator looks, intervenes and renews until it dies; returns when it renewed last, and
    when its change ended.

    What it sent is read in the order of reading, as from a connection's queue; meanwhile the
    agent's clock goes on.
    """
    road.send(Look(id="look", sent_ns=10**9), 10**9)
    start = 2 * SECOND
    sent = [(start, request(0, Operation.RENEW, start))]
    sent.append((start + 20 * MS, request(1, Operation.INTERVENE, start + 20 * MS)))
    at = start + RENEWED
    number = 2
    while at < dies:
        sent.append((at, request(number, Operation.RENEW, at)))
        at, number = at + RENEWED, number + 1
    for when, made in sent:
        road.send(made, when)
    renewed = [when for when, made in sent if made.command.operation is Operation.RENEW]
    road.machine.tick(sent[-1][0] + 20 * SECOND + road.agent)
    assert road.machine.active == ()
    return renewed[-1], road.ends


moments = st.integers(0, 4000).map(lambda ms: 2500 * MS + ms * MS)
clocks = st.sampled_from([0, 7 * SECOND, 3600 * SECOND])


@given(moments, st.integers(1, 6000), moments, clocks, clocks, st.booleans())
def test_a_frozen_process_lengthens_no_lease(freezes, lasts, dies, service, agent, which):
    frozen = (freezes, freezes + lasts * MS)
    names = {"frozen_service": frozen} if which else {"frozen_agent": frozen}
    road = Road(service=service, agent=agent, **names)
    last, ended = lived(road, dies=dies)
    # The longest that the shortest way can hide is that way itself, on either leg.
    assert ended <= last + LEASE + 2 * WAY
    fates = [one.fate for one in road.machine.happened()]
    assert Fate.LEASE_LOST in fates


def test_a_stuck_renewal_brings_no_dead_lease_back():
    road = Road(frozen_service=(2900 * MS, 6 * SECOND))
    last, ended = lived(road, dies=3300 * MS)
    assert last < ended <= last + LEASE + 2 * WAY
    assert road.machine.leases == ()
    assert any("held up for" in one for one in road.refused)


def test_without_a_freeze_a_lease_lives_as_long_as_it_is_renewed():
    road = Road(service=5 * SECOND, agent=9 * SECOND)
    last, ended = lived(road, dies=8 * SECOND)
    assert ended == last + LEASE + 2 * WAY
    assert road.refused == []


def test_beats_tell_an_agent_what_is_held_up_before_the_first_command():
    delays = Delays()
    assert delays.late_ns(Beat(sent_ns=5).sent_ns, 105) == 0
    assert delays.late_ns(1000, 4100) == 3000
    assert delays.late_ns(2000, 2100) == 0


def test_clocks_that_drift_or_are_set_are_learnt_again():
    delays = Delays()
    at = 0
    for _ in range(100):
        at += SECOND
        assert delays.late_ns(at, at + 50) == 0
    # Set forward by a second: everything seems held up, for two windows at most.
    since = at
    while at < since + 2 * WINDOW_NS + 2 * SECOND:
        at += SECOND
        late = delays.late_ns(at, at + 50 + SECOND)
        assert late in {0, SECOND}
    assert late == 0
    # After a silence longer than any window, what is held up is still seen.
    at += 10 * WINDOW_NS
    assert delays.late_ns(at - 3 * WINDOW_NS, at + 50 + SECOND) == 3 * WINDOW_NS
