"""Pictures of the environment for people: a few a second, of the lowest priority.

They travel on a connection of their own, as messages of the kind ``frame``, so that no picture ever
stands before a step. The acting thread hands over an array, when one is due; shrinking, encoding
and sending happen on a thread that the kernel is told to run last. There is room for one picture:
a newer one takes the place of one that has not been encoded, and what the network does not take at
once is dropped. All that is dropped is counted, and none of it is an error.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import threading
import time
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import zmq

from interlatent_live.closing import Closing
from interlatent_live.errors import UserError
from interlatent_live.wire.codec import encode_picture
from interlatent_live.wire.messages import Picture
from interlatent_live.wire.sockets import (
    SocketTuning,
    check_endpoint,
    connect_dealer,
    send_message,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from interlatent_live.agent.tap import Tap

logger = logging.getLogger(__name__)

DEFAULT_PICTURES: Final = "tcp://127.0.0.1:28426"
"""Where the console takes pictures unless configured otherwise."""
LARGEST_JPEG: Final = 64 * 1024
"""Bytes of a picture; what is larger is made again with less quality, and then dropped."""
QUALITIES: Final = (75, 45)
NICE: Final = 10
TUNING: Final = SocketTuning(
    send_queue=2, receive_queue=2, send_buffer=128 * 1024, receive_buffer=16 * 1024
)


class Pictures(Closing):
    """Takes pictures from the acting thread; a context manager.

    Args:
        tap: whose agent is shown.
        endpoint: ``endpoints.pictures`` of the console. Pictures leave this machine only where
            this says so.
        hz: pictures a second at most.
        longest_side: pixels; larger pictures are shrunk.

    Raises:
        UserError: when Pillow is missing, a number is out of range, or the endpoint is beyond this
            machine and the tap has no keys.
    """

    def __init__(
        self,
        tap: Tap,
        *,
        endpoint: str = DEFAULT_PICTURES,
        hz: float = 2.0,
        longest_side: int = 320,
    ) -> None:
        if not 0.01 <= hz <= 10.0 or not 16 <= longest_side <= 1024:
            raise UserError(
                f"pictures: hz is {hz} (0.01 to 10) and longest_side {longest_side} (16 to 1024)"
            )
        check_endpoint(endpoint, protected=tap.options.keys is not None, listening=False)
        try:
            import PIL.Image  # noqa: F401, PLC0415 - only who sends pictures needs it
        except ImportError as error:
            raise UserError("pictures need Pillow: pip install pillow") from error
        self.sent = self.dropped = self.failed = 0
        self._tap, self._endpoint = tap, endpoint
        self._every_s, self._longest = 1.0 / hz, longest_side
        self._due = 0.0
        self._slot: tuple[NDArray[np.uint8], int, int] | None = None
        self._lock = threading.Lock()
        self._news = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="interlatent-pictures", daemon=True)
        self._thread.start()

    @property
    def due(self) -> bool:
        """Whether the next picture may be offered; costs one clock read."""
        return time.monotonic() >= self._due

    def offer(self, rgb: Any, env: int = 0) -> None:
        """Take a picture of a copy, if one is due; never waits and never raises.

        Args:
            rgb: uint8 [height, width, 3]; copied.
            env: the copy that it shows.
        """
        if not self.due:
            return
        self._due = time.monotonic() + self._every_s
        try:
            array = np.array(rgb, np.uint8)
        except (TypeError, ValueError) as error:
            self._fault(error)
            return
        if array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
            self._fault(ValueError(f"a picture of shape {array.shape}"))
            return
        with self._lock:  # held for an assignment by either side
            self.dropped += self._slot is not None
            self._slot = array, env, self._tap.rows
        self._news.set()

    def close(self) -> None:
        """End the thread; a picture that waits is not sent."""
        self._closing = True
        self._news.set()
        self._thread.join(2.0)

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            # Of this thread alone, on Linux.
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        socket = connect_dealer(context, self._endpoint, keys=self._tap.options.keys, tuning=TUNING)
        try:
            while self._news.wait() and not self._closing:
                self._news.clear()
                with self._lock:
                    slot, self._slot = self._slot, None
                if slot is None:
                    continue
                try:
                    self._send(socket, *slot)
                except Exception as error:  # noqa: BLE001 - a picture is never worth a failure
                    self._fault(error)
        finally:
            socket.close(0)
            context.term()

    def _send(self, socket: zmq.Socket[bytes], rgb: NDArray[np.uint8], env: int, row: int) -> None:
        jpeg, width, height = encode_jpeg(rgb, self._longest)
        if len(jpeg) > LARGEST_JPEG:
            self._count(dropped=1)
            return
        picture = Picture(
            boot_id=self._tap.boot_id,
            seq=row,
            env=env,
            width=width,
            height=height,
            jpeg=jpeg,
            sent_ns=time.time_ns(),
        )
        sent = send_message(socket, encode_picture(picture))
        self._count(sent=sent, dropped=not sent)

    def _count(self, *, sent: int = 0, dropped: int = 0) -> None:
        with self._lock:
            self.sent += sent
            self.dropped += dropped

    def _fault(self, error: Exception) -> None:
        self.failed += 1
        if self.failed == 1:
            logger.error("a picture failed; later failures are only counted", exc_info=error)


def encode_jpeg(rgb: NDArray[np.uint8], longest_side: int) -> tuple[bytes, int, int]:
    """A JPEG of a picture [height, width, 3], its width and its height."""
    from PIL import Image  # noqa: PLC0415 - only who sends pictures needs it

    image = Image.fromarray(rgb)
    scale = longest_side / max(image.size)
    if scale < 1.0:
        width, height = (max(1, round(side * scale)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=2.0)
    data = b""
    for quality in QUALITIES:
        out = io.BytesIO()
        image.save(out, "JPEG", quality=quality)
        data = out.getvalue()
        if len(data) <= LARGEST_JPEG:
            break
    return data, *image.size
