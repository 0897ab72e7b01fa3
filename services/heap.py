"""Free memory goes back to the machine: a service that runs for months holds what it uses.

Documents of ever other sizes leave holes in glibc's heap, whose pages stay with the process however
little of them is in use (``malloc_trim(3)``). Ten minutes at full rate made that 20 MiB in the
console, while what Python held stayed the same.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

TRIM_EVERY_S = 60.0


def give_back_free_memory() -> None:
    """Return whole free pages, which takes some ms; does nothing where the C library is not glibc.

    Other threads go on meanwhile, unless they ask for memory themselves.
    """
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    found = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if found is None:
        return None
    found.argtypes = [ctypes.c_size_t]
    found.restype = ctypes.c_int
    trim: Callable[[int], int] = found
    return trim
