"""Pages that hold nothing are given back."""

import subprocess
import sys
import textwrap

import pytest

from interlatent_live.services.heap import _malloc_trim


@pytest.mark.skipif(_malloc_trim() is None, reason="the C library is not glibc")
def test_memory_that_was_freed_in_pieces_goes_back() -> None:
    # In a process of its own: what others keep in the heap of this one is nobody's to know.
    program = """
        import random
        from interlatent_live.bench.chaos.resources import holding
        from interlatent_live.services.heap import give_back_free_memory
        import os
        sizes = random.Random(0)
        held = [bytearray(sizes.randrange(600, 20_000)) for _ in range(6_000)]
        full = holding(os.getpid()).anonymous_bytes
        sizes.shuffle(held)
        del held[1_000:]
        with_holes = holding(os.getpid()).anonymous_bytes
        give_back_free_memory()
        print(full - with_holes, full - holding(os.getpid()).anonymous_bytes)
    """
    found = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    without, given_back = map(int, found.stdout.split())
    assert without < 10 * 2**20
    assert given_back > 35 * 2**20
