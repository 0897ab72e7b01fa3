"""A receiver over a real socket, as small as one can be: for agents that a test runs."""

from __future__ import annotations

import time

from interlatent_live.errors import UserError, WireError
from interlatent_live.wire.clock import read_clock
from interlatent_live.wire.codec import decode, encode_message
from interlatent_live.wire.receiver_link import Asked, Deliver, Ended, ReceiverHub, Reply
from interlatent_live.wire.security import speaks_for
from interlatent_live.wire.sockets import bind_router, bound_endpoint, receive_from, send_to


class Service:
    """Binds, accepts every stream, keeps what it gets."""

    def __init__(self, context, endpoint="tcp://127.0.0.1:*", *, keys=None, config=None):
        self.hub = ReceiverHub(config, speaks_for=speaks_for)
        self.socket = _bind(context, endpoint, keys)
        self.endpoint = bound_endpoint(self.socket)
        self.protected = keys is not None
        self.batches = []
        self.ended = []
        self.manifests = {}

    def serve(self, until, seconds=30.0):
        """Serve until ``until()`` is true; fails the test when that takes too long."""
        deadline = time.monotonic() + seconds
        while not until():
            assert time.monotonic() < deadline, "the agent did not do it in time"
            self.turn()

    def turn(self):
        self.socket.poll(5)
        now = read_clock()
        while (received := receive_from(self.socket, protected=self.protected)) is not None:
            try:
                message = decode(received.frames)
            except WireError as error:
                self.carry_out(now, self.hub.on_garbage(now, received.peer, error))
                continue
            out = self.hub.on_message(
                now, received.peer, message, size=received.size(), user_id=received.user_id
            )
            self.carry_out(now, out)
        self.carry_out(now, self.hub.on_tick(now))

    def carry_out(self, now, instructions):
        for instruction in instructions:
            match instruction:
                case Reply(peer, message):
                    send_to(self.socket, peer, encode_message(message))
                case Asked(peer, hello):
                    self.manifests[hello.manifest.boot_id] = hello.manifest
                    self.carry_out(now, self.hub.accept(now, peer, hello))
                case Deliver(boot_id, message):
                    self.batches.append(message.batch)
                    self.carry_out(now, self.hub.processed(now, boot_id))
                case Ended():
                    self.ended.append(instruction)
                case _:
                    pass

    def close(self):
        self.socket.close(linger=0)


def _bind(context, endpoint, keys):
    # libzmq gives a port back in the background, a moment after its socket was closed.
    deadline = time.monotonic() + 5
    while True:
        try:
            return bind_router(context, endpoint, keys=keys)
        except UserError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
