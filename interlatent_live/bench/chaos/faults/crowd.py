"""Many agents at once, and no descriptor left to take them in.

A *crowd* is one torch-free process with hundreds of identities: a connection each, with the real
state machine of a link behind it, that says hello and keeps its heart beating.
``python -m interlatent_live.bench.chaos.faults.crowd`` takes its orders as JSON from its first
argument, says how many were let in whenever a line comes on standard input, and says goodbye for
all when that ends.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self

import msgspec
import zmq

from interlatent_live.errors import WireError
from interlatent_live.stream import HookPointSpec, Manifest, MetricSpec
from interlatent_live.wire.clock import read_clock
from interlatent_live.wire.codec import decode
from interlatent_live.wire.sender_link import Close, LinkState, Open, SenderLink, Transmit
from interlatent_live.wire.sockets import connect_dealer, receive_message, send_message

if TYPE_CHECKING:
    from collections.abc import Iterable

    from interlatent_live.wire.sender_link import SenderInstruction

GOODBYE_MS: Final = 2000
SOCKETS_EACH: Final = 8
LEFT_WITHIN_S: Final = 20.0


class Orders(msgspec.Struct, frozen=True):
    """Who comes: ``count`` agents, ``per_second`` of them a second."""

    endpoint: str
    policy_hash: str
    hook_points: tuple[str, ...]
    width: int
    metrics: int
    name: str
    count: int
    per_second: float


class Welcomed(msgspec.Struct, frozen=True):
    """How many were let in at least once, and how often a connection was lost."""

    welcomed: int
    lost: int


@dataclass(slots=True, eq=False)
class _Identity:
    link: SenderLink
    manifest: Manifest
    socket: zmq.Socket[bytes] | None = None
    welcomed: bool = False


class _Members:
    """All identities of this process, turned by one thread."""

    def __init__(self, orders: Orders) -> None:
        self._orders = orders
        self._context: zmq.Context[Any] = zmq.Context()
        # A closed socket counts until its connection is gone, and some connect anew.
        self._context.set(zmq.MAX_SOCKETS, SOCKETS_EACH * orders.count)
        self._all: list[_Identity] = []
        self._poller = zmq.Poller()
        self._poller.register(0, zmq.POLLIN)
        self._by_socket: dict[zmq.Socket[bytes], _Identity] = {}
        self._leaving = False

    def serve(self) -> None:
        """Until standard input ends."""
        began = time.monotonic()
        while True:
            due = (time.monotonic() - began) * self._orders.per_second
            while len(self._all) < min(due, self._orders.count):
                self._join()
            ready = dict(self._poller.poll(10))
            if 0 in ready and not self._answer():
                break
            for socket in ready:
                if socket in self._by_socket:
                    self._receive(self._by_socket[socket])
            now = read_clock()
            for one in self._all:
                if one.link.next_wake(now) <= 0:
                    self._carry_out(one, one.link.on_tick(now))
        self._leaving = True
        for one in self._all:
            self._carry_out(one, one.link.close(read_clock()))
        self._context.term()

    def _answer(self) -> bool:
        if not os.read(0, 4096):
            return False
        said = Welcomed(
            sum(one.welcomed for one in self._all),
            sum(one.link.counters.peers_lost for one in self._all),
        )
        sys.stdout.buffer.write(msgspec.json.encode(said) + b"\n")
        sys.stdout.buffer.flush()
        return True

    def _join(self) -> None:
        orders = self._orders
        name = uuid.uuid4().hex
        manifest = Manifest(
            agent=f"{orders.name}-{len(self._all)}",
            run_id=name,
            boot_id=name,
            policy_hash=orders.policy_hash,
            hook_points=tuple(
                HookPointSpec(one, orders.width, orders.width) for one in orders.hook_points
            ),
            metrics=tuple(MetricSpec(f"metric_{number}") for number in range(orders.metrics)),
        )
        one = _Identity(SenderLink(), manifest)
        self._all.append(one)
        one.link.open_stream(read_clock(), manifest)
        self._carry_out(one, one.link.start(read_clock()))

    def _receive(self, one: _Identity) -> None:
        while one.socket is not None and (frames := receive_message(one.socket)) is not None:
            try:
                message = decode(frames)
            except WireError:
                continue
            self._carry_out(one, one.link.on_message(read_clock(), message))
        one.welcomed = one.welcomed or one.link.state is LinkState.UP

    def _carry_out(self, one: _Identity, instructions: Iterable[SenderInstruction]) -> None:
        for instruction in instructions:
            match instruction:
                case Open():
                    self._drop(one)
                    one.socket = connect_dealer(self._context, self._orders.endpoint)
                    self._by_socket[one.socket] = one
                    self._poller.register(one.socket, zmq.POLLIN)
                case Close():
                    self._drop(one)
                case Transmit(frames) if one.socket is not None:
                    send_message(one.socket, frames)
                case _:
                    pass

    def _drop(self, one: _Identity) -> None:
        if one.socket is not None:
            self._poller.unregister(one.socket)
            del self._by_socket[one.socket]
            one.socket.close(linger=GOODBYE_MS if self._leaving else 0)
            one.socket = None


class Crowd:
    """Crowds from outside: a context manager around the processes."""

    def __init__(self, orders: Iterable[Orders]) -> None:
        self._orders = tuple(orders)
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        """Let them come."""
        for one in self._orders:
            self._processes.append(
                subprocess.Popen(  # noqa: S603 - our own module, by this very interpreter
                    [sys.executable, "-m", __name__, msgspec.json.encode(one).decode()],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    bufsize=0,
                    env={**os.environ, "OMP_NUM_THREADS": "1"},
                )
            )
        return self

    def __exit__(self, *_: object) -> None:
        """See them off."""
        for process in self._processes:
            if process.stdin is not None:
                process.stdin.close()
        for process in self._processes:
            try:
                process.wait(LEFT_WITHIN_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()
        self._processes.clear()

    def look(self) -> Welcomed:
        """How many were let in so far.

        Raises:
            RuntimeError: when a process does not answer.
        """
        found = []
        for process in self._processes:
            if process.stdin is None or process.stdout is None:
                raise RuntimeError("a crowd was not started")
            process.stdin.write(b"\n")
            if not select.select([process.stdout], [], [], 30.0)[0]:
                raise RuntimeError("a crowd does not answer")
            found.append(msgspec.json.decode(process.stdout.readline(), type=Welcomed))
        return Welcomed(sum(one.welcomed for one in found), sum(one.lost for one in found))


if __name__ == "__main__":
    _Members(msgspec.json.decode(sys.argv[1], type=Orders)).serve()
