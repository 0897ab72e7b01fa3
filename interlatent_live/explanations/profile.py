"""What a writer is told of a feature: numbers that code found, never raw trust in a name."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from interlatent_live.explanations.predicates import to_text
from interlatent_live.explanations.scores import auroc
from interlatent_live.stream import FeatureAddress, Role

if TYPE_CHECKING:
    from interlatent_live.explanations.evidence import Evidence
    from interlatent_live.explanations.rules import Rule
    from interlatent_live.stream import MetricSpec

EXEMPLARS: Final = 6


@dataclass(frozen=True, slots=True)
class MetricProfile:
    """One metric beside the feature."""

    spec: MetricSpec
    mean_on: float | None
    mean_off: float | None
    auroc: float | None
    """P(metric when the feature is on > when off), ties ½."""
    low: float | None
    """5 % quantile over all rows."""
    high: float | None
    """95 % quantile."""


@dataclass(frozen=True, slots=True)
class Exemplar:
    """One step at which the feature was strongest (or a near miss), with all metrics."""

    kind: str
    """``"top"`` or ``"off"``."""
    activation: float
    metrics: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class FeatureProfile:
    """All that a writer gets to know of one feature."""

    address: FeatureAddress
    specs: tuple[MetricSpec, ...]
    density: float
    metrics: tuple[MetricProfile, ...]
    exemplars: tuple[Exemplar, ...]
    rule: Rule
    actions: tuple[str, ...] = ()
    environment: str = ""
    previous: str = ""
    """The predicate that failed, when a claim is rewritten."""

    def cache_key(self) -> str:
        """Equal for profiles that differ only in the second significant digit or beyond."""
        parts = [str(self.address), self.environment, self.previous, f"{self.density:.1e}"]
        parts.append("" if self.rule.predicate is None else to_text(self.rule.predicate))
        for metric in self.metrics:
            values = (metric.mean_on, metric.mean_off, metric.auroc)
            parts.append(metric.spec.name)
            parts += ["-" if value is None else f"{value:.1e}" for value in values]
        return hashlib.sha256("\x00".join(parts).encode()).hexdigest()


def build_profile(
    evidence: Evidence,
    rule: Rule,
    *,
    actions: tuple[str, ...] = (),
    environment: str = "",
    seed: int = 0,
) -> FeatureProfile:
    """Profile of the rule's feature on the rows that the rule was made from."""
    rows = np.flatnonzero(evidence.scored)
    on = evidence.on(rule.feature)[rows]
    activation = evidence.activation(rule.feature)[rows]
    metrics = []
    for index, spec in enumerate(evidence.specs):
        if spec.role not in (Role.STATE, Role.CLOCK):
            continue
        column = evidence.metrics[rows, index]
        known = np.isfinite(column)
        value, event = column[known], on[known]
        low, high = np.quantile(value, [0.05, 0.95]) if len(value) else (None, None)
        metrics.append(
            MetricProfile(
                spec,
                float(value[event].mean()) if event.any() else None,
                float(value[~event].mean()) if (~event).any() else None,
                auroc(value, event),
                None if low is None else float(low),
                None if high is None else float(high),
            )
        )
    random = np.random.default_rng([seed, rule.feature])
    top = np.argsort(-activation, kind="stable")[:EXEMPLARS]
    off = np.flatnonzero(~on)
    off = random.choice(off, min(EXEMPLARS, len(off)), replace=False)
    exemplars = [_exemplar(evidence, rows[i], activation[i], "top") for i in top if on[i]]
    exemplars += [_exemplar(evidence, rows[i], 0.0, "off") for i in off]
    return FeatureProfile(
        address=FeatureAddress(evidence.hook_point, rule.feature, evidence.transcoder_hash),
        specs=evidence.specs,
        density=float(on.mean()) if len(on) else 0.0,
        metrics=tuple(metrics),
        exemplars=tuple(exemplars),
        rule=rule,
        actions=actions,
        environment=environment,
    )


def _exemplar(evidence: Evidence, row: int, activation: float, kind: str) -> Exemplar:
    values = tuple(float(value) if np.isfinite(value) else None for value in evidence.metrics[row])
    return Exemplar(kind, float(activation), values)
