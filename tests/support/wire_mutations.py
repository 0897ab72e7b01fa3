"""Fast mutation of wire messages: what an attacker, a bad cable or a wrong program would send.

Kinds of damage: bits and bytes of any frame, cut and lengthened frames, headers whose fields are
changed to values of another type or to extreme ones, frames of different messages together.
"""

from __future__ import annotations

import random
from typing import Any

import msgpack  # type: ignore[import-untyped] # the package ships no types

from tests.support.wire_vectors import vectors

ODD: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1,
    64,
    2**16,
    2**31,
    2**32 - 1,
    2**63 - 1,
    2**63,
    2**64 - 1,
    -(2**63),
    0.5,
    float("nan"),
    float("inf"),
    "",
    "a",
    "\x1b[31m",
    "é" * 300,
    "O",
    "f8",
    b"bytes",
    [],
    [[]],
    [1, 2],
    {},
    {"a": 1},
    [["env", "O", [3]]],
    [["env", "u2", [2**32 - 1]]],
    [[0, 1, "age"]] * 300,
    [[[[[[[[[[]]]]]]]]]],
    msgpack.ExtType(1, b"x"),
)


def seeds() -> list[list[bytes]]:
    """The messages that mutation starts from: every vector."""
    return [vector.frames for vector in vectors()]


class Mutator:
    """An endless source of broken messages, the same for the same seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._seeds = seeds()
        self._headers = [_fields(frames[0]) for frames in self._seeds]

    def message(self) -> list[bytes]:
        """One mutated message; now and then it is still a valid one."""
        rng = self._random
        number = rng.randrange(len(self._seeds))
        frames = list(self._seeds[number])
        choice = rng.random()
        if choice < 0.4:
            frames[0] = self._header(number)
        elif choice < 0.9:
            for _ in range(1 + (rng.random() < 0.3)):
                at = rng.randrange(len(frames))
                frames[at] = self._bytes(frames[at])
        else:
            other = rng.choice(self._seeds)
            frames = [rng.choice(frames), *other[rng.randrange(len(other)) :]]
        return frames

    def _header(self, number: int) -> bytes:
        rng = self._random
        fields = dict(self._headers[number])
        for _ in range(rng.randint(1, 2)):
            _mutate_inside(rng, fields)
        packed: bytes = msgpack.packb(fields)
        return packed

    def _bytes(self, frame: bytes) -> bytes:
        rng = self._random
        data = bytearray(frame)
        kind = rng.randrange(6)
        at = rng.randrange(len(data) + 1)
        if kind == 0 and data:
            data[at % len(data)] ^= 1 << rng.randrange(8)
        elif kind == 1 and data:
            data[at % len(data)] = rng.choice((0, 0x7F, 0x80, 0xC1, 0xC4, 0xD9, 0xDF, 0xFF))
        elif kind == 2:
            del data[at : at + rng.randint(1, 16)]
        elif kind == 3:
            data[at:at] = rng.randbytes(rng.randint(1, 16))
        elif kind == 4:
            del data[at:]
        else:
            data[at : at + 8] = rng.choice((b"\xff" * 8, b"\0" * 8, b"\xdd\xff\xff\xff\xff"))
        return bytes(data)


def _fields(head: bytes) -> dict[str, Any]:
    try:
        fields = msgpack.unpackb(head)
    except ValueError:
        return {"v": 1, "kind": "steps"}
    return fields if isinstance(fields, dict) else {"v": 1}


def _mutate_inside(rng: random.Random, fields: dict[str, Any]) -> None:
    keys = list(fields)
    if not keys or rng.random() < 0.05:
        fields[rng.choice(("seq", "boot", "extra", "t", "v"))] = rng.choice(ODD)
        return
    key = rng.choice(keys)
    value = fields[key]
    if rng.random() < 0.1:
        del fields[key]
    elif isinstance(value, list) and value and rng.random() < 0.7:
        # A copy, since the seeds are used again.
        changed = [list(item) if isinstance(item, list) else item for item in value]
        at = rng.randrange(len(changed))
        if isinstance(changed[at], list) and changed[at]:
            changed[at][rng.randrange(len(changed[at]))] = rng.choice(ODD)
        else:
            changed[at] = rng.choice(ODD)
        fields[key] = changed
    elif isinstance(value, dict) and rng.random() < 0.8:
        inner = dict(value)
        _mutate_inside(rng, inner)
        fields[key] = inner
    else:
        fields[key] = rng.choice(ODD)
