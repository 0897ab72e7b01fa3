from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interlatent_live.errors import WireError
from interlatent_live.wire.codec import decode, encode
from interlatent_live.wire.ledger import SenderLedger
from interlatent_live.wire.messages import (
    Ack,
    DropReason,
    Heartbeat,
    Hello,
    Refuse,
    StepsMessage,
    Welcome,
)
from interlatent_live.wire.receiver_link import (
    Asked,
    Deliver,
    Detached,
    Ended,
    ReceiverConfig,
    ReceiverHub,
    Reply,
)
from interlatent_live.wire.sender_link import (
    LinkState,
    PeerLost,
    Refused,
    Resume,
    SenderConfig,
    SenderLink,
    StreamUp,
    total_counts,
)
from tests.support.wire_network import Network, drop_reasons, make_batch, make_manifest


def up(**changes):
    network = Network(**changes)
    network.deliver()
    assert network.link.state is LinkState.UP
    return network


def refusals(instructions):
    """The reasons of the refusals among what a hub answered."""
    replies = [one.message for one in instructions if isinstance(one, Reply)]
    return [message.reason for message in replies if isinstance(message, Refuse)]


def hello(boot_id="boot", agent="agent"):
    return Hello(make_manifest(boot_id, agent))


def test_rows_arrive_and_are_acknowledged():
    network = up()
    for _ in range(10):
        assert network.send(7) is None
        network.advance(0.05)
    network.settle()
    assert network.got == list(range(70))
    counts = network.link.counts("boot")
    assert (counts.sent, counts.acknowledged, counts.in_flight) == (70, 70, 0)
    assert network.hub.counts("boot").received == 70


def test_without_a_peer_rows_may_not_go_and_are_declared_later():
    network = Network(reachable=False)
    network.advance(12.0)
    assert network.link.counters.connections > 1
    assert network.send(5) is DropReason.NO_PEER
    network.link.declare("boot", 0, 5, DropReason.NO_PEER)
    network.settle()
    assert network.send(5) is None
    network.settle()
    assert network.got == [5, 6, 7, 8, 9]
    assert network.hub.counts("boot").declared == {DropReason.NO_PEER: 5}
    assert network.hub.counts("boot").undeclared == 0


def test_streams_that_are_silent_cost_a_turn_nothing(monkeypatch):
    network = up()
    for number in range(200):
        one = make_manifest(f"boot-{number}", f"agent-{number}")
        network.run(network.link.open_stream(network.now(), one))
    network.advance(3.0)
    looked = []
    counts = SenderLedger.counts

    def looking(ledger):
        looked.append(ledger)
        return counts(ledger)

    monkeypatch.setattr(SenderLedger, "counts", looking)
    network.advance(5.0)
    assert looked == []
    network.send(3)
    network.advance(1.5)
    network.settle()
    assert len(set(map(id, looked))) == 1
    assert network.got == [0, 1, 2]


def test_declarations_reach_the_receiver_even_when_no_row_follows():
    network = up()
    network.send(3)
    network.link.declare("boot", 3, 4, DropReason.OVERRUN)
    network.settle()
    assert network.hub.counts("boot").declared == {DropReason.OVERRUN: 4}
    assert network.link.pending_drops("boot") == ()


def test_credit_stops_a_sender_whose_receiver_does_not_process():
    config = ReceiverConfig(window_steps=100, ack_interval=0.02)
    network = up(receiver_config=config, process=False)
    sent = 0
    while network.send(10) is None:
        sent += 10
        network.advance(0.05)
    assert sent == 100
    assert network.link.blocked("boot", 10, 10) is DropReason.NO_CREDIT
    network.advance(1.0)
    assert network.send(10) is DropReason.NO_CREDIT
    network.work(count=2)
    network.advance(0.2)
    assert network.send(20) is None
    assert network.send(10) is DropReason.NO_CREDIT


