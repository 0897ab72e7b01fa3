"""Has it changed? Detectors whose false-alarm rate is stated, not tuned.

Each monitored number (a feature's density or mean activation, a correlation, the reconstruction
error) is summarised per pane. Its rank among reference panes is a p-value, a bet on small p-values
has mean ≤ 1 while nothing changed, and the Shiryaev–Roberts sum of such bets,

    M ← (M + 1) · e,

exceeds 1/α on average no sooner than after 1/α panes (e-detectors; Shin, Ramdas & Rinaldo 2022,
prop. 2.4). For K monitors at once the bar is K/α. The bench ``calibration`` measures run length and
delay.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from interlatent_live.errors import UserError
from interlatent_live.statistics.hashing import mix

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from interlatent_live.statistics.moments import Floats

_KAPPAS: Final = (0.1, 0.3, 0.5, 0.7)


@dataclass(frozen=True, slots=True)
class DriftAlarm:
    """A monitor whose sum crossed its bar."""

    name: str
    pane: int
    evidence: float
    """Shiryaev–Roberts sum."""
    bar: float
    since: int
    """Pane from which on the evidence has grown: the likeliest time of change."""
    reference_mean: float
    recent_mean: float
    false_alarm: str
    """The stated rate, in words."""


def power_bet(p: Floats) -> Floats:
    """Mean over κ of κ p^(κ−1): has mean 1 for uniform p, and at most 1 for larger p."""
    return np.asarray(np.mean([k * p ** (k - 1) for k in _KAPPAS], axis=0), np.float64)


@dataclass(slots=True)
class DriftMonitor:
    """Two-sided detectors over K named numbers, one value each per pane.

    The first ``reference`` panes are the reference. Ranks within it are made uniform by a coin
    drawn from (seed, pane, monitor), the same in every replay. A value of NaN (the feature never
    fired, the metric was absent) neither helps nor hurts.
    """

    names: tuple[str, ...]
    reference: int = 64
    mean_panes_to_false_alarm: float = 1e4
    seed: int = 0
    panes: int = 0
    values: Floats = field(init=False)
    """[K, reference] reference values, ascending once complete; NaN last."""
    filled: NDArray[np.int64] = field(init=False)
    evidence: Floats = field(init=False)
    """[2, K] upward and downward sums."""
    since: NDArray[np.int64] = field(init=False)
    """[2, K]."""
    recent: Floats = field(init=False)
    """[K] mean over about the last 8 panes."""
    alarmed: NDArray[np.bool_] = field(init=False)

    def __post_init__(self) -> None:
        if self.reference < 8:
            raise UserError("a drift monitor needs at least 8 reference panes")
        k = len(self.names)
        self.values = np.full((k, self.reference), np.nan)
        self.filled = np.zeros(k, np.int64)
        self.evidence = np.zeros((2, k))
        self.since = np.zeros((2, k), np.int64)
        self.recent = np.full(k, np.nan)
        self.alarmed = np.zeros(k, bool)

    @property
    def bar(self) -> float:
        """Sum at which a monitor alarms: every side of every monitor shares the stated rate."""
        return 2.0 * len(self.names) * self.mean_panes_to_false_alarm

    def update(self, values: Sequence[float] | Floats) -> tuple[DriftAlarm, ...]:
        """One pane's values [K]; the monitors that newly alarm.

        Raises:
            UserError: when there are not K values.
        """
        x = np.asarray(values, np.float64)
        if x.shape != (len(self.names),):
            raise UserError(f"{x.shape} values do not fit {len(self.names)} drift monitors")
        pane = self.panes
        self.panes += 1
        known = np.isfinite(x)
        learning = known & (self.filled < self.reference)
        rows = np.flatnonzero(learning)
        self.values[rows, self.filled[rows]] = x[rows]
        self.filled[rows] += 1
        done = rows[self.filled[rows] == self.reference]
        self.values[done] = np.sort(self.values[done], axis=1)
        fresh = np.isnan(self.recent)
        step = np.where(fresh, 1.0, 0.125)
        self.recent[known] = (np.where(fresh, 0.0, self.recent) * (1 - step) + step * x)[known]
        judged = np.flatnonzero(known & ~learning)
        if not len(judged):
            return ()
        return self._judge(judged, x[judged], pane)

    def _judge(self, rows: NDArray[np.intp], x: Floats, pane: int) -> tuple[DriftAlarm, ...]:
        reference = self.values[rows]
        above = (reference > x[:, None]).sum(axis=1)
        equal = (reference == x[:, None]).sum(axis=1)
        key = rows.astype(np.uint64) + np.uint64(pane) * np.uint64(len(self.names))
        coin = (mix(key, self.seed) >> np.uint64(11)).astype(np.float64) * 2.0**-53
        up = (above + coin * (equal + 1)) / (self.reference + 1)
        # A finite reference misplaces the tail by about its own resolution; the bet must not
        # collect on that, so p-values are rounded up to it.
        least = 1.0 / (self.reference + 1)
        for side, p in enumerate((up, 1 - up)):
            bet = power_bet(np.clip(p, least, 1.0))
            before = self.evidence[side, rows]
            restart = before < 1.0
            self.since[side, rows] = np.where(restart, pane, self.since[side, rows])
            self.evidence[side, rows] = (before + 1.0) * bet
        total = self.evidence[:, rows].max(axis=0)
        hit = rows[(total >= self.bar) & ~self.alarmed[rows]]
        self.alarmed[hit] = True
        rate = f"≤ 1 in {self.mean_panes_to_false_alarm:g} panes for all {len(self.names)} monitors"
        out = []
        for i in hit.tolist():
            side = int(np.argmax(self.evidence[:, i]))
            out.append(
                DriftAlarm(
                    name=self.names[i],
                    pane=pane,
                    evidence=float(self.evidence[side, i]),
                    bar=self.bar,
                    since=int(self.since[side, i]),
                    reference_mean=float(self.values[i].mean()),
                    recent_mean=float(self.recent[i]),
                    false_alarm=rate,
                )
            )
        return tuple(out)

    def acknowledge(self, name: str) -> None:
        """Clear an alarm and learn the reference anew from the next panes.

        Raises:
            UserError: when there is no such monitor.
        """
        if name not in self.names:
            raise UserError(f"there is no drift monitor {name!r}")
        i = self.names.index(name)
        self.values[i] = np.nan
        self.filled[i] = 0
        self.evidence[:, i] = 0.0
        self.recent[i] = np.nan
        self.alarmed[i] = False

    def arrays(self) -> dict[str, NDArray[Any]]:
        """State as named arrays."""
        names = ("values", "filled", "evidence", "since", "recent", "alarmed")
        out: dict[str, NDArray[Any]] = {name: getattr(self, name) for name in names}
        out["panes"] = np.array(self.panes, np.int64)
        return out

    def load(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Inverse of :meth:`arrays`."""
        for name in ("values", "filled", "evidence", "since", "recent", "alarmed"):
            getattr(self, name)[...] = arrays[name]
        self.panes = int(arrays["panes"])


