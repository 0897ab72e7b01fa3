"""What an entry's dictionary is worth: verified claims beside controls, and answers to questions.

Claims are proposed on the calibration episodes and judged on later ones, with the full rule: the
search repeated under the null, the same pipeline on raw units, random directions and principal
components at matched densities. A question names a target that people care about ("a power pill is
near"); the feature, and the single unit, that tell it best on the calibration episodes are scored
on the later ones, whatever comes out.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from interlatent_live.environments.metric_packs import metric_pack_for
from interlatent_live.explanations.dictionaries import (
    matched_controls,
    share_difference,
    verify_dictionary,
    with_features,
)
from interlatent_live.explanations.evidence import EvidenceStore
from interlatent_live.explanations.nulls import NullKind, NullModel
from interlatent_live.explanations.predicates import parse, to_english, to_text
from interlatent_live.explanations.scores import score
from interlatent_live.explanations.search import PLAIN_TERMS, RuleScores
from interlatent_live.explanations.verification import judge
from interlatent_live.probes.scores import auroc, balanced_accuracy, best_threshold
from interlatent_live.probes.targets import label, parse_target
from interlatent_live.probes.train import dense_features, score_feature
from interlatent_live.transcoders.acting import acting_policy
from interlatent_live.transcoders.dataset import concatenate
from interlatent_live.zoo.build import CALIBRATION, LATER, collect_for, feature_batches
from interlatent_live.zoo.entry import Episodes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from interlatent_live.explanations.dictionaries import VerifiedDictionary
    from interlatent_live.explanations.evidence import Evidence
    from interlatent_live.explanations.scores import Interval
    from interlatent_live.transcoders.acting import ActingPolicy
    from interlatent_live.transcoders.dataset import ActivationDataset
    from interlatent_live.transcoders.transcoder import Transcoder
    from interlatent_live.zoo.entry import Question, ZooEntry

DRAWS: Final = 199
CONTROL_DRAWS: Final = 99
QUESTION_DRAWS: Final = 999
LATER_OFFSET: Final = 10_000
"""Later episodes are those of evaluation's seeds plus this, so that no two sets share a seed."""
LIMIT_BYTES: Final = 2 << 30


@dataclass(frozen=True, slots=True, eq=False)
class Side:
    """One set of episodes: n rows of evidence, and what evidence does not hold, in its order."""

    evidence: Evidence
    episode: NDArray[np.uint32]
    """[n]."""
    flags: NDArray[np.uint8]
    """[n]."""
    x: NDArray[np.float32]
    """[n, d_in]."""
    y: NDArray[np.float32]
    """[n, d_out]."""


def later_episodes(entry: ZooEntry) -> Episodes:
    """The episodes that claims and questions are judged on."""
    return Episodes(episodes=entry.calibration.episodes, seed=entry.evaluation.seed + LATER_OFFSET)


def judge_entry(
    entry: ZooEntry,
    transcoders: Mapping[str, Transcoder],
    work: Path,
    say: Callable[[str], None] = lambda _: None,
    *,
    draws: int = DRAWS,
) -> dict[str, Any]:
    """Collect both sets of episodes where they are not there yet, and judge every dictionary.

    Args:
        entry: whose.
        transcoders: by hook point.
        work: of the entry; holds the episodes.
        say: told what is being done.
        draws: of the null; the controls get at most 99.

    Returns:
        Plain values by hook point: ``claims`` and ``questions``.
    """
    policy = acting_policy(entry.policy, environment=entry.environment)
    sets = [
        collect_for(entry, policy, episodes, work / name, say)
        for name, episodes in (
            (CALIBRATION, entry.calibration),
            (LATER, later_episodes(entry)),
        )
    ]
    out = {}
    for hook, transcoder in transcoders.items():
        proposal, later = (side_of(entry, policy, dataset, hook, transcoder) for dataset in sets)
        say(f"{hook}: claims, {draws} draws of the null")
        claims = _claims(proposal, later, draws, say)
        say(f"{hook}: questions")
        out[hook] = {
            "claims": claims,
            "questions": [
                _answer(question, entry, transcoder, proposal, later)
                for question in entry.questions
            ],
        }
    return out


def side_of(
    entry: ZooEntry,
    policy: ActingPolicy,
    dataset: ActivationDataset,
    hook: str,
    transcoder: Transcoder,
) -> Side:
    """A dataset as evidence of one hook point, with its rows sorted alike."""
    manifest, batches = feature_batches(policy, dataset, {hook: transcoder})
    store = EvidenceStore(
        manifest.metrics, limit_bytes=LIMIT_BYTES, block_steps=entry.live.block_steps
    )
    for batch in batches:
        store.add(batch)
    rows = concatenate([*dataset.shards()])
    order = np.lexsort((rows.t, rows.episode, rows.env))
    x, y = rows.activations[hook]
    return Side(store.evidence(hook), rows.episode[order], rows.flags[order], x[order], y[order])


def _claims(proposal: Side, later: Side, draws: int, say: Callable[[str], None]) -> dict[str, Any]:
    found = verify_dictionary(proposal.evidence, later.evidence, draws=draws, families=PLAIN_TERMS)
    density = proposal.evidence.density()[list(found.features)]
    controls = []
    for control in matched_controls(proposal.y, density):
        say(f"the same with {control.name}")
        theirs = verify_dictionary(
            with_features(proposal.evidence, control.on(proposal.y)),
            with_features(later.evidence, control.on(later.y)),
            draws=min(draws, CONTROL_DRAWS),
            families=PLAIN_TERMS,
            features=range(len(found.features)),
        )
        controls.append(
            {
                "name": control.name,
                "share": theirs.share,
                "difference": _interval(share_difference(found.verified, theirs.verified)),
            }
        )
    return {
        "proposed_on": proposal.evidence.n_units,
        "judged_on": later.evidence.n_units,
        "rows": len(later.evidence),
        "null": NullKind.REASSIGN.value,
        "draws": draws,
        "live": int(later.evidence.coverage().live().sum()),
        "eligible": len(found.features),
        "verified": int(found.verified.sum()),
        "share": found.share,
        "controls": controls,
        "verdicts": _verdicts(found),
        "claims": _claim_rows(found, later.evidence),
    }


