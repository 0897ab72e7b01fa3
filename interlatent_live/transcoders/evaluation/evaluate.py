"""The evaluation of one or more groups of transcoders at one hook point of one policy.

A group is one configuration and recipe over its training seeds; figures are medians over them. The
result is one plain dictionary, so that the JSON, the Markdown and the page show the same numbers.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import torch

from interlatent_live.errors import MismatchError, UserError
from interlatent_live.transcoders.config import Target
from interlatent_live.transcoders.dataset import some_rows, split_by_episode
from interlatent_live.transcoders.evaluation.behaviour import (
    BehaviourResult,
    SpliceResult,
    behaviour_fidelity,
    equivalence,
)
from interlatent_live.transcoders.evaluation.effects import feature_effects
from interlatent_live.transcoders.evaluation.features import (
    QUANTILES,
    FeatureStatistics,
    feature_statistics,
    redundancy,
)
from interlatent_live.transcoders.evaluation.gate import judge
from interlatent_live.transcoders.evaluation.reconstruction import reconstruction_summary
from interlatent_live.transcoders.evaluation.splice import replacement
from interlatent_live.transcoders.evaluation.stability import MAX_ROWS, seed_stability
from interlatent_live.transcoders.native import LoadedTranscoder, check_binding
from interlatent_live.transcoders.tails import head_metric

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from interlatent_live.transcoders.acting import ActingPolicy
    from interlatent_live.transcoders.dataset import ActivationDataset, HookRows, Split

SCHEMA_VERSION = 1
FIRST_SEED = 100_000
"""Behaviour is measured on environment seeds from here, which collecting leaves alone."""

_DENSITY_EDGES = np.array([0.0, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 0.99, 1.0])


@dataclass(frozen=True, slots=True)
class EvaluationSettings:
    """How behaviour is measured.

    Args:
        episodes: paired environment seeds; 0 leaves behaviour out.
        first_seed: of the environment.
        max_steps: truncates endless episodes.
    """

    episodes: int = 100
    first_seed: int = FIRST_SEED
    max_steps: int | None = None


def evaluate(
    loaded: Sequence[LoadedTranscoder],
    dataset: ActivationDataset,
    policy: ActingPolicy,
    settings: EvaluationSettings,
    on_progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Evaluate transcoders of one hook point.

    Args:
        loaded: any number of configurations, recipes and seeds.
        dataset: its held-out test episodes are reported on, as far as the policy by itself acted.
        policy: that the transcoders were trained on.
        settings: how behaviour is measured.
        on_progress: told in words what is going on.

    Returns:
        The report; see ``docs/transcoders.md`` for its fields.

    Raises:
        MismatchError: when policy, dataset and transcoders do not belong together.
        UserError: when nothing is to be evaluated.
    """
    tell = on_progress or _quiet
    hook_point = _common_hook_point(loaded)
    if dataset.header.policy_hash != policy.policy_hash:
        raise MismatchError(
            f"the dataset was collected from policy {dataset.header.policy_hash}, but "
            f"{policy.name} is {policy.policy_hash}; name the policy that it was collected from"
        )
    for one in loaded:
        check_binding(one.provenance, one.transcoder.identity, policy_hash=policy.policy_hash)
    _check_seeds(dataset, settings)
    rows = dataset.load(hook_point)
    # What the policy did through an earlier transcoder is there to learn from, not to report on.
    split = split_by_episode(rows.episode).among(rows.own)
    if not split.test.any():
        raise UserError(
            "no held-out episode of the dataset is the policy's own; collect more of them"
        )
    groups = _groups(loaded)
    behaviour = None
    if settings.episodes:
        behaviour = _behaviour(groups, policy, hook_point, settings, tell)
    return {
        "schema": SCHEMA_VERSION,
        "hook_point": hook_point,
        "policy": policy.name,
        "policy_hash": policy.policy_hash,
        "environment": policy.environment,
        "output_kind": policy.output_kind.value,
        "dataset_hash": dataset.hash,
        "held_out": {
            "rows": int(split.test.sum()),
            "episodes": len(np.unique(rows.episode[split.test])),
        },
        "behaviour_seeds": (
            [settings.first_seed, settings.first_seed + settings.episodes - 1]
            if settings.episodes
            else None
        ),
        "original_return": None if behaviour is None else _return(behaviour.original),
        "mean_ablated_return": None if behaviour is None else _return(behaviour.ablated),
        "groups": [
            _group_report(name, members, rows, split, policy=policy, behaviour=behaviour, tell=tell)
            for name, members in groups.items()
        ],
    }


def _quiet(text: str) -> None:
    """Tell nobody."""
    del text


def _common_hook_point(loaded: Sequence[LoadedTranscoder]) -> str:
    hooks = sorted({one.provenance.hook_point for one in loaded})
    if not hooks:
        raise UserError("there is no transcoder to evaluate")
    if len(hooks) > 1:
        raise UserError(
            f"these transcoders are of {len(hooks)} hook points ({', '.join(hooks)}); evaluate one "
            "hook point at a time"
        )
    return hooks[0]


