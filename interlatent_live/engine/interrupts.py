"""SIGTERM as an interrupt, for commands that stop what they started on the way out."""

from __future__ import annotations

import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Within it SIGTERM raises ``KeyboardInterrupt`` on the main thread, as SIGINT does.

    By default SIGTERM ends Python at once: no ``finally`` runs, no engine is closed, and the kernel
    kills the services without a clean stop. Must be entered on the main thread.
    """

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
