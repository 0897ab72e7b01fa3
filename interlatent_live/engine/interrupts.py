"""SIGTERM as an interrupt, for commands that stop what they started on the way out."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Within it SIGTERM raises ``KeyboardInterrupt`` on the main thread, as SIGINT does.

    By default SIGTERM ends Python at once: no ``finally`` runs, no engine is closed, and the kernel
    kills the services without a clean stop. A program that handles SIGTERM itself, or that enters
    this on another thread (where no handler can be set), is left as it is.
    """
    on_main = threading.current_thread() is threading.main_thread()
    if not on_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
