"""Questions and answers as frames: one MessagePack map, and raw little-endian buffers behind it.

Both directions are borders: whatever bytes arrive, the result is a typed value or a
:class:`WireError` with a stable reason. A buffer's dtype is on an allowlist, and shapes and lengths
are checked before it is viewed.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np

from interlatent_live.errors import WireError
from interlatent_live.queries.messages import VERSION, Reply, Request

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from interlatent_live.queries.messages import AnyAnswer, AnyQuestion

MAX_QUESTION: Final = 256 * 1024
"""Bytes of the largest question."""
DTYPES: Final[dict[str, np.dtype[Any]]] = {
    "f8": np.dtype("<f8"),
    "i8": np.dtype("<i8"),
    "i4": np.dtype("<i4"),
}

_requests = msgspec.msgpack.Decoder(Request)
_replies = msgspec.msgpack.Decoder(Reply)
_encoder = msgspec.msgpack.Encoder()


def encode_request(number: int, question: AnyQuestion) -> list[bytes]:
    """A question as frames."""
    return [_encoder.encode(Request(v=VERSION, id=number, question=question))]


def decode_request(frames: Sequence[bytes | memoryview]) -> Request:
    """A question from frames.

    Raises:
        WireError: ``frames``, ``length``, ``version`` or ``question``.
    """
    if len(frames) != 1:
        raise WireError("frames", f"a question is one frame, not {len(frames)}")
    if len(frames[0]) > MAX_QUESTION:
        raise WireError("length", f"a question has at most {MAX_QUESTION} bytes")
    try:
        request = _requests.decode(frames[0])
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise WireError("question", f"the question is not understood: {error}") from None
    if request.v != VERSION:
        raise WireError("version", f"version {request.v} of the questions is not spoken here")
    return request


def request_id(frame: bytes | memoryview) -> int:
    """The number of a question that was not understood, 0 where even that is not to be had."""
    try:
        fields = msgspec.msgpack.decode(frame)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError, ValueError):
        return 0
    number = fields.get("id", 0) if isinstance(fields, dict) else 0
    return number if isinstance(number, int) and 0 <= number < 2**63 else 0


def encode_answer(
    number: int,
    answer: AnyAnswer,
    arrays: Mapping[str, NDArray[Any]] | None = None,
    *,
    took_us: int = 0,
) -> list[bytes]:
    """An answer as frames; ``arrays`` are float64, int64 or int32 of one or two dimensions."""
    specs, parts = [], []
    for name, array in (arrays or {}).items():
        word = f"{array.dtype.kind}{array.dtype.itemsize}"
        specs.append((name, word, array.shape))
        parts.append(np.ascontiguousarray(array, DTYPES[word]).tobytes())
    reply = Reply(v=VERSION, id=number, answer=answer, tensors=tuple(specs), took_us=took_us)
    head = _encoder.encode(reply)
    return [head, b"".join(parts)] if parts else [head]


def encode_refusal(number: int, refused: str, error: str) -> list[bytes]:
    """One sentence instead of an answer."""
    return [_encoder.encode(Reply(v=VERSION, id=number, error=error, refused=refused))]


def decode_reply(frames: Sequence[bytes | memoryview]) -> tuple[Reply, dict[str, NDArray[Any]]]:
    """An answer and its arrays (read-only views) from frames.

    Raises:
        WireError: ``frames``, ``answer``, ``version``, ``dtype`` or ``length``.
    """
    if len(frames) not in (1, 2):
        raise WireError("frames", f"an answer is one or two frames, not {len(frames)}")
    try:
        reply = _replies.decode(frames[0])
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise WireError("answer", f"the answer is not understood: {error}") from None
    if reply.v != VERSION:
        raise WireError("version", f"version {reply.v} of the answers is not spoken here")
    body = frames[1] if len(frames) == 2 else b""
    arrays: dict[str, NDArray[Any]] = {}
    at = 0
    for name, word, shape in reply.tensors:
        dtype = DTYPES.get(word)
        if dtype is None:
            raise WireError("dtype", f"{name!r} has the dtype {word!r}")
        size = math.prod(shape) * dtype.itemsize
        if at + size > len(body):
            raise WireError("length", f"{name!r} reaches beyond the answer")
        flat = np.frombuffer(body, dtype, math.prod(shape), at) if size else np.empty(0, dtype)
        arrays[name] = flat.reshape(shape)
        at += size
    if at != len(body):
        raise WireError("length", f"the answer has {len(body) - at} bytes too many")
    return reply, arrays