def _check_seeds(dataset: ActivationDataset, settings: EvaluationSettings) -> None:
    facts = dataset.header.settings
    if dataset.header.source != "rollout" or not settings.episodes:
        return
    first, count = int(facts["seed"]), int(facts["episodes"])
    if settings.first_seed < first + count and first < settings.first_seed + settings.episodes:
        raise UserError(
            f"the dataset was collected on environment seeds {first} to {first + count - 1}; "
            "measure behaviour on others with --first-seed"
        )


def _groups(loaded: Sequence[LoadedTranscoder]) -> dict[str, list[LoadedTranscoder]]:
    groups: dict[str, list[LoadedTranscoder]] = {}
    for one in sorted(loaded, key=lambda one: (one.provenance.seed or 0, str(one.path))):
        config = one.transcoder.config
        words = [f"{config.architecture} F={config.n_features}"]
        if config.k is not None:
            words.append(f"k={config.k}")
        if config.l1 is not None:
            words.append(f"l1={config.l1:g}")
        if config.skip:
            words.append("skip")
        if config.target is Target.INPUT:
            words.append("autoencoder")
        head = float(one.provenance.training.get("head_weight", 0.0))
        words.append(f"head-weighted {head:g}" if head else "plain MSE")
        groups.setdefault(", ".join(words), []).append(one)
    return groups


def _arm(group: str, index: int) -> str:
    return f"{group} #{index}"


def _behaviour(
    groups: dict[str, list[LoadedTranscoder]],
    policy: ActingPolicy,
    hook_point: str,
    settings: EvaluationSettings,
    tell: Callable[[str], None],
) -> BehaviourResult:
    replacements = {}
    y_mean = None
    for name, members in groups.items():
        for index, one in enumerate(members):
            if one.transcoder.config.target is Target.OUTPUT:
                replacements[_arm(name, index)] = replacement(one.transcoder)
                if one.transcoder.baselines is not None:
                    y_mean = one.transcoder.baselines.y_mean
    if not replacements or y_mean is None:
        raise UserError(
            "only transcoders of the output with baselines can be spliced in; leave behaviour out "
            "with --episodes 0"
        )
    return behaviour_fidelity(
        policy,
        hook_point,
        replacements,
        y_mean,
        seeds=range(settings.first_seed, settings.first_seed + settings.episodes),
        max_steps=settings.max_steps,
        on_progress=lambda arm, step: tell(f"{arm}: step {step}"),
    )


def _group_report(
    name: str,
    members: Sequence[LoadedTranscoder],
    rows: HookRows,
    split: Split,
    *,
    policy: ActingPolicy,
    behaviour: BehaviourResult | None,
    tell: Callable[[str], None],
) -> dict[str, Any]:
    tell(f"{name}: features")
    config = members[0].transcoder.config
    sae = config.target is Target.INPUT
    train, test = rows.take(split.train), rows.take(split.test)
    y_test = test.x if sae else test.y
    statistics = [
        feature_statistics(one.transcoder, (train.x, train.episode), (test.x, test.episode))
        for one in members
    ]
    spliced = {result.name: result for result in behaviour.spliced} if behaviour else {}
    seeds = [
        _seed_report(one, stats, (test.x, y_test), spliced.get(_arm(name, index)), behaviour)
        for index, (one, stats) in enumerate(zip(members, statistics, strict=True))
    ]
    median = _medians(seeds)
    arms = [
        spliced[_arm(name, index)] for index in range(len(members)) if _arm(name, index) in spliced
    ]
    if behaviour is not None and arms:
        test_of = equivalence(behaviour.original, behaviour.ablated, arms)
        median |= asdict(test_of)
    stability = seed_stability(
        [one.transcoder for one in members],
        [stats.live for stats in statistics],
        test.x,
        l0=median["l0"],
    )
    if stability is not None:
        median["stability"] = stability.correlation
        median["stability_random"] = stability.random_correlation
    best = int(np.argmin([seed["reconstruction"]["fvu"] for seed in seeds]))
    tell(f"{name}: effects")
    head = None if sae else _head_figures(members, policy, rows, split)
    gate = judge(median, k=config.k, n_features=config.n_features)
    return {
        "name": name,
        "config": msgspec.to_builtins(config),
        "recipe": members[0].provenance.training,
        "seeds": seeds,
        "median": median,
        "stability": None if stability is None else asdict(stability),
        "head": head,
        "features_of": seeds[best]["identity"],
        "features": _feature_table(members[best], statistics[best], policy, test, sae=sae),
        "gate": {
            "passed": gate.passed,
            "verdict": gate.verdict,
            "checks": [asdict(check) for check in gate.checks],
        },
    }


