"""The messages of version 1: what each kind says, and the types that hold a peer to it.

A message is a header (a MessagePack map) and at most one body. The classes derived from
:class:`Message` *are* their headers: msgspec checks types, ranges and lengths, and refuses unknown
fields. Steps and features carry arrays, so their headers are described apart
(:class:`StepsHeader`, :class:`FeaturesHeader`) and what a reader gets is a frozen dataclass around
the shared values of :mod:`interlatent_live.stream`.

Sequence numbers count rows of one *stream*, that is of one ``boot_id``; clocks are nanoseconds
since the epoch on the clock of whoever wrote them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
from msgspec import Meta

from interlatent_live.stream import (
    FeatureBatch,
    HookPointSpec,
    Manifest,
    MetricSpec,
    Role,
    StepBatch,
)
from interlatent_live.wire.limits import (
    MAX_HOOK_POINTS,
    MAX_INT,
    MAX_METRICS,
    MAX_NAME,
    MAX_RANGES,
    MAX_STREAMS,
    MAX_TEXT,
    MAX_U32,
    MAX_WIDTH,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

VERSION: Final = 1

# Names end up in terminals, web pages, prompts and file names, so control characters (also the C1
# set, which some terminals obey) and the marks that reorder text are refused at the border.
_SAFE: Final = (
    "[^\\x00-\\x1f\\x7f-\\x9f\\u061c\\u200e\\u200f\\u2028\\u2029\\u202a-\\u202e\\u2066-\\u2069]"
)

Name = Annotated[str, Meta(min_length=1, max_length=MAX_NAME, pattern=rf"^{_SAFE}+\Z")]
OptionalName = Annotated[str, Meta(max_length=MAX_NAME, pattern=rf"^{_SAFE}*\Z")]
Text = Annotated[str, Meta(max_length=MAX_TEXT, pattern=rf"^{_SAFE}*\Z")]
Word = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[a-z0-9_.-]+\Z")]
Count = Annotated[int, Meta(ge=0, le=MAX_INT)]
Clock = Annotated[int, Meta(ge=0, le=MAX_INT)]
Width = Annotated[int, Meta(ge=1, le=MAX_WIDTH)]
Small = Annotated[int, Meta(ge=0, le=MAX_U32)]
Rows = Annotated[int, Meta(ge=1, le=2**16)]
TensorSpec = tuple[
    Annotated[str, Meta(min_length=1, max_length=16)],
    Annotated[str, Meta(min_length=1, max_length=4)],
    Annotated[tuple[Small, ...], Meta(min_length=1, max_length=2)],
]
"""Name, dtype and shape of one tensor of the body."""
Tensors = Annotated[tuple[TensorSpec, ...], Meta(min_length=7, max_length=7 + 5 * MAX_HOOK_POINTS)]


class DropReason(StrEnum):
    """Why rows that were numbered will never arrive."""

    OVERRUN = "overrun"
    """The ring was overwritten before its sender read it."""
    AGE = "age"
    """Older than the age limit when their turn came."""
    NO_CREDIT = "no_credit"
    """The receiver had granted no room."""
    NO_PEER = "no_peer"
    """Nobody was connected."""
    PEER_LOST = "peer_lost"
    """Sent, but the peer went away before acknowledging."""
    SPOOL_FULL = "spool_full"
    """The disk buffer had reached its bound."""
    SPOOL_BROKEN = "spool_broken"
    """A record of the disk buffer failed its checksum."""
    SAMPLED = "sampled"
    """Left out on purpose by a sampling option."""
    MISSING = "missing"
    """The receiver reported a hole that nobody had declared; the sender gave the rows up."""
    UPSTREAM = "upstream"
    """Never reached this sender: an undeclared hole of an earlier hop."""
    REFUSED = "refused"
    """Reached this sender and could not be used, for example for lack of a transcoder."""
    SHUTDOWN = "shutdown"
    """The sender ended with these rows undelivered."""


class Drop(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """Rows ``first_seq … first_seq + count − 1`` of a stream are declared lost."""

    first_seq: Count
    count: Annotated[int, Meta(ge=1, le=MAX_INT)]
    reason: DropReason


Drops = Annotated[tuple[Drop, ...], Meta(max_length=MAX_RANGES)]


class Range(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """Rows ``first_seq … first_seq + count − 1``."""

    first_seq: Count
    count: Annotated[int, Meta(ge=1, le=MAX_INT)]


Ranges = Annotated[tuple[Range, ...], Meta(max_length=MAX_RANGES)]


class HookPointHeader(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A hook point in a manifest: ``[name, d_in, d_out]``."""

    name: Name
    d_in: Width
    d_out: Width


