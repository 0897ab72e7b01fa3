"""All that is measured of an entry away from the live run, as one dictionary of plain values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from interlatent_live.bench.report import machine_facts, version_facts
from interlatent_live.environments.metric_packs import metric_pack_for
from interlatent_live.errors import UserError
from interlatent_live.transcoders.acting import acting_policy
from interlatent_live.transcoders.dataset import ActivationDataset
from interlatent_live.transcoders.evaluation.evaluate import EvaluationSettings, evaluate
from interlatent_live.transcoders.native import find_transcoders, load_transcoder
from interlatent_live.zoo.build import FAILURES, TRAINED, TRAINING, collect_for, seeds_of
from interlatent_live.zoo.decoding import decode_metrics
from interlatent_live.zoo.entry import Episodes
from interlatent_live.zoo.judge import DRAWS, judge_entry
from interlatent_live.zoo.precursors import precursors_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from interlatent_live.transcoders.acting import ActingPolicy
    from interlatent_live.transcoders.native import LoadedTranscoder
    from interlatent_live.zoo.entry import ZooEntry

STRONGEST: Final = 8
"""Features shown by how much they move the action."""


def evaluate_entry(
    entry: ZooEntry,
    work: Path,
    say: Callable[[str], None] = lambda _: None,
    *,
    draws: int = DRAWS,
    episodes: int | None = None,
) -> dict[str, Any]:
    """Fidelity, verified claims and questions of an entry.

    Args:
        entry: whose.
        work: with the datasets and training seeds that ``zoo train`` left; without them the shipped
            transcoders are measured, as far as their rows can be collected again.
        say: told what is being done.
        draws: of the claims' null.
        episodes: paired seeds of fidelity, where not the entry's; 0 leaves behaviour out.

    Raises:
        UserError: when there are no transcoders of the entry.
    """
    policy = acting_policy(entry.policy, environment=entry.environment)
    chosen = transcoders_of(entry, work, policy.policy_hash)
    settings = EvaluationSettings(
        entry.evaluation.episodes if episodes is None else episodes,
        entry.evaluation.seed,
        entry.max_episode_steps,
    )
    fidelity = {}
    for seeds in _seeds(entry, policy, chosen, work, say):
        report = evaluate(seeds, ActivationDataset(work / TRAINING), policy, settings, say)
        fidelity[report["hook_point"]] = fidelity_of(report)
    more = _decoded_and_announced(entry, policy, chosen, work, say)
    judged = judge_entry(
        entry, {hook: one.transcoder for hook, one in chosen.items()}, work, say, draws=draws
    )
    return {
        "name": entry.name,
        "policy_hash": policy.policy_hash,
        "transcoders": {hook: one.transcoder.identity for hook, one in chosen.items()},
        "fidelity": fidelity,
        "judged": judged,
        **more,
        "machine": machine_facts(),
        "versions": version_facts(),
    }


def _seeds(
    entry: ZooEntry,
    policy: ActingPolicy,
    chosen: Mapping[str, LoadedTranscoder],
    work: Path,
    say: Callable[[str], None],
) -> list[list[LoadedTranscoder]]:
    """Every training seed, or else the shipped one beside the rows that it was trained on."""
    if (work / TRAINED).is_dir():
        return [*seeds_of(work)]
    if entry.training.first is not None:
        return []  # its rows come about through a first transcoder that is not here
    training = Episodes(episodes=entry.training.episodes, seed=entry.training.seed)
    also = entry.training.also_collect
    collect_for(entry, policy, training, work / TRAINING, say, also=also)
    return [[one] for one in chosen.values()]


def _decoded_and_announced(
    entry: ZooEntry,
    policy: ActingPolicy,
    chosen: Mapping[str, LoadedTranscoder],
    work: Path,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Probes on the layers and precursors of failures, of the entries that ask for them."""
    out: dict[str, Any] = {}
    first_module = policy.hook_points()[0]
    if entry.decode and (work / TRAINING).is_dir():
        say("reading metrics off the layers")
        dataset = ActivationDataset(work / TRAINING)
        out["decoding"] = {
            hook: decode_metrics(policy, dataset, hook, entry.decode, first_module=first_module)
            for hook in chosen
        }
    wanted = entry.precursors
    if wanted is not None:
        dataset = collect_for(
            entry,
            policy,
            Episodes(episodes=wanted.episodes, seed=wanted.seed),
            work / FAILURES,
            say,
            also=entry.training.also_collect,
            disturbance=wanted.disturbance,
        )
        say("what announces failures")
        step_s = metric_pack_for(entry.environment).family.step_seconds
        out["precursors"] = {
            hook: precursors_of(
                dataset,
                hook,
                one.transcoder,
                step_s=step_s,
                horizon_s=wanted.horizon_s,
                metrics=wanted.metrics,
                danger=wanted.danger,
                first_module=first_module,
            )
            for hook, one in chosen.items()
        }
    return out


def transcoders_of(entry: ZooEntry, work: Path, policy_hash: str) -> dict[str, LoadedTranscoder]:
    """The transcoder that runs at each hook point: the work folder's own, or the shipped one.

    Raises:
        UserError: when a hook point has none.
    """
    own = work / "transcoders"
    found: dict[str, LoadedTranscoder] = {}
    if own.is_dir():
        found = {hook: each[0].load() for (_, hook), each in find_transcoders(own).items()}
    for hook, path in entry.shipped.items():
        found.setdefault(hook, load_transcoder(path, policy_hash=policy_hash, hook_point=hook))
    missing = [hook for hook in entry.hook_points if hook not in found]
    if missing:
        raise UserError(
            f"{entry.name} has no transcoder at {', '.join(missing)}: run "
            f"`interlatent-live zoo train {entry.name}` first"
        )
    return {hook: found[hook] for hook in entry.hook_points}


def fidelity_of(report: dict[str, Any]) -> dict[str, Any]:
    """What a report of :func:`~interlatent_live.transcoders.evaluation.evaluate.evaluate` says."""
    group = report["groups"][0]
    # Discrete actions change or not, continuous ones move by some amount.
    known = [row for row in group["features"] if row["effect"] is not None]
    by = (
        "action_change"
        if any(row["action_change"] is not None for row in known)
        else "changes_action"
    )
    return {
        "group": group["name"],
        "held_out": report["held_out"],
        "behaviour_seeds": report["behaviour_seeds"],
        "original_return": report["original_return"],
        "mean_ablated_return": report["mean_ablated_return"],
        "median": group["median"],
        "gate": {name: group["gate"][name] for name in ("passed", "verdict")},
        "strongest": sorted(known, key=lambda row: -float(row[by]))[:STRONGEST],
        "strongest_of": group["features_of"],
    }