def test_credit_in_bytes_bounds_what_waits():
    config = ReceiverConfig(window_bytes=20_000, least_bytes=10_000, total_bytes=40_000)
    network = up(receiver_config=config, process=False)
    while network.send(16) is None:
        network.advance(0.1)
    waiting = network.hub._peers[network.identity].credit.waiting
    assert 15_000 < waiting.bytes <= 20_000


def test_a_sender_that_ignores_its_credit_is_dropped():
    config = ReceiverConfig(window_steps=10)
    network = up(receiver_config=config, process=False)
    frames = encode(StepsMessage("boot", make_batch(0, 11)))
    out = network.hub.on_message(
        network.hub_now(), network.identity, decode(frames), size=len(frames[1])
    )
    assert refusals(out) == ["credit"]
    assert any(isinstance(one, Detached) for one in out)
    assert network.hub.peers() == 0
    assert network.hub.budget.reserved == 0


def test_a_frozen_receiver_is_noticed_and_found_again():
    network = up()
    network.send(5)
    network.reachable = False
    network.advance(5.5)
    assert PeerLost("silent") in network.events
    assert network.link.blocked("boot", 1, 1) is DropReason.NO_PEER
    network.settle()
    assert network.link.state is LinkState.UP
    assert network.balanced()


def test_a_cut_connection_declares_what_was_under_way():
    network = up()
    network.send(5)
    network.deliver()
    network.send(6)
    network.cut()
    network.send(7)
    network.settle()
    assert network.got == list(range(5))
    counts = network.link.counts("boot")
    assert counts.lost == {DropReason.PEER_LOST: 13}
    assert network.hub.counts("boot").declared == {DropReason.PEER_LOST: 13}
    assert network.hub.counts("boot").undeclared == 0
    network.send(2)
    network.settle()
    assert network.got == [0, 1, 2, 3, 4, 18, 19]


def test_a_restarted_receiver_is_told_what_its_predecessor_cost():
    network = up()
    network.send(5)
    network.settle()
    network.send(6)
    network.restart_receiver()
    network.settle()
    network.send(1)
    network.settle()
    assert network.hub.counts("boot").declared == {DropReason.PEER_LOST: 6}
    assert network.hub.counts("boot").received == 1
    assert network.link.counts("boot").acknowledged == 6


def test_rows_received_but_not_processed_survive_a_cut():
    network = up(process=False)
    network.send(5)
    network.deliver()
    network.cut()
    network.advance(1.0)
    assert network.link.counts("boot").in_flight == 5
    network.settle()
    counts = network.link.counts("boot")
    assert (counts.acknowledged, counts.declared) == (5, 0)


def test_rows_of_an_older_connection_are_refused():
    network = up()
    network.send(3)
    left_behind = list(network.to_hub)
    old = network.identity
    network.cut()
    network.advance(1.0)
    for frames in left_behind:
        out = network.hub.on_message(network.hub_now(), old, decode(frames), size=1)
        assert not any(isinstance(one, Deliver) for one in out)
    network.settle()
    assert network.got == []
    assert network.link.counts("boot").lost == {DropReason.PEER_LOST: 3}
    assert network.hub.counts("boot").declared == {DropReason.PEER_LOST: 3}


def test_a_vanished_message_is_missed_reported_and_declared():
    network = up()
    network.send(4)
    network.deliver()
    network.send(5)
    network.to_hub.pop()
    network.send(6)
    network.advance(0.1)
    assert network.hub.counts("boot").undeclared == 5
    assert network.link.counts("boot").acknowledged <= 4
    network.settle()
    assert network.link.counts("boot").lost == {DropReason.MISSING: 5}
    assert network.hub.counts("boot").undeclared == 5
    assert network.link.counts("boot").acknowledged == 10


def test_the_last_message_may_vanish_too():
    network = up()
    network.send(4)
    network.to_hub.pop()
    network.settle()
    assert network.hub.counts("boot").undeclared == 4
    assert network.link.counts("boot").lost == {DropReason.MISSING: 4}


