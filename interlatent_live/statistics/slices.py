"""Slices as people write them: ``NAME: PREDICATE`` over one step's metrics.

The predicate is the claims' language; it is compiled for the metrics of each run, because names and
units are the agent's. Rows are sliced one by one, so a predicate that looks back is refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from interlatent_live.errors import UserError
from interlatent_live.statistics.config import SliceSpec
from interlatent_live.statistics.row_predicates import parse_row_predicate

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from interlatent_live.statistics.moments import Floats
    from interlatent_live.statistics.row_predicates import RowPredicate
    from interlatent_live.stream import MetricSpec

_NAME: Final = re.compile(r"^[A-Za-z0-9_-]{1,64}$")
_TAKEN: Final = ("terminated", "truncated")


@dataclass(frozen=True, slots=True)
class SliceText:
    """One slice as it was written."""

    name: str
    predicate: str

    @classmethod
    def parse(cls, text: str) -> SliceText:
        """From ``"falling: pole_angle > 0.1"``.

        Raises:
            UserError: when it has no name, a name that is taken, or no predicate.
        """
        name, colon, predicate = (part.strip() for part in text.partition(":"))
        if not colon or not predicate:
            raise UserError(f"the slice {text!r} is not written as NAME: PREDICATE")
        if not _NAME.match(name) or name in _TAKEN:
            raise UserError(
                f"the slice {name!r} needs another name: letters, digits, _ and -, and not "
                f"{' or '.join(_TAKEN)}"
            )
        parse_row_predicate(f"the slice {name!r}", predicate, None)
        return cls(name, predicate)


@dataclass(frozen=True, slots=True)
class CompiledSlices:
    """What the metrics of one run allow."""

    specs: tuple[SliceSpec, ...]
    refused: Mapping[str, str]
    """By name, why a slice is not kept for this run."""


def parse_slices(texts: Sequence[str]) -> tuple[SliceText, ...]:
    """Every slice of the configuration.

    Raises:
        UserError: as :meth:`SliceText.parse`, and when a name comes twice.
    """
    found = tuple(SliceText.parse(text) for text in texts)
    names = [item.name for item in found]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"two slices are called {name!r}")
    return found


def compile_slices(slices: Sequence[SliceText], metrics: Sequence[MetricSpec]) -> CompiledSlices:
    """The slices for one run's metrics; one that speaks of others is left out, with the reason."""
    specs: list[SliceSpec] = []
    refused: dict[str, str] = {}
    for item in slices:
        try:
            parsed = parse_row_predicate(f"the slice {item.name!r}", item.predicate, metrics)
        except UserError as error:
            refused[item.name] = str(error)
            continue
        specs.append(SliceSpec(item.name, _holds(parsed)))
    return CompiledSlices(tuple(specs), refused)


def _holds(parsed: RowPredicate) -> Callable[[Mapping[str, Floats]], NDArray[np.bool_]]:
    return lambda columns: parsed.truth(columns).holds
