"""A tiny encoder for tests: a ROUTER in a thread that decodes, keeps the books and acknowledges."""

from __future__ import annotations

import threading
import time

import numpy as np
import zmq

from interlatent_live.errors import WireError
from interlatent_live.wire.clock import read_clock
from interlatent_live.wire.codec import decode, encode_message
from interlatent_live.wire.receiver_link import (
    Asked,
    Deliver,
    Ended,
    ReceiverConfig,
    ReceiverHub,
    Reply,
)


class Service:
    """Binds ``endpoint``; ``rows`` fills up with what was delivered.

    ``frozen`` stops it from reading (as SIGSTOP would), ``refuse`` makes it refuse hellos with that
    sentence, ``processing`` False keeps it from giving credit back.
    """

    def __init__(self, endpoint="tcp://127.0.0.1:*", refuse="", **config):
        self.hub = ReceiverHub(ReceiverConfig(**config))
        self.refuse = refuse
        self.frozen = threading.Event()
        self.processing = True
        self.delivered = []
        self.manifests = {}
        self.hellos = []
        self.goodbyes = {}
        self._ready = threading.Event()
        self._stop = threading.Event()
        self._wanted = endpoint
        self.endpoint = ""
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._ready.wait(5)

    def _run(self):  # noqa: C901  one loop reads better whole
        context = zmq.Context()
        socket = context.socket(zmq.ROUTER)
        socket.setsockopt(zmq.LINGER, 0)
        for _ in range(50):
            try:
                socket.bind(self._wanted)
                break
            except zmq.ZMQError:
                time.sleep(0.05)
        self.endpoint = str(socket.getsockopt_string(zmq.LAST_ENDPOINT)).rstrip("\0")
        self._ready.set()

        def carry(instructions):
            for one in instructions:
                match one:
                    case Reply(peer, message):
                        socket.send_multipart([peer, *encode_message(message)])
                    case Asked(peer, hello):
                        self.hellos.append(hello)
                        self.manifests[hello.manifest.boot_id] = hello.manifest
                        boot = hello.manifest.boot_id
                        if self.refuse:
                            carry(
                                self.hub.refuse(
                                    read_clock(), peer, boot, reason="policy", message=self.refuse
                                )
                            )
                        else:
                            carry(self.hub.accept(read_clock(), peer, hello))
                    case Deliver(boot, message):
                        self.delivered.append(message)
                        if self.processing:
                            carry(self.hub.processed(read_clock(), boot, 1))
                    case Ended(boot, statement):
                        self.goodbyes[boot] = statement

        while not self._stop.is_set():
            if self.frozen.is_set() or not socket.poll(10):
                if self.frozen.is_set():
                    time.sleep(0.01)
                else:
                    carry(self.hub.on_tick(read_clock()))
                continue
            peer, *body = socket.recv_multipart()
            try:
                message = decode(body)
            except WireError as error:
                carry(self.hub.on_garbage(read_clock(), peer, error))
                continue
            size = sum(map(len, body))
            carry(self.hub.on_message(read_clock(), peer, message, size=size))
        socket.close(0)
        context.term()

    def close(self):
        self._stop.set()
        self._thread.join(5)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def column(self, name, boot=None):
        """A column of everything delivered (of one boot), in the order of delivery."""
        parts = []
        for message in list(self.delivered):
            steps = message.batch.steps
            if boot is not None and getattr(message, "boot_id", message.batch) != boot:
                continue
            if name == "seq":
                parts.append(steps.first_seq + np.arange(len(steps)))
            elif name.startswith(("x:", "y:")):
                seen = message.batch.activations[name[2:]]
                parts.append(seen.x if name[0] == "x" else seen.y)
            else:
                parts.append(getattr(steps, name))
        return np.concatenate(parts) if parts else np.zeros(0)


def until(condition, timeout=10.0):
    """Wait for a condition; whether it came true."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.01)
    return bool(condition())
