"""Which shard a run belongs to: runs are hashed to slots, slots are dealt out to shards.

The number of slots is fixed, so a run's slot never changes; what changes when shards come and go is
who owns a slot, and rendezvous hashing (Thaler & Ravishankar, 1998, "Using name-based mappings to
increase hit rates", IEEE/ACM Transactions on Networking 6) moves only those that must move.
"""

from __future__ import annotations

import hashlib
import string
from typing import TYPE_CHECKING, Final

from interlatent_live.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterable

SLOTS: Final = 256
_DIGITS: Final = SLOTS // 4


def slot_of(run_id: str) -> int:
    """The slot of a run, 0 … 255: one byte of BLAKE2b of its id, the same everywhere."""
    return hashlib.blake2b(run_id.encode(), digest_size=1).digest()[0]


def assign(shards: Iterable[str]) -> dict[str, frozenset[int]]:
    """The slots of each shard, by its name.

    A further shard takes slots from the others and moves none between them; when one goes, the
    others take its slots and keep their own.

    Raises:
        ValueError: without shards, or with two of one name.
    """
    names = tuple(shards)
    if not names or len(set(names)) != len(names):
        raise ValueError("slots are dealt out to at least one shard, each with a name of its own")
    owned: dict[str, set[int]] = {name: set() for name in names}
    for slot in range(SLOTS):
        owned[max(names, key=lambda name: _weight(slot, name))].add(slot)
    return {name: frozenset(slots) for name, slots in owned.items()}


def slots_text(slots: Iterable[int]) -> str:
    """Slots as 64 hexadecimal digits, one bit a slot: for command lines and messages."""
    bits = sum(1 << slot for slot in set(slots))
    return f"{bits:0{_DIGITS}x}"


def parse_slots(text: str) -> frozenset[int]:
    """Inverse of :func:`slots_text`.

    Raises:
        UserError: when it is not 64 hexadecimal digits.
    """
    if len(text) != _DIGITS or not set(text) <= set(string.hexdigits):
        raise UserError(f"slots are {_DIGITS} hexadecimal digits, not {text!r}")
    bits = int(text, 16)
    return frozenset(slot for slot in range(SLOTS) if bits >> slot & 1)


def _weight(slot: int, name: str) -> tuple[bytes, str]:
    digest = hashlib.blake2b(f"{slot}/{name}".encode(), digest_size=8).digest()
    return digest, name
