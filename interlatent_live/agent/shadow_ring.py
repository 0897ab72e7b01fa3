"""What a policy was called with, in memory that the shadow's process reads and never waits for.

The acting thread copies a call into the next slot and goes on; it overwrites the oldest one whether
or not anybody read it. Every slot carries a checksum over its number and its bytes, so a slot that
was being written while it was read is left out, on any processor's order of stores. All calls have
one shape, which the first one sets; other calls are counted and left out.
"""

from __future__ import annotations

import ctypes
import math
import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Sequence
    from mmap import mmap

    from numpy.typing import NDArray

_HEADER: Final = struct.Struct("<QQ")
"""Number of the sample from 1, and its checksum."""
_TIME: Final = struct.Struct("<q")
_NOTHING: Final = bytes(_HEADER.size)
_ALIGN: Final = 16
# Like ctypes.memmove, but it keeps the interpreter's lock, for moves of a microsecond.
_memmove = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)(
    ctypes.cast(ctypes.memmove, ctypes.c_void_p).value or 0
)
MOST_BYTES: Final = 64 * 2**20
"""Of a ring; calls too large for the buffer asked for are kept fewer."""


class CallShapeError(Exception):
    """A call holds something that is not a tensor, a number, a word, or a container of these."""


@dataclass(frozen=True, slots=True)
class RingShape:
    """Where everything of a slot lies; plain values, so that it can be sent.

    ``skeleton`` is the call with every tensor replaced by its place, ``tensors`` the dtype and
    shape of each, ``copies`` how many agent copies a call is for.
    """

    skeleton: Any
    tensors: tuple[tuple[str, tuple[int, ...]], ...]
    copies: int
    slots: int

    @property
    def offsets(self) -> tuple[int, ...]:
        """Where each tensor begins in a slot, and where the slot ends."""
        at = [_aligned(_HEADER.size + 8 * (2 * self.copies + 1))]
        for dtype, shape in self.tensors:
            size = getattr(torch, dtype).itemsize * math.prod(shape)
            at.append(_aligned(at[-1] + size))
        return tuple(at)

    @property
    def nbytes(self) -> int:
        """Bytes of the whole ring."""
        return self.offsets[-1] * self.slots


@dataclass(frozen=True, slots=True, eq=False)
class RingSample:
    """A call as it was: (args, kwargs), each copy's episode and step [copies], and when (ns)."""

    call: tuple[Any, Any]
    episode: NDArray[np.int64]
    t: NDArray[np.int64]
    time_ns: int


