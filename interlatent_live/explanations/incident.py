"""After a failure: what was unusual in the features of the last seconds, and where it was seen.

The end of one episode is held beside all windows of the same length of the reference episodes, by
episode: for each feature the share of reference windows in which it was on at least as often. Lead
times say how long before the end a feature's activity became unusual and stayed so. The nearest
past cases are the ends of other episodes whose features look alike. Nothing here says "cause": a
feature that comes before a failure is a precursor candidate, and its claim says what it stands for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from interlatent_live.errors import UserError
from interlatent_live.explanations.predicates import to_text
from interlatent_live.explanations.verification import Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from interlatent_live.explanations.claims import Claim
    from interlatent_live.explanations.evidence import Evidence

UNUSUAL_SHARE: Final = 0.05
"""A feature is unusual when at most this share of reference windows was as active."""
COURSE_POINTS: Final = 200
"""Points of a feature's course over the window, at most."""
DENSE_CELLS: Final = 64 * 2**20
"""Rows × features that an analysis holds at once, as float32."""
_LISTED: Final = 12


@dataclass(frozen=True, slots=True)
class KnownClaim:
    """What is said of a feature, as far as an incident shows it."""

    label: str
    verdict: str
    predicate: str | None = None


def known_claims(claims: Iterable[Claim]) -> dict[int, KnownClaim]:
    """By feature index; where the writer abstained there is nothing to show."""
    return {
        claim.address.index: KnownClaim(
            claim.label,
            str(claim.verdict),
            None if claim.predicate is None else to_text(claim.predicate),
        )
        for claim in claims
        if claim.verdict is not Verdict.ABSTAINED
    }


@dataclass(frozen=True, slots=True)
class UnusualFeature:
    """A feature that was much more, or much less, active than it usually is."""

    feature: int
    address: str
    activity: float
    """Share of the last window in which it was on."""
    usual: float
    """Mean share over reference windows."""
    as_extreme: float
    """Share of reference windows at least as active (or as silent)."""
    excess: bool
    """True: more active than usual; False: more silent."""
    lead_steps: int | None
    """Steps before the end from which it stayed unusual; None when it was not at the very end."""
    course: tuple[float, ...]
    """Largest activation in each of at most ``COURSE_POINTS`` equal parts of the window."""
    claim: KnownClaim | None


@dataclass(frozen=True, slots=True)
class PastCase:
    """The end of another episode that looked alike."""

    env: int
    episode: int
    similarity: float
    """Cosine of the shares of steps on, each feature scaled by its spread among the ends."""
    steps: int


@dataclass(frozen=True, slots=True)
class Incident:
    """What can be said of the end of one episode."""

    hook_point: str
    env: int
    episode: int
    steps: int
    window: int
    features: tuple[UnusualFeature, ...]
    nearest: tuple[PastCase, ...]
    reference_episodes: int

    def to_json(self) -> dict[str, Any]:
        """As the command and the API show it."""
        return {
            "hook_point": self.hook_point,
            "env": self.env,
            "episode": self.episode,
            "steps": self.steps,
            "window_steps": self.window,
            "reference_episodes": self.reference_episodes,
            "features": [
                {
                    "address": f.address,
                    "label": "" if f.claim is None else f.claim.label,
                    "verdict": None if f.claim is None else f.claim.verdict,
                    "predicate": None if f.claim is None else f.claim.predicate,
                    "activity": f.activity,
                    "usual": f.usual,
                    "as_extreme": f.as_extreme,
                    "direction": "more active" if f.excess else "more silent",
                    "lead_steps": f.lead_steps,
                    "course": list(f.course),
                }
                for f in self.features
            ],
            "nearest": [
                {
                    "env": c.env,
                    "episode": c.episode,
                    "similarity": c.similarity,
                    "steps": c.steps,
                }
                for c in self.nearest
            ],
        }


def small_enough(
    evidence: Evidence, *, env: int, episode: int, cells: int = DENSE_CELLS
) -> Evidence:
    """The newest episodes of all copies, as many as fit, and always the one asked for."""
    wanted = len(evidence) * evidence.n_features
    if wanted <= cells:
        return evidence
    newest = evidence.unit_begun_ns.argsort()[::-1]
    keep = np.zeros(len(newest), bool)
    keep[newest[: max(int(len(newest) * cells / wanted), 2)]] = True
    keep |= (evidence.unit_key[:, 1] == env) & (evidence.unit_key[:, 2] == episode)
    return evidence.select(keep)