class MetricHeader(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A metric in a manifest: ``[name, unit, role, description]``."""

    name: Name
    unit: OptionalName
    role: Role
    description: Text


class ManifestHeader(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The manifest as it travels."""

    agent: Name
    run: Name
    boot: Name
    policy: Name
    hooks: Annotated[tuple[HookPointHeader, ...], Meta(max_length=MAX_HOOK_POINTS)]
    metrics: Annotated[tuple[MetricHeader, ...], Meta(max_length=MAX_METRICS)]
    envs: Annotated[int, Meta(ge=1, le=2**16)]
    hz: Annotated[float, Meta(gt=0, le=1e9)] | None
    environment: OptionalName
    actions: Annotated[tuple[Name, ...], Meta(max_length=MAX_METRICS)]

    @classmethod
    def of(cls, manifest: Manifest) -> ManifestHeader:
        """The header that says the same as ``manifest``; not yet checked."""
        return cls(
            agent=manifest.agent,
            run=manifest.run_id,
            boot=manifest.boot_id,
            policy=manifest.policy_hash,
            hooks=tuple(HookPointHeader(h.name, h.d_in, h.d_out) for h in manifest.hook_points),
            metrics=tuple(
                MetricHeader(m.name, m.unit, m.role, m.description) for m in manifest.metrics
            ),
            envs=manifest.env_count,
            hz=None if manifest.control_hz is None else float(manifest.control_hz),
            environment=manifest.environment,
            actions=tuple(manifest.actions),
        )

    def manifest(self) -> Manifest:
        """The shared value that says the same."""
        return Manifest(
            agent=self.agent,
            run_id=self.run,
            boot_id=self.boot,
            policy_hash=self.policy,
            hook_points=tuple(HookPointSpec(h.name, h.d_in, h.d_out) for h in self.hooks),
            metrics=tuple(MetricSpec(m.name, m.unit, m.role, m.description) for m in self.metrics),
            env_count=self.envs,
            control_hz=self.hz,
            environment=self.environment,
            actions=self.actions,
        )


class HelloHeader(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Header of a :class:`Hello`."""

    v: int
    kind: str
    manifest: ManifestHeader
    seq: Count
    sent: Clock
    transcoders: dict[Name, Name]
    lossless: bool


class StepsHeader(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Header of a :class:`StepsMessage`."""

    v: int
    kind: str
    boot: Name
    seq: Count
    n: Rows
    sent: Clock
    drops: Drops
    hooks: Annotated[tuple[Name, ...], Meta(max_length=MAX_HOOK_POINTS)]
    t: Tensors


class StepsPrefix(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The part of a :class:`StepsHeader` that is the same for every message of a stream."""

    v: int
    kind: str
    boot: Name
    n: Rows
    hooks: Annotated[tuple[Name, ...], Meta(max_length=MAX_HOOK_POINTS)]
    t: Tensors


class StepsRest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The other part: what changes from message to message."""

    seq: Count
    sent: Clock
    drops: Drops


class FeatureHookHeader(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A hook point of a features message: ``[name, transcoder hash, number of features]``."""

    name: Name
    transcoder: Name
    n_features: Width


class FeaturesHeader(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Header of a :class:`FeaturesMessage`."""

    v: int
    kind: str
    run: Name
    boot: Name
    seq: Count
    n: Rows
    sent: Clock
    encoded: Clock
    drops: Drops
    hooks: Annotated[tuple[FeatureHookHeader, ...], Meta(max_length=MAX_HOOK_POINTS)]
    t: Tensors


class DocumentHeader(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Header of a :class:`Document`; the body is ``size`` bytes of MessagePack."""

    v: int
    kind: str
    topic: Name
    source: Name
    seq: Count
    sent: Clock
    size: Small


class PictureHeader(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Header of a :class:`Picture` (kind ``frame``); the body is ``size`` bytes of JPEG."""

    v: int
    kind: str
    boot: Name
    seq: Count
    env: Annotated[int, Meta(ge=0, le=2**16 - 1)]
    width: Annotated[int, Meta(ge=1, le=2**14)]
    height: Annotated[int, Meta(ge=1, le=2**14)]
    sent: Clock
    size: Small


@dataclass(frozen=True, slots=True)
class Hello:
    """An agent, or an encoder on its behalf, opens a stream.

    ``first_seq`` is the first row this receiver is answerable for: everything before it was settled
    with an earlier receiver. ``transcoders`` says, on links of features, which transcoder encodes
    which hook point. A ``lossless`` sender keeps what is not acknowledged and sends it again.
    """

    manifest: Manifest
    first_seq: int = 0
    sent_ns: int = 0
    transcoders: Mapping[str, str] | None = None
    lossless: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class StepsMessage:
    """Rows with activations, and the rows before them that will never come."""

    boot_id: str
    batch: StepBatch
    drops: tuple[Drop, ...] = ()
    sent_ns: int = 0
    shape: object = field(default=None, repr=False, compare=False)
    """What the decoder knew of this message's layout; the same object means the same layout."""


@dataclass(frozen=True, slots=True, eq=False)
class FeaturesMessage:
    """Rows with sparse features, and the rows before them that will never come."""

    batch: FeatureBatch
    drops: tuple[Drop, ...] = ()
    sent_ns: int = 0


@dataclass(frozen=True, slots=True)
class Document:
    """A map for the feed: a status, a profile, a claim, a line of narration.

    ``seq`` counts the publisher's documents on ``topic`` from 0, so a viewer can count what a full
    queue cost it. ``payload`` holds strings, booleans, 64-bit integers, finite floats, ``None``,
    lists and maps with string keys.
    """

    topic: str
    source: str
    payload: Mapping[str, Any]
    seq: int = 0
    sent_ns: int = 0


@dataclass(frozen=True, slots=True)
class Picture:
    """A JPEG of one environment copy, kind ``frame``; lowest priority, reserved in version 1."""

    boot_id: str
    seq: int
    env: int
    width: int
    height: int
    jpeg: bytes
    sent_ns: int = 0


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of the messages that are all header; the codec adds ``v`` and ``kind``."""


class Welcome(
    Message,
    frozen=True,
    forbid_unknown_fields=True,
    kw_only=True,
    rename={"boot_id": "boot", "echo_ns": "echo", "sent_ns": "sent"},
):
    """The answer to a hello: the stream may begin.

    Credit is absolute: since this welcome the sender may have sent, on this connection, rows and
    bytes up to these totals. A later message only ever raises them.
    """

    boot_id: Name
    server: OptionalName = ""
    credit_steps: Count
    credit_bytes: Count
    max_rows: Rows
    max_bytes: Small
    received: Count
    """One more than the highest row already received of this stream; ``first_seq`` when none."""
    missing: Ranges = ()
    """Rows below ``received`` that never came and were not declared."""
    echo_ns: Clock
    """``sent_ns`` of the hello."""
    sent_ns: Clock


class Refuse(
    Message,
    frozen=True,
    forbid_unknown_fields=True,
    kw_only=True,
    rename={"boot_id": "boot", "retry_ms": "retry", "sent_ns": "sent"},
):
    """A stream or a message is refused, with a word for counters and a sentence for people.

    An empty ``boot_id`` speaks of the connection. ``retry_ms`` 0 means: not before something
    changed.
    """

    boot_id: OptionalName = ""
    reason: Word
    message: Text
    retry_ms: Small = 0
    sent_ns: Clock


class StreamAck(
    msgspec.Struct,
    frozen=True,
    forbid_unknown_fields=True,
    kw_only=True,
    rename={
        "boot_id": "boot",
        "rows_received": "got",
        "rows_declared": "declared",
        "rows_undeclared": "undeclared",
        "rows_duplicate": "duplicate",
    },
):
    """How far one stream has come, with the receiver's counters of rows."""

    boot_id: Name
    received: Count
    """One more than the highest row received or declared."""
    processed: Count
    """Every row below is done with: handed on, declared, or named in ``missing``. This, not
    ``received``, is what acknowledges rows and frees the sender of them."""
    missing: Ranges = ()
    """Holes that nobody declared."""
    rows_received: Count
    rows_declared: Count
    rows_undeclared: Count
    rows_duplicate: Count


class Ack(
    Message,
    frozen=True,
    forbid_unknown_fields=True,
    kw_only=True,
    rename={"echo_ns": "echo", "echo_received_ns": "echo_at", "sent_ns": "sent"},
):
    """Cumulative acknowledgement, credit and the receiver's clock.

    The four clocks for an offset estimate are ``echo_ns`` (the sender's, when it sent the newest
    message seen), ``echo_received_ns`` and ``sent_ns`` (the receiver's), and the arrival.
    """

    streams: Annotated[tuple[StreamAck, ...], Meta(max_length=MAX_STREAMS)] = ()
    credit_steps: Count
    credit_bytes: Count
    echo_ns: Clock
    echo_received_ns: Clock
    sent_ns: Clock


class Stats(
    Message,
    frozen=True,
    forbid_unknown_fields=True,
    kw_only=True,
    rename={
        "boot_id": "boot",
        "next_seq": "next",
        "acknowledged": "acked",
        "offset_ns": "offset",
        "sent_ns": "sent",
        "sent": "rows",
    },
):
    """The sender's ledger of one stream: ``sent = acknowledged + sum(lost) + in_flight``.

    ``used_steps`` and ``used_bytes`` are what the sender has used of its credit since the welcome;
    should a message have vanished between, they put the receiver's count right again.
    ``offset_ns`` is the receiver's clock minus the sender's, as the sender estimates it.
    """

    boot_id: Name
    next_seq: Count
    """One more than the last row settled or sent: rows up to here are accounted for."""
    sent: Count
    acknowledged: Count
    lost: dict[DropReason, Count]
    in_flight: Count
    drops: Drops = ()
    used_steps: Count
    used_bytes: Count
    offset_ns: Annotated[int, Meta(ge=-MAX_INT, le=MAX_INT)] | None = None
    sent_ns: Clock


class Bye(Stats, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The stream ends here; the ledger is final."""


class Heartbeat(
    Message, frozen=True, forbid_unknown_fields=True, kw_only=True, rename={"sent_ns": "sent"}
):
    """Nothing to say, still here."""

    sent_ns: Clock


WireMessage = (
    Hello
    | Welcome
    | Refuse
    | StepsMessage
    | FeaturesMessage
    | Ack
    | Stats
    | Bye
    | Heartbeat
    | Document
    | Picture
)

PLAIN_KINDS: Final[Mapping[str, type[Message]]] = {
    "welcome": Welcome,
    "refuse": Refuse,
    "ack": Ack,
    "stats": Stats,
    "bye": Bye,
    "heartbeat": Heartbeat,
}
"""Kinds that are all header."""

KINDS: Final = frozenset({*PLAIN_KINDS, "hello", "steps", "features", "document", "frame"})