def test_vanished_messages_do_not_use_up_the_credit():
    network = up(receiver_config=ReceiverConfig(window_steps=100))
    for _ in range(50):
        network.send(20)
        network.to_hub.clear()
        network.advance(2.0, step=0.1)
    assert network.send(60) is None


def test_reordered_and_repeated_messages_change_nothing():
    network = up()
    network.send(4)
    network.send(5)
    network.send(6)
    first, second, third = network.to_hub
    network.to_hub.clear()
    network.to_hub.extend([third, first, first, second, third])
    network.settle()
    assert sorted(network.got) == list(range(15))
    counts = network.hub.counts("boot")
    assert (counts.received, counts.undeclared, counts.duplicate) == (15, 0, 10)
    assert network.link.counts("boot").acknowledged == 15


def test_overlapping_rows_are_cut_to_the_new_ones():
    network = up()
    network.send(4)
    network.deliver()
    frames = encode(StepsMessage("boot", make_batch(2, 6)))
    network.run_hub(
        network.hub.on_message(network.hub_now(), network.identity, decode(frames), size=9)
    )
    assert network.got == list(range(8))


def test_lossless_sends_again_what_was_not_processed():
    network = up(sender_config=SenderConfig(lossless=True))
    network.send(5)
    network.settle()
    network.send(6)
    network.cut()
    network.send(7)
    network.settle()
    assert network.events.count(Resume("boot", 5)) == 1
    assert network.link.counts("boot").in_flight == 0
    assert network.link.next_seq("boot") == 5
    network.send(13)
    network.settle()
    assert network.got == list(range(18))
    counts = network.link.counts("boot")
    assert (counts.acknowledged, counts.declared, counts.in_flight) == (18, 0, 0)


def test_lossless_fills_holes():
    network = up(sender_config=SenderConfig(lossless=True))
    network.send(5)
    network.deliver()
    network.send(6)
    network.to_hub.pop()
    network.send(7)
    network.advance(1.0)
    assert network.spool_from == 5
    network.send(6)
    network.send(7)
    network.settle()
    assert sorted(network.got) == list(range(18))
    assert network.hub.counts("boot").undeclared == 0
    assert network.link.counts("boot").acknowledged == 18


def test_a_refused_stream_is_offered_again():
    network = Network()
    hub = network.hub
    refusal = hub.refuse(
        network.hub_now(),
        network.identity,
        "boot",
        reason="policy",
        message="no transcoder for this policy",
        retry_ms=3000,
    )
    frames = network.to_hub.popleft()
    assert isinstance(decode(frames), Hello)
    network.run_hub(refusal)
    network.deliver()
    assert Refused("boot", "policy", "no transcoder for this policy") in network.events
    assert network.send(1) is DropReason.NO_PEER
    network.advance(2.5)
    assert network.send(1) is DropReason.NO_PEER
    network.advance(2.0)
    assert network.send(1) is None
    assert network.link.counters.refusals == {"policy": 1}
    assert network.link.counters.connections == 1


def test_goodbye_is_final():
    network = up()
    network.send(5)
    network.settle()
    network.link.declare("boot", 5, 2, DropReason.OVERRUN)
    network.run(network.link.close_stream(network.now(), "boot"))
    network.deliver()
    ended = [one for one in network.events if isinstance(one, Ended)]
    assert len(ended) == 1
    assert ended[0].statement.sent == 7
    assert ended[0].statement.lost == {DropReason.OVERRUN: 2}
    assert network.hub.counts("boot").declared_total == 2
    assert network.hub.peers() == 0
    assert network.hub.budget.reserved == 0


