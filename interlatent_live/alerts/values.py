"""The numbers that alert rules speak of, by name, from the rows and statistics of a hook point.

``metric:NAME`` (newest), ``mean:NAME``, ``min:NAME``, ``max:NAME`` and ``fvu`` over the rows since
the last evaluation; ``feature:I`` (newest activation); ``density:I``, ``r:I:METRIC``,
``auroc:I:METRIC`` of the cumulative window; ``drift`` (monitors that alarm), ``drift:MONITOR`` and
``conformal:SCORE`` (1 or 0). What is not known is ``None``, which neither starts nor ends an alert.
Steered rows do not count.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from interlatent_live.errors import UserError
from interlatent_live.stream import Controller

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    from interlatent_live.pipeline.correlator import Stream
    from interlatent_live.statistics.profile import ProfileTable
    from interlatent_live.stream import SparseCodes, Steps

METRIC_VALUES: Final = ("metric", "mean", "min", "max")
_OF_FEATURE: Final = ("feature", "density")
_OF_PAIR: Final = ("r", "auroc")
_OF_WATCH: Final = ("drift", "conformal")


def check_name(name: str) -> None:
    """Refuse a name that no value will ever have.

    Raises:
        UserError: with the names that there are.
    """
    kind, *rest = name.split(":", 2)
    good = (
        (name in ("fvu", "drift"))
        or (kind in METRIC_VALUES and ":" in name and name.partition(":")[2] != "")
        or (kind in _OF_FEATURE and len(rest) == 1 and rest[0].isdecimal())
        or (kind in _OF_PAIR and len(rest) == 2 and rest[0].isdecimal() and rest[1] != "")
        or (kind in _OF_WATCH and name.partition(":")[2] != "")
    )
    if not good:
        raise UserError(
            f"there is no value {name!r}; there are metric:NAME, mean:NAME, min:NAME, max:NAME, "
            "fvu, feature:I, density:I, r:I:NAME, auroc:I:NAME, drift, drift:MONITOR and "
            "conformal:SCORE"
        )


_ARRAYS: Final = ("newest", "total", "known", "low", "high")


@dataclass(slots=True)
class Interval:
    """The rows since the last evaluation, reduced to what rules may ask."""

    rows: int = 0
    newest: NDArray[np.float64] | None = None
    total: NDArray[np.float64] | None = None
    known: NDArray[np.int64] | None = None
    low: NDArray[np.float64] | None = None
    high: NDArray[np.float64] | None = None
    error: float = 0.0
    errors: int = 0
    active: dict[int, float] = field(default_factory=dict)

    def state(self) -> dict[str, Any]:
        """JSON-able state."""
        return {
            "counts": [self.rows, self.error, self.errors],
            "arrays": {
                name: None if (array := getattr(self, name)) is None else array.tolist()
                for name in _ARRAYS
            },
            "active": sorted(self.active.items()),
        }

    @classmethod
    def load(cls, state: Mapping[str, Any]) -> Interval:
        """Inverse of :meth:`state`."""
        out = cls()
        out.rows, out.error, out.errors = state["counts"]
        for name, values in state["arrays"].items():
            dtype = np.int64 if name == "known" else np.float64
            setattr(out, name, None if values is None else np.array(values, dtype))
        out.active = {int(index): float(value) for index, value in state["active"]}
        return out

    def add(self, steps: Steps, codes: SparseCodes) -> None:
        """Rows in order."""
        keep = np.flatnonzero(steps.controller == int(Controller.POLICY))
        if not len(keep):
            return
        metrics = steps.metrics[keep]
        finite = np.isfinite(metrics)
        total, known = np.where(finite, metrics, 0.0).sum(axis=0), finite.sum(axis=0)
        low = np.where(finite, metrics, np.inf).min(axis=0)
        high = np.where(finite, metrics, -np.inf).max(axis=0)
        if self.total is None or self.known is None or self.low is None or self.high is None:
            self.total, self.known, self.low, self.high = total, known, low, high
        else:
            self.total, self.known = self.total + total, self.known + known
            self.low, self.high = np.minimum(self.low, low), np.maximum(self.high, high)
        self.rows += len(keep)
        row = int(keep[-1])
        self.newest = np.array(steps.metrics[row])
        start, stop = int(codes.indptr[row]), int(codes.indptr[row + 1])
        self.active = dict(
            zip(codes.index[start:stop].tolist(), codes.value[start:stop].tolist(), strict=True)
        )
        error = codes.error[keep]
        error = error[np.isfinite(error)]
        self.error += float(error.sum(dtype=np.float64))
        self.errors += len(error)


def values_of(names: Iterable[str], stream: Stream, interval: Interval) -> dict[str, float | None]:
    """The asked values of a hook point."""
    tables: dict[int, ProfileTable] = {}
    return {name: _known(_value(name, stream, interval, tables)) for name in names}


def _value(  # noqa: C901, PLR0911 - one branch per kind of value
    name: str, stream: Stream, interval: Interval, tables: dict[int, ProfileTable]
) -> float | None:
    kind, _, rest = name.partition(":")
    watch = stream.watch
    if name == "fvu":
        return interval.error / interval.errors if interval.errors else None
    if name == "drift":
        return float(len(watch.alarms)) if watch.drift is not None else None
    if kind == "drift":
        known = () if watch.drift is None else watch.drift.monitor.names
        return float(rest in watch.alarms) if rest in known else None
    if kind == "conformal":
        for score in watch.scores:
            if score.name == rest and score.alarm is not None:
                return float(score.firing)
        return None
    if kind in METRIC_VALUES:
        return _of_metric(kind, rest, stream, interval)
    index, _, metric = rest.partition(":")
    feature = int(index)
    if feature >= stream.correlator.n_features:
        return None
    if kind == "feature":
        return interval.active.get(feature, 0.0) if interval.rows else None
    if feature not in tables:
        tables[feature] = stream.correlator.table([feature])
    table = tables[feature]
    if kind == "density":
        return float(table.density[0])
    columns = [spec.name for spec in table.specs]
    return float(getattr(table, kind)[0, columns.index(metric)]) if metric in columns else None


def _of_metric(kind: str, metric: str, stream: Stream, interval: Interval) -> float | None:
    columns = [spec.name for spec in stream.correlator.specs]
    if metric not in columns or interval.newest is None:
        return None
    column = columns.index(metric)
    if kind == "metric":
        return float(interval.newest[column])
    if interval.known is None or not interval.known[column]:
        return None
    if kind == "mean" and interval.total is not None:
        return float(interval.total[column] / interval.known[column])
    bound = interval.low if kind == "min" else interval.high
    return None if bound is None else float(bound[column])


def _known(value: float | None) -> float | None:
    return value if value is not None and np.isfinite(value) else None