def analyse_incident(
    evidence: Evidence,
    *,
    env: int,
    episode: int,
    claims: Mapping[int, KnownClaim] | None = None,
    window: int = 100,
    boot: int | None = None,
    most: int = 10,
) -> Incident:
    """Analyse the last ``window`` steps of an episode against all other episodes.

    Args:
        evidence: rows of one hook point.
        env: copy of the environment.
        episode: number of the episode within that copy.
        claims: what is said of the features, by index.
        window: steps before the end that are looked at.
        boot: number of the agent process, where there were several; by default the last.
        most: features that are named.

    Raises:
        UserError: when the episode is not there, or nothing is left to compare it with.
    """
    key = evidence.unit_key
    chosen = (key[:, 1] == env) & (key[:, 2] == episode)
    if boot is not None:
        chosen &= key[:, 0] == boot
    if not chosen.any():
        raise UserError(
            f"episode {episode} of copy {env} is not among the steps that are there: "
            f"{_there(key, env)}"
        )
    unit = int(np.flatnonzero(chosen)[-1])
    starts = np.searchsorted(evidence.unit, np.arange(evidence.n_units + 1))
    lengths = np.diff(starts)
    length = int(min(window, lengths[unit]))
    others = [u for u in range(evidence.n_units) if u != unit and lengths[u] >= length]
    if not others:
        raise UserError(
            f"no other episode has {length} steps to compare with; record more, or look at a "
            "shorter window"
        )
    on = np.zeros((len(evidence), evidence.n_features), np.float32)
    feature = np.repeat(np.arange(evidence.n_features), np.diff(evidence.indptr))
    on[evidence.rows, feature] = 1.0
    stride = max(length // 4, 1)
    reference = np.concatenate(
        [_windows(on[starts[u] : starts[u + 1]], length, stride) for u in others]
    )
    last = on[starts[unit + 1] - length : starts[unit + 1]]
    activity, usual = last.mean(0), reference.mean(0)
    above = (reference >= activity).mean(0)
    below = (reference <= activity).mean(0)
    excess = above <= below
    extreme = np.where(excess, above, below)
    ranked = np.lexsort((-np.abs(activity - usual), extreme))
    unusual = [int(f) for f in ranked if extreme[f] <= UNUSUAL_SHARE][:most]
    claims = claims or {}
    whole = on[starts[unit] : starts[unit + 1]]
    features = tuple(
        UnusualFeature(
            feature=f,
            address=f"{evidence.hook_point}/{f}@{evidence.transcoder_hash}",
            activity=float(activity[f]),
            usual=float(usual[f]),
            as_extreme=float(extreme[f]),
            excess=bool(excess[f]),
            lead_steps=_lead(whole[:, f], reference[:, f], length, excess=bool(excess[f])),
            course=_course(evidence.activation(f)[starts[unit + 1] - length : starts[unit + 1]]),
            claim=claims.get(f),
        )
        for f in unusual
    )
    return Incident(
        hook_point=evidence.hook_point,
        env=env,
        episode=episode,
        steps=int(lengths[unit]),
        window=length,
        features=features,
        nearest=_nearest(evidence, on, starts, unit=unit, others=others, length=length),
        reference_episodes=len(others),
    )


def _there(key: NDArray[np.int64], env: int) -> str:
    """Which episodes of a copy there are, in words."""
    episodes = np.unique(key[key[:, 1] == env, 2])
    if 0 < len(episodes) <= _LISTED:
        return f"episodes {', '.join(str(one) for one in episodes)} of it"
    if len(episodes):
        return f"{len(episodes)} episodes of it, from {episodes[0]} to {episodes[-1]}"
    copies = ", ".join(str(copy) for copy in np.unique(key[:, 1])[:20]) or "none"
    return f"only copies {copies}"


def _course(activation: NDArray[np.float32]) -> tuple[float, ...]:
    parts = np.array_split(activation, min(len(activation), COURSE_POINTS))
    return tuple(float(part.max()) for part in parts)


def _windows(on: NDArray[np.float32], length: int, stride: int) -> NDArray[np.float64]:
    """Mean activity [w, F] of the windows of an episode."""
    total = np.concatenate([np.zeros((1, on.shape[1])), np.cumsum(on, axis=0, dtype=np.float64)])
    ends = np.arange(length, len(on) + 1, stride)
    return np.asarray((total[ends] - total[ends - length]) / length)


def _lead(
    on: NDArray[np.float32], reference: NDArray[np.float64], length: int, *, excess: bool
) -> int | None:
    """Steps from when the window's activity became unusual, and stayed so, to the end."""
    activity = _windows(on[:, None], length, 1)[:, 0]
    bar = np.quantile(reference, 1 - UNUSUAL_SHARE if excess else UNUSUAL_SHARE)
    unusual = activity > bar if excess else activity < bar
    if not unusual[-1]:
        return None
    usual = np.flatnonzero(~unusual)
    return int(len(activity) - 1 - usual[-1]) if len(usual) else len(activity)


def _nearest(
    evidence: Evidence,
    on: NDArray[np.float32],
    starts: NDArray[np.integer],
    *,
    unit: int,
    others: Sequence[int],
    length: int,
    count: int = 3,
) -> tuple[PastCase, ...]:
    # Blocks of the very same endless episode are no past case.
    same = (evidence.unit_key[:, :3] == evidence.unit_key[unit, :3]).all(1)
    others = [u for u in others if not same[u]]
    ends = np.stack([on[starts[u + 1] - length : starts[u + 1]].mean(0) for u in (*others, unit)])
    spread = ends.std(0)
    scaled = (ends - ends.mean(0)) / np.where(spread > 1e-9, spread, np.inf)
    norms = np.maximum(np.linalg.norm(scaled, axis=1), 1e-9)
    similarity = (scaled[:-1] @ scaled[-1]) / (norms[:-1] * norms[-1])
    best = np.argsort(-similarity, kind="stable")[:count]
    return tuple(
        PastCase(
            int(evidence.unit_key[others[i], 1]),
            int(evidence.unit_key[others[i], 2]),
            float(similarity[i]),
            int(starts[others[i] + 1] - starts[others[i]]),
        )
        for i in best
    )