def test_what_flies_at_the_end_is_declared():
    network = up(process=False)
    network.send(5)
    closing = network.link
    ledger = closing._streams["boot"].ledger
    network.run(closing.close(network.now()))
    assert ledger.counts().lost == {DropReason.SHUTDOWN: 5}
    assert ledger.counts().balanced()
    assert closing.state is LinkState.CLOSED
    assert closing.on_tick(network.now()) == []


def test_a_connection_may_be_used_again_after_its_last_stream():
    """The receiver forgets its grants with the last stream; the sender must forget them too."""
    network = up(receiver_config=ReceiverConfig(window_steps=100, ack_interval=0.02))
    for number in range(5):
        boot_id = "boot" if number == 0 else f"boot-{number}"
        if number:
            network.run(network.link.open_stream(network.now(), make_manifest(boot_id)))
            network.deliver()
        for start in range(0, 300, 10):
            assert network.send(10, boot_id=boot_id) is None, (number, start)
            network.advance(0.05)
        network.settle()
        assert network.link.counts(boot_id).acknowledged == 300
        network.run(network.link.close_stream(network.now(), boot_id))
        network.advance(0.1)
    assert network.hub.counters.refusals == {}
    assert network.link.counters.connections == 1


def test_one_link_may_carry_many_streams():
    network = Network()
    for boot_id in ("one", "two"):
        network.run(network.link.open_stream(network.now(), make_manifest(boot_id)))
    network.deliver()
    assert {one.boot_id for one in network.events if isinstance(one, StreamUp)} == {
        "boot",
        "one",
        "two",
    }
    assert network.hub.peers() == 1
    for boot_id in ("one", "two"):
        frames = encode(StepsMessage(boot_id, make_batch(0, 3)))
        network.to_hub.append(frames)
        network.link.sent(network.now(), boot_id, first_seq=0, rows=3, size=len(frames[1]))
    network.settle()
    counts = total_counts(network.link.counts(boot) for boot in network.link.boot_ids())
    assert (counts.sent, counts.acknowledged) == (6, 6)


def test_a_boot_id_in_use_is_not_given_away():
    network = up()
    stranger = replace(hello(agent="other"))
    out = network.hub.on_message(network.hub_now(), b"stranger", stranger, size=1)
    assert refusals(out) == ["manifest"]


def test_a_key_speaks_only_for_its_agent():
    def rule(user_id, manifest):
        return None if user_id == manifest.agent else f"key {user_id!r} is not {manifest.agent!r}"

    network = Network()
    hub = ReceiverHub(speaks_for=rule)
    now = network.hub_now()
    out = hub.on_message(now, b"p", hello(agent="mine"), size=1, user_id="other")
    assert isinstance(out[0], Reply)
    assert isinstance(out[0].message, Refuse)
    assert out[0].message.reason == "key"
    assert "'other' is not 'mine'" in out[0].message.message
    out = hub.on_message(now, b"p", hello(agent="mine"), size=1, user_id="mine")
    assert isinstance(out[0], Asked)


def test_garbage_is_counted_and_answered_once_a_second():
    network = up()
    error = WireError("dtype", "tensor 'x\x1b' has dtype 'O'")
    answers = []
    for _ in range(100):
        answers += network.hub.on_garbage(network.hub_now(), network.identity, error)
    assert len(answers) == 1
    assert network.hub.counters.refusals == {"dtype": 100}
    assert "\x1b" not in answers[0].message.message
    encode(answers[0].message)
    decode(encode(answers[0].message))


def test_a_flood_of_messages_is_cut_to_the_rate_and_its_rows_are_declared():
    config = ReceiverConfig(messages_per_s=50)
    network = up(receiver_config=config)
    now = network.hub_now()
    through = [network.hub.paced(now, network.identity) for _ in range(200)].count(None)
    assert through == 50
    assert network.hub.counters.refusals == {"rate": 150}
    assert network.hub.paced(now, b"another") is None
    later = now._replace(mono=now.mono + 0.1)
    assert [network.hub.paced(later, network.identity) for _ in range(20)].count(None) in {4, 5}
    # What a shell throws away for it is a hole like any other.
    network.send(4)
    network.to_hub.clear()
    network.send(3)
    network.settle()
    assert network.link.counts("boot").lost == {DropReason.MISSING: 4}
    assert network.hub.counts("boot").received == 3


