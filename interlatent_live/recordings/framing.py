"""How a wire message lies in a recording: its frames, each behind its length.

Exactly the frames that travelled, so whatever reads the wire reads a recording, and nothing has to
be kept in step.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from interlatent_live.errors import WireError

if TYPE_CHECKING:
    from collections.abc import Sequence

_LENGTH: Final = struct.Struct("<I")


def join_frames(frames: Sequence[bytes | memoryview]) -> bytes:
    """Each frame behind its length as an unsigned 32-bit little-endian number."""
    parts: list[bytes | memoryview] = []
    for frame in frames:
        parts += (_LENGTH.pack(len(frame)), frame)
    return b"".join(parts)


def split_frames(data: bytes | memoryview) -> list[memoryview]:
    """The frames of a recorded message, as views.

    Raises:
        WireError: reason ``frames`` when the lengths do not add up to the data.
    """
    view = memoryview(data)
    frames: list[memoryview] = []
    at = 0
    while at < len(view):
        if at + _LENGTH.size > len(view) or len(frames) == 2:
            raise WireError("frames", "a recorded message does not consist of its frames")
        (length,) = _LENGTH.unpack_from(view, at)
        at += _LENGTH.size
        if at + length > len(view):
            raise WireError("frames", "a recorded message is shorter than its frames")
        frames.append(view[at : at + length])
        at += length
    return frames
