"""A consumer that dies: what a lossless sender sends again, and what its bound costs."""

from __future__ import annotations

import time

from interlatent_live.errors import UserError
from interlatent_live.services.network import Network
from interlatent_live.services.receiving import RowReceiver
from interlatent_live.services.sending import FeatureSender
from interlatent_live.wire.codec import encode_features
from interlatent_live.wire.receiver_link import Asked, Deliver
from interlatent_live.wire.security import Domain
from interlatent_live.wire.sockets import bound_endpoint
from tests.support.feature_stream import TRANSCODERS, manifest, message

ROWS = 10


class Consumer:
    """Takes rows, and says that they are done with only where told to."""

    def __init__(self, network, endpoint="tcp://127.0.0.1:*"):
        self.receiver = RowReceiver(network, endpoint, "test", Domain.SERVICES)
        self.endpoint = bound_endpoint(self.receiver.socket)
        self.rows: list[int] = []
        self.declared: set[int] = set()
        self.done = False

    def turn(self):
        for one in (*self.receiver.receive(), *self.receiver.tick()):
            if isinstance(one, Asked):
                self.receiver.accept(one)
            elif isinstance(one, Deliver):
                first = one.message.batch.steps.first_seq
                self.rows += range(first, first + len(one.message.batch.steps))
                for drop in one.message.drops:
                    self.declared |= {*range(drop.first_seq, drop.first_seq + drop.count)}
                if self.done:
                    self.receiver.processed(one.boot_id)


def successor(network, dead):
    """Another consumer in the place of one whose socket is closed, which takes a moment."""
    dead.receiver.socket.close(linger=0)
    deadline = time.monotonic() + 10
    while True:
        try:
            return Consumer(network, dead.endpoint)
        except UserError:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def until(condition, *turns):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        for turn in turns:
            turn()
        time.sleep(0.005)


def offer(sender, numbers):
    for number in numbers:
        batch = message(ROWS * number, ROWS).batch
        sender.offer(batch, encode_features(batch))


def test_what_a_dead_consumer_had_not_acknowledged_is_sent_to_the_next():
    with Network(None) as network:
        first = Consumer(network)
        sender = FeatureSender(network, first.endpoint, 1 << 20, lossless=True)

        def turn():
            sender.receive()
            sender.tick()

        sender.open_stream(manifest(), TRANSCODERS, 0)
        first.done = True
        offer(sender, range(5))
        until(lambda: sender.link.counts("boot-1").acknowledged == 50, first.turn, turn)
        first.done = False
        offer(sender, range(5, 12))
        until(lambda: len(first.rows) == 120, first.turn, turn)
        second = successor(network, first)
        second.done = True
        offer(sender, range(12, 15))
        until(lambda: 149 in second.rows, second.turn, turn)
        until(lambda: sender.link.counts("boot-1").in_flight == 0, second.turn, turn)
        assert second.rows == [*range(50, 150)], "all that was not acknowledged, once"
        assert not second.declared
        assert sender.lost() == {}
        assert sender.queued_bytes == 0
        sender.close()
        second.receiver.close()


def test_beyond_its_bound_a_lossless_sender_declares_the_oldest_lost():
    with Network(None) as network:
        first = Consumer(network)
        size = sum(len(frame) for frame in encode_features(message(0, ROWS).batch))
        sender = FeatureSender(network, first.endpoint, 4 * size, lossless=True)

        def turn():
            sender.receive()
            sender.tick()

        sender.open_stream(manifest(), TRANSCODERS, 0)
        until(lambda: sender.link.blocked("boot-1", 1, 1) is None, first.turn, turn)
        for number in range(8):
            offer(sender, [number])
            until(lambda n=number: len(first.rows) == ROWS * (n + 1), first.turn, turn)
        second = successor(network, first)
        offer(sender, range(8, 20))
        second.done = True
        until(lambda: 199 in second.rows, second.turn, turn)
        until(lambda: sender.link.counts("boot-1").in_flight == 0, second.turn, turn)
        lost = {*range(200)} - {*second.rows}
        assert lost <= second.declared
        assert sum(sender.lost().values()) == len(lost)
        sender.close()
        second.receiver.close()
