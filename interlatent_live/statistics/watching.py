"""What is watched of a live hook point without being asked: drift, conformal alarms, looks.

One object per stream of rows, fed beside its correlator. Everything here is a function of the rows
by their global numbers (panes and blocks are), so a replay raises the same alarms; rows that were
steered or that have been seen already do not count.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from interlatent_live.errors import UserError
from interlatent_live.statistics.conformal import ConformalAlarm, novelty
from interlatent_live.statistics.drift import DriftAlarm, FeatureDrift, PaneSummary
from interlatent_live.statistics.screening import DiscoveryLog, Finding, Look
from interlatent_live.stream import Controller, Role, StepFlag

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from interlatent_live.statistics.correlator import Correlator
    from interlatent_live.statistics.moments import Floats
    from interlatent_live.stream import MetricSpec, SparseCodes, Steps

FVU: Final = "fvu"
NOVELTY: Final = "novelty"
METRIC: Final = "metric:"
_WARM_PANES: Final = 8
"""Panes from which it is chosen what to monitor; they are not part of the reference."""
_MOST_FEATURES: Final = 64
_PAIRS_A_METRIC: Final = 4
_LEARN_BLOCKS: Final = 8
"""Blocks that say what is usual, before novelty can be scored."""
_GATHER: Final = 1024


@dataclass(frozen=True, slots=True)
class WatchConfig:
    """What is watched of every hook point, and at which stated rates."""

    drift: bool = True
    reference_panes: int = 64
    panes_to_false_alarm: float = 1e4
    conformal: tuple[str, ...] = (FVU, NOVELTY)
    rate: float = 0.01
    """Share of blocks in which a conformal alarm is false."""
    block_steps: int = 512
    seed: int = 0
    looks: bool = True

    def __post_init__(self) -> None:
        for name in self.conformal:
            if name not in (FVU, NOVELTY) and not name.startswith(METRIC):
                raise UserError(
                    f"correlator.conformal: {name!r} is no score; use fvu, novelty or metric:NAME"
                )

    @property
    def calibration_blocks(self) -> int:
        """Blocks a threshold is learned from: twice as many as the rate needs at least."""
        return int(np.ceil(2.0 / self.rate)) - 1


@dataclass(slots=True)
class ScoreAlarm:
    """One score: the largest value of each block, judged against those of normal operation."""

    name: str
    rate: float
    wanted: int
    """Blocks of the calibration."""
    why_not: str = ""
    """Why the score cannot be had at all."""
    maxima: list[float] = field(default_factory=list)
    alarm: ConformalAlarm | None = None
    block: int = -1
    """The open block."""
    best: float = float("nan")
    newest: float | None = None
    firing: bool = False

    @property
    def phase(self) -> str:
        """``learning``, ``calibrating``, ``quiet`` or ``alarm``."""
        if self.alarm is not None:
            return "alarm" if self.firing else "quiet"
        return "calibrating" if self.maxima else "learning"

    @property
    def reason(self) -> str | None:
        """Why there is no threshold yet."""
        if self.alarm is not None:
            return None
        return self.why_not or f"{len(self.maxima)} of {self.wanted} blocks of the calibration"

    def rows(self, blocks: NDArray[np.int64], scores: Floats) -> None:
        """Rows [n] in order; blocks ascending, scores NaN where unknown."""
        if not len(blocks):
            return
        starts = np.flatnonzero(np.r_[True, blocks[1:] != blocks[:-1]])
        best = np.fmax.reduceat(scores, starts)
        for block, score in zip(blocks[starts].tolist(), best.tolist(), strict=True):
            if block != self.block:
                self._close()
                self.block, self.best = block, score
            else:
                self.best = float(np.fmax(self.best, score))

    def _close(self) -> None:
        if self.block < 0 or not np.isfinite(self.best):
            return
        self.newest = self.best
        if self.alarm is not None:
            self.firing = self.alarm.update(self.best).alarm
            return
        self.maxima.append(self.best)
        if len(self.maxima) >= self.wanted:
            self.alarm = ConformalAlarm.calibrate(np.array(self.maxima), level=self.rate)
            self.maxima = []

    def state(self) -> dict[str, Any]:
        """JSON-able state."""
        alarm = self.alarm
        return {
            "name": self.name,
            "maxima": self.maxima if alarm is None else alarm.calibration.tolist(),
            "calibrated": alarm is not None,
            "units": 0 if alarm is None else alarm.units,
            "alarms": 0 if alarm is None else alarm.alarms,
            "block": self.block,
            "best": self.best if np.isfinite(self.best) else None,
            "newest": self.newest,
            "firing": self.firing,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Inverse of :meth:`state`."""
        self.maxima = [float(value) for value in state["maxima"]]
        if state["calibrated"]:
            self.alarm = ConformalAlarm(np.array(self.maxima), self.rate)
            self.alarm.units, self.alarm.alarms = int(state["units"]), int(state["alarms"])
            self.maxima = []
        self.block = int(state["block"])
        self.best = float("nan") if state["best"] is None else float(state["best"])
        self.newest, self.firing = state["newest"], bool(state["firing"])


