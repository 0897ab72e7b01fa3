"""What the wire moves, beside bare pyzmq with the same bytes in the same run.

One sender process and one receiver process over loopback TCP. *Ours* is the whole path: a batch is
encoded, counted in the ledger, sent under credit, received, decoded, checked against its manifest,
counted, acknowledged. The message is 64 steps of two 64-wide float32 hook points and 12 float64
metrics. *Bare* moves the same bytes with pyzmq alone and looks at none of them: as a message of the
three arrays, which is the goal's reference, and, the least that ZeroMQ can do, as one frame. What
any message costs that says what it holds stands beside ours: the same columns with a header, put
together and taken apart, without checks, books, credit or acknowledgements.
"""

from __future__ import annotations

import math
import multiprocessing
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgpack  # type: ignore[import-untyped] # the package ships no types
import numpy as np
import zmq

from interlatent_live.bench.progress import progress_bar
from interlatent_live.bench.report import bench_report, bench_row, median
from interlatent_live.stream import (
    Activations,
    HookPointSpec,
    Manifest,
    MetricSpec,
    StepBatch,
    steps_without_columns,
)
from interlatent_live.wire.clock import read_clock
from interlatent_live.wire.codec import decode, encode, encode_steps
from interlatent_live.wire.keys import ClientKeys, KeyDirectory, KeyRole, ServerKeys
from interlatent_live.wire.receiver_link import Asked, Deliver, ReceiverConfig, ReceiverHub, Reply
from interlatent_live.wire.security import (
    Authenticator,
    Domain,
    protect_client,
    protect_server,
    speaks_for,
)
from interlatent_live.wire.sender_link import Close, Open, SenderLink, Transmit
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
    from collections.abc import Callable, Sequence
    from multiprocessing.process import BaseProcess

    from interlatent_live.bench.report import BenchReport, BenchRow
    from interlatent_live.wire.clock import Now
    from interlatent_live.wire.receiver_link import HubInstruction
    from interlatent_live.wire.sender_link import SenderInstruction

STEPS: Final = 64
WIDTH: Final = 64
METRICS: Final = 12
AGENT: Final = "bench"
SHARE: Final = 0.7
WARMUP: Final = 0.3
WINDOW: Final = 32 * 2**20
"""Credit in bytes, 800 messages: the queues of the bare sockets hold 2,000, and with much less the
figure would be of how long the scheduler lets a process wait."""
IDLE_S: Final = 0.0005
"""Pause of a receiver that has caught up; an encoder waits four times as long for a batch."""


@dataclass(frozen=True, slots=True)
class _Round:
    """Messages a second, as the receiver counted them."""

    rate: float


def run(*, quick: bool = False) -> BenchReport:
    """Rates of both, with and without CURVE, and the cost of the codec alone."""
    rounds, seconds = (2, 0.4) if quick else (5, 1.2)
    rows: list[BenchRow] = []
    floors: list[BenchRow] = []
    with tempfile.TemporaryDirectory() as folder, progress_bar(2 * rounds + 1) as begin:
        keys = KeyDirectory(Path(folder) / "keys")
        keys.create("service", KeyRole.SERVICE)
        keys.create(AGENT, KeyRole.AGENT)
        for secured in (False, True):
            path = keys.path if secured else None
            ours, arrays, frame, described = [], [], [], []
            # Interleaved, so that whatever else the machine does hits all alike.
            for number in range(rounds):
                begin(f"{'CURVE' if secured else 'no encryption'}, {number + 1} of {rounds}")
                arrays.append(_measure(_send_arrays, _receive_bare, path, seconds))
                ours.append(_measure(_send_ours, _receive_ours, path, seconds))
                frame.append(_measure(_send_frame, _receive_bare, path, seconds))
                described.append(_measure(_send_described, _receive_described, path, seconds))
            case = "CURVE" if secured else "no encryption"
            rows += _rows(case, ours, arrays, frame)
            floors.append(_floor_row(case, ours, arrays, described))
        begin("the codec alone")
        rows += [*_codec_rows(50 if quick else 400), *floors]
    return bench_report(
        "wire",
        rows,
        notes=(
            f"a message is {STEPS} steps in {len(_frames()[1])} bytes",
            f"medians over {rounds} interleaved rounds of {seconds} s",
            f"credit of {WINDOW >> 20} MiB; the queues of bare pyzmq hold 2,000 messages",
        ),
    )


