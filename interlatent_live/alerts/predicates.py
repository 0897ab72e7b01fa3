"""Predicates of alert rules: the claims' language over the values of one evaluation.

A bare name is a metric's newest value; any other value is named as in conditions, between backticks
(```mean:speed` < 0.1 and `density:12` > 0.4 and not lean > 5 deg```). Numbers may carry a unit
where the value is a metric's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from interlatent_live.alerts.values import METRIC_VALUES, check_name
from interlatent_live.statistics.row_predicates import parse_row_predicate
from interlatent_live.stream import MetricSpec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from interlatent_live.statistics.row_predicates import RowPredicate

INSTEAD = "; use `mean:NAME`, `min:NAME` or `max:NAME` of the rows since the last evaluation"


@dataclass(frozen=True, slots=True)
class ValuePredicate:
    """A predicate over values; call it with those that are known."""

    text: str
    reads: tuple[str, ...]
    """Values it asks for, by their full names."""
    _written: tuple[str, ...]
    _parsed: RowPredicate

    def __call__(self, values: Mapping[str, float]) -> bool | None:
        """Whether it holds; ``None`` when that cannot be told from what is known."""
        columns = {
            name: np.array([values.get(full, np.nan)])
            for name, full in zip(self._written, self.reads, strict=True)
        }
        truth = self._parsed.truth(columns)
        return None if truth.undefined[0] else bool(truth.holds[0])


def parse_values(
    rule: str, text: str, metrics: Sequence[MetricSpec] | None = None
) -> ValuePredicate:
    """Understand a rule's predicate; with ``metrics`` its units are converted to theirs.

    Raises:
        UserError: when it is not a predicate, looks back, or speaks of values that there are not.
    """
    what = f"the predicate of the alert rule {rule!r}"
    parsed = parse_row_predicate(what, text, None, instead=INSTEAD)
    full = tuple(_full_name(name) for name in parsed.names)
    for name in full:
        check_name(name)
    if metrics is not None:
        units = {spec.name: spec.unit for spec in metrics}
        specs = [
            MetricSpec(name, units.get(_metric_of(value), ""))
            for name, value in zip(parsed.names, full, strict=True)
        ]
        parsed = parse_row_predicate(what, text, specs, instead=INSTEAD)
    return ValuePredicate(text, full, parsed.names, parsed)


def _full_name(name: str) -> str:
    return name if ":" in name or name in ("fvu", "drift") else f"metric:{name}"


def _metric_of(value: str) -> str:
    """The metric whose unit a value has; empty for pure numbers."""
    kind, _, metric = value.partition(":")
    return metric if kind in METRIC_VALUES else ""
