"""How true the narrator's lines are, measured while it speaks and from what it published.

A line is judged as a reader could judge it: each reference's words are parsed anew and evaluated on
the rows, with the feature that it names. Nothing of what chose the sentence is used, so that a line
about another claim, another copy or other rows would show. A cited predicate is *true* when it and
its feature hold in at least 80 % of the interval that the line speaks of (docs/explanations.md),
and *still true* when they hold at the copy's newest step as the line is published, which is what a
reader sees beside it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np

from interlatent_live.explanations.narrator import HOLDS_SHARE
from interlatent_live.explanations.predicates import Columns, PredicateError, evaluate, parse
from interlatent_live.stream import FeatureAddress

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from interlatent_live.explanations.evidence import Evidence
    from interlatent_live.explanations.narrator import Reference, Sentence

MOST_CITED: Final = 500
"""Newest citations that the rate is of."""


@dataclass(frozen=True, slots=True)
class Citations:
    """Of how many cited predicates, how many were true, and still were."""

    cited: int = 0
    true: int = 0
    still: int = 0

    def __add__(self, other: Citations) -> Citations:
        return Citations(self.cited + other.cited, self.true + other.true, self.still + other.still)

    @property
    def rate(self) -> float | None:
        """Share that was true; None where nothing was cited."""
        return self.true / self.cited if self.cited else None

    @property
    def still_rate(self) -> float | None:
        """Share that still was as its line was published; None where nothing was cited."""
        return self.still / self.cited if self.cited else None


@dataclass(slots=True)
class TruthRate:
    """Truth over the newest citations of one stream."""

    most: int = MOST_CITED
    _newest: deque[Citations] = field(default_factory=deque)
    _sum: Citations = field(default_factory=Citations)

    def note(self, one: Citations) -> None:
        """Take in what a line came to; the oldest lines go while enough others are there."""
        self._newest.append(one)
        self._sum += one
        while len(self._newest) > 1 and self._sum.cited - self._newest[0].cited >= self.most:
            gone = self._newest.popleft()
            self._sum += Citations(-gone.cited, -gone.true, -gone.still)

    @property
    def newest(self) -> Citations:
        """The sums."""
        return self._sum


def truth_of(sentences: Sequence[Sentence], evidence: Evidence) -> Citations:
    """Judge what sentences cite on the rows that are held."""
    found = Citations()
    for sentence in sentences:
        then = _rows_of(sentence, evidence)
        now = _newest_rows(sentence.env, evidence)
        for reference in sentence.references:
            found += Citations(
                1,
                then is not None and _held(reference, evidence, *then) >= HOLDS_SHARE,
                now is not None and _held(reference, evidence, *now) == 1.0,
            )
    return found


def _held(reference: Reference, evidence: Evidence, begin: int, first: int, end: int) -> float:
    """Share of rows [first, end) in which the words and the feature hold; 0 for empty words.

    ``begin`` is the episode's first row here: windows reach back to it.
    """
    try:
        predicate = parse(reference.said, evidence.specs)
        address = FeatureAddress.parse(reference.address)
    except (PredicateError, ValueError):
        return 0.0
    if (
        address.transcoder_hash != evidence.transcoder_hash
        or address.hook_point != evidence.hook_point
        or address.index >= evidence.n_features
    ):
        return 0.0
    columns = Columns(
        tuple(spec.name for spec in evidence.specs),
        evidence.metrics[begin:end],
        evidence.past[begin:end],
    )
    holds = evaluate(predicate, columns).holds
    on = evidence.rows_on(address.index)
    on = on[np.searchsorted(on, begin) : np.searchsorted(on, end)] - begin
    active = np.zeros(end - begin, bool)
    active[on] = True
    return float((holds & active)[first - begin :].mean()) if end > first else 0.0


def _rows_of(sentence: Sentence, evidence: Evidence) -> tuple[int, int, int] | None:
    """(first row of the episode, of the interval, and the row after it); None: they are gone."""
    key = evidence.unit_key
    units = np.flatnonzero((key[:, 1] == sentence.env) & (key[:, 2] == sentence.episode))
    rows = _rows(units, evidence)
    last = rows[(evidence.time_ns[rows] == sentence.end_ns) & (evidence.t[rows] == sentence.last_t)]
    length = sentence.last_t - sentence.first_t
    if len(last) == 0 or evidence.past[last[0]] < length:
        return None
    end = int(last[0]) + 1
    return end - 1 - int(evidence.past[end - 1]), end - 1 - length, end


def _newest_rows(env: int, evidence: Evidence) -> tuple[int, int, int] | None:
    """The same of the newest step of a copy."""
    rows = _rows(np.flatnonzero(evidence.unit_key[:, 1] == env), evidence)
    if len(rows) == 0:
        return None
    last = int(rows[np.argmax(evidence.time_ns[rows])])
    return last - int(evidence.past[last]), last, last + 1


def _rows(units: NDArray[np.intp], evidence: Evidence) -> NDArray[np.intp]:
    """All rows of some units."""
    first = np.searchsorted(evidence.unit, units)
    last = np.searchsorted(evidence.unit, units, side="right")
    parts = [np.arange(a, b) for a, b in zip(first.tolist(), last.tolist(), strict=True)]
    return np.concatenate(parts) if parts else np.zeros(0, np.intp)