def _rows(
    case: str, ours: Sequence[_Round], arrays: Sequence[_Round], frame: Sequence[_Round]
) -> list[BenchRow]:
    rate = median(one.rate for one in ours)
    of_arrays = median(one.rate for one in arrays)
    return [
        bench_row(
            f"messages, {case}",
            rate,
            "messages/s",
            reference="bare pyzmq, the three arrays as frames",
            reference_value=of_arrays,
            goal=f"ratio >= {SHARE}",
        ),
        bench_row(
            f"messages, {case}, beside one frame",
            rate,
            "messages/s",
            reference="bare pyzmq, the same bytes in one frame",
            reference_value=median(one.rate for one in frame),
            goal="shown",
        ),
        bench_row(
            f"steps, {case}",
            rate * STEPS,
            "steps/s",
            reference="bare pyzmq, the three arrays as frames",
            reference_value=of_arrays * STEPS,
            goal="shown",
        ),
    ]


def _floor_row(
    case: str, ours: Sequence[_Round], arrays: Sequence[_Round], described: Sequence[_Round]
) -> BenchRow:
    floor = median(one.rate for one in described) / median(one.rate for one in arrays)
    return bench_row(
        f"share of bare pyzmq, {case}",
        median(one.rate for one in ours) / median(one.rate for one in arrays),
        "1",
        reference="of the same columns with a header, put together, taken apart and not checked",
        reference_value=floor,
        goal="shown",
    )


def _codec_rows(repeats: int) -> list[BenchRow]:
    batch, frames = _batch(0), _frames()
    body = frames[1]
    copy = _time(lambda: bytes(bytearray(body)), repeats)
    encoding = _time(lambda: encode_steps(batch, boot_id="boot", sent_ns=1), repeats)
    decoding = _time(lambda: decode(frames), repeats)
    reference = "copying the body twice"
    return [
        bench_row(
            "encode", encoding, "µs", reference=reference, reference_value=copy, goal="shown"
        ),
        bench_row(
            "decode", decoding, "µs", reference=reference, reference_value=copy, goal="shown"
        ),
    ]


def _time(action: Callable[[], object], repeats: int) -> float:
    """Median time of one call, in µs."""
    samples = []
    for _ in range(repeats):
        begun = time.perf_counter_ns()
        for _ in range(10):
            action()
        samples.append((time.perf_counter_ns() - begun) / 10_000)
    return median(samples)


# --- one round ----------------------------------------------------------------------------------


def _measure(
    send: Callable[[str, Path | None], None],
    receive: Callable[[zmq.Socket[bytes], bool, float], float],
    keys: Path | None,
    seconds: float,
) -> _Round:
    context: zmq.Context[Any] = zmq.Context()
    authenticator = None if keys is None else Authenticator(context, keys).start()
    server = None if keys is None else ServerKeys.load(keys)
    process: BaseProcess | None = None
    try:
        if receive is not _receive_ours:
            socket = context.socket(zmq.ROUTER)
            socket.setsockopt(zmq.LINGER, 0)
            if server is not None:
                protect_server(socket, server, Domain.AGENTS)
            socket.bind("tcp://127.0.0.1:*")
        else:
            socket = bind_router(context, "tcp://127.0.0.1:*", keys=server)
        with socket:
            spawn = multiprocessing.get_context("spawn")
            process = spawn.Process(target=send, args=(bound_endpoint(socket), keys), daemon=True)
            process.start()
            return _Round(receive(socket, keys is not None, seconds))
    finally:
        if process is not None:
            process.kill()
            process.join()
        if authenticator is not None:
            authenticator.stop()
        context.term()


def _receive_bare(socket: zmq.Socket[bytes], protected: bool, seconds: float) -> float:  # noqa: FBT001 - called through one signature
    del protected
    return _rate(socket.recv_multipart, seconds)


