"""Messages to frames and back: one MessagePack header, at most one body of raw tensors.

:func:`decode` is the border of the system. Whatever bytes arrive, it returns a valid message or
raises :class:`WireError` with a stable reason, and never anything else; it allocates no more than
the header's limit times a small factor before it has checked what the header promises, and the
arrays it returns are read-only views of the body.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import msgpack  # type: ignore[import-untyped] # the package ships no types
import msgspec
import numpy as np

from interlatent_live.errors import WireError
from interlatent_live.stream import (
    Activations,
    Controller,
    FeatureBatch,
    Manifest,
    SparseCodes,
    StepBatch,
    Steps,
)
from interlatent_live.wire.limits import (
    DEFAULT_LIMITS,
    MAX_DEPTH,
    MAX_INT,
    MAX_RANGES,
    Limits,
)
from interlatent_live.wire.messages import (
    KINDS,
    PLAIN_KINDS,
    VERSION,
    Document,
    DocumentHeader,
    Drop,
    FeaturesHeader,
    FeaturesMessage,
    Hello,
    HelloHeader,
    ManifestHeader,
    Message,
    Name,
    Picture,
    PictureHeader,
    StepsHeader,
    StepsMessage,
    StepsPrefix,
    StepsRest,
    WireMessage,
)
from interlatent_live.wire.tensors import (
    feature_packing,
    features_layout,
    join,
    narrow_bfloat16,
    packing,
    step_specs,
    steps_layout,
    views,
    widen_bfloat16,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from interlatent_live.wire.tensors import Layout, Packing

H = TypeVar("H")

_CONTROLLERS: Final = bytes(range(len(Controller)))
_FLAGS: Final = bytes(range(8))
_ONE: Final = np.uint32(1)
_INFINITY: Final = np.uint32(0x7F800000)
_ALL_ROWS: Final = np.arange(2**16, dtype="<u2").tobytes()
JPEG_START: Final = b"\xff\xd8"

_KIND_OF: Final = {struct: kind for kind, struct in PLAIN_KINDS.items()}
_WORDS: Final = {
    np.dtype(np.float32): "f4",
    np.dtype(np.float16): "f2",
    np.dtype(np.float64): "f4",
}


# --- writing ------------------------------------------------------------------------------------


def encode_hello(
    manifest: Manifest,
    *,
    first_seq: int = 0,
    sent_ns: int = 0,
    transcoders: Mapping[str, str] | None = None,
    lossless: bool = False,
) -> list[bytes]:
    """Frames of a :class:`Hello`; the manifest is checked here, so a bad name shows at its source.

    Raises:
        WireError: reason ``schema`` when the manifest does not fit the wire's rules.
    """
    hashes = _convert(dict(transcoders or {}), dict[Name, Name], "hello")
    _check_transcoders(manifest, hashes)
    header = {
        "v": VERSION,
        "kind": "hello",
        "manifest": _manifest_words(manifest),
        "seq": first_seq,
        "sent": sent_ns,
        "transcoders": hashes,
        "lossless": lossless,
    }
    packed = _pack(header)
    if len(packed) > DEFAULT_LIMITS.header_bytes:
        raise WireError("limit", f"the manifest of {manifest.agent!r} makes {len(packed)} bytes")
    return [packed]


@lru_cache(maxsize=64)
def _manifest_words(manifest: Manifest) -> dict[str, Any]:
    """A checked manifest as it is packed; an encoder announces each to several consumers."""
    words: dict[str, Any] = msgspec.to_builtins(ManifestHeader.of(manifest))
    _checked_manifest(_convert(words, ManifestHeader, "hello"))
    return words


def encode_steps(
    batch: StepBatch,
    *,
    boot_id: str,
    drops: Sequence[Drop] = (),
    sent_ns: int = 0,
    activations: str | None = None,
) -> list[bytes]:
    """Frames of a :class:`StepsMessage`: header and body.

    ``activations`` is the dtype word in which x and y travel: ``f4``, ``f2`` or ``bf2`` (bfloat16);
    by default what the arrays are. Values beyond 65,504 become infinite in ``f2``.

    Raises:
        WireError: reason ``shape``, ``dtype`` or ``schema`` when the batch contradicts itself.
    """
    steps = batch.steps
    rows = len(steps.env)
    arrays = _columns(steps)
    hooks: list[tuple[str, int, int, int]] = []
    for name, seen in batch.activations.items():
        word = activations or _WORDS.get(seen.x.dtype)
        x, y = seen.x, seen.y
        if word == "bf2":
            x, y = narrow_bfloat16(x), narrow_bfloat16(y)  # type: ignore[assignment] # raw bits
        elif word == "f2" and x.dtype != np.float16:
            with np.errstate(over="ignore"):
                x, y = x.astype(np.float16), y.astype(np.float16)
        elif word is None or word not in {"f4", "f2"}:
            raise WireError(
                "dtype",
                f"activations of {name!r} are {word or seen.x.dtype}; "
                "they travel as float32, float16 or bfloat16 (f4, f2, bf2)",
            )
        if x.ndim != 2 or y.ndim != 2:
            raise WireError("shape", f"activations of {name!r} must be [rows, width]")
        hooks.append((word, x.shape[1], y.shape[1], len(y)))
        arrays += (x, y, seen.y_rows)
    prefix, pack = _steps_prefix(
        boot_id, rows, _metric_count(steps), tuple(batch.activations), tuple(hooks)
    )
    tail = {"seq": steps.first_seq, "sent": sent_ns, "drops": _pack_drops(drops)}
    return [prefix + _pack(tail)[1:], join(pack, arrays)]


def encode_features(
    batch: FeatureBatch, *, drops: Sequence[Drop] = (), sent_ns: int = 0
) -> list[bytes]:
    """Frames of a :class:`FeaturesMessage`: header and body.

    Raises:
        WireError: reason ``shape`` or ``schema`` when the batch contradicts itself.
    """
    steps = batch.steps
    rows = len(steps.env)
    arrays = _columns(steps)
    nnz: list[int] = []
    hooks: list[tuple[str, str, int]] = []
    for name, codes in batch.codes.items():
        transcoder = batch.transcoders.get(name)
        if transcoder is None:
            raise WireError("schema", f"hook point {name!r} has features and no transcoder hash")
        hooks.append((name, transcoder, codes.n_features))
        nnz.append(len(codes.index))
        arrays += (codes.indptr, codes.index, codes.value, codes.error, codes.error_affine)
    specs, pack = feature_packing(rows, _metric_count(steps), nnz)
    begins, ends = _features_frame(batch.run_id, batch.boot_id, tuple(hooks))
    changing = {
        "seq": steps.first_seq,
        "n": rows,
        "sent": sent_ns,
        "encoded": batch.encoded_ns,
        "drops": _pack_drops(drops),
    }
    header = b"".join((begins, _pack(changing)[1:], ends, _pack(specs)))
    return [header, join(pack, arrays)]


@lru_cache(maxsize=1024)
def _features_frame(
    run_id: str, boot_id: str, hooks: tuple[tuple[str, str, int], ...]
) -> tuple[bytes, bytes]:
    """What a features header begins with and goes on with, the same in message after message."""
    begins = _pack({"v": VERSION, "kind": "features", "run": run_id, "boot": boot_id})
    return bytes((0x80 | 11,)) + begins[1:], _pack({"hooks": hooks})[1:] + _pack("t")


def encode_document(
    topic: str,
    payload: Mapping[str, Any],
    *,
    source: str,
    seq: int = 0,
    sent_ns: int = 0,
    limits: Limits = DEFAULT_LIMITS,
) -> list[bytes]:
    """Frames of a :class:`Document`: header, and the payload as MessagePack.

    Raises:
        WireError: reason ``document`` when the payload holds NaN, infinities, bytes, keys that are
            not strings, or nests or weighs too much.
    """
    check_payload(payload)
    body = _pack(payload)
    if len(body) > limits.document_bytes:
        raise WireError(
            "document",
            f"the document {topic!r} has {len(body)} bytes; at most {limits.document_bytes} travel",
        )
    header = {
        "v": VERSION,
        "kind": "document",
        "topic": topic,
        "source": source,
        "seq": seq,
        "sent": sent_ns,
        "size": len(body),
    }
    return [_pack(header), body]


def encode_picture(picture: Picture) -> list[bytes]:
    """Frames of a :class:`Picture` (kind ``frame``)."""
    header = {
        "v": VERSION,
        "kind": "frame",
        "boot": picture.boot_id,
        "seq": picture.seq,
        "env": picture.env,
        "width": picture.width,
        "height": picture.height,
        "sent": picture.sent_ns,
        "size": len(picture.jpeg),
    }
    return [_pack(header), picture.jpeg]


def encode_message(message: Message) -> list[bytes]:
    """The one frame of a message that is all header (welcome, ack, stats, …)."""
    fields = msgspec.to_builtins(message)
    return [_pack({"v": VERSION, "kind": _KIND_OF[type(message)], **fields})]


def encode(message: WireMessage) -> list[bytes]:
    """Frames of any message, for relays, recorders and tests.

    Raises:
        WireError: as the encoder of its kind does.
    """
    match message:
        case Hello():
            return encode_hello(
                message.manifest,
                first_seq=message.first_seq,
                sent_ns=message.sent_ns,
                transcoders=message.transcoders,
                lossless=message.lossless,
            )
        case StepsMessage():
            return encode_steps(
                message.batch,
                boot_id=message.boot_id,
                drops=message.drops,
                sent_ns=message.sent_ns,
            )
        case FeaturesMessage():
            return encode_features(message.batch, drops=message.drops, sent_ns=message.sent_ns)
        case Document():
            return encode_document(
                message.topic,
                message.payload,
                source=message.source,
                seq=message.seq,
                sent_ns=message.sent_ns,
            )
        case Picture():
            return encode_picture(message)
        case _:
            return encode_message(message)


# --- reading ------------------------------------------------------------------------------------


def decode(
    frames: Sequence[bytes | bytearray | memoryview], limits: Limits = DEFAULT_LIMITS
) -> WireMessage:
    """Read one message.

    Arrays of the result are read-only views of the body, except bfloat16 activations, which are
    widened to float32.

    Raises:
        WireError: with ``reason`` one of ``frames``, ``header``, ``version``, ``kind``, ``schema``,
            ``length``, ``limit``, ``tensor``, ``dtype``, ``shape``, ``value``, ``document``.
    """
    if not 1 <= len(frames) <= 2:
        raise WireError("frames", f"a message has one or two frames, this one has {len(frames)}")
    if frames[0][: len(_STEPS_START)] == _STEPS_START:
        recalled = _recall_steps(frames, limits)
        if recalled is not None:
            return recalled
    fields = _unpack_header(frames[0], limits)
    kind = fields.get("kind")
    if fields.get("v") != VERSION:
        raise WireError(
            "version",
            f"the message is of version {_show(fields.get('v'))}; this program speaks {VERSION}",
        )
    if not isinstance(kind, str) or kind not in KINDS:
        raise WireError("kind", f"the message is of the unknown kind {_show(kind)}")
    with_body = _WITH_BODY.get(kind)
    if with_body is not None:
        return with_body(fields, _body(frames), limits)
    if len(frames) != 1:
        raise WireError("frames", f"a message of kind {kind!r} has no body, this one has")
    return _decode_plain(fields, kind)


def kind_of(frames: Sequence[bytes | bytearray | memoryview]) -> str:
    """The kind a message claims to be, without reading the rest; ``""`` when it has none.

    For counters of refused messages: the result is one of the known kinds or ``""``.
    """
    try:
        kind = _unpack_header(frames[0], DEFAULT_LIMITS).get("kind") if frames else ""
    except WireError:
        return ""
    return kind if isinstance(kind, str) and kind in KINDS else ""


def check_payload(payload: object) -> None:
    """Check that ``payload`` is a map that JSON and MessagePack can both say.

    Raises:
        WireError: reason ``document``.
    """
    if not isinstance(payload, dict):
        raise WireError("document", "a document is a map with string keys")
    level: list[object] = [payload]
    for _ in range(MAX_DEPTH):
        below: list[object] = []
        for value in level:
            if isinstance(value, dict):
                if not all(isinstance(key, str) for key in value):
                    raise WireError("document", "a document has only strings as keys")
                below.extend(value.values())
            elif isinstance(value, list | tuple):
                below.extend(value)
            else:
                _check_scalar(value)
        if not below:
            return
        level = below
    raise WireError("document", f"a document nests at most {MAX_DEPTH} levels")


def _check_scalar(value: object) -> None:
    if isinstance(value, float):
        if not math.isfinite(value):
            raise WireError("document", f"a document holds {value}; an undefined number is null")
    elif isinstance(value, int):
        if not -MAX_INT - 1 <= value <= MAX_INT:
            raise WireError("document", "a document holds an integer beyond 64 bits")
    elif value is not None and not isinstance(value, str):
        raise WireError("document", f"a document cannot hold a {type(value).__name__}")


def check_against(manifest: Manifest, message: StepsMessage | FeaturesMessage) -> None:
    """Check that a batch is what its stream's manifest announced; see :class:`ManifestCheck`.

    Raises:
        WireError: reason ``manifest`` when hook points, widths, metrics or agent copies differ.
    """
    ManifestCheck(manifest)(message)


class ManifestCheck:
    """Holds the batches of one stream to its manifest."""

    __slots__ = ("_agent", "_envs", "_known", "_metrics", "_widths")

    def __init__(self, manifest: Manifest) -> None:
        self._agent = manifest.agent
        self._metrics = len(manifest.metrics)
        self._envs = manifest.env_count
        self._widths = {hook.name: (hook.d_in, hook.d_out) for hook in manifest.hook_points}
        self._known: object = None

    def __call__(self, message: StepsMessage | FeaturesMessage) -> None:
        """Check one batch.

        Raises:
            WireError: reason ``manifest`` when hook points, widths, metrics or copies differ.
        """
        steps = message.batch.steps
        # With one copy all bytes are zero, and stripping them is faster than a reduction.
        if self._envs > 1 or steps.env.tobytes().strip(b"\0"):
            highest = int(np.maximum.reduce(steps.env))
            if highest >= self._envs:
                raise self._differs(
                    f"names copy {highest} where its manifest has {self._envs} copies"
                )
        if isinstance(message, StepsMessage):
            if message.shape is None or message.shape is not self._known:
                self._check_columns(steps)
                self._check_activations(message)
                self._known = message.shape
            return
        self._check_columns(steps)
        for name in message.batch.codes:
            if name not in self._widths:
                raise self._differs(f"carries hook point {name!r}, which it did not announce")

    def _check_columns(self, steps: Steps) -> None:
        found = steps.metrics.shape[1]
        if found != self._metrics:
            raise self._differs(f"has {found} metrics where its manifest has {self._metrics}")

    def _check_activations(self, message: StepsMessage) -> None:
        for name, seen in message.batch.activations.items():
            if self._widths.get(name) != (seen.x.shape[1], seen.y.shape[1]):
                raise self._differs(
                    f"carries hook point {name!r} with widths that its manifest does not announce"
                )

    def _differs(self, how: str) -> WireError:
        return WireError("manifest", f"a batch of {self._agent!r} {how}")


# --- the parts ----------------------------------------------------------------------------------


def _pack(fields: object) -> bytes:
    try:
        packed: bytes = msgpack.packb(fields)
    except (ValueError, TypeError, OverflowError) as error:
        raise WireError("schema", f"the message cannot be written: {error}") from None
    return packed


# A steps header is written with the fields that change last: a map of nine entries, of which the
# first six are the same bytes in message after message. Whoever reads it may remember what they
# mean (see _remembered); whoever writes it need not follow this order.
_STEPS_START: Final = bytes((0x80 | 9,)) + msgpack.packb({"v": VERSION, "kind": "steps"})[1:]
_FIRST_SIX: Final = bytes((0x80 | 6,))
_LAST_THREE: Final = bytes((0x80 | 3,))
_SEQ_KEY: Final = msgpack.packb("seq")
_REST: Final = msgspec.msgpack.Decoder(StepsRest)
_LONGEST_PREFIX: Final = 4096


@lru_cache(maxsize=256)
def _steps_prefix(
    boot_id: str,
    rows: int,
    n_metrics: int,
    names: tuple[str, ...],
    hooks: tuple[tuple[str, int, int, int], ...],
) -> tuple[bytes, Packing]:
    """The unchanging part of a header, and how the body that it describes is put together."""
    specs = step_specs(rows, n_metrics, hooks)
    fields = {
        "v": VERSION,
        "kind": "steps",
        "boot": boot_id,
        "n": rows,
        "hooks": names,
        "t": specs,
    }
    return bytes((0x80 | 9,)) + _pack(fields)[1:], packing(specs)


@dataclass(frozen=True, slots=True)
class _StepsShape:
    """What a steps header says beside the numbers that change."""

    boot: str
    rows: int
    hooks: tuple[tuple[str, int, bool], ...]
    """Name, number of its first tensor, whether it travels as bfloat16."""
    layout: Layout


@lru_cache(maxsize=256)
def _remembered(prefix: bytes) -> _StepsShape | None:
    """What the first six entries of a steps header mean, ``None`` when they are not just that."""
    try:
        fields = _unpack(_FIRST_SIX + prefix[1:], "header")
        if not isinstance(fields, dict) or len(fields) != 6 or fields.get("v") != VERSION:
            return None
        known = _convert(fields, StepsPrefix, "steps")
        return _steps_shape(known)
    except WireError:
        # The long way says what is wrong with it.
        return None


def _steps_shape(header: StepsPrefix | StepsHeader) -> _StepsShape:
    layout = steps_layout(header.n, len(header.hooks), header.t)
    _check_unique(header.hooks)
    places = range(7, 7 + 3 * len(header.hooks), 3)
    hooks = tuple(
        (name, place, header.t[place][1] == "bf2")
        for name, place in zip(header.hooks, places, strict=True)
    )
    return _StepsShape(header.boot, header.n, hooks, layout)


def _pack_drops(drops: Sequence[Drop]) -> list[tuple[int, int, str]]:
    if len(drops) > MAX_RANGES:
        raise WireError(
            "schema", f"a message declares at most {MAX_RANGES} ranges of drops, not {len(drops)}"
        )
    return [(drop.first_seq, drop.count, drop.reason.value) for drop in drops]


def _columns(steps: Steps) -> list[NDArray[Any]]:
    return [
        steps.env,
        steps.episode,
        steps.t,
        steps.time_ns,
        steps.controller,
        steps.flags,
        steps.metrics,
    ]


def _metric_count(steps: Steps) -> int:
    if steps.metrics.ndim != 2:
        raise WireError("shape", "metrics must be [rows, metrics]")
    return int(steps.metrics.shape[1])


def _unpack_header(frame: bytes | bytearray | memoryview, limits: Limits) -> dict[str, Any]:
    size = _length(frame)
    if size > limits.header_bytes:
        raise WireError(
            "limit", f"the header has {size} bytes; at most {limits.header_bytes} are accepted"
        )
    fields = _unpack(frame, "header")
    if not isinstance(fields, dict):
        raise WireError("header", f"the header is a {type(fields).__name__}, not a map")
    return fields


def _unpack(
    frame: bytes | bytearray | memoryview, reason: str, *, use_list: bool = False
) -> object:
    try:
        # Bytes and extension types have no place in a header, so their limits are 0. Pairs are not
        # hooked: of a repeated key the last one counts.
        return msgpack.unpackb(frame, use_list=use_list, max_bin_len=0, max_ext_len=0)
    except (
        ValueError,  # msgpack's own errors, bad UTF-8 and limits are all ValueErrors
        TypeError,  # a map as a key
        RecursionError,
        OverflowError,
        BufferError,
    ) as error:
        raise WireError(
            reason, f"the {reason} is not valid MessagePack: {type(error).__name__}"
        ) from None


def _length(frame: bytes | bytearray | memoryview) -> int:
    return frame.nbytes if isinstance(frame, memoryview) else len(frame)


def _convert(fields: dict[str, Any], struct: type[H], kind: str) -> H:
    try:
        return msgspec.convert(fields, struct)
    except (msgspec.ValidationError, ValueError, OverflowError, RecursionError) as error:
        raise WireError("schema", f"a message of kind {kind!r} is malformed: {error}") from None


def _show(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, str):
        return repr(value[:32])
    return "of another type" if value is not None else "none"


def _body(frames: Sequence[bytes | bytearray | memoryview]) -> bytes | memoryview:
    if len(frames) != 2:
        raise WireError("frames", "the message's body is absent")
    body = frames[1]
    if isinstance(body, bytes):
        return body
    view = memoryview(body)
    if not view.c_contiguous:
        raise WireError("frames", "the message's body is not contiguous")
    return view.cast("B").toreadonly()


def _checked_views(
    layout: Layout, rows: int, body: bytes | memoryview, limits: Limits
) -> list[NDArray[Any]]:
    if rows > limits.rows:
        raise WireError("limit", f"the message has {rows} rows; at most {limits.rows} are accepted")
    if layout.size > limits.body_bytes:
        raise WireError(
            "limit",
            f"the message's body has {layout.size} bytes; at most {limits.body_bytes} are accepted",
        )
    if len(body) != layout.size:
        raise WireError(
            "length",
            f"the message's body has {len(body)} bytes and its header describes {layout.size}",
        )
    return views(layout, body)


def _steps_of(first_seq: int, rows: int, columns: list[NDArray[Any]]) -> Steps:
    env, episode, t, time_ns, controller, flags, metrics = columns[:7]
    if first_seq > MAX_INT - rows:
        raise WireError("value", "the message's sequence numbers are beyond 63 bits")
    # Stripping the allowed bytes leaves nothing when all are allowed: five times as fast as a
    # reduction of NumPy at 64 rows.
    if controller.tobytes().strip(_CONTROLLERS):
        raise WireError("value", f"controller {int(controller.max())} does not exist")
    if flags.tobytes().strip(_FLAGS):
        raise WireError("value", f"flags {int(flags.max())} do not exist")
    return Steps(first_seq, env, episode, t, time_ns, controller, flags, metrics)


def _check_unique(names: Sequence[str]) -> None:
    if len(set(names)) != len(names):
        raise WireError("schema", "a hook point is named twice in one message")


def _decode_plain(fields: dict[str, Any], kind: str) -> WireMessage:
    if kind == "hello":
        return _decode_hello(fields)
    del fields["v"], fields["kind"]
    return cast("WireMessage", _convert(fields, PLAIN_KINDS[kind], kind))


def _decode_hello(fields: dict[str, Any]) -> Hello:
    header = _convert(fields, HelloHeader, "hello")
    manifest = _checked_manifest(header.manifest)
    _check_transcoders(manifest, header.transcoders)
    return Hello(
        manifest=manifest,
        first_seq=header.seq,
        sent_ns=header.sent,
        transcoders=MappingProxyType(header.transcoders) if header.transcoders else None,
        lossless=header.lossless,
    )


def _checked_manifest(header: ManifestHeader) -> Manifest:
    manifest = header.manifest()
    _check_unique([hook.name for hook in manifest.hook_points])
    names = manifest.metric_names()
    if len(set(names)) != len(names):
        raise WireError("schema", f"a metric of {manifest.agent!r} is named twice")
    return manifest


def _check_transcoders(manifest: Manifest, transcoders: Mapping[str, str]) -> None:
    hooks = {hook.name for hook in manifest.hook_points}
    if not hooks.issuperset(transcoders):
        raise WireError("schema", "the hello has a transcoder for a hook point it does not name")


def _recall_steps(
    frames: Sequence[bytes | bytearray | memoryview], limits: Limits
) -> StepsMessage | None:
    """The short way: a steps message whose header begins as an earlier one did.

    It accepts nothing that the long way would not: the beginning went the long way once, byte for
    byte, and the rest must be the three other fields, each once.
    """
    head = frames[0] if isinstance(frames[0], bytes) else bytes(frames[0])
    cut = head.rfind(_SEQ_KEY)
    if not 0 < cut <= _LONGEST_PREFIX or len(head) > limits.header_bytes:
        return None
    shape = _remembered(head[:cut])
    rest = None if shape is None else _rest(head[cut:])
    if shape is None or rest is None:
        return None
    arrays = _checked_views(shape.layout, shape.rows, _body(frames), limits)
    return _steps_message(shape, arrays, rest)


def _rest(entries: bytes) -> StepsRest | None:
    """The changing fields of a steps header, ``None`` when these bytes are not just them."""
    try:
        # All three are required and no other is allowed, so a map of three has each of them once.
        return _REST.decode(_LAST_THREE + entries)
    except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError):
        return None


def _decode_steps(fields: dict[str, Any], body: bytes | memoryview, limits: Limits) -> StepsMessage:
    header = _convert(fields, StepsHeader, "steps")
    shape = _steps_shape(header)
    arrays = _checked_views(shape.layout, shape.rows, body, limits)
    return _steps_message(shape, arrays, StepsRest(header.seq, header.sent, header.drops))


def _steps_message(shape: _StepsShape, arrays: list[NDArray[Any]], rest: StepsRest) -> StepsMessage:
    activations: dict[str, Activations] = {}
    for name, place, narrow in shape.hooks:
        x, y, sampled = arrays[place], arrays[place + 1], arrays[place + 2]
        if narrow:
            x, y = widen_bfloat16(x), widen_bfloat16(y)
        if len(sampled):
            _check_sampled(name, shape.rows, sampled)
        activations[name] = Activations(x, y, sampled)
    batch = StepBatch(_steps_of(rest.seq, shape.rows, arrays), activations)
    return StepsMessage(shape.boot, batch, rest.drops, rest.sent, shape)


def _check_sampled(name: str, rows: int, sampled: NDArray[np.uint16]) -> None:
    count = len(sampled)
    # Nearly always every row has its output, and then the column is known byte for byte.
    if not count or (count <= rows and sampled.tobytes() == _ALL_ROWS[: 2 * count]):
        return
    # Ascending row numbers end with the largest: one comparison bounds them all.
    if sampled[-1] >= rows or np.count_nonzero(sampled[1:] <= sampled[:-1]):
        raise WireError(
            "value", f"the sampled rows of {name!r} are not ascending numbers below {rows}"
        )


def _decode_features(
    fields: dict[str, Any], body: bytes | memoryview, limits: Limits
) -> FeaturesMessage:
    header = _convert(fields, FeaturesHeader, "features")
    rows = header.n
    layout = features_layout(rows, len(header.hooks), header.t)
    arrays = _checked_views(layout, rows, body, limits)
    _check_unique([hook.name for hook in header.hooks])
    codes: dict[str, SparseCodes] = {}
    place = 7
    for hook in header.hooks:
        indptr, index, value, error, affine = arrays[place : place + 5]
        _check_codes(hook.name, hook.n_features, indptr, index, value)
        codes[hook.name] = SparseCodes(hook.n_features, indptr, index, value, error, affine)
        place += 5
    return FeaturesMessage(
        batch=FeatureBatch(
            run_id=header.run,
            boot_id=header.boot,
            steps=_steps_of(header.seq, rows, arrays),
            codes=codes,
            transcoders={hook.name: hook.transcoder for hook in header.hooks},
            encoded_ns=header.encoded,
        ),
        drops=header.drops,
        sent_ns=header.sent,
    )


def _check_codes(
    name: str,
    n_features: int,
    indptr: NDArray[np.uint32],
    index: NDArray[np.uint32],
    value: NDArray[np.float32],
) -> None:
    """Hold the sparse rows to their contract: everything downstream indexes with them unchecked."""
    nnz = len(index)
    if indptr[0] or indptr[-1] != nnz or np.count_nonzero(indptr[1:] < indptr[:-1]):
        raise WireError("value", f"the rows of {name!r} do not add up to its {nnz} features")
    if not nnz:
        return
    if np.count_nonzero(index < n_features) != nnz:
        raise WireError("value", f"a feature of {name!r} is beyond its {n_features} features")
    # Between two neighbours the index grows, unless a row begins there.
    falls = np.empty(nnz + 1, np.bool_)
    np.less_equal(index[1:], index[:-1], out=falls[1:-1])
    falls[indptr] = False
    if np.count_nonzero(falls):
        raise WireError("value", f"the features of a row of {name!r} are not ascending")
    # The bits of the positive finite numbers are 1 … 0x7f7fffff; zero wraps around to the largest.
    if np.count_nonzero(value.view(np.uint32) - _ONE < _INFINITY - _ONE) != nnz:
        raise WireError("value", f"an activation of {name!r} is not a positive number")


def _decode_document(fields: dict[str, Any], body: bytes | memoryview, limits: Limits) -> Document:
    header = _convert(fields, DocumentHeader, "document")
    _check_size(header.size, body, limits.document_bytes)
    payload = _unpack(body, "document", use_list=True)
    check_payload(payload)
    return Document(
        topic=header.topic,
        source=header.source,
        payload=cast("dict[str, Any]", payload),
        seq=header.seq,
        sent_ns=header.sent,
    )


def _decode_picture(fields: dict[str, Any], body: bytes | memoryview, limits: Limits) -> Picture:
    header = _convert(fields, PictureHeader, "frame")
    _check_size(header.size, body, limits.picture_bytes)
    jpeg = bytes(body)
    if not jpeg.startswith(JPEG_START):
        raise WireError("value", "a frame's body is not a JPEG")
    return Picture(
        boot_id=header.boot,
        seq=header.seq,
        env=header.env,
        width=header.width,
        height=header.height,
        jpeg=jpeg,
        sent_ns=header.sent,
    )


def _check_size(size: int, body: bytes | memoryview, limit: int) -> None:
    if size > limit:
        raise WireError("limit", f"the body has {size} bytes; at most {limit} are accepted")
    if len(body) != size:
        raise WireError("length", f"the body has {len(body)} bytes and its header says {size}")


_WITH_BODY: Final[
    Mapping[str, Callable[[dict[str, Any], bytes | memoryview, Limits], WireMessage]]
] = {
    "steps": _decode_steps,
    "features": _decode_features,
    "document": _decode_document,
    "frame": _decode_picture,
}