@dataclass(slots=True)
class _Usual:
    """Mean and spread of the state metrics over the first blocks, from sums about a first value."""

    columns: NDArray[np.intp]
    n: Floats
    pivot: Floats
    """The first finite value, NaN before it; means of metrics far from 0 keep their digits."""
    first: Floats
    """Σ d with d = value - pivot."""
    square: Floats
    """Σ d²."""
    through: int = -1
    """Last block of the learning, −1 before the first row."""

    @classmethod
    def of(cls, specs: Sequence[MetricSpec]) -> _Usual:
        columns = np.array([i for i, s in enumerate(specs) if s.role == Role.STATE], np.intp)
        k = len(columns)
        return cls(columns, np.zeros(k), np.full(k, np.nan), np.zeros(k), np.zeros(k))

    def learn(self, metrics: Floats) -> None:
        """Add rows; running sums go row by row, so how rows were batched shows in no digit."""
        rows = metrics[:, self.columns]
        known = np.isfinite(rows)
        found = known.any(axis=0)
        begin = rows[known.argmax(axis=0), np.arange(rows.shape[1])]
        self.pivot = np.where(np.isnan(self.pivot) & found, begin, self.pivot)
        d = np.where(known, rows - self.pivot, 0.0)
        self.n += known.sum(axis=0)
        self.first = np.cumsum(np.vstack([self.first, d]), axis=0)[-1]
        self.square = np.cumsum(np.vstack([self.square, d * d]), axis=0)[-1]

    def score(self, metrics: Floats) -> Floats:
        """[n] distance of rows from what was usual; NaN where a metric is absent."""
        n = np.maximum(self.n, 1.0)
        mean = np.where(self.n > 0, self.pivot + self.first / n, 0.0)
        ss = np.maximum(self.square - self.first * self.first / n, 0.0)
        spread = np.sqrt(ss / np.maximum(self.n - 1, 1.0))
        values = np.where(np.isfinite(metrics), metrics, np.nan)[:, self.columns]
        with np.errstate(invalid="ignore"):
            return novelty(values, mean, spread)