def _seed_report(
    one: LoadedTranscoder,
    stats: FeatureStatistics,
    rows: tuple[NDArray[np.float32], NDArray[np.float32]],
    result: SpliceResult | None,
    behaviour: BehaviourResult | None,
) -> dict[str, Any]:
    x, y = rows
    transcoder = one.transcoder
    twice = redundancy(transcoder, x[some_rows(len(x), MAX_ROWS)], stats.live)
    trained_on = stats.train_density >= 0.001
    counts = np.histogram(stats.density, _DENSITY_EDGES)[0]
    report: dict[str, Any] = {
        "identity": transcoder.identity,
        "seed": one.provenance.seed,
        "reconstruction": reconstruction_summary(
            transcoder, torch.from_numpy(x), torch.from_numpy(y)
        ),
        "live": int(stats.live.sum()),
        "eligible": int(stats.eligible.sum()),
        "memorised_share": float(stats.memorised.sum() / max(int(trained_on.sum()), 1)),
        "density_histogram": {"edges": _DENSITY_EDGES.tolist(), "counts": counts.tolist()},
        "redundancy": None if twice is None else asdict(twice),
        "behaviour": None,
    }
    if result is not None and behaviour is not None:
        report["behaviour"] = {
            "return": _return(result),
            "kept": behaviour.kept(result),
            "diverged": result.diverged,
            "first_divergence": result.first_divergence,
            "agreement": None if result.agreement is None else asdict(result.agreement),
        }
    return report


def _medians(seeds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    def median(values: list[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return float(np.median(known)) if known else None

    out: dict[str, Any] = {"seeds": len(seeds)}
    for key in seeds[0]["reconstruction"]:
        if key != "rows":
            out[key] = median([seed["reconstruction"][key] for seed in seeds])
    for key in ("live", "eligible", "memorised_share"):
        out[key] = median([seed[key] for seed in seeds])
    measured = [seed["behaviour"] for seed in seeds if seed["behaviour"] is not None]
    if measured:
        out["return"] = median([one["return"]["mean"] for one in measured])
        out["kept"] = median([one["kept"] for one in measured])
        out["first_divergence"] = median([one["first_divergence"] for one in measured])
        for key in ("agreement", "kl", "regret", "rmse", "output_fvu"):
            out[key] = median([one["agreement"][key] for one in measured])
    return out


def _head_figures(
    members: Sequence[LoadedTranscoder], policy: ActingPolicy, rows: HookRows, split: Split
) -> dict[str, Any] | None:
    """FVU in the space of the action, and how much of the decoders' energy acts on it at all."""
    hook_point = members[0].provenance.hook_point
    metric = head_metric(policy, hook_point, torch.from_numpy(rows.y[split.train]))
    if metric is None:
        return None
    x, y = (torch.from_numpy(values[split.test]) for values in (rows.x, rows.y))
    fvu, energy = [], []
    for one in members:
        with torch.no_grad():
            loss, _ = metric.loss_and_gradient(y, one.transcoder.reconstruct(x) - y)
        fvu.append(float(loss))
        matrix = getattr(metric, "matrix", None)
        if matrix is not None:
            decoder = one.transcoder.W_dec
            basis = torch.linalg.svd(matrix, full_matrices=False)
            rank = int((1e-5 * basis.S[0] < basis.S).sum())
            inside = decoder @ basis.U[:, :rank]
            energy.append(float(inside.square().sum() / decoder.square().sum()))
    return {
        "action_fvu": float(np.median(fvu)),
        "decoder_energy_in_row_space": float(np.median(energy)) if energy else None,
    }


def _feature_table(
    one: LoadedTranscoder,
    stats: FeatureStatistics,
    policy: ActingPolicy,
    test: HookRows,
    *,
    sae: bool,
) -> list[dict[str, Any]]:
    """One row per live feature of the best seed, most frequent first."""
    live = np.flatnonzero(stats.live)
    live = live[np.argsort(-stats.density[live], kind="stable")]
    chosen = some_rows(len(test), MAX_ROWS)
    effects = None
    if not sae:
        effects = feature_effects(
            one.transcoder,
            policy,
            one.provenance.hook_point,
            test.x[chosen],
            test.y[chosen],
            features=live,
        )
    by_feature = {effect.feature: effect for effect in effects or ()}
    names = one.provenance.feature_names()
    table = []
    for feature in live.tolist():
        effect = by_feature.get(feature)
        table.append(
            {
                "feature": feature,
                "name": names.get(feature),
                "density": float(stats.density[feature]),
                "episodes": int(stats.episodes[feature]),
                "bouts": int(stats.bouts[feature]),
                "quantiles": dict(
                    zip(
                        (f"{q:g}" for q in QUANTILES),
                        stats.quantiles[feature].tolist(),
                        strict=True,
                    )
                ),
                "eligible": bool(stats.eligible[feature]),
                "memorised": bool(stats.memorised[feature]),
                "effect": None if effect is None else list(effect.effect),
                "changes_action": None if effect is None else effect.changes_action,
                "action_change": None if effect is None else effect.action_change,
            }
        )
    return table


def _return(result: SpliceResult) -> dict[str, float]:
    values = np.asarray(result.returns)
    return {
        "mean": float(values.mean()),
        "standard_error": float(values.std(ddof=1) / np.sqrt(len(values))),
        "episodes": len(values),
    }
