"""A receiver in a process of its own for ``bench hook``: it keeps the books and throws rows away.

Run as a module; writes its endpoint to standard output and serves until it is killed.
"""

from __future__ import annotations

import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import zmq

from interlatent_live.errors import WireError
from interlatent_live.wire.clock import read_clock
from interlatent_live.wire.codec import decode, encode_message
from interlatent_live.wire.receiver_link import Asked, Deliver, ReceiverHub, Reply
from interlatent_live.wire.sockets import bind_router, bound_endpoint, receive_from, send_to

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from interlatent_live.wire.receiver_link import HubInstruction


@contextmanager
def running_sink() -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A sink's endpoint and process; killed at the end."""
    command = [sys.executable, "-m", "interlatent_live.bench.hook_sink"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603  ours
        try:
            assert process.stdout is not None  # noqa: S101  PIPE was asked for
            yield process.stdout.readline().strip(), process
        finally:
            process.kill()


def main() -> None:
    """Serve for ever."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    router = bind_router(context, "tcp://127.0.0.1:*")
    hub = ReceiverHub()

    def carry_out(instructions: Iterable[HubInstruction]) -> None:
        for instruction in instructions:
            match instruction:
                case Reply(peer, message):
                    send_to(router, peer, encode_message(message))
                case Asked(peer, hello):
                    carry_out(hub.accept(read_clock(), peer, hello))
                case Deliver(boot_id, _):
                    carry_out(hub.processed(read_clock(), boot_id, 1))

    sys.stdout.write(bound_endpoint(router) + "\n")
    sys.stdout.flush()
    while True:
        router.poll(20)
        while (received := receive_from(router, protected=False)) is not None:
            now = read_clock()
            try:
                message = decode(received.frames)
            except WireError as error:
                carry_out(hub.on_garbage(now, received.peer, error))
                continue
            carry_out(hub.on_message(now, received.peer, message, size=received.size()))
        carry_out(hub.on_tick(read_clock()))


if __name__ == "__main__":
    main()
