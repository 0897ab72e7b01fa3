"""A proxy of whole ZeroMQ messages that duplicates, reorders and loses them.

TCP does none of this to bytes, yet relays, replays and restarted peers do it to messages, and the
wire's rules promise to survive it. Each connecting agent gets a DEALER of its own towards the
encoder, so that the encoder sees as many peers as there are.
"""

from __future__ import annotations

import random
import threading
from typing import TYPE_CHECKING, Any, Final, Self

import zmq

from interlatent_live.wire.codec import kind_of
from interlatent_live.wire.sockets import (
    bind_router,
    bound_endpoint,
    connect_dealer,
    receive_from,
    receive_message,
    send_message,
    send_to,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    Frames = list[Any]
    Meddle = Callable[[Frames], list[Frames]]

_TURN_MS: Final = 10


class MessageProxy:
    """A context manager; set :attr:`meddle` at any time.

    Attributes:
        meddle: what becomes of a message from an agent: the messages to pass on instead of it.
        meddled: messages that were not simply passed on.
    """

    def __init__(self, target: str) -> None:
        self.meddle: Meddle | None = None
        self.endpoint = ""
        self._target = target
        self._backs: dict[bytes, zmq.Socket[bytes]] = {}
        self._bound = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="message-proxy", daemon=True)

    def __enter__(self) -> Self:
        """Bind and begin."""
        self._thread.start()
        if not self._bound.wait(10):
            raise TimeoutError("the message proxy could not bind")
        return self

    def __exit__(self, *_: object) -> None:
        """Stop; what is under way is lost."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        context: zmq.Context[Any] = zmq.Context()
        try:
            front = bind_router(context, "tcp://127.0.0.1:*")
            self.endpoint = bound_endpoint(front)
            self._bound.set()
            poller = zmq.Poller()
            poller.register(front, zmq.POLLIN)
            while not self._stop.is_set():
                poller.poll(_TURN_MS)
                while (received := receive_from(front, protected=False)) is not None:
                    back = self._backs.get(received.peer)
                    if back is None:
                        back = connect_dealer(context, self._target)
                        self._backs[received.peer] = back
                        poller.register(back, zmq.POLLIN)
                    for frames in self._changed([bytes(one) for one in received.frames]):
                        send_message(back, frames)
                for peer, back in self._backs.items():
                    while (answer := receive_message(back)) is not None:
                        send_to(front, peer, answer)
        finally:
            context.destroy(linger=0)

    def _changed(self, frames: Frames) -> list[Frames]:
        meddle = self.meddle
        return [frames] if meddle is None else meddle(frames)


class Duplicates:
    """Says some messages twice, and a few once more a little later."""

    def __init__(self, share: float = 0.1, seed: int = 0) -> None:
        self.count = 0
        self._share = share
        self._random = random.Random(seed)
        self._later: Frames | None = None

    def __call__(self, frames: Frames) -> list[Frames]:
        """The message, perhaps an older one before it, perhaps itself again."""
        out = [frames]
        if self._later is not None and self._random.random() < 0.2:
            out.insert(0, self._later)
            self._later = None
            self.count += 1
        if self._random.random() < self._share:
            out.append(frames)
            self.count += 1
            self._later = frames
        return out


class Reorders:
    """Holds some messages of rows back until the next one or two have gone by."""

    def __init__(self, share: float = 0.1, seed: int = 0) -> None:
        self.count = 0
        self._share = share
        self._random = random.Random(seed)
        self._held: Frames | None = None
        self._wait = 0

    def __call__(self, frames: Frames) -> list[Frames]:
        """What goes on now."""
        if self._held is not None:
            self._wait -= 1
            if self._wait > 0:
                return [frames]
            held, self._held = self._held, None
            return [frames, held]
        if kind_of(frames) == "steps" and self._random.random() < self._share:
            self._held, self._wait = frames, self._random.randint(1, 2)
            self.count += 1
            return []
        return [frames]