def _rate(take: Callable[[], object], seconds: float) -> float:
    """Calls of ``take`` a second, after a warm-up."""
    take()
    end = time.perf_counter() + WARMUP
    while time.perf_counter() < end:
        take()
    count, begun = 0, time.perf_counter()
    end = begun + seconds
    while (now := time.perf_counter()) < end:
        for _ in range(32):
            take()
        count += 32
    return count / (now - begun)


def _send_frame(endpoint: str, keys: Path | None) -> None:
    socket = _bare_dealer(endpoint, keys)
    payload = bytes(sum(map(len, _frames())))
    while True:
        socket.send(payload)


def _send_arrays(endpoint: str, keys: Path | None) -> None:
    socket = _bare_dealer(endpoint, keys)
    batch = _batch(0)
    arrays: list[Any] = [*(seen.x for seen in batch.activations.values()), batch.steps.metrics]
    while True:
        socket.send_multipart(arrays)


def _send_described(endpoint: str, keys: Path | None) -> None:
    """What any message that says what it holds costs: a header packed, and one body joined."""
    socket = _bare_dealer(endpoint, keys)
    arrays = _columns(_batch(0))
    header: dict[str, Any] = {"shapes": [array.shape for array in arrays]}
    number = 0
    while True:
        header["seq"] = number
        number += STEPS
        socket.send(msgpack.packb(header), zmq.SNDMORE)
        socket.send(b"".join(arrays))


def _receive_described(socket: zmq.Socket[bytes], protected: bool, seconds: float) -> float:  # noqa: FBT001 - called through one signature
    del protected
    dtypes = [array.dtype for array in _columns(_batch(0))]

    def take() -> None:
        _, head, body = socket.recv_multipart(copy=False)
        header = msgpack.unpackb(head.buffer)
        at = 0
        for dtype, shape in zip(dtypes, header["shapes"], strict=True):
            count = math.prod(shape)
            np.frombuffer(body.buffer, dtype, count, at).reshape(shape)
            at += count * dtype.itemsize

    return _rate(take, seconds)


def _columns(batch: StepBatch) -> list[Any]:
    """Wide elements first, so that each lies at an address of its own size."""
    steps = batch.steps
    x = [seen.x for seen in batch.activations.values()]
    narrow = [steps.episode, steps.t, steps.env, steps.controller, steps.flags]
    return [steps.metrics, steps.time_ns, *x, *narrow]


def _bare_dealer(endpoint: str, keys: Path | None) -> zmq.Socket[bytes]:
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
    if keys is not None:
        protect_client(socket, _client_keys(keys))
    socket.connect(endpoint)
    return socket


def _receive_ours(socket: zmq.Socket[bytes], protected: bool, seconds: float) -> float:  # noqa: FBT001 - called through one signature
    receiver = _Receiver(socket, protected=protected)
    while not receiver.messages:
        receiver.turn()
    end = time.perf_counter() + WARMUP
    while time.perf_counter() < end:
        receiver.turn()
    before, begun = receiver.messages, time.perf_counter()
    end = begun + seconds
    while (now := time.perf_counter()) < end:
        receiver.turn()
    counts = receiver.hub.counts("boot")
    if counts.undeclared or counts.declared:
        raise RuntimeError(f"the wire lost rows in a benchmark without loss: {counts}")
    return (receiver.messages - before) / (now - begun)


class _Receiver:
    """The smallest shell around a hub: what a service does, without the service."""

    def __init__(self, socket: zmq.Socket[bytes], *, protected: bool) -> None:
        self.messages = 0
        config = ReceiverConfig(window_bytes=WINDOW, total_bytes=2 * WINDOW)
        self.hub = ReceiverHub(config, speaks_for=speaks_for)
        self._socket = socket
        self._protected = protected

    def turn(self) -> None:
        """Take what has arrived, acknowledge what is due."""
        hub, now = self.hub, read_clock()
        for _ in range(64):
            received = receive_from(self._socket, protected=self._protected)
            if received is None:
                # Not a poll, which would end with the first message: they are read many at once.
                time.sleep(IDLE_S)
                break
            message = decode(received.frames)
            out = hub.on_message(
                now, received.peer, message, size=received.size(), user_id=received.user_id
            )
            self._carry_out(now, out)
        self._carry_out(now, hub.on_tick(read_clock()))

    def _carry_out(self, now: Now, instructions: Sequence[HubInstruction]) -> None:
        for instruction in instructions:
            match instruction:
                case Deliver(boot_id):
                    self.messages += 1
                    self._carry_out(now, self.hub.processed(now, boot_id))
                case Reply(peer, message):
                    send_to(self._socket, peer, encode(message))
                case Asked(peer, hello):
                    self._carry_out(now, self.hub.accept(now, peer, hello))