def test_strangers_who_come_anew_for_each_message_take_bounded_memory():
    hub = ReceiverHub(ReceiverConfig(max_peers=8, messages_per_s=10))
    now = Network().hub_now()
    for number in range(1000):
        hub.paced(now, f"peer-{number}".encode())
    assert len(hub._paces) == 8


def test_rows_must_be_what_the_manifest_announced():
    network = up()
    wrong = StepsMessage("boot", make_batch(0, 2))
    wrong.batch.steps.env[0] = 3
    network.run_hub(network.hub.on_message(network.hub_now(), network.identity, wrong, size=10))
    assert network.hub.counters.refusals == {"manifest": 1}
    assert network.got == []


@pytest.mark.parametrize("message", [Heartbeat(sent_ns=0), StepsMessage("b", make_batch(0, 1))])
def test_a_stranger_must_say_hello(message):
    network = up()
    out = network.hub.on_message(network.hub_now(), b"stranger", message, size=1)
    assert refusals(out) == ["hello"]


def test_silent_peers_are_forgotten_and_their_streams_remembered_for_a_while():
    network = up(receiver_config=ReceiverConfig(remember=60.0))
    network.send(3)
    network.settle()
    network.reachable = False
    network.advance(7.0)
    network.run_hub(network.hub.on_tick(network.hub_now()))
    assert Detached("boot") in network.events
    assert not network.hub.connected("boot")
    assert network.hub.streams() == ("boot",)
    assert network.hub.budget.reserved == 0
    network.advance(70.0, step=1.0)
    assert network.hub.streams() == ()


def test_memory_is_bounded_for_a_thousand_connections():
    config = ReceiverConfig(total_bytes=64 * 1024 * 1024)
    hub = ReceiverHub(config)
    now = Network().hub_now()
    welcomed = busy = 0
    for number in range(1000):
        out = hub.accept(now, f"peer-{number}".encode(), hello(boot_id=f"boot-{number}"))
        message = out[-1].message if isinstance(out[-1], Reply) else None
        welcomed += isinstance(message, Welcome)
        busy += isinstance(message, Refuse) and message.reason == "busy"
    assert welcomed + busy == 1000
    assert welcomed > 100
    assert hub.budget.reserved <= config.total_bytes


def test_the_clock_offset_is_found():
    network = up(skew_ns=5_000_000_000)
    network.advance(2.0)
    offset = network.link.clock_offset()
    assert offset is not None
    assert abs(offset.offset_ns - 5_000_000_000) <= offset.round_trip_ns // 2 + 60_000_000
    seen = network.hub.clock_offset("boot")
    network.send(1)
    network.advance(3.0)
    seen = network.hub.clock_offset("boot")
    assert seen is not None
    assert abs(seen.offset_ns + 5_000_000_000) < 60_000_000


def test_a_wall_clock_that_jumps_loses_no_peer():
    network = up()
    network.skew_ns = -3_600_000_000_000
    network.advance(5.0)
    assert network.link.counters.peers_lost == 0
    network.skew_ns = 3_600_000_000_000
    network.advance(5.0)
    assert network.link.counters.peers_lost == 0


def test_old_rows_are_too_old():
    network = up(sender_config=SenderConfig(age_limit=2.0))
    now = network.now()
    assert not network.link.too_old(now, now.wall_ns - 1_000_000_000)
    assert network.link.too_old(now, now.wall_ns - 3_000_000_000)


