"""Predicates over metrics, judged in the agent on the newest complete row.

The metrics of an observation are known when its step is complete, and the forward on the next one
comes after it: a condition holds at a step when it held on the row before. In the first step of an
episode there is none, and no condition holds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from interlatent_live.explanations.predicates.evaluate import Columns, evaluate
from interlatent_live.explanations.predicates.parser import PredicateError, parse
from interlatent_live.explanations.predicates.tree import history, terms_of
from interlatent_live.stream import Role

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from interlatent_live.agent.metrics import MetricSet
    from interlatent_live.explanations.predicates.tree import Predicate

MOST: Final = 64
"""Predicates of interventions that are kept parsed."""


class Conditions:
    """Keeps as many rows as the predicates in use look back; belongs to the acting thread."""

    def __init__(self, metrics: MetricSet) -> None:
        self._metrics = metrics
        self._names = tuple(spec.name for spec in metrics.specs)
        self._predicates: dict[str, Predicate] = {}
        self._always: set[str] = set()
        self._kept = 1
        # By age, newest last: [rows, copies, M], and how many of them are of the same episode.
        self._rows: NDArray[np.float64] = np.zeros((0, 0, 0))
        self._past: NDArray[np.int64] = np.zeros(0, np.int64)
        self._held: dict[str, NDArray[np.bool_]] = {}

    @property
    def needed(self) -> bool:
        """Whether any predicate is in use."""
        return bool(self._predicates)

    def check(self, text: str) -> str:
        """Why a predicate cannot be judged here; empty when it can. From any thread."""
        try:
            parse(text, self._metrics.specs, roles=frozenset(Role))
        except PredicateError as error:
            return str(error)
        return ""

    def need(self, text: str, *, always: bool = False) -> None:
        """Keep what a predicate needs from now on.

        Raises:
            PredicateError: when it is none, or speaks of metrics that are not there.
        """
        if text in self._predicates:
            return
        predicate = parse(text, self._metrics.specs, roles=frozenset(Role))
        if len(self._predicates) - len(self._always) >= MOST:
            # Conditions come with commands and are many in a long run; few are in force at once.
            for old in set(self._predicates) - self._always:
                del self._predicates[old]
        self._predicates[text] = predicate
        if always:
            self._always.add(text)
        longest = max((history(term) for term in terms_of(predicate)), default=0)
        self._kept = max(self._kept, longest + 1)

    def push(self, row: NDArray[np.float64], terminated: Any, truncated: Any) -> None:
        """A row [width] or rows [n, width] of the tap became complete."""
        newest = self._metrics.finish(np.atleast_2d(np.asarray(row, np.float64)))
        newest = newest[:, : len(self._names)].copy()
        n = len(newest)
        if self._past.shape != (n,):
            self._rows = np.zeros((0, n, len(self._names)))
            self._past = np.zeros(n, np.int64)
        self._rows = np.concatenate([self._rows, newest[None]])[-self._kept :]
        ended = np.broadcast_to(np.logical_or(terminated, truncated), (n,))
        self._past = np.where(ended, 0, self._past + 1)
        self._held.clear()

    def holds(self, text: str) -> NDArray[np.bool_]:
        """Bool [n]: where the predicate held on the newest row of the running episode."""
        self.need(text)
        if text not in self._held:
            self._held[text] = self._judge(self._predicates[text])
        return self._held[text]

    def _judge(self, predicate: Predicate) -> NDArray[np.bool_]:
        out = np.zeros(max(1, len(self._past)), np.bool_)
        for copy, length in enumerate(self._past):
            values = self._rows[-min(int(length), len(self._rows)) :, copy] if length else None
            if values is not None and len(values):
                past = np.arange(len(values), dtype=np.int64)
                out[copy] = evaluate(predicate, Columns(self._names, values, past)).holds[-1]
        return out
