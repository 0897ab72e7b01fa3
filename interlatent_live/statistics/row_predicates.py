"""Predicates that speak of one row: the claims' language, without what looks back.

Slices judge rows of metrics by them, alert rules the values of one evaluation; neither has an
episode's history at hand, so windows, lags and deltas are refused rather than guessed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from interlatent_live.errors import UserError
from interlatent_live.stream import Role

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from interlatent_live.explanations.predicates import Truth
    from interlatent_live.statistics.moments import Floats
    from interlatent_live.stream import MetricSpec


@dataclass(frozen=True, slots=True)
class RowPredicate:
    """A predicate that was understood.

    ``truth`` takes the named columns, each float64 [n] with NaN where unknown.
    """

    names: tuple[str, ...]
    truth: Callable[[Mapping[str, Floats]], Truth]


def parse_row_predicate(
    what: str, text: str, specs: Sequence[MetricSpec] | None, *, instead: str = ""
) -> RowPredicate:
    """Understand ``text``; with ``specs`` also check its names and convert its units.

    Args:
        what: who speaks, for the sentence of an error.
        text: the predicate.
        specs: what can be spoken of; ``None``: only the syntax is checked, units are not converted.
        instead: what to use instead of looking back, for the sentence of that error.

    Raises:
        UserError: when it is not a predicate, speaks of what there is not, or looks back.
    """
    # The language's package imports a good part of SciPy: only who uses it pays for it.
    from interlatent_live.explanations.predicates import (  # noqa: PLC0415
        Columns,
        evaluate,
        history,
        metric_names,
        parse,
        terms_of,
    )

    try:
        predicate = parse(text, specs, roles=frozenset(Role))
    except UserError as error:
        raise UserError(f"{what}: {error}") from error
    if any(history(term) for term in terms_of(predicate)):
        raise UserError(f"{what} looks back ({text!r}): it speaks of one row only{instead}")
    names = tuple(sorted(metric_names(predicate)))

    def truth(columns: Mapping[str, Floats]) -> Truth:
        values = np.stack([columns[name] for name in names], axis=1)
        return evaluate(predicate, Columns(names, values, np.zeros(len(values), np.int64)))

    return RowPredicate(names, truth)
