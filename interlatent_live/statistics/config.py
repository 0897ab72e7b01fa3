"""What a correlator is asked to keep, and the bytes that takes: both follow from one frozen value.

Memory is bounded by construction: every array's size is a function of :class:`CorrelatorConfig`,
the dictionary's width and the number of metrics, so :func:`memory_bytes` can be printed before a
stream starts and held to afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np

from interlatent_live.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from interlatent_live.statistics.sketches import Grid

LOG_LAGS: Final = (
    1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512,
)  # fmt: skip
"""Lags, in steps, at which autocovariances are summed; in between they are interpolated."""

WIDE_DICTIONARY: Final = 32_768
"""Above this width the moment tables leave the cache, and rows are applied in large sorted flushes:
long enough to visit a feature once for many rows, short enough that those rows stay in the cache
(half a megabyte of metrics; twice as many cost a fifth more)."""

ALL: Final = "all"
"""Name of the cumulative window."""


@dataclass(frozen=True, slots=True)
class SliceSpec:
    """A user-defined subset of rows with moments of its own, as the window ``slice:NAME``.

    ``predicate`` takes the metric columns by name (each float64 [n]) and returns bool [n]; it must
    be pure, since replay calls it again. Columns keep NaN where a metric was absent.
    """

    name: str
    predicate: Callable[[Mapping[str, NDArray[np.float64]]], NDArray[np.bool_]]


def rowwise(
    predicate: Callable[[Mapping[str, float]], bool],
) -> Callable[[Mapping[str, NDArray[np.float64]]], NDArray[np.bool_]]:
    """A slice's predicate from one that judges a single row; convenient, and slower."""

    def judge(columns: Mapping[str, NDArray[np.float64]]) -> NDArray[np.bool_]:
        names = list(columns)
        rows = zip(*(columns[name].tolist() for name in names), strict=True)
        return np.array([bool(predicate(dict(zip(names, row, strict=True)))) for row in rows], bool)

    return judge


@dataclass(frozen=True, slots=True)
class EventSpec:
    """An event as a metric: rows where ``metric`` (> ``above``) holds, or episode ends.

    ``metric`` is a metric's name, or ``"terminated"``, ``"truncated"`` or ``"end"`` for the flags.
    """

    name: str
    metric: str
    above: float = 0.5


@dataclass(frozen=True, slots=True)
class CorrelatorConfig:
    """Windows, depth and bounds of a correlator; steps are rows of the stream.

    ``grid``: bin edges of the AUROC sketches; ``None`` learns them from the first ``grid_rows``
    rows and freezes them (shards that are to merge must share one: ``Correlator.grid`` of the
    first).
    """

    pane_steps: int = 2048
    half_lives: tuple[float, ...] = (4096.0, 65536.0)
    sliding: tuple[int, ...] = (16384,)
    coalesce: int | None = None
    """Rows gathered before they are summed; ``None``: 256, or 8,192 for wide dictionaries."""
    episodic: bool = True
    """Keep what needs whole episodes: jackknife units, ACF, lags, sketches, exemplars, dwell."""
    deep_features: int = 4096
    """Features that get the episodic part: all when the dictionary is no wider, else a fixed hashed
    subset, or ``deep_set``."""
    deep_set: tuple[int, ...] | None = None
    block_steps: int = 1024
    """Episodes longer than this are cut into blocks, the units of evidence of endless runs."""
    pass_rows: int = 2048
    units: int = 64
    """Most jackknife units kept; beyond it, episodes share units by hash prefix."""
    lags: int = 16
    acf_lags: tuple[int, ...] = LOG_LAGS
    grid: Grid | None = None
    grid_rows: int = 1024
    auroc_bins: int = 64
    sketch_error: float = 0.02
    """Relative error of activation quantiles."""
    exemplars_top: int = 8
    exemplars_random: int = 16
    context: int = 4
    row_sample: int = 2048
    max_envs: int = 64
    event_horizon: int = 64
    """Steps before an event over which a feature's firing is profiled."""
    cofiring_features: int = 2048
    """Widest deep set for which pairs of features are counted (F² counters)."""
    outcome_slices: bool = True
    slices: tuple[SliceSpec, ...] = ()
    events: tuple[EventSpec, ...] = (EventSpec("terminated", "terminated"),)
    drift: bool = False
    """Keep a summary of every closed pane for the drift monitors."""
    seed: int = 0
    confidence: float = 0.95
    max_log_rows: int = field(default=65_536)
    """Most rows of unfinished episodes held; beyond it the oldest blocks are closed early."""

    def __post_init__(self) -> None:
        if self.pane_steps < 1 or self.block_steps < 2 or self.units < 4:
            raise UserError("pane_steps must be ≥ 1, block_steps ≥ 2 and units ≥ 4")
        if not 0 < self.confidence < 1 or not 0 < self.sketch_error < 0.5:
            raise UserError("confidence must lie in (0, 1) and sketch_error in (0, 0.5)")
        if any(h <= 0 for h in self.half_lives) or any(s < 1 for s in self.sliding):
            raise UserError("half-lives and sliding windows must be positive numbers of steps")
        if self.lags < 0 or self.lags > self.block_steps:
            raise UserError("lags must lie between 0 and block_steps")

    @classmethod
    def core(cls, **changes: object) -> CorrelatorConfig:
        """Moments, density and on/off means of the cumulative window only: the cheapest set."""
        base: dict[str, object] = {
            "pane_steps": 131_072,
            "half_lives": (),
            "sliding": (),
            "episodic": False,
        }
        return cls(**{**base, **changes})  # type: ignore[arg-type]  # keywords of this very class

    def flush_rows(self, n_features: int) -> int:
        """Rows gathered before the moment tables are touched."""
        if self.coalesce is not None:
            return self.coalesce
        return 8192 if n_features > WIDE_DICTIONARY else 256

    def window_names(self) -> tuple[str, ...]:
        """Windows a profile can be asked for, slices last."""
        names = [
            ALL,
            *(f"half:{h:g}" for h in self.half_lives),
            *(f"last:{n}" for n in self.sliding),
        ]
        if self.episodic and self.outcome_slices:
            names += ["slice:terminated", "slice:truncated"]
        names += [f"slice:{item.name}" for item in self.slices]
        return tuple(names)