class StreamWatch:
    """Drift, conformal alarms and declared looks of one correlator's rows."""

    def __init__(self, config: WatchConfig, specs: Sequence[MetricSpec]) -> None:
        self.config = config
        self.specs = tuple(specs)
        self.log = DiscoveryLog()
        self.drift: FeatureDrift | None = None
        self.alarms: dict[str, DriftAlarm] = {}
        """Drift alarms raised and not acknowledged, by monitor."""
        self.scores = [
            ScoreAlarm(name, config.rate, config.calibration_blocks) for name in config.conformal
        ]
        self._usual = _Usual.of(self.specs)
        self._warm: list[PaneSummary] = []
        self._newest = -1
        self._waiting: list[tuple[NDArray[np.int64], Floats, Floats]] = []
        self._rows = 0
        for score in self.scores:
            score.why_not = self._why_not(score.name)

    # -- rows in ---------------------------------------------------------------------------------

    def rows(self, steps: Steps, codes: SparseCodes, base: int) -> None:
        """Rows as the correlator got them."""
        if not self.scores:
            return
        n = len(steps)
        position = np.arange(base + steps.first_seq, base + steps.first_seq + n, dtype=np.int64)
        keep = (steps.controller == int(Controller.POLICY)) & (
            (steps.flags & int(StepFlag.NO_ACTIVATION)) == 0
        )
        if position[0] <= self._newest:
            keep &= position > self._newest
        self._newest = max(self._newest, int(position[-1]))
        if keep.all():
            row = (position, codes.error.astype(np.float64), np.array(steps.metrics))
        else:
            row = (position[keep], codes.error[keep].astype(np.float64), steps.metrics[keep])
        self._waiting.append(row)
        self._rows += len(row[0])
        if self._rows >= _GATHER:
            self.settle()

    def settle(self) -> None:
        """Judge the rows that wait."""
        if not self._rows:
            self._waiting = []
            return
        position = np.concatenate([part[0] for part in self._waiting])
        error = np.concatenate([part[1] for part in self._waiting])
        metrics = np.concatenate([part[2] for part in self._waiting])
        self._waiting, self._rows = [], 0
        blocks = position // self.config.block_steps
        for score in self.scores:
            if score.why_not:
                continue
            if score.name == FVU:
                score.rows(blocks, error)
            elif score.name == NOVELTY:
                self._novelty(score, blocks, metrics)
            else:
                column = metrics[:, self._column(score.name.removeprefix(METRIC))]
                score.rows(blocks, np.where(np.isfinite(column), column, np.nan))

    def _novelty(self, score: ScoreAlarm, blocks: NDArray[np.int64], metrics: Floats) -> None:
        usual = self._usual
        if usual.through < 0:
            usual.through = int(blocks[0]) + _LEARN_BLOCKS - 1
        learning = blocks <= usual.through
        if learning.any():
            usual.learn(metrics[learning])
        if not learning.all():
            score.rows(blocks[~learning], usual.score(metrics[~learning]))

    def _column(self, metric: str) -> int:
        return [spec.name for spec in self.specs].index(metric)

    def _why_not(self, name: str) -> str:
        if name == NOVELTY and not len(self._usual.columns):
            return "the agent has no state metric"
        if name.startswith(METRIC):
            metric = name.removeprefix(METRIC)
            if metric not in {spec.name for spec in self.specs}:
                return f"the agent has no metric {metric!r}"
        return ""

    def panes(self, closed: Sequence[PaneSummary]) -> tuple[DriftAlarm, ...]:
        """Panes that closed; returns the monitors that newly alarm."""
        found: list[DriftAlarm] = []
        for summary in closed:
            if self.drift is None:
                self._warm.append(summary)
                if len(self._warm) >= _WARM_PANES:
                    self.drift = self._choose()
                    self._warm = []
                continue
            found += self.drift.update(summary)
        for alarm in found:
            self.alarms[alarm.name] = alarm
        return tuple(found)

    def _choose(self) -> FeatureDrift:
        """What to monitor, from panes that are not part of the reference."""
        density = np.mean([pane.density for pane in self._warm], axis=0)
        order = np.argsort(-density, kind="stable")
        features = [int(i) for i in order[:_MOST_FEATURES] if density[i] >= 0.001]
        pairs: list[tuple[int, str]] = []
        if features:
            known = np.array([pane.correlation[features] for pane in self._warm])
            r = np.where(np.isfinite(known).all(axis=0), np.abs(known.sum(axis=0)), -1.0)
            for m, spec in enumerate(self.specs):
                best = np.argsort(-r[:, m], kind="stable")[:_PAIRS_A_METRIC]
                pairs += [(features[i], spec.name) for i in best.tolist() if r[i, m] >= 0]
        return FeatureDrift(
            tuple(sorted(features)),
            tuple(pairs),
            reference=self.config.reference_panes,
            mean_panes_to_false_alarm=self.config.panes_to_false_alarm,
            seed=self.config.seed,
        )

    @property
    def monitored(self) -> NDArray[np.intp] | None:
        """Features whose correlations are watched; ``None`` until they are chosen: all."""
        return None if self.drift is None else np.asarray(self.drift.features, np.intp)

    def attach(self, correlator: Correlator) -> None:
        """Have the correlator whose rows these are make the declared looks."""
        if self.config.looks and correlator.deep is not None:
            correlator.looks = self.log

    # -- state -----------------------------------------------------------------------------------

    def state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """JSON-able meta and arrays, for a snapshot."""
        self.settle()
        arrays: dict[str, NDArray[Any]] = {
            "usual": np.array(
                [self._usual.n, self._usual.pivot, self._usual.first, self._usual.square]
            )
        }
        meta: dict[str, Any] = {
            "newest": self._newest,
            "through": self._usual.through,
            "scores": [score.state() for score in self.scores],
            "looks": [asdict(look) for look in self.log.looks],
            "alarms": [asdict(alarm) for alarm in self.alarms.values()],
            "warm": [{"key": pane.key, "fvu": _number(pane.fvu)} for pane in self._warm],
        }
        if self._warm:
            for name in ("density", "activation", "correlation"):
                arrays[f"warm/{name}"] = np.array([getattr(pane, name) for pane in self._warm])
        if self.drift is not None:
            meta["drift"] = {"features": self.drift.features, "pairs": self.drift.pairs}
            arrays |= {f"drift/{k}": v.copy() for k, v in self.drift.monitor.arrays().items()}
        return meta, arrays

    def load(self, meta: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
        """Inverse of :meth:`state`.

        Raises:
            UserError: when other scores are watched now than were then.
        """
        names = [state["name"] for state in meta["scores"]]
        if names != [score.name for score in self.scores]:
            raise UserError(f"the snapshot watches {names}, not {list(self.config.conformal)}")
        self._newest = int(meta["newest"])
        self._usual.through = int(meta["through"])
        self._usual.n, self._usual.pivot, self._usual.first, self._usual.square = (
            np.array(row, np.float64) for row in arrays["usual"]
        )
        for score, state in zip(self.scores, meta["scores"], strict=True):
            score.load(state)
        self.log.looks = [
            Look(**{**look, "found": tuple(Finding(**one) for one in look["found"])})
            for look in meta["looks"]
        ]
        self.alarms = {alarm["name"]: DriftAlarm(**alarm) for alarm in meta["alarms"]}
        self._warm = [self._pane(i, one, arrays) for i, one in enumerate(meta["warm"])]
        if "drift" in meta:
            self.drift = FeatureDrift(
                tuple(meta["drift"]["features"]),
                tuple((int(f), str(m)) for f, m in meta["drift"]["pairs"]),
                reference=self.config.reference_panes,
                mean_panes_to_false_alarm=self.config.panes_to_false_alarm,
                seed=self.config.seed,
            )
            self.drift.monitor.load(
                {k.removeprefix("drift/"): v for k, v in arrays.items() if k.startswith("drift/")}
            )

    def _pane(
        self, i: int, one: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]
    ) -> PaneSummary:
        fvu = float("nan") if one["fvu"] is None else float(one["fvu"])
        names = tuple(spec.name for spec in self.specs)
        density, activation, correlation = (
            np.array(arrays[f"warm/{name}"][i]) for name in ("density", "activation", "correlation")
        )
        return PaneSummary(int(one["key"]), density, activation, correlation, names, fvu)

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays held."""
        total = sum(a.nbytes + b.nbytes + c.nbytes for a, b, c in self._waiting)
        for pane in self._warm:
            total += pane.density.nbytes + pane.activation.nbytes + pane.correlation.nbytes
        if self.drift is not None:
            total += sum(array.nbytes for array in self.drift.monitor.arrays().values())
        return total


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
