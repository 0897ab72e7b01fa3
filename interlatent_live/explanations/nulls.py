"""What the same rule search finds where there is nothing to find.

Shuffling rows destroys the dependence that makes chance agreement likely, so whole episodes change
partners instead: the metrics of one episode are paired with the features of another, step by step
from the start, which keeps autocorrelation, episode offsets and everything that only follows the
time in the episode. With fewer than 8 episodes the pairing is shifted in a circle within each, by
more than the autocorrelation time. The search is repeated on every draw, on the same split into A
and B, and its rules are scored on the re-paired held-out episodes. Because the proposal does not
change while the held-out ledger grows, its draws are made once and kept as trees.

The statistic is the largest studentised balanced accuracy over features (Westfall & Young,
*Resampling-Based Multiple Testing*, 1993, §2.3): each feature is centred by its own draws, which
takes out what it owes to the clock, and divided by the root of its variance over draws, its squared
clustered standard error in that very draw, and a floor, so that rare features with noisy scores do
not set the bar for all. Among denominators this one left the lightest tails on real policies (95 %
quantiles of the maximum: 2.1–2.5, against 5.9–9.2 with the standard error alone).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

import numpy as np

from interlatent_live.explanations.blocks import decorrelation_steps
from interlatent_live.explanations.rules import MAX_ROWS
from interlatent_live.explanations.search import (
    Binned,
    RuleScores,
    TermFamilies,
    Trees,
    bin_terms,
    choose_leaves,
    grow,
    leaf_counts,
    pair,
    rule_scores,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.random import Generator
    from numpy.typing import NDArray

    from interlatent_live.explanations.evidence import Evidence

WITHIN_EPISODE_BELOW: Final = 8
"""With fewer units there are too few partners: shifts within the episode instead."""


class NullKind(StrEnum):
    """How the pairing of features and metrics is broken.

    Reassignment keeps what follows the time in the episode, so a claim about a gait whose episodes
    all start in one phase cannot beat it; shifts in a circle break that too, and take the episode
    to be stationary instead. Which one was used is part of every result.
    """

    REASSIGN = "whole-episode reassignment"
    SHIFT = "circular shift"


@dataclass(frozen=True, slots=True, eq=False)
class NullResult:
    """Adjusted p-values of F judged features against B draws."""

    p: NDArray[np.float64]
    """[F] (1 + #{draws whose maximum is at least as large}) / (B + 1)."""
    centre: NDArray[np.float64]
    """[F] mean balanced accuracy over draws."""
    spread: NDArray[np.float64]
    """[F] standard deviation over draws, and the floor: half of 1 / (units in which it was on + 3).

    Root of the sum of their squares.
    """
    maximum: NDArray[np.float64]
    """[B] largest standardised statistic of each draw."""
    draws: int
    method: NullKind

    def p_of(self, position: int, balanced_accuracy: float, error: float | None) -> float:
        """Adjusted p of another score for the feature at ``position``."""
        scale = np.hypot(error or 0.0, self.spread[position])
        z = (balanced_accuracy - self.centre[position]) / scale
        return float((1 + (self.maximum >= z).sum()) / (self.draws + 1))


class NullModel:
    """Draws of the null for a set of features; made bit by bit, so that a service can interleave.

    ``features`` are the claims' features; ``draws`` is B.
    """

    def __init__(
        self,
        a: Evidence,
        b: Evidence,
        features: Sequence[int] | NDArray[np.integer],
        *,
        draws: int = 199,
        families: TermFamilies | None = None,
        seed: int = 0,
        max_rows: int = MAX_ROWS,
        kind: NullKind = NullKind.REASSIGN,
    ) -> None:
        self._kind = kind
        self.features = np.asarray(features, np.int64)
        self.draws = draws
        self._terms = (families or TermFamilies()).terms(a.specs)
        self._sides = (a, b)
        self._seed = seed
        self._max_rows = max_rows
        self._binned_a = bin_terms(a, self._terms, max_rows=max_rows)
        self._binned_b = bin_terms(b, self._terms, edges=self._binned_a.edges, max_rows=max_rows)
        self._rules: list[tuple[Trees, NDArray[np.bool_]]] = []

    @property
    def done(self) -> int:
        """Draws searched so far."""
        return len(self._rules)

    def search(self, count: int | None = None) -> int:
        """Search up to ``count`` more draws (all that are missing by default); returns how many."""
        missing = self.draws - self.done
        todo = missing if count is None else min(count, missing)
        for _ in range(todo):
            random = np.random.default_rng([self._seed, self.done])
            (a, b) = self._sides
            on_a = pair(a, self.features, self._binned_a, partners(a, random, self._kind)[0])
            on_b = pair(b, self.features, self._binned_b, partners(b, random, self._kind)[0])
            trees = grow(self._binned_a, on_a)
            mask = choose_leaves(
                leaf_counts(trees, self._binned_a, on_a), leaf_counts(trees, self._binned_b, on_b)
            )
            self._rules.append((_compact(trees), mask))
        return todo

    def judge(
        self,
        held_out: Evidence,
        observed: RuleScores,
        judged: NDArray[np.bool_] | None = None,
        *,
        progress: Callable[[int], None] | None = None,
    ) -> NullResult:
        """Compare observed scores on held-out rows with the draws.

        ``judged`` [F] are the features whose maximum counts (the eligible ones); others get p = 1.

        Raises:
            ValueError: before any draw was searched.
        """
        if not self._rules:
            raise ValueError("the null has no draws yet: call search() first")
        counted = np.ones(len(self.features), bool) if judged is None else judged
        method = _method(held_out, self._kind)
        units = held_out.coverage().units[self.features].astype(np.float64)
        least = 0.5 / (units + 3.0)
        if not counted.any():
            ones = np.ones(len(self.features))
            return NullResult(ones, ones / 2, least, np.zeros(self.done), self.done, method)
        scores = np.empty((self.done + 1, len(self.features)))
        errors = np.empty_like(scores)
        for number, found in enumerate(self._scores(held_out)):
            scores[number], errors[number] = found.balanced_accuracy, found.error
            if progress is not None:
                progress(number + 1)
        scores[-1], errors[-1] = observed.balanced_accuracy, observed.error
        centre = scores.mean(0)
        spread = np.hypot(scores.std(0), least)
        z = (scores - centre) / np.hypot(errors, spread)
        maximum = z[:-1, counted].max(1)
        p = (1 + (maximum[:, None] >= z[-1][None]).sum(0)) / (self.done + 1)
        return NullResult(np.where(counted, p, 1.0), centre, spread, maximum, self.done, method)

    def _scores(self, held_out: Evidence) -> Iterator[RuleScores]:
        binned: Binned = bin_terms(
            held_out, self._terms, edges=self._binned_a.edges, max_rows=2 * self._max_rows
        )
        unit = held_out.unit[binned.row]
        for number, (trees, mask) in enumerate(self._rules):
            random = np.random.default_rng([self._seed, number, 1])
            on = pair(held_out, self.features, binned, partners(held_out, random, self._kind)[0])
            yield rule_scores(trees, mask, binned, on, unit=unit, n_units=held_out.n_units)


def partners(
    evidence: Evidence, random: Generator, kind: NullKind = NullKind.REASSIGN
) -> tuple[NDArray[np.int64], NullKind]:
    """A metric row for each feature row, [n], −1 where its partner episode is shorter.

    Episodes change partners within groups of similar length, so that few rows are lost.
    """
    starts = np.searchsorted(evidence.unit, np.arange(evidence.n_units))
    lengths = np.diff(np.append(starts, len(evidence)))
    offset = np.arange(len(evidence)) - starts[evidence.unit]
    method = _method(evidence, kind)
    if method is NullKind.SHIFT:
        least = _decorrelation_steps(evidence)
        shift = np.array(
            [
                random.integers(min(least, n // 2), max(n - min(least, n // 2), n // 2) + 1)
                for n in lengths
            ]
        )
        moved = (offset + shift[evidence.unit]) % lengths[evidence.unit]
        return starts[evidence.unit] + moved, method
    partner = np.empty(evidence.n_units, np.int64)
    order = np.argsort(lengths + random.random(len(lengths)), kind="stable")
    groups = max(evidence.n_units // WITHIN_EPISODE_BELOW, 1)
    if len(np.unique(lengths)) == 1:
        groups = 1
    for group in np.array_split(order, groups):
        partner[group] = random.permutation(group)
    inside = offset < lengths[partner][evidence.unit]
    return np.where(inside, starts[partner][evidence.unit] + offset, -1), method


def _method(evidence: Evidence, kind: NullKind) -> NullKind:
    return NullKind.SHIFT if evidence.n_units < WITHIN_EPISODE_BELOW else kind


def _decorrelation_steps(evidence: Evidence) -> int:
    """Steps after which the slowest metric's autocorrelation is below 1/e, by units, at most."""
    return max(map(decorrelation_steps, evidence.metrics.T), default=1)


def _compact(trees: Trees) -> Trees:
    """Small integers: a thousand draws of a thousand features are 14 MB, not 112."""
    return Trees(trees.term.astype(np.int16), trees.edge.astype(np.int16))
