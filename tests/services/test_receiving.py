"""What a receiver says last: rows that were processed are not declared lost because it ended."""

from __future__ import annotations

import time

import pytest
import zmq

from interlatent_live.services.network import Network
from interlatent_live.services.receiving import RowReceiver
from interlatent_live.stream import HookPointSpec, Manifest, StepBatch, steps_without_columns
from interlatent_live.wire.clock import read_clock
from interlatent_live.wire.codec import decode, encode_steps
from interlatent_live.wire.messages import Ack
from interlatent_live.wire.receiver_link import Asked, Deliver, ReceiverConfig
from interlatent_live.wire.security import Domain
from interlatent_live.wire.sender_link import SenderLink, Transmit
from interlatent_live.wire.sockets import (
    bound_endpoint,
    connect_dealer,
    receive_message,
    send_message,
)

BOOT = "boot"
MANIFEST = Manifest("agent", "run", BOOT, "sha256:0", (HookPointSpec("h", 2, 2),), ())
ROWS = 8
WITHIN_S = 10.0


@pytest.fixture
def network():
    with Network(None) as made:
        yield made


def carry_out(dealer, instructions):
    for one in instructions:
        if isinstance(one, Transmit):
            send_message(dealer, one.frames)


def hear(dealer, link):
    """Take in one message, if there is one; returns it."""
    if not dealer.poll(200):
        return None
    message = decode(receive_message(dealer))
    carry_out(dealer, link.on_message(read_clock(), message))
    return message


def test_what_was_processed_is_acknowledged_before_the_socket_goes(network):
    # Nothing is acknowledged by time alone within this test.
    config = ReceiverConfig(ack_interval=3600.0)
    receiver = RowReceiver(
        network, "tcp://127.0.0.1:*", "endpoints.agents", Domain.AGENTS, config=config
    )
    context = zmq.Context()
    dealer = connect_dealer(context, bound_endpoint(receiver.socket))
    link = SenderLink()
    link.open_stream(read_clock(), MANIFEST)
    frames = encode_steps(StepBatch(steps_without_columns(ROWS, 0), {}), boot_id=BOOT)
    try:
        carry_out(dealer, link.start(read_clock()))
        delivered = sent = False
        deadline = time.monotonic() + WITHIN_S
        while not delivered and time.monotonic() < deadline:
            for received in receiver.receive():
                if isinstance(received, Asked):
                    receiver.accept(received)
                delivered = delivered or isinstance(received, Deliver)
            hear(dealer, link)
            if not sent and link.blocked(BOOT, ROWS, 1) is None:
                sent = send_message(dealer, frames)
                link.sent(read_clock(), BOOT, first_seq=0, rows=ROWS, size=sum(map(len, frames)))
        assert delivered
        receiver.processed(BOOT)
        while hear(dealer, link) is not None:
            continue
        assert link.counts(BOOT).acknowledged == 0
        receiver.close()
        assert isinstance(hear(dealer, link), Ack)
        assert link.counts(BOOT).acknowledged == ROWS
    finally:
        context.destroy(linger=0)
        receiver.socket.close()