def ring_shape(call: tuple[Any, Any], copies: int, slots: int) -> RingShape:
    """The shape of a ring for calls such as (args, kwargs).

    Raises:
        CallShapeError: when it holds something that cannot be shared.
    """
    tensors: list[torch.Tensor] = []
    skeleton = _skeleton(call, tensors)
    facts = tuple((str(one.dtype).removeprefix("torch."), tuple(one.shape)) for one in tensors)
    one = RingShape(skeleton, facts, copies, 1).nbytes
    return RingShape(skeleton, facts, copies, max(1, min(slots, MOST_BYTES // one)))


class RingWriter:
    """The acting thread's side."""

    def __init__(self, memory: mmap, shape: RingShape) -> None:
        self._memory = memoryview(memory)
        self._base = np.frombuffer(memory, np.uint8).ctypes.data
        self._shape, self._size = shape, shape.offsets[-1]
        self._facts = []
        for (dtype, wanted), at in zip(shape.tensors, shape.offsets, strict=False):
            kind = getattr(torch, dtype)
            size = kind.itemsize * math.prod(wanted)
            self._facts.append((kind, torch.Size(wanted), at, size))
        self._one = shape.skeleton == _skeleton(((torch.zeros(1),), {}), [])
        self._count = 0
        self._episode: NDArray[np.int64] | None = None
        self._episode_bytes = b""

    def put(
        self, call: tuple[Any, Any], episode: NDArray[np.int64], t: NDArray[np.int64], time_ns: int
    ) -> bool:
        """Copy a call, and each copy's episode and step [copies]; False where its shape is another.

        An array of episodes that is given again must not have been changed.
        """
        args, kwargs = call
        # Nearly all policies are called with one tensor, and this is on their thread.
        if self._one and len(args) == 1 and not kwargs and isinstance(args[0], torch.Tensor):
            tensors = [args[0]]
        else:
            tensors = []
            try:
                if _skeleton(call, tensors) != self._shape.skeleton:
                    return False
            except CallShapeError:
                return False
        for tensor, (dtype, wanted, _, _) in zip(tensors, self._facts, strict=True):
            if tensor.dtype is not dtype or tensor.shape != wanted:
                return False
        if len(t) != self._shape.copies:
            return False
        if episode is not self._episode:
            if len(episode) != self._shape.copies:
                return False
            self._episode, self._episode_bytes = episode, episode.tobytes()
        self._write(tensors, self._episode_bytes + t.tobytes() + _TIME.pack(time_ns))
        return True

    def _write(self, tensors: list[torch.Tensor], facts: bytes) -> None:
        number = self._count = self._count + 1
        begin = (number - 1) % self._shape.slots * self._size
        inside = begin + _HEADER.size
        self._memory[begin:inside] = _NOTHING
        self._memory[inside : inside + len(facts)] = facts
        for tensor, (_, _, at, nbytes) in zip(tensors, self._facts, strict=True):
            plain = tensor.is_cpu and tensor.is_contiguous()
            host = tensor if plain else tensor.detach().to("cpu").contiguous()
            _memmove(self._base + begin + at, host.data_ptr(), nbytes)
        slot = self._memory[inside : begin + self._size]
        _HEADER.pack_into(self._memory, begin, number, _check(number, slot))


class RingReader:
    """The shadow's side."""

    def __init__(self, memory: mmap, shape: RingShape) -> None:
        self._bytes = np.frombuffer(memory, np.uint8)
        self._shape, self._offsets = shape, shape.offsets

    def samples(self) -> list[RingSample]:
        """Whole samples, oldest first."""
        size, found = self._offsets[-1], []
        for slot in self._bytes.reshape(self._shape.slots, size):
            copy = slot.copy()
            number, check = _HEADER.unpack_from(copy.data)
            if number and _check(number, copy[_HEADER.size :].data) == check:
                found.append((number, copy))
        found.sort(key=lambda one: one[0])
        return [self._read(copy) for _, copy in found]

    def _read(self, slot: NDArray[np.uint8]) -> RingSample:
        shape = self._shape
        n = shape.copies
        facts = slot[_HEADER.size : _HEADER.size + 8 * (2 * n + 1)].view(np.int64)
        tensors = []
        for (dtype, wanted), at in zip(shape.tensors, self._offsets, strict=False):
            kind = getattr(torch, dtype)
            raw = slot[at : at + kind.itemsize * math.prod(wanted)]
            tensors.append(torch.from_numpy(raw).view(kind).reshape(wanted))
        args, kwargs = _filled(shape.skeleton, tensors)
        return RingSample((args, kwargs), facts[:n], facts[n : 2 * n], int(facts[-1]))


def _skeleton(value: Any, tensors: list[torch.Tensor]) -> Any:
    """The value in plain JSON with its tensors taken out, in order."""
    if isinstance(value, torch.Tensor):
        tensors.append(value)
        return {"tensor": len(tensors) - 1}
    if value is None or type(value) in (bool, int, float, str):
        return value
    if type(value) in (tuple, list):
        return {type(value).__name__: [_skeleton(one, tensors) for one in value]}
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {"dict": {key: _skeleton(one, tensors) for key, one in value.items()}}
    raise CallShapeError(
        f"the policy is called with a {type(value).__name__}, which is neither a tensor nor plain"
    )


def _filled(skeleton: Any, tensors: Sequence[torch.Tensor]) -> Any:
    if not isinstance(skeleton, dict):
        return skeleton
    ((kind, held),) = skeleton.items()
    if kind == "tensor":
        return tensors[held]
    if kind == "dict":
        return {key: _filled(one, tensors) for key, one in held.items()}
    return (tuple if kind == "tuple" else list)(_filled(one, tensors) for one in held)


def _check(number: int, content: memoryview) -> int:
    return zlib.crc32(content, zlib.crc32(number.to_bytes(8, "little")))


def _aligned(size: int) -> int:
    return -(-size // _ALIGN) * _ALIGN
