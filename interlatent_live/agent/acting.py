"""Which forward is the one that acted, and what each hook point saw of it; no torch here.

A policy runs its modules for many reasons: to act, to learn from minibatches, to bootstrap a value.
Only the forward that chose the action of a step belongs into that step's row. The rule is: the last
forward before the step that ran in the stepping thread, on exactly as many rows as there are agent
copies, and whose output is outside of any gradient; ``with tap.acting():`` replaces the rule.
"""

from __future__ import annotations

import logging
from collections import Counter
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from interlatent_live.agent.ring import Ring

logger = logging.getLogger(__name__)

NEVER: Final = -1

REFUSALS: Final = {
    "grad": "ran with gradients on, as forwards made for learning do (act under torch.no_grad(), "
    "or wrap the acting call in `with tap.acting():`)",
    "batch": "ran on another number of rows than there are agent copies",
    "thread": "ran in another thread than the one that steps",
    "outside": "ran outside of `with tap.acting():`, which this agent uses",
    "input": "got no tensor as its first argument",
    "output": "returned nothing that starts with a tensor",
    "dtype": "saw numbers that are not real (complex or quantised)",
    "capture": "ran while a CUDA graph was captured, and replays call no hooks",
    "width": "saw rows of another width than the stream's (give the widths with "
    "`shapes={name: (d_in, d_out)}`)",
    "late": "ran first after the stream had started without it; give its widths with "
    "`shapes={name: (d_in, d_out)}`",
}
"""Why a forward was not taken for a step; completes "its forward …"."""


class Point:
    """One hook point: its widths, its columns in the ring, and the last block it fired in.

    ``d_in`` and ``d_out`` are None until known. Before the ring exists the newest x and y wait in
    ``staged_x`` [rows, d_in] and ``staged_y`` [rows, d_out]. Where y is optional, a row of NaN
    stands for none.
    """

    __slots__ = (
        "d_in",
        "d_out",
        "fired",
        "first_fired",
        "name",
        "refused",
        "refused_rows",
        "staged_x",
        "staged_y",
        "x",
        "x_base",
        "x_bytes",
        "x_numel",
        "y",
        "y_base",
        "y_bytes",
        "y_numel",
        "y_optional",
    )

    def __init__(self, name: str, d_in: int | None = None, d_out: int | None = None) -> None:
        self.name = name
        self.d_in = d_in
        self.d_out = d_out
        self.fired = NEVER
        self.first_fired = NEVER
        self.refused: Counter[str] = Counter()
        self.refused_rows: int | None = None
        self.y_optional = False
        self.staged_x: NDArray[np.float32] | None = None
        self.staged_y: NDArray[np.float32] | None = None
        self.x: NDArray[np.float32] | None = None
        self.y: NDArray[np.float32] | None = None
        self.x_base = self.x_bytes = self.y_base = self.y_bytes = 0
        # No tensor has a negative number of elements: until bound, nothing takes the fast path.
        self.x_numel = self.y_numel = -1

    def bind(self, ring: Ring, *, direct: bool) -> None:
        """Point at this hook's columns; ``direct`` when a whole forward is exactly one block."""
        self.x = ring.x[self.name]
        self.x_base, self.x_bytes = self.x.ctypes.data, self.x[0].nbytes
        self.y = ring.y.get(self.name)
        if self.y is not None:
            self.y_base, self.y_bytes = self.y.ctypes.data, self.y[0].nbytes
        self.staged_x = self.staged_y = None
        if direct and self.d_in is not None and self.d_out is not None:
            rows = ring.layout.rows
            self.x_numel, self.y_numel = rows * self.d_in, rows * self.d_out

    def refuse(self, reason: str, rows: int | None = None) -> None:
        """Count a forward that was not taken for a step."""
        self.refused[reason] += 1
        if rows is not None:
            self.refused_rows = rows

    def silence(self, envs: int) -> str:
        """Why this hook point never fired, as far as can be told."""
        if not self.refused:
            return (
                "its forward never ran while the agent acted: critics, target networks and "
                "containers that are called piecewise (such as mlp_extractor under predict() of "
                "Stable-Baselines3) stay silent, as do modules inside a torch.compile'd or "
                "graph-captured region, and an agent that has only acted at random so far; hook a "
                "layer on the way to the action"
            )
        reason, count = self.refused.most_common(1)[0]
        why = REFUSALS[reason]
        if reason == "batch":
            why += f" ({self.refused_rows} instead of {envs})"
        return f"its forward ran {count} times but never for a step: it {why}"


class Gate:
    """What a hook must know in a microsecond: whether to record, and where.

    ``thread`` is None until the first step tells which thread acts. ``index`` selects the streamed
    copies out of ``envs`` rows, None for all.
    """

    __slots__ = (
        "block",
        "envs",
        "explicit",
        "explicit_only",
        "faults",
        "index",
        "last_error",
        "recording",
        "ring",
        "slot",
        "strict",
        "thread",
        "wants_y",
    )

    def __init__(self, *, strict: bool) -> None:
        self.strict = strict
        self.recording = True
        self.explicit = False
        self.explicit_only = False
        self.thread: int | None = None
        self.envs = 1
        self.index: NDArray[np.intp] | None = None
        self.ring: Ring | None = None
        self.block = 0
        self.slot = 0
        self.wants_y = True
        self.faults = 0
        self.last_error = ""

    def fault(self, error: Exception) -> None:
        """Count an error inside the tap and say it once; the policy must not notice.

        Raises:
            Exception: the error itself, under ``strict``.
        """
        if self.strict:
            raise error
        self.faults += 1
        self.last_error = f"{type(error).__name__}: {error}"
        if self.faults == 1:
            logger.error(
                "the tap failed inside and goes on without the step at hand; later failures are "
                "only counted",
                exc_info=error,
            )

    def store(self, point: Point, x: NDArray[np.floating], y: NDArray[np.floating] | None) -> None:
        """Put x [envs, d_in] and y [envs, d_out] of a forward into the block under construction."""
        if self.index is not None:
            x = x[self.index]
            y = None if y is None else y[self.index]
        if point.x is None:
            if self.ring is not None:
                point.refuse("late")
                return
            point.staged_x = np.array(x, np.float32)
            point.staged_y = None if y is None else np.array(y, np.float32)
        else:
            point.x[self.slot] = x
            if point.y is not None and self.wants_y and self.ring is not None:
                if y is None:
                    point.y[self.ring.y_slot(self.block)] = np.nan
                else:
                    point.y[self.ring.y_slot(self.block)] = y
        point.fired = self.block


def row_width(shape: tuple[int, ...], envs: int) -> int | None:
    """Width of one agent copy's row in a tensor of ``shape``; None when it holds no ``envs`` rows.

    Rows lie along the first axis, or along the second after an axis of one (a recurrent layer's
    single time step); an unbatched vector is the row of a single copy.
    """
    size = int(np.prod(shape)) if shape else 0
    if size == 0:
        return None
    if len(shape) == 1:
        return size if envs == 1 else None
    if shape[0] == envs or (len(shape) >= 3 and shape[0] == 1 and shape[1] == envs):
        return size // envs
    return None