@dataclass(slots=True)
class FeatureDrift:
    """Drift of densities, mean activations and correlations of one correlator, pane by pane.

    Feed it ``correlator.pane_summary()`` for each pane that closed.
    """

    features: tuple[int, ...]
    pairs: tuple[tuple[int, str], ...] = ()
    reference: int = 64
    mean_panes_to_false_alarm: float = 1e4
    seed: int = 0
    monitor: DriftMonitor = field(init=False)

    def __post_init__(self) -> None:
        names = [f"density:{f}" for f in self.features]
        names += [f"activation:{f}" for f in self.features]
        names += [f"r:{f}:{metric}" for f, metric in self.pairs]
        names.append("fvu")
        self.monitor = DriftMonitor(
            tuple(names), self.reference, self.mean_panes_to_false_alarm, self.seed
        )

    def update(self, summary: PaneSummary) -> tuple[DriftAlarm, ...]:
        """One closed pane."""
        chosen = np.asarray(self.features, np.intp)
        correlations = [summary.r(f, metric) for f, metric in self.pairs]
        values = np.concatenate(
            (
                summary.density[chosen],
                summary.activation[chosen],
                np.array(correlations, np.float64),
                [summary.fvu],
            )
        )
        return self.monitor.update(values)


@dataclass(frozen=True, slots=True, eq=False)
class PaneSummary:
    """What one closed pane says of every feature."""

    key: int
    density: Floats
    """[F]."""
    activation: Floats
    """[F] mean over on-rows; NaN where the feature never fired."""
    correlation: Floats
    """[F, M] Pearson r within the pane; NaN where undefined."""
    metrics: tuple[str, ...]
    fvu: float
    """Mean reconstruction error of the pane's rows; NaN where it was not sampled."""

    def r(self, feature: int, metric: str) -> float:
        """Correlation of a pair.

        Raises:
            UserError: when there is no such metric.
        """
        if metric not in self.metrics:
            raise UserError(f"there is no metric {metric!r}")
        return float(self.correlation[feature, self.metrics.index(metric)])
