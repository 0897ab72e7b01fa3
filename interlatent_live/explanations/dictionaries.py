"""A whole dictionary verified at once, and the controls that a verified share is shown beside.

Decoding an input is no finding, and some share of any dictionary verifies because metrics are
inputs. So the same pipeline runs on controls, each matched one to one with a feature's density: raw
units, random directions, principal components; and, when the caller brings its features, the
transcoder of an untrained policy. The difference in verified shares is paired by feature.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from interlatent_live.explanations.nulls import NullKind, NullModel
from interlatent_live.explanations.rules import MAX_ROWS, Rule, induce_rules
from interlatent_live.explanations.scores import Interval, Scores, score
from interlatent_live.explanations.search import RuleScores, TermFamilies
from interlatent_live.explanations.verification import Judgement, Verdict, judge

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from interlatent_live.explanations.evidence import Evidence


@dataclass(frozen=True, slots=True)
class VerifiedDictionary:
    """Rules, scores and verdicts of every feature that was eligible on the held-out rows."""

    features: tuple[int, ...]
    """Eligible on held-out rows, whether or not a rule was found."""
    rules: tuple[Rule, ...]
    scores: tuple[Scores | None, ...]
    p: tuple[float, ...]
    judgements: tuple[Judgement, ...]
    null_draws: int

    @property
    def verified(self) -> NDArray[np.bool_]:
        """[features] verified by the full rule."""
        return np.array([j.verdict is Verdict.VERIFIED for j in self.judgements], bool)

    @property
    def accurate(self) -> NDArray[np.bool_]:
        """[features] balanced accuracy ≥ .85 alone."""
        return np.array(
            [s is not None and (s.balanced_accuracy.value or 0.0) >= 0.85 for s in self.scores],
            bool,
        )

    @property
    def share(self) -> float | None:
        """Verified share of the eligible features."""
        return float(self.verified.mean()) if self.features else None


def verify_dictionary(
    proposal: Evidence,
    held_out: Evidence,
    *,
    draws: int = 199,
    families: TermFamilies | None = None,
    seed: int = 0,
    max_rows: int = MAX_ROWS,
    features: Sequence[int] | None = None,
    kind: NullKind = NullKind.REASSIGN,
) -> VerifiedDictionary:
    """Propose rules on one evidence and judge them on another, against the null.

    ``features`` are all that are eligible on the held-out rows, unless given.
    """
    a, b = proposal.split(0.5, seed)
    eligible = held_out.coverage().eligible()
    wanted = np.flatnonzero(eligible) if features is None else np.asarray(features, np.int64)
    rules = induce_rules(a, b, wanted, families=families, max_rows=max_rows)
    scores = tuple(
        None if rule.predicate is None else score(held_out, rule.feature, rule.predicate)
        for rule in rules
    )
    accuracy = [None if s is None else s.balanced_accuracy for s in scores]
    observed = RuleScores(
        np.array([0.5 if x is None or x.value is None else x.value for x in accuracy]),
        np.array([0.0 if x is None or x.error is None else x.error for x in accuracy]),
    )
    p = np.ones(len(wanted))
    if len(wanted):
        null = NullModel(
            a,
            b,
            wanted,
            draws=draws,
            families=families,
            seed=seed,
            max_rows=max_rows,
            kind=kind,
        )
        null.search()
        p = null.judge(held_out, observed, eligible[wanted]).p
    judgements = tuple(
        Judgement(Verdict.ABSTAINED, "no rule") if s is None else judge(s, float(q))
        for s, q in zip(scores, p, strict=True)
    )
    return VerifiedDictionary(
        tuple(int(f) for f in wanted),
        rules,
        scores,
        tuple(float(q) for q in p),
        judgements,
        draws,
    )


def with_features(evidence: Evidence, on: NDArray[np.bool_]) -> Evidence:
    """The same rows with other features: ``on`` [n, F]; unscored rows stay off."""
    active = on & evidence.scored[:, None]
    feature, rows = np.nonzero(active.T)
    counts = np.bincount(feature, minlength=on.shape[1])
    return replace(
        evidence,
        indptr=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        rows=rows.astype(np.int32),
        values=np.ones(len(rows), np.float32),
    )


@dataclass(frozen=True, slots=True, eq=False)
class MatchedControl:
    """Directions with thresholds; control feature f fires as often as feature f did."""

    name: str
    directions: NDArray[np.float64]
    """[d, F]."""
    thresholds: NDArray[np.float64]
    """[F]."""

    def on(self, activations: NDArray[np.floating]) -> NDArray[np.bool_]:
        """[n, F] where each control feature is on, for activations [n, d]."""
        return np.asarray(activations @ self.directions > self.thresholds)


def matched_controls(
    activations: NDArray[np.floating], density: NDArray[np.float64], *, seed: int = 0
) -> tuple[MatchedControl, ...]:
    """Raw units, random directions and principal components at the densities [F] of features.

    ``activations`` [n, d] are those of the rows that rules are proposed from. Each control feature
    is a direction of its kind, drawn with replacement with a random sign; the threshold is the
    quantile that matches the density, so that the mean number of features on (L0) matches too.
    """
    random = np.random.default_rng(seed)
    values = np.asarray(activations, np.float64)
    width, count = values.shape[1], len(density)
    centred = values - values.mean(0)
    _, sizes, axes = np.linalg.svd(centred[:: max(len(centred) // 20_000, 1)], full_matrices=False)
    # A component without variance has no direction of its own.
    strong = axes[sizes > 1e-9 * sizes[0]]
    sign = random.choice([-1.0, 1.0], count)
    alive = np.flatnonzero(values.std(0) > 1e-12)
    units = np.zeros((width, count))
    units[random.choice(alive, count), np.arange(count)] = sign
    drawn = random.normal(size=(width, count))
    components = strong[random.integers(0, len(strong), count)].T * sign
    out = []
    for name, directions in (
        ("raw units", units),
        ("random dictionary", drawn / np.linalg.norm(drawn, axis=0)),
        ("principal components", components),
    ):
        projected = values @ directions
        thresholds = np.array([np.quantile(projected[:, f], 1 - density[f]) for f in range(count)])
        out.append(MatchedControl(name, directions, thresholds))
    return tuple(out)


def share_difference(
    ours: NDArray[np.bool_], control: NDArray[np.bool_], *, seed: int = 0, draws: int = 2000
) -> Interval:
    """Verified share minus the control's, paired by feature, with a bootstrap 95 % interval.

    ``ours`` and ``control`` are [F], feature by feature; features are resampled.
    """
    if len(ours) == 0:
        return Interval(None, reason="no eligible features")
    difference = ours.astype(np.float64) - control
    random = np.random.default_rng(seed)
    picks = random.integers(0, len(difference), (draws, len(difference)))
    low, high = np.quantile(difference[picks].mean(1), [0.025, 0.975])
    return Interval(float(difference.mean()), float(low), float(high))
