"""Three lists that must not be confused: screening, discoveries, alerts.

*Screening* is a plain Benjamini–Hochberg list at the moment of asking: good for looking around, and
titled so, because looking again and again at such a list has no error rate. *Discoveries* have one,
over the whole run: Benjamini–Yekutieli at looks declared beforehand (doubling episode counts, the
level shared out over the looks), or e-BH on betting evidence, which may be looked at any time
under any dependence. *Alerts* watch one pair, chosen beforehand, for ever.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from scipy import special

from interlatent_live.errors import UserError
from interlatent_live.statistics.effective_n import gather, jackknife_groups, safe_atanh, t_quantile

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from interlatent_live.statistics.correlator import Correlator
    from interlatent_live.statistics.moments import Floats, Ints
    from interlatent_live.statistics.profile import ProfileTable
    from interlatent_live.statistics.units import UnitSums

PINELIS: Final = 2 * np.e**3 / 9
"""P(T ≥ x) ≤ 2e³/9 · P(N(0,1) ≥ x) for a self-normalised sum of symmetric terms (Pinelis 1994)."""
_BATCH: Final = 1024


@dataclass(frozen=True, slots=True)
class Finding:
    """One pair on a list."""

    feature: int
    metric: str
    r: float | None
    p: float | None = None
    """Two-sided p-value, before any correction; ``None`` where evidence is betting."""
    log_e: float | None = None


@dataclass(frozen=True, slots=True)
class FindingList:
    """A list with the name of what it is and the rate it keeps."""

    title: str
    procedure: str
    level: float
    pairs: int
    """Pairs that could be tested."""
    findings: tuple[Finding, ...]
    note: str = ""


def benjamini_hochberg(p: Floats, level: float) -> NDArray[np.bool_]:
    """Pairs kept by Benjamini & Hochberg 1995 at ``level``; NaN is never kept. Any shape."""
    return _step_up(p, level, 1.0)


def benjamini_yekutieli(p: Floats, level: float) -> NDArray[np.bool_]:
    """Pairs kept under any dependence (Benjamini & Yekutieli 2001); NaN is never kept."""
    count = int(np.isfinite(p).sum())
    return _step_up(p, level, float(np.sum(1.0 / np.arange(1, count + 1))) if count else 1.0)


def _step_up(p: Floats, level: float, penalty: float) -> NDArray[np.bool_]:
    flat = np.where(np.isfinite(p), p, np.inf).ravel()
    count = int(np.isfinite(flat).sum())
    kept = np.zeros(flat.shape, bool)
    if count:
        order = np.argsort(flat, kind="stable")[:count]
        bar = level * np.arange(1, count + 1) / (count * penalty)
        below = np.flatnonzero(flat[order] <= bar)
        if len(below):
            kept[order[: below[-1] + 1]] = True
    return kept.reshape(p.shape)


def e_bh(log_e: Floats, level: float, tested: NDArray[np.bool_] | None = None) -> NDArray[np.bool_]:
    """Pairs kept by e-BH (Wang & Ramdas 2022): the k largest with e ≥ K/(k · level). Any shape."""
    flat = np.where(np.isfinite(log_e), log_e, -np.inf).ravel()
    if tested is not None:
        flat = np.where(tested.ravel(), flat, -np.inf)
    count = int((flat > -np.inf).sum())
    kept = np.zeros(flat.shape, bool)
    if count:
        order = np.argsort(-flat, kind="stable")[:count]
        bar = np.log(count / (np.arange(1, count + 1) * level))
        above = np.flatnonzero(flat[order] >= bar)
        if len(above):
            kept[order[: above[-1] + 1]] = True
    return kept.reshape(log_e.shape)


def interval_p(table: ProfileTable, confidence: float) -> Floats:
    """[U, M] two-sided p-values that the shown intervals stand for; NaN where there is none."""
    z = safe_atanh(table.r)
    with np.errstate(invalid="ignore", divide="ignore"):
        half = (safe_atanh(table.hi) - safe_atanh(table.lo)) / 2
        ratio = np.abs(z) / half * t_quantile(confidence, 1e6)
    return np.where(np.isfinite(ratio), 2 * special.ndtr(-ratio), np.nan)


def screening(correlator: Correlator, *, level: float = 0.1, window: str = "all") -> FindingList:
    """Benjamini–Hochberg over the shown intervals: a list to look at, not a result."""
    return screen_table(correlator.table(None, window), correlator.config.confidence, level=level)


def screen_table(table: ProfileTable, confidence: float, *, level: float = 0.1) -> FindingList:
    """The screening list of a table whose intervals have the given confidence."""
    p = interval_p(table, confidence)
    kept = benjamini_hochberg(p, level)
    return FindingList(
        title="screening",
        procedure="Benjamini–Hochberg on effective-n intervals",
        level=level,
        pairs=int(np.isfinite(p).sum()),
        findings=_findings(table.features, [spec.name for spec in table.specs], table.r, kept, p=p),
        note="looked at repeatedly, this list has no error rate; see discoveries",
    )


def sign_symmetric_p(units: UnitSums, features: Ints) -> Floats:
    """[features, M] p-values exact under symmetry of the units' scores, whatever their tails.

    A unit's score is its part of the covariance. If feature and metric are unrelated, the score's
    sign is a coin, and T = Σs / √Σs² obeys Pinelis' bound: no variance to estimate, so 64 episodes
    suffice for p-values of 10⁻¹⁰. Two scores are tried, of the pooled covariance and of that
    within episodes (immune to episode offsets), each at half the level.
    """
    groups, count, _ = jackknife_groups(units)
    m = units.n_metrics
    out = np.full((len(features), m), np.nan)
    if count < 2:
        return out
    n, total = gather(units.rows, groups, count), gather(units.total, groups, count)
    square = gather(units.square, groups, count).sum(0)
    rows = n.sum()
    if rows < 3:
        return out
    mean_d = total.sum(0) / rows
    ss_d = square - rows * mean_d**2
    for low in range(0, len(features), _BATCH):
        chosen = features[low : low + _BATCH]
        linear = gather(units.linear[:, chosen], groups, count)
        a = linear[:, :, 0]
        mean_a = a.sum(0) / rows
        power = gather(units.power[:, chosen], groups, count).sum(0)
        ss_a = power - rows * mean_a**2
        pooled = (
            linear[:, :, 1:]
            - mean_a[None, :, None] * total[:, None]
            - a[:, :, None] * mean_d
            + n[:, None, None] * mean_a[None, :, None] * mean_d
        )
        within = linear[:, :, 1:] - gather(units.cross[:, chosen], groups, count)
        flat = (ss_a <= 1e-12 * power)[:, None] | (ss_d <= 1e-12 * square)[None]
        scale = np.sqrt(np.maximum(ss_a[:, None] * ss_d[None], 0)) / rows
        p = 2.0 * np.minimum(_self_normalised_p(pooled, scale), _self_normalised_p(within, scale))
        out[low : low + _BATCH] = np.where(flat, np.nan, np.minimum(p, 1.0))
    return out


def _self_normalised_p(scores: Floats, scale: Floats) -> Floats:
    """[features, M] from scores [units, features, M]; scores below rounding count as 0."""
    s = np.where(np.abs(scores) > 1e-9 * scale, scores, 0.0)
    norm = np.sqrt((s * s).sum(0))
    with np.errstate(invalid="ignore", divide="ignore"):
        t = np.abs(s.sum(0)) / norm
    t = np.where(norm > 0, t, 0.0)
    return np.asarray(np.minimum(1.0, 2 * PINELIS * special.ndtr(-t)), np.float64)


def look_level(level: float, look: int) -> float:
    """Share of ``level`` for look 1, 2, …: 6/(π² k²), which sums to 1."""
    return level * 6.0 / (np.pi**2 * look**2)


@dataclass(frozen=True, slots=True)
class Look:
    """One declared look: recorded, so that a replay makes the same ones."""

    number: int
    episodes: int
    """Declared count of episodes (blocks of endless runs) at which it is due."""
    at_episodes: int
    """Count when it was made."""
    level: float
    found: tuple[Finding, ...]


@dataclass(slots=True)
class DiscoveryLog:
    """Benjamini–Yekutieli at doubling episode counts; findings accumulate over the looks.

    The false discovery rate of everything found over all looks is at most ``level``, since each
    look spends its own share.
    """

    level: float = 0.05
    first_look: int = 32
    looks: list[Look] = field(default_factory=list)

    @property
    def next_due(self) -> int:
        """Closed episodes (or blocks) at which the next look is due."""
        return int(self.first_look * 2 ** len(self.looks))

    def look(self, correlator: Correlator) -> Look | None:
        """Make the look that is due, if one is.

        Raises:
            UserError: when the correlator keeps no episodes.
        """
        deep = _deep(correlator)
        count = deep.units.blocks
        if count < self.next_due:
            return None
        while count >= self.next_due * 2:
            # Looks that were slept through are spent: their level is not given to later ones.
            self.looks.append(Look(len(self.looks) + 1, self.next_due, count, 0.0, ()))
        number = len(self.looks) + 1
        level = look_level(self.level, number)
        slots = np.arange(len(deep.members))
        p = sign_symmetric_p(deep.units, slots)
        kept = benjamini_yekutieli(p, level)
        names = [spec.name for spec in correlator.specs]
        # From the closed episodes alone, as the p-values are: what else had come does not matter.
        r = deep.units.correlations(slots)
        found = _findings(deep.members, names, r, kept, p=p)
        look = Look(number, self.next_due, count, level, found)
        self.looks.append(look)
        return look

    def discoveries(self) -> tuple[Finding, ...]:
        """Everything found so far, first look first, without repeats."""
        seen: dict[tuple[int, str], Finding] = {}
        for look in self.looks:
            for finding in look.found:
                seen.setdefault((finding.feature, finding.metric), finding)
        return tuple(seen.values())


def discoveries_e(correlator: Correlator, *, level: float = 0.05) -> FindingList:
    """Discoveries by e-BH on betting evidence: valid at any time, under any dependence.

    Raises:
        UserError: when the correlator keeps no episodes.
    """
    deep = _deep(correlator)
    log_e = deep.betting.log_e()
    tested = deep.betting.played > 0
    kept = e_bh(log_e, level, tested)
    rows = np.flatnonzero(kept.any(axis=1))
    features = deep.members[rows]
    r = correlator.table(features).r
    names = [spec.name for spec in correlator.specs]
    return FindingList(
        title="discoveries",
        procedure="e-BH on sign-flip betting, one bet per episode",
        level=level,
        pairs=int(tested.sum()),
        findings=_findings(features, names, r, kept[rows], log_e=log_e[rows]),
    )


@dataclass(frozen=True, slots=True)
class PairEvidence:
    """What a watched pair has shown so far."""

    feature: int
    metric: str
    log_e: float
    alert: bool
    """Whether e ≥ 1/level: under "unrelated" this ever happens with chance ≤ level."""
    level: float
    episodes: int
    mean_within_r: float | None
    """Mean correlation within an episode."""
    lo: float | None
    """Asymptotic confidence sequence of it at the same level (labelled: asymptotic)."""
    hi: float | None
    reason: str = ""


def watch_pair(
    correlator: Correlator, feature: int, metric: str, *, level: float = 0.05
) -> PairEvidence:
    """Evidence on one pair, chosen beforehand; may be asked at any time.

    Raises:
        UserError: for an unknown metric, a feature outside the deep set, or no episodes kept.
    """
    deep = _deep(correlator)
    m = correlator.metric_index(metric)
    slot = int(deep.slot[feature])
    if slot < 0:
        raise UserError(f"feature {feature} is outside the deep set; name it in deep_set")
    log_e = float(deep.betting.log_e(np.array([slot]))[0, m])
    played = int(deep.betting.played[slot, m])
    if not played:
        reason = "no closed episode in which both varied"
        return PairEvidence(feature, metric, 0.0, False, level, 0, None, None, None, reason)
    mean = float(deep.betting.tilt[slot, m]) / played
    variance = max(float(deep.betting.square[slot, m]) / played - mean**2, 0.0)
    radius = asymptotic_radius(variance, played, level)
    enough = played >= 10
    return PairEvidence(
        feature=feature,
        metric=metric,
        log_e=log_e,
        alert=log_e >= np.log(1 / level),
        level=level,
        episodes=played,
        mean_within_r=mean,
        lo=max(mean - radius, -1.0) if enough else None,
        hi=min(mean + radius, 1.0) if enough else None,
        reason="" if enough else "fewer than 10 episodes in which both varied",
    )


def asymptotic_radius(variance: float, n: int, level: float, tuned_for: float = 50.0) -> float:
    """Half-width of an asymptotic confidence sequence for a mean after n terms.

    Waudby-Smith, Arbour, Sinha, Kennedy & Ramdas 2024, eq. (7), tightest near n = ``tuned_for``.
    """
    log_term = -2 * np.log(level)
    rho2 = (log_term + np.log(log_term + 1)) / tuned_for
    inside = 2 * (n * rho2 + 1) / (n * n * rho2) * np.log(np.sqrt(n * rho2 + 1) / level)
    return float(np.sqrt(variance * inside))


def _deep(correlator: Correlator) -> Any:
    correlator.finish()
    if correlator.deep is None:
        raise UserError("this correlator keeps no episodes (episodic=False), so it cannot test")
    return correlator.deep


def _findings(
    features: Ints,
    names: Sequence[str],
    r: Floats,
    kept: NDArray[np.bool_],
    *,
    p: Floats | None = None,
    log_e: Floats | None = None,
) -> tuple[Finding, ...]:
    """The kept pairs, each array [len(features), len(names)]."""
    rows, columns = np.nonzero(kept)
    out = []
    for i, m in zip(rows.tolist(), columns.tolist(), strict=True):
        out.append(
            Finding(
                feature=int(features[i]),
                metric=names[m],
                r=float(r[i, m]) if np.isfinite(r[i, m]) else None,
                p=None if p is None else float(p[i, m]),
                log_e=None if log_e is None else float(log_e[i, m]),
            )
        )
    strength = {id(f): (f.p if f.p is not None else -(f.log_e or 0.0)) for f in out}
    return tuple(sorted(out, key=lambda f: (strength[id(f)], f.feature, f.metric)))
