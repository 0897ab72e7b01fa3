"""How true the narration is, and whether claims fall when, and only when, they stop holding.

Three policies act in their environments. Claims are proposed from one set of episodes, verified on
a second, and narrated over a third as docs/explanations.md defines it. Then the world changes, or
what is reported of it: the run goes on unchanged, gravity is another, a metric that claims cite has
the opposite sign. The explainer that a service runs is fed with 208 episodes of each; which claims
it withdraws, and when, is held against scores on all of those episodes, which it never saw at once.
Weights that are not those a transcoder was trained on never get so far: the hash refuses them.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from interlatent_live.bench.progress import progress_bar
from interlatent_live.bench.report import BenchReport, BenchRow, bench_report, bench_row
from interlatent_live.bench.scenes import (
    CARTPOLE,
    HOOK,
    LUNARLANDER,
    SHIPPED,
    WALKER2D,
    Scene,
    Stage,
)
from interlatent_live.errors import MismatchError
from interlatent_live.explanations import Explainer, ExplainerConfig, Verdict
from interlatent_live.explanations.evidence import Evidence, EvidenceStore
from interlatent_live.explanations.narrator import NarrationQuality, measure
from interlatent_live.explanations.predicates import evaluate, metric_names
from interlatent_live.explanations.scores import score
from interlatent_live.explanations.sequential import (
    FALSE_WITHDRAWALS_PER_MILLION,
    claim_events,
    limits_of,
)
from interlatent_live.explanations.verification import Bars
from interlatent_live.policies.files import load_policy
from interlatent_live.transcoders.native import load_transcoder

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from interlatent_live.explanations.claims import Claim
    from interlatent_live.explanations.sequential import Events
    from interlatent_live.stream import FeatureBatch

SEED: Final = 20_261_341
"""Not among the seeds of development."""
GRAVITY: Final = {"CartPole-v1": 2.0, "LunarLander-v3": 0.6, "Walker2d-v5": 0.7}
"""Factors under which the policies still act for a while."""
FLIPS: Final = 2
"""Most cited metrics whose sign is flipped, one at a time."""
INTERVAL: Final = 50
"""Steps between two moments of narration."""
COPIES: Final = 8
EVIDENCE_BYTES: Final = 16 * 2**20
"""What the explainer may keep, some 60 episodes: like a service that runs for long, it forgets."""
WALKER: Final = replace(WALKER2D, max_steps=500)


@dataclass(frozen=True, slots=True)
class _Sizes:
    proposal: int = 64
    verification: int = 32
    narration: int = 16
    after: int = 208
    draws: int = 99


_QUICK: Final = _Sizes(proposal=48, verification=16, narration=16, after=32, draws=39)


@dataclass(frozen=True, slots=True)
class _Fate:
    """One verified claim in one regime."""

    truth: str
    """``holds``, ``broken`` or ``between`` by offline truth."""
    delay: int | None
    """Bouts or firings (the fewer) until it was withdrawn; None: it was not."""
    wrong: bool = False
    """Broken so far that its verdict is *contradicted*: balanced accuracy clear below .6."""
    soonest: float = 0.0
    """Bouts or firings that a test of the same rate needs at least (:func:`_soonest`)."""
    told: int | None = None
    """The delay of a test that is told how often it fails (:func:`told_delay`)."""


def run(*, quick: bool = False, seed: int = SEED) -> BenchReport:
    """All scenes and regimes; ``quick`` has few episodes and only shows that it runs."""
    sizes = _QUICK if quick else _Sizes()
    scenes = (CARTPOLE,) if quick else (CARTPOLE, LUNARLANDER, WALKER)
    rows: list[BenchRow] = []
    fates: dict[str, list[_Fate]] = {}
    with progress_bar(len(scenes) * (4 + FLIPS)) as begin:
        for scene in scenes:
            begin(f"{scene.name}: policy, transcoder and claims")
            with Stage(scene, copies=COPIES) as stage:
                explainer = _verified(stage, sizes, seed)
                begin(f"{scene.name}: narration")
                rows += _narration_rows(stage, explainer, sizes, seed)
                for regime, found in _regimes(stage, explainer, sizes, seed, begin):
                    fates.setdefault(regime, []).extend(found)
    rows += _withdrawal_rows(fates, sizes)
    rows += [_refusal_row(), _told_row(fates)]
    return bench_report("narration", rows)


def _verified(stage: Stage, sizes: _Sizes, seed: int) -> Explainer:
    """An explainer with claims proposed from some episodes and verified on others."""
    explainer = Explainer(
        stage.specs,
        HOOK,
        config=ExplainerConfig(
            null_draws=sizes.draws,
            seed=seed,
            null=stage.scene.null,
            limit_bytes=EVIDENCE_BYTES,
            block_steps=stage.scene.block_steps,
        ),
        actions=stage.actions,
        environment=stage.scene.environment,
        control_hz=1 / stage.seconds_per_step,
    )
    evidence = stage.evidence(sizes.proposal, seed)
    explainer.propose(evidence, stage.now_ns - 1)
    explainer.search_null()
    for batch in stage.play(sizes.verification, seed + 10_000):
        explainer.observe(batch)
    explainer.rescore(stage.now_ns, last=True)
    explainer.stop_looking()
    return explainer


# -------------------------------------------------------------------------------------- narration


def _narration_rows(stage: Stage, explainer: Explainer, sizes: _Sizes, seed: int) -> list[BenchRow]:
    evidence = stage.evidence(sizes.narration, seed + 20_000)
    quality = measure(explainer.narrator(evidence), evidence, INTERVAL, seed)
    verified = sum(claim.verdict is Verdict.VERIFIED for claim in explainer.claims)
    about = (
        f"{stage.scene.name}, {evidence.n_units} episodes, {quality.sentences} sentences from "
        f"{verified} verified claims"
    )
    return [*quality_rows(stage.scene.name, quality, about)]


def quality_rows(name: str, quality: NarrationQuality, about: str) -> list[BenchRow]:
    """The five rows that the definition of narration asks for."""
    figures = (
        (f"true in ≥ 80 % of the interval ({about})", quality.true_share, "value >= 0.95"),
        ("the same sentences at random other times", quality.elsewhere_share, "value <= 0.5"),
        ("matcher finds the narrated window among 5", quality.matcher_share, "value >= 0.6"),
        ("intervals with a sentence", quality.coverage, "value >= 0.7"),
        ("references resolve", float(quality.references_resolve), "value >= 1"),
    )
    return [
        bench_row(
            f"{name}: {what}",
            0.0 if value is None else value,
            "share",
            reference="chance .2" if what.startswith("matcher") else "bar",
            reference_value=0.2 if what.startswith("matcher") else float(goal.split()[2]),
            goal=goal,
        )
        for what, value, goal in figures
    ]


# ---------------------------------------------------------------------------------------- regimes


def _regimes(
    stage: Stage,
    explainer: Explainer,
    sizes: _Sizes,
    seed: int,
    begin: Callable[[str], None],
) -> list[tuple[str, list[_Fate]]]:
    name = stage.scene.name
    unchanged = [*stage.play(sizes.after, seed + 30_000)]
    begin(f"{name}: nothing changes")
    found = [("nothing", _fates(stage, explainer, unchanged))]
    for metric in _most_cited(explainer, FLIPS):
        begin(f"{name}: {metric} is reported with the other sign")
        found.append(("sign", _fates(stage, explainer, _flipped(unchanged, stage, metric))))
    begin(f"{name}: gravity changes")
    stage.set_gravity(GRAVITY[stage.scene.environment])
    other = [*stage.play(sizes.after, seed + 40_000)]
    found.append(("gravity", _fates(stage, explainer, other)))
    return found


def _most_cited(explainer: Explainer, count: int) -> list[str]:
    cited = Counter(
        name
        for claim in explainer.claims
        if claim.verdict is Verdict.VERIFIED and claim.predicate is not None
        for name in set(metric_names(claim.predicate))
    )
    return [name for name, _ in cited.most_common(count)]


def _flipped(batches: Sequence[FeatureBatch], stage: Stage, metric: str) -> list[FeatureBatch]:
    column = [spec.name for spec in stage.specs].index(metric)
    out = []
    for batch in batches:
        metrics = batch.steps.metrics.copy()
        metrics[:, column] *= -1
        out.append(replace(batch, steps=replace(batch.steps, metrics=metrics)))
    return out


def _fates(stage: Stage, explainer: Explainer, batches: Sequence[FeatureBatch]) -> list[_Fate]:
    """Feed the explainer batch by batch, as the service does; then hold it against the truth."""
    live = copy.deepcopy(explainer)
    watched = [c for c in explainer.claims if c.verdict is Verdict.VERIFIED]
    begun = int(batches[0].steps.time_ns.min())
    withdrawn: dict[int, int] = {}
    after = EvidenceStore(stage.specs, limit_bytes=1 << 30)
    for batch in batches:
        after.add(batch)
        live.observe(batch)
        live.rescore(int(batch.steps.time_ns.max()))
        for feature, moment in live.withdrawn_ns.items():
            withdrawn.setdefault(feature, moment)
    truth = after.evidence(HOOK)
    return [_fate(claim, truth, begun, withdrawn.get(claim.address.index)) for claim in watched]


def _fate(claim: Claim, after: Evidence, begun: int, withdrawn: int | None) -> _Fate:
    """What became of a verified claim, whose scores here still are those of before."""
    feature, predicate = claim.address.index, claim.predicate
    if predicate is None:
        raise ValueError("a verified claim has a predicate")
    delay = None
    if withdrawn is not None:
        on = after.on(feature)
        holds = evaluate(predicate, after.columns()).holds & after.scored
        delay = min(runs_between(one, after, begun, withdrawn) for one in (on, holds))
    truth = truth_of(claim, after)
    if truth != "broken":
        return _Fate(truth, delay)
    accuracy = score(after, feature, predicate).balanced_accuracy
    wrong = (accuracy.high or 0.0) < Bars().contradicted_below
    return _Fate(truth, delay, wrong, _soonest(claim, after), told_delay(claim, after, begun))


def _events(
    claim: Claim, after: Evidence
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], tuple[tuple[Events, float], ...]]:
    """Where a verified claim's feature is on and its predicate holds, and both kinds of event.

    With each kind comes the share of failures that the claim's limits allow.
    """
    predicate = claim.predicate
    if predicate is None or claim.scores is None:
        raise ValueError("a verified claim has a predicate and scores")
    limits = limits_of(claim.scores)
    on = after.on(claim.address.index)
    holds = evaluate(predicate, after.columns()).holds & after.scored
    missing, excess = claim_events(on, holds, after.scored, after, limits)
    return on, holds, ((missing, limits.missing), (excess, limits.excess))


def told_delay(claim: Claim, after: Evidence, begun: int) -> int | None:
    """Bouts or firings until a test withdraws the claim that is told how often it now fails.

    On the very events that the explainer saw: a Shiryaev–Roberts detector with the likelihood ratio
    of the share of failures in all of ``after`` to the limit, as if every event were independent of
    all others, and with the whole false-alarm rate on either kind of event. Such a detector is the
    quickest of its rate to within a constant as the rate falls (Pollak & Tartakovsky, "Optimality
    properties of the Shiryaev-Roberts procedure", Statistica Sinica, 2009); a test that must learn
    the share, and that stays valid where failures go together, is slower. None: it never tells.
    """
    on, holds, kinds = _events(claim, after)
    alarms = []
    for found, limit in kinds:
        failing = float(found.failure.mean()) if len(found) else 0.0
        if failing <= limit:
            continue
        failing = min(failing, 1 - 1e-6)
        gains = found.failure * np.log(failing / limit)
        gains += (1 - found.failure) * np.log((1 - failing) / (1 - limit))
        threshold = len(found) / len(after) * 1e6 / FALSE_WITHDRAWALS_PER_MILLION
        m = 0.0
        for end_ns, gain in zip(found.end_ns.tolist(), gains.tolist(), strict=True):
            m = (m + 1) * math.exp(gain)
            if m >= threshold:
                alarms.append(end_ns)
                break
    if not alarms:
        return None
    return min(runs_between(one, after, begun, min(alarms)) for one in (on, holds))


def _soonest(claim: Claim, after: Evidence) -> float:
    """Bouts or firings that any test of the same false-alarm rate needs in the mean, at least.

    Were all events independent, a mean run length of A events to a false alarm costs a delay of
    log A over the divergence of the failures that there are from those that the limits allow
    (Lorden, "Procedures for reacting to a change in distribution", 1971, theorem 3), in events;
    they are told in bouts or firings as they come after the change, whichever are fewer.
    """
    on, holds, kinds = _events(claim, after)
    newest = int(after.time_ns.max())
    fewest = min(runs_between(one, after, 0, newest) for one in (on, holds))
    needed = []
    for found, limit in kinds:
        if len(found) == 0:
            continue
        failing = float(np.average(found.failure, weights=found.steps))
        if failing <= limit:
            continue
        kept = 1 - failing
        divergence = failing * np.log(failing / limit)
        divergence += kept * np.log(kept / (1 - limit)) if kept > 0 else 0.0
        per_million = len(found) / len(after) * 1e6
        events_needed = np.log(per_million / (FALSE_WITHDRAWALS_PER_MILLION / 2)) / divergence
        needed.append(events_needed * fewest / len(found))
    return float(min(needed, default=np.inf))


def truth_of(claim: Claim, after: Evidence) -> str:
    """What the claim is worth on all later episodes.

    ``holds`` where it would be verified; ``broken`` where its balanced accuracy is clear below the
    .75 that its lower bound had to reach, or its precision clear below half of its bar.
    """
    if claim.predicate is None:
        raise ValueError("only claims with a predicate are true or not")
    scores = score(after, claim.address.index, claim.predicate)
    accuracy, precision = scores.balanced_accuracy, scores.precision
    if (accuracy.value or 0.0) >= 0.85 and (precision.value or 0.0) >= 0.5:
        return "holds"
    if accuracy.value is None:
        return "between"
    silent = precision.value is None
    if (accuracy.high or 0.0) < 0.75 or silent or (precision.high or 1.0) < 0.25:
        return "broken"
    return "between"


def runs_between(inside: np.ndarray, evidence: Evidence, after_ns: int, until_ns: int) -> int:
    """Bouts or firings that began in [after, until], as definitions count them."""
    starts = inside.copy()
    starts[1:] &= ~(inside[:-1] & (evidence.past[1:] > 0))
    when = evidence.time_ns[starts]
    return int(((when >= after_ns) & (when <= until_ns)).sum())


def _withdrawal_rows(fates: dict[str, list[_Fate]], sizes: _Sizes) -> list[BenchRow]:
    broken = [fate for found in fates.values() for fate in found if fate.truth == "broken"]
    groups = (
        ("broken claims", broken),
        ("of them, contradicted ones", [fate for fate in broken if fate.wrong]),
        ("of them, those that a test can tell by then", [f for f in broken if f.soonest <= 30]),
    )
    rows = [
        bench_row(
            f"{what} withdrawn within 30 bouts or firings, of {len(found)}",
            _share(found, 30),
            "share",
            reference="within 100 of them",
            reference_value=_share(found, 100),
            goal="value >= 0.9",
        )
        for what, found in groups
    ]
    rows.append(
        bench_row(
            f"broken claims withdrawn within {sizes.after} episodes, of {len(broken)}",
            _share(broken),
            "share",
            reference="bar",
            reference_value=0.9,
            goal="value >= 0.9",
        )
    )
    for regime, what in (
        ("nothing", "nothing changed"),
        ("gravity", "gravity changed"),
        ("sign", "the sign of another metric flipped"),
    ):
        intact = [fate for fate in fates.get(regime, ()) if fate.truth == "holds"]
        others = [fate for fate in fates.get(regime, ()) if fate.truth == "between"]
        rows.append(
            bench_row(
                f"{what}: intact claims withdrawn in {sizes.after} episodes, of {len(intact)}",
                _share(intact),
                "share",
                reference=f"neither intact nor broken, of {len(others)}",
                reference_value=_share(others),
                goal="value <= 0.05",
            )
        )
    return rows


def _told_row(fates: dict[str, list[_Fate]]) -> BenchRow:
    """What the rate leaves possible within 30: see :func:`told_delay`."""
    broken = [fate for found in fates.values() for fate in found if fate.truth == "broken"]
    told = [replace(fate, delay=fate.told) for fate in broken]
    return bench_row(
        "broken claims that a test of the same rate withdraws within 30 bouts or firings when it "
        f"is told how often they fail, of {len(broken)}",
        _share(told, 30),
        "share",
        reference="the explainer, which is not told",
        reference_value=_share(broken, 30),
        goal="shown",
    )


def _share(fates: Sequence[_Fate], within: float = math.inf) -> float:
    """Share withdrawn within so many bouts or firings; 0 of none."""
    return float(np.mean([f.delay is not None and f.delay <= within for f in fates] or [False]))


def _refusal_row() -> BenchRow:
    """Other weights never reach a claim: the transcoder of one policy is refused on all others."""
    scenes: tuple[Scene, ...] = (CARTPOLE, LUNARLANDER)
    policies = ("cartpole", "cartpole-sb3-ppo", "lunarlander-ppo", "lunarlander-dqn")
    asked = refused = 0
    for scene in scenes:
        for name in policies:
            if name == scene.policy:
                continue
            asked += 1
            try:
                load_transcoder(
                    SHIPPED / scene.shipped / HOOK, policy_hash=load_policy(name).policy_hash
                )
            except MismatchError:
                refused += 1
    return bench_row(
        f"other policy weights refused by hash, of {asked}",
        refused / asked,
        "share",
        reference="bar",
        reference_value=1.0,
        goal="value >= 1",
    )
