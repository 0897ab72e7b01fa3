"""A viewer's end of the pictures that agents send: the console passes them on to whoever listens.

Few, small, and the first to be dropped: who is too slow for them gets fewer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import zmq

from interlatent_live.closing import Closing
from interlatent_live.errors import WireError
from interlatent_live.wire.codec import decode
from interlatent_live.wire.limits import Limits
from interlatent_live.wire.messages import Picture
from interlatent_live.wire.sockets import SocketTuning, connect_subscriber, receive_message

if TYPE_CHECKING:
    from collections.abc import Iterator

    from interlatent_live.wire.keys import ClientKeys

LARGEST: Final = 64 * 1024
"""Bytes of a JPEG."""
LIMITS: Final = Limits(header_bytes=4096, body_bytes=LARGEST, picture_bytes=LARGEST)
PASSING: Final = SocketTuning(
    send_queue=8, receive_queue=8, send_buffer=128 * 1024, receive_buffer=128 * 1024,
    largest_message=LARGEST + 8192,
)  # fmt: skip
"""Of the way from the console on, on either side: a few pictures, and then they are dropped."""
TOPIC: Final = "frame/"
"""What topics of pictures begin with, the boot follows: the word of their kind on the wire."""
MOST_AT_ONCE: Final = 16


class PictureClient(Closing):
    """Pictures of every agent of a system.

    Args:
        endpoint: ``endpoints.pictures_feed``.
        keys: a viewer's key, for a feed beyond this machine.

    Raises:
        UserError: when the endpoint is beyond this machine and there are no keys.
    """

    def __init__(self, endpoint: str, *, keys: ClientKeys | None = None) -> None:
        self.refused = 0
        self._context = zmq.Context()
        self._socket = connect_subscriber(
            self._context, endpoint, [TOPIC], keys=keys, tuning=PASSING
        )

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()
        self._context.term()

    def pictures(self) -> Iterator[Picture]:
        """Those that have come; what is none is counted."""
        for _ in range(MOST_AT_ONCE):
            frames = receive_message(self._socket)
            if frames is None:
                return
            try:
                message = decode(frames[1:], LIMITS)
            except WireError:
                self.refused += 1
                continue
            if isinstance(message, Picture):
                yield message
            else:
                self.refused += 1
