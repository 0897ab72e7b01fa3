"""A sender, a receiver and the network between them, with a clock that the test turns."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field

import numpy as np

from interlatent_live.stream import (
    Activations,
    HookPointSpec,
    Manifest,
    MetricSpec,
    StepBatch,
    steps_without_columns,
)
from interlatent_live.wire.clock import Now
from interlatent_live.wire.codec import decode, encode, encode_steps
from interlatent_live.wire.messages import DropReason, StepsMessage
from interlatent_live.wire.receiver_link import (
    Asked,
    Deliver,
    Detached,
    Ended,
    ReceiverConfig,
    ReceiverHub,
    Reply,
)
from interlatent_live.wire.sender_link import (
    Close,
    Open,
    Resume,
    SenderConfig,
    SenderLink,
    StreamUp,
    Transmit,
)

START_NS = 1_700_000_000_000_000_000


def make_manifest(boot_id="boot", agent="agent"):
    return Manifest(
        agent=agent,
        run_id="run",
        boot_id=boot_id,
        policy_hash="sha256:0",
        hook_points=(HookPointSpec("h", 1, 1),),
        metrics=(MetricSpec("m"),),
    )


def make_batch(first_seq, rows):
    steps = steps_without_columns(rows, 1, first_seq)
    numbers = np.arange(first_seq, first_seq + rows, dtype=np.float64)
    steps.metrics[:, 0] = numbers
    x = numbers.astype(np.float32)[:, None]
    return StepBatch(steps, {"h": Activations(x, x, np.arange(rows, dtype=np.uint16))})


@dataclass
class Network:
    """One sending link and one hub, joined by two queues per connection.

    ``cut`` loses what is under way; what arrives at the receiver is delivered in order unless a
    test meddles with :attr:`to_hub`.
    """

    sender_config: SenderConfig = field(default_factory=SenderConfig)
    receiver_config: ReceiverConfig = field(default_factory=ReceiverConfig)
    mono: float = 100.0
    skew_ns: int = 0
    """The receiver's wall clock minus the sender's."""
    reachable: bool = True
    process: bool = True

    def __post_init__(self):
        self.link = SenderLink(self.sender_config, rng=random.Random(0))
        self.hub = ReceiverHub(self.receiver_config)
        self.generation = 0
        self.connected = False
        self.to_hub: deque[list[bytes]] = deque()
        self.to_link: deque[list[bytes]] = deque()
        self.got: list[int] = []
        self.unprocessed: deque[str] = deque()
        self.events: list[object] = []
        self.spool_from = None
        self.run(self.link.open_stream(self.now(), make_manifest()))
        self.run(self.link.start(self.now()))

    def now(self):
        return Now(self.mono, START_NS + int((self.mono - 100.0) * 1e9))

    def hub_now(self):
        return Now(self.mono, self.now().wall_ns + self.skew_ns)

    @property
    def identity(self):
        return f"peer-{self.generation}".encode()

    def run(self, instructions):
        for instruction in instructions:
            self.events.append(instruction)
            match instruction:
                case Open():
                    self.generation += 1
                    self.to_hub = deque()
                    self.to_link = deque()
                    self.connected = True
                case Close():
                    self.connected = False
                    self.to_hub.clear()
                    self.to_link.clear()
                case Transmit(frames):
                    self.to_hub.append(list(frames))
                case Resume(_, seq):
                    self.spool_from = seq
                case StreamUp():
                    pass

    def run_hub(self, instructions):
        for instruction in instructions:
            self.events.append(instruction)
            match instruction:
                case Reply(peer, message):
                    if peer == self.identity and self.connected:
                        self.to_link.append(encode(message))
                case Asked(peer, hello):
                    self.run_hub(self.hub.accept(self.hub_now(), peer, hello))
                case Deliver(boot_id, message):
                    assert isinstance(message, StepsMessage)
                    steps = message.batch.steps
                    assert steps.metrics[:, 0].tolist() == list(
                        range(steps.first_seq, steps.first_seq + len(steps))
                    )
                    self.got += steps.metrics[:, 0].astype(int).tolist()
                    self.unprocessed.append(boot_id)
                case Detached() | Ended():
                    pass

    def send(self, rows, boot_id="boot"):
        """Send ``rows`` rows if the link lets them go; otherwise returns the reason."""
        first = self.link.next_seq(boot_id)
        drops = self.link.pending_drops(boot_id)
        now = self.now()
        frames = encode_steps(
            make_batch(first, rows), boot_id=boot_id, drops=drops, sent_ns=now.wall_ns
        )
        size = sum(map(len, frames))
        reason = self.link.blocked(boot_id, rows, size)
        if reason is not None:
            return reason
        self.to_hub.append(frames)
        self.link.sent(now, boot_id, first_seq=first, rows=rows, size=size, drops=drops)
        return None

    def send_or_drop(self, rows):
        reason = self.send(rows)
        if reason is not None:
            self.link.declare("boot", self.link.next_seq("boot"), rows, reason)

    def deliver(self, count=10**6):
        """Let up to ``count`` messages arrive in each direction."""
        for _ in range(count):
            if not self.reachable or not (self.to_hub or self.to_link):
                return
            if self.to_hub:
                frames = self.to_hub.popleft()
                self.run_hub(
                    self.hub.on_message(
                        self.hub_now(), self.identity, decode(frames), size=sum(map(len, frames))
                    )
                )
            if self.process:
                self.work()
            if self.to_link:
                self.run(self.link.on_message(self.now(), decode(self.to_link.popleft())))

    def work(self, count=10**6):
        """The receiver's shell processes up to ``count`` delivered messages."""
        while self.unprocessed and count:
            count -= 1
            self.run_hub(self.hub.processed(self.hub_now(), self.unprocessed.popleft()))

    def advance(self, seconds, step=0.02):
        """Turn the clock, ticking both ends and delivering as it goes."""
        end = self.mono + seconds
        while self.mono < end:
            self.mono = min(end, self.mono + step)
            self.run(self.link.on_tick(self.now()))
            self.run_hub(self.hub.on_tick(self.hub_now()))
            self.deliver()

    def cut(self):
        """The connection breaks: everything under way is gone, the next message is of a stranger.

        This is what libzmq's own reconnection looks like from both sides.
        """
        self.to_hub.clear()
        self.to_link.clear()
        self.generation += 1

    def restart_receiver(self):
        """The receiver dies and another begins with no memory."""
        self.cut()
        self.hub = ReceiverHub(self.receiver_config)
        self.unprocessed.clear()

    def perform(self, action, amount):
        """One of the things that happen to a connection, by name."""
        {
            "send": lambda: self.send_or_drop(amount),
            "overrun": lambda: self.link.declare(
                "boot", self.link.next_seq("boot"), amount, DropReason.OVERRUN
            ),
            "deliver": lambda: self.deliver(amount),
            "tick": lambda: self.advance(amount * 0.3, step=0.1),
            "cut": self.cut,
            "freeze": lambda: setattr(self, "reachable", False),
            "thaw": lambda: setattr(self, "reachable", True),
            "stall": lambda: setattr(self, "process", False),
            "unstall": lambda: setattr(self, "process", True),
            "restart": self.restart_receiver,
        }[action]()

    def replay_to(self, produced, rows):
        """Send what a spool would hold, as far as the link lets it go."""
        while (first := self.link.next_seq("boot")) < produced:
            if self.send(min(rows, produced - first)) is not None:
                return

    def settle(self):
        """Give both ends time to agree."""
        self.reachable = True
        self.process = True
        self.work()
        self.advance(8.0, step=0.05)

    def balanced(self):
        return self.link.counts("boot").balanced()


def drop_reasons(network):
    return {reason for reason, rows in network.link.counts("boot").lost.items() if rows}


__all__ = ["START_NS", "DropReason", "Network", "drop_reasons", "make_batch", "make_manifest"]