def test_an_acknowledgement_of_the_future_ends_the_connection():
    network = up()
    ack = Ack(
        streams=(_entry("boot", processed=99),),
        credit_steps=0,
        credit_bytes=0,
        echo_ns=0,
        echo_received_ns=0,
        sent_ns=0,
    )
    network.run(network.link.on_message(network.now(), ack))
    assert PeerLost("nonsense") in network.events


def _entry(boot_id, processed):
    from interlatent_live.wire.messages import StreamAck  # noqa: PLC0415 - one use

    return StreamAck(
        boot_id=boot_id,
        received=processed,
        processed=processed,
        rows_received=0,
        rows_declared=0,
        rows_undeclared=0,
        rows_duplicate=0,
    )


def test_reconnection_waits_longer_each_time_and_never_in_step():
    waits = []
    for seed in range(5):
        network = Network(reachable=False)
        network.link._rng.seed(seed)
        opened: list[float] = []
        while len(opened) < 6:
            before = network.link.counters.connections
            network.advance(0.1, step=0.1)
            if network.link.counters.connections > before:
                opened.append(network.mono)
        waits.append(tuple(opened))
    assert len(set(waits)) > 1
    longest = SenderConfig().hello_timeout + SenderConfig().backoff_longest
    for times in waits:
        assert all(later - earlier <= longest + 0.3 for earlier, later in itertools.pairwise(times))


CALM = ["send", "send", "send", "overrun", "deliver", "tick", "freeze", "thaw", "cut"]
ROUGH = [*CALM, "stall", "unstall", "restart"]


def happenings(names):
    return st.lists(st.tuples(st.sampled_from(names), st.integers(1, 9)), max_size=40)


@settings(max_examples=60, deadline=None)
@given(happenings(ROUGH))
def test_the_books_balance_whatever_happens(actions):
    network = Network(receiver_config=ReceiverConfig(window_steps=40, remember=1e6))
    for action, amount in actions:
        network.perform(action, amount)
        assert network.balanced()
    restarted = any(action == "restart" for action, _ in actions)
    network.settle()
    network.settle()
    assert network.send(1) is None
    network.settle()
    sent = network.link.counts("boot")
    seen = network.hub.counts("boot")
    assert sent.balanced()
    assert sent.in_flight == 0
    # No row came twice, no hole was left undeclared, and both ends say the same.
    assert seen.undeclared == 0
    if not restarted:
        assert len(network.got) == len(set(network.got))
        assert sent.acknowledged == seen.received == len(network.got)
        assert sent.lost == seen.declared
        assert sent.sent == seen.received + seen.declared_total


@settings(max_examples=60, deadline=None)
@given(happenings([*CALM, "vanish"]), st.data())
def test_lossless_delivers_every_row_exactly_once(actions, data):
    network = Network(
        sender_config=SenderConfig(lossless=True),
        receiver_config=ReceiverConfig(window_steps=40, remember=1e6),
    )
    produced = 0
    for action, amount in actions:
        if action in {"send", "overrun"}:
            produced += amount
        elif action == "vanish":
            if network.to_hub:
                del network.to_hub[data.draw(st.integers(0, len(network.to_hub) - 1))]
        else:
            network.perform(action, amount)
        network.replay_to(produced, amount)
        assert network.balanced()
    for _ in range(6):
        network.settle()
        network.replay_to(produced, 8)
    network.settle()
    assert drop_reasons(network) == set()
    assert sorted(network.got) == list(range(produced))
    assert network.hub.counts("boot").undeclared == 0
    assert network.link.counts("boot").acknowledged == produced


def test_times_that_contradict_each_other_are_refused():
    with pytest.raises(ValueError, match="two heartbeats"):
        SenderConfig(heartbeat=3.0)
    with pytest.raises(ValueError, match="budget"):
        ReceiverHub(ReceiverConfig(total_bytes=10))


def test_a_link_can_start_without_streams():
    network = Network()
    link = SenderLink()
    link.start(network.now())
    out = link.open_stream(network.now(), make_manifest())
    assert len(out) == 1
