"""What one turn of an outlet sends."""

from interlatent_live.agent.acting import Point
from interlatent_live.agent.outlets import LossyOutlet, Packer, Source
from interlatent_live.agent.ring import Ring, RingLayout
from interlatent_live.stream import HookPointSpec
from interlatent_live.wire.clock import read_clock
from interlatent_live.wire.codec import decode
from interlatent_live.wire.messages import Welcome
from interlatent_live.wire.sender_link import SenderLink
from tests.support.wire_network import make_manifest

HOOK = HookPointSpec("a", 3, 2)
WELCOME = Welcome(
    boot_id="boot", server="", credit_steps=10**6, credit_bytes=10**9, max_rows=512,
    max_bytes=10**9, received=0, missing=(), echo_ns=0, sent_ns=0,
)  # fmt: skip


def write(ring):
    ring.facts[ring.slot]["time_ns"] = read_clock().wall_ns
    ring.facts[ring.slot]["valid"] = True
    ring.commit(1)


def outlet_of(ring, send):
    point = Point("a", 3, 2)
    point.first_fired = 0
    link = SenderLink()
    link.start(read_clock())
    link.open_stream(read_clock(), make_manifest())
    link.on_message(read_clock(), WELCOME)
    source = Source(ring, {"a": point}, lambda rows: rows, 2, lambda _: None)
    return LossyOutlet(source, link, Packer("boot", "f4"), send, max_age_s=10.0)


def rows_of(frames):
    return len(decode(frames).batch.steps)


def test_rows_that_come_while_a_turn_sends_wait_for_the_next_one():
    ring = Ring(RingLayout((0,), (HOOK,), 2, 2, 64))
    sent = []

    def send(frames):
        sent.append(rows_of(frames))
        write(ring)
        return True

    outlet = outlet_of(ring, send)
    for _ in range(5):
        write(ring)
    outlet.pump(read_clock())
    assert sent == [5]
    outlet.pump(read_clock())
    assert sent == [5, 1]
    assert ring.backlog() == 1


def test_all_that_waited_goes_in_one_turn_also_across_the_rings_end():
    ring = Ring(RingLayout((0,), (HOOK,), 2, 2, 8))
    sent = []

    def send(frames):
        sent.append(rows_of(frames))
        return True

    outlet = outlet_of(ring, send)
    for rows in (5, 6):
        for _ in range(rows):
            write(ring)
        outlet.pump(read_clock())
    assert sent == [5, 3, 3]
    assert outlet.idle()