def _send_ours(endpoint: str, keys: Path | None) -> None:
    sender = _Sender(endpoint, None if keys is None else _client_keys(keys))
    while True:
        sender.turn()


class _Sender:
    """The smallest shell around a sending link."""

    def __init__(self, endpoint: str, keys: ClientKeys | None) -> None:
        self._context: zmq.Context[Any] = zmq.Context()
        self._endpoint = endpoint
        self._keys = keys
        self._socket: zmq.Socket[bytes] | None = None
        self._link = SenderLink()
        self._batch = _batch(0)
        now = read_clock()
        self._link.open_stream(now, _manifest())
        self._carry_out(self._link.start(now))

    def turn(self) -> None:
        """Send while there is credit, hear what comes back."""
        now = read_clock()
        for _ in range(32):
            if not self._send(now):
                if self._socket is not None:
                    self._socket.poll(1)
                break
        self._hear()
        self._carry_out(self._link.on_tick(now))

    def _send(self, now: Now) -> bool:
        link = self._link
        first = link.next_seq("boot")
        if self._socket is None or link.blocked("boot", STEPS, 60_000) is not None:
            return False
        drops = link.pending_drops("boot")
        frames = encode_steps(
            _numbered(self._batch, first), boot_id="boot", drops=drops, sent_ns=now.wall_ns
        )
        if not send_message(self._socket, frames):
            return False
        size = len(frames[0]) + len(frames[1])
        link.sent(now, "boot", first_seq=first, rows=STEPS, size=size, drops=drops)
        return True

    def _hear(self) -> None:
        while self._socket is not None:
            frames = receive_message(self._socket)
            if frames is None:
                return
            self._carry_out(self._link.on_message(read_clock(), decode(frames)))

    def _carry_out(self, instructions: Sequence[SenderInstruction]) -> None:
        for instruction in instructions:
            match instruction:
                case Open():
                    self._socket = connect_dealer(self._context, self._endpoint, keys=self._keys)
                case Close():
                    if self._socket is not None:
                        self._socket.close()
                    self._socket = None
                case Transmit(frames) if self._socket is not None:
                    send_message(self._socket, frames)


# --- what is sent -------------------------------------------------------------------------------


def _client_keys(keys: Path) -> ClientKeys:
    return ClientKeys.load(keys / f"{AGENT}.key", keys / "service.pub")


def _manifest() -> Manifest:
    return Manifest(
        agent=AGENT,
        run_id="run",
        boot_id="boot",
        policy_hash="sha256:0",
        hook_points=tuple(HookPointSpec(f"body.{i}", WIDTH, WIDTH) for i in range(2)),
        metrics=tuple(MetricSpec(f"metric_{i}") for i in range(METRICS)),
    )


def _batch(first_seq: int) -> StepBatch:
    rng = np.random.default_rng(0)
    steps = steps_without_columns(STEPS, METRICS, first_seq)
    steps.metrics[:] = rng.normal(size=steps.metrics.shape)
    activations = {
        f"body.{i}": Activations(
            x=rng.normal(size=(STEPS, WIDTH)).astype(np.float32),
            y=np.empty((0, WIDTH), np.float32),
            y_rows=np.empty(0, np.uint16),
        )
        for i in range(2)
    }
    return StepBatch(steps, activations)


def _numbered(batch: StepBatch, first_seq: int) -> StepBatch:
    columns = batch.steps
    steps = type(columns)(
        first_seq,
        columns.env,
        columns.episode,
        columns.t,
        columns.time_ns,
        columns.controller,
        columns.flags,
        columns.metrics,
    )
    return StepBatch(steps, batch.activations)


def _frames() -> list[bytes]:
    return encode_steps(_batch(0), boot_id="boot", sent_ns=1)