def _verdicts(found: VerifiedDictionary) -> dict[str, int]:
    names = [one.verdict.value for one in found.judgements]
    return {name: names.count(name) for name in sorted(set(names))}


def _claim_rows(found: VerifiedDictionary, later: Evidence) -> list[dict[str, Any]]:
    """One row per verified claim, the most accurate first."""
    density = later.density()
    rows = []
    for place, feature in enumerate(found.features):
        rule, scores = found.rules[place], found.scores[place]
        if not found.verified[place] or scores is None or rule.predicate is None:
            continue
        rows.append(
            {
                "feature": feature,
                "predicate": to_text(rule.predicate),
                "words": to_english(rule.predicate),
                "balanced_accuracy": _interval(scores.balanced_accuracy),
                "precision": scores.precision.value,
                "recall": scores.recall,
                "density": float(density[feature]),
                "p": found.p[place],
            }
        )
    return sorted(rows, key=lambda row: -float(row["balanced_accuracy"]["value"]))


def _answer(
    question: Question,
    entry: ZooEntry,
    transcoder: Transcoder,
    proposal: Side,
    later: Side,
) -> dict[str, Any]:
    known = [_labels(question, entry, side) for side in (proposal, later)]
    out: dict[str, Any] = {
        "name": question.name,
        "target": question.target,
        "share_of_steps": float(known[1][0][known[1][1]].mean()),
    }
    if not all(truth[rows].any() and not truth[rows].all() for truth, rows in known):
        return out | {"reason": "it was never, or always, so in one of the two sets of episodes"}
    activations = [dense_features(transcoder, side.x) for side in (proposal, later)]
    out["feature"] = _best(activations[0], activations[1], known, later, signed=False)
    out["unit"] = _best(proposal.y, later.y, known, later, signed=True)
    if " within " not in question.target:
        out["claim"] = _claim(question, proposal.evidence, later.evidence)
    return out


def _labels(
    question: Question, entry: ZooEntry, side: Side
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Truth [n], and the rows [n] in which it is known and the policy acted."""
    found = label(
        parse_target(question.target),
        names=[spec.name for spec in side.evidence.specs],
        metrics=side.evidence.metrics,
        flags=side.flags,
        episode=side.episode,
        t=side.evidence.t,
        step_seconds=metric_pack_for(entry.environment, obs_dim=1).family.step_seconds,
    )
    return found.positive, found.known & side.evidence.scored


def _best(
    before: NDArray[np.float32],
    after: NDArray[np.float32],
    known: list[tuple[NDArray[np.bool_], NDArray[np.bool_]]],
    later: Side,
    *,
    signed: bool,
) -> dict[str, Any]:
    """The column that tells the target best on the first set, scored on the second.

    ``signed``: a column that is low when the target holds tells it as well.
    """
    (truth, rows), (truth_after, rows_after) = known
    best, sign, top = 0, 1.0, -1.0
    for index in range(before.shape[1]):
        value = auroc(before[rows, index], truth[rows]) or 0.5
        for way, reached in ((1.0, value), (-1.0, 1 - value if signed else 0.0)):
            if reached > top:
                best, sign, top = index, way, reached
    threshold = best_threshold(sign * before[rows, best], truth[rows])
    single = (sign * after[rows_after, best]).astype(np.float32)
    return {
        "index": best,
        "sign": int(sign),
        "auroc": asdict(score_feature(single, truth_after[rows_after], later.episode[rows_after])),
        "balanced_accuracy": balanced_accuracy(single > threshold, truth_after[rows_after]),
    }


def _claim(question: Question, proposal: Evidence, later: Evidence) -> dict[str, Any]:
    """The target as a claim about the feature whose on-steps it fits best before."""
    predicate = parse(question.target, list(proposal.specs))
    candidates = np.flatnonzero(proposal.coverage().eligible())
    if not len(candidates):
        return {"reason": "no feature was eligible"}
    before = [score(proposal, int(one), predicate) for one in candidates]
    reached = [one.balanced_accuracy.value or 0.0 for one in before]
    feature = int(candidates[int(np.argmax(reached))])
    scores = score(later, feature, predicate)
    a, b = proposal.split(0.5, 0)
    null = NullModel(a, b, [feature], draws=QUESTION_DRAWS, families=PLAIN_TERMS)
    null.search()
    accuracy = scores.balanced_accuracy
    observed = RuleScores(np.array([accuracy.value or 0.5]), np.array([accuracy.error or 0.0]))
    p = float(null.judge(later, observed, np.ones(1, bool)).p[0])
    judgement = judge(scores, p)
    return {
        "feature": feature,
        "predicate": to_text(predicate),
        "verdict": judgement.verdict.value,
        "reason": judgement.reason,
        "balanced_accuracy": _interval(accuracy),
        "precision": scores.precision.value,
        "recall": scores.recall,
        "episodes": scores.episodes,
        "bouts": scores.bouts,
        "p": p,
        "draws": QUESTION_DRAWS,
    }


def _interval(interval: Interval) -> dict[str, Any]:
    return {"value": interval.value, "low": interval.low, "high": interval.high}
