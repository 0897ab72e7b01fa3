"""Drivers that differ in their reward for speed, ordered by what their features do.

The protocol is fixed here, before any score was computed:

1. **Measured speed.** Every driver drives the same 100 seeds. An episode's speed is the mean of the
   metric ``speed`` over its steps, a driver's the mean over episodes with Student's interval.
2. **One bank of states.** All states of all drivers: those of even-numbered seeds to train and to
   propose claims on, those of odd-numbered seeds to judge claims and to score on. Traffic starts
   alike for all drivers of a seed, so no traffic is in both halves, and scores are resampled by
   seed. Every driver's network reads every state.
3. **Transcoders** per driver with the entry's recipe on the first half; of its training seeds
   the one with the median error counts, as everywhere in the zoo.
4. **Speed claims.** Features whose rule, proposed on the first half, names ``speed`` and is
   verified on the second by the rule of :mod:`interlatent_live.explanations.verification`.
5. **The score**: the mean over the second half of the advantage of FASTER (its value minus the mean
   over the actions) minus the same with all of the driver's speed-claimed features taken out, in
   units of the root mean square of the driver's advantages: which action is greedy does not change
   when all values are scaled, so the score must not either. Beside it the same in units of value,
   and the speed asked for: by how much the greedy action sets the cruise control, with minus
   without these features.
6. **Controls**: as many other eligible features of equal density, drawn often; and the mean
   advantage of FASTER itself, for which no feature is needed.
7. **Secondary**, declared after a timing run had shown how many claims one driver has on a fifth of
   the episodes: the same score with every feature whose rule names ``speed``, whatever its verdict;
   and, on request, the other training seeds.
8. **The order**: Spearman's ρ between score and measured speed over the drivers, with its exact
   permutation p, one-sided as the prediction is (more push towards FASTER, more speed). Only pairs
   whose speed intervals are disjoint must agree.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from scipy import stats

from interlatent_live.bench.report import machine_facts, version_facts
from interlatent_live.environments.driving import FASTER, speed_asked
from interlatent_live.environments.metric_packs import StepMetrics, metric_pack_for
from interlatent_live.errors import UserError
from interlatent_live.explanations.dictionaries import verify_dictionary
from interlatent_live.explanations.predicates import to_english
from interlatent_live.explanations.predicates.tree import metric_names
from interlatent_live.explanations.search import PLAIN_TERMS
from interlatent_live.files import replace_file
from interlatent_live.probes.probe import Side as LayerSide
from interlatent_live.probes.train import dense_features, layer_activations
from interlatent_live.stream import Controller, Role, StepFlag
from interlatent_live.transcoders.acting import acting_policy
from interlatent_live.transcoders.collect import RolloutSettings, collect_rollouts
from interlatent_live.transcoders.dataset import (
    MANIFEST_FILE,
    ActivationDataset,
    DatasetWriter,
    Header,
    HookWidths,
    MetricColumn,
    Rows,
    concatenate,
    read_manifest,
)
from interlatent_live.transcoders.training.run import TrainRequest, train_dataset
from interlatent_live.zoo.build import TRAINED, choose, seeds_of
from interlatent_live.zoo.compare_scores import (
    Estimate,
    Head,
    agreement,
    clustered_mean,
    matched_sets,
    mean_over_episodes,
    rank_correlation,
)
from interlatent_live.zoo.entry import entries
from interlatent_live.zoo.judge import side_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from interlatent_live.transcoders.acting import ActingPolicy
    from interlatent_live.transcoders.native import LoadedTranscoder
    from interlatent_live.zoo.entry import ZooEntry
    from interlatent_live.zoo.judge import Side

    Say = Callable[[str], None]

SCHEMA: Final = 1
FAMILY: Final = "highway-"
EPISODES: Final = 100
PART: Final = 10
"""Episodes after which a drive is safe on disk."""
SEED: Final = 500_000
NULL_DRAWS: Final = 99
CONTROL_DRAWS: Final = 499
CLAIM_METRIC: Final = "speed"
SHOWN: Final = 6
"""Features shown per driver."""
WHEN: Final = (Role.STATE, Role.CLOCK)
HALVES: Final = ("proposal", "judging")
COMMAND: Final = "interlatent-live zoo compare drivers"


@dataclass(frozen=True, slots=True, eq=False)
class Drives:
    """All rows of one driver, sorted by seed and time; n rows, M state and clock metrics."""

    number: NDArray[np.int64]
    """[n] episode: the seed is :data:`SEED` plus this."""
    t: NDArray[np.uint32]
    flags: NDArray[np.uint8]
    metrics: NDArray[np.float64]
    """[n, M]."""
    speed: NDArray[np.float64]
    """[n] m/s."""
    reward: NDArray[np.float64]
    x: NDArray[np.float32]
    """[n, d] what the network was given."""


@dataclass(frozen=True, slots=True, eq=False)
class Bank:
    """Half of all states of all drivers."""

    rows: Drives
    episode: NDArray[np.uint32]
    """[n] dense over drivers and seeds."""


def driver_entries() -> tuple[ZooEntry, ...]:
    """The drivers, by their reward for speed."""
    return tuple(entry for entry in entries() if entry.name.startswith(FAMILY))


def compare_drivers(
    drivers: Sequence[ZooEntry],
    work: Path,
    say: Say = lambda _: None,
    *,
    episodes: int = EPISODES,
    every_seed: bool = False,
    transcoders: Path | None = None,
) -> dict[str, Any]:
    """The whole comparison; killed and started again, it goes on.

    Args:
        drivers: entries with the same environment and hook point.
        work: receives drives, datasets, transcoders and what was judged.
        say: told what is being done.
        episodes: per driver; a multiple of :data:`PART`.
        every_seed: judge the other training seeds too, for how much hangs on the transcoder.
        transcoders: receives NAME/HOOK_POINT of the transcoders that count, besides.

    Raises:
        UserError: when the environment's package is missing, or ``episodes`` does not fit.
    """
    if episodes < 2 * PART or episodes % PART:
        raise UserError(
            f"{episodes} episodes do not fit: {PART} are driven at a time, and half of them are "
            f"kept to judge on, so give {2 * PART}, {3 * PART}, …"
        )
    _ = drivers[0].environment_version  # says which extra is missing before anything is started
    drives = drive(drivers, work / "drives", episodes, say)
    judged = []
    for entry in drivers:
        driver = _trained(entry, drives, work / entry.name, say)
        if transcoders is not None:
            choose(entry, driver.work, transcoders / entry.name)
        ranked = driver.by_error()
        places = range(len(ranked)) if every_seed else [len(ranked) // 2]
        judged.append({place: driver.judged(ranked[place], say) for place in places})
    return {
        "schema": SCHEMA,
        "name": "drivers",
        "command": COMMAND,
        "environment": drivers[0].environment_version,
        "hook_point": drivers[0].hook_points[0],
        "episodes": episodes,
        "seed": SEED,
        "null_draws": NULL_DRAWS,
        "control_draws": CONTROL_DRAWS,
        **_ordered(drivers, drives, judged),
        "machine": machine_facts(),
        "versions": version_facts(),
    }


def drive(drivers: Sequence[ZooEntry], work: Path, episodes: int, say: Say) -> list[Drives]:
    """Every driver over the same seeds, a part of each in turn."""
    parts = episodes // PART
    for part in range(parts):
        for entry in drivers:
            out = work / entry.name / f"part-{part}"
            if (out / MANIFEST_FILE).is_file() and read_manifest(out).complete:
                continue  # without making ten environments first
            done = part * len(drivers) + drivers.index(entry)
            say(f"driving {entry.name}: part {done + 1} of {parts * len(drivers)}")
            policy = acting_policy(entry.policy, environment=entry.environment)
            settings = RolloutSettings(episodes=PART, seed=SEED + part * PART, copies=PART)
            collect_rollouts(policy, entry.hook_points, out, settings)
    return [_read(work / entry.name, entry.hook_points[0], parts) for entry in drivers]


def _read(folder: Path, hook: str, parts: int) -> Drives:
    found, numbers = [], []
    for part in range(parts):
        dataset = ActivationDataset(folder / f"part-{part}")
        rows = concatenate([*dataset.shards()])
        found.append(rows)
        numbers.append(rows.episode.astype(np.int64) + part * PART)
    rows, number = concatenate(found), np.concatenate(numbers)
    order = np.lexsort((rows.t, number))
    roles = [column.role for column in dataset.header.metrics]
    when = [place for place, role in enumerate(roles) if role in WHEN]
    names = [column.name for column in dataset.header.metrics]
    return Drives(
        number[order],
        rows.t[order],
        rows.flags[order],
        rows.metrics[order][:, when],
        rows.metrics[order, names.index(CLAIM_METRIC)],
        rows.metrics[order, names.index("reward")],
        rows.activations[hook][0][order],
    )


def bank_of(drives: Sequence[Drives], half: int) -> Bank:
    """The states of the even-numbered (0) or the odd-numbered seeds (1)."""
    some = [np.flatnonzero(one.number % 2 == half) for one in drives]
    columns = {
        name: np.concatenate(
            [getattr(one, name)[rows] for one, rows in zip(drives, some, strict=True)]
        )
        for name in Drives.__slots__
    }
    driver = np.repeat(np.arange(len(drives)), [len(rows) for rows in some])
    keys = driver * (int(columns["number"].max()) + 1) + columns["number"]
    return Bank(Drives(**columns), np.unique(keys, return_inverse=True)[1].astype(np.uint32))


def _bank_dataset(
    entry: ZooEntry, policy: ActingPolicy, bank: Bank, out: Path
) -> ActivationDataset:
    """What this driver's network does with every state of the bank."""
    rows, hook, n = bank.rows, entry.hook_points[0], len(bank.episode)
    digest = hashlib.sha256(rows.x.tobytes()).hexdigest()
    y = layer_activations(policy.module, rows.x, hook, LayerSide.OUTPUT)
    specs = StepMetrics(metric_pack_for(entry.environment)).specs
    header = Header(
        policy_hash=policy.policy_hash,
        environment=entry.environment,
        hook_points=(HookWidths(hook, rows.x.shape[1], y.shape[1]),),
        metrics=tuple(
            MetricColumn(spec.name, spec.unit, spec.role, spec.description)
            for spec in specs
            if spec.role in WHEN
        ),
        source="bank",
        settings={"seed": SEED, "states": n, "digest": digest},
    )
    writer = DatasetWriter(out, header)
    if not writer.manifest.complete:
        writer.append(
            Rows(
                episode=bank.episode,
                env=np.zeros(n, np.uint16),
                t=rows.t,
                time_ns=np.zeros(n, np.int64),
                controller=np.full(n, int(Controller.POLICY), np.uint8),
                flags=rows.flags,
                metrics=rows.metrics,
                activations={hook: (rows.x, y)},
            )
        )
        writer.commit(episodes=int(bank.episode.max()) + 1, progress=1)
        writer.finish()
    return ActivationDataset(out)


@dataclass(frozen=True, slots=True)
class _Driver:
    """What is judged with every training seed of one driver."""

    entry: ZooEntry
    policy: ActingPolicy
    datasets: tuple[ActivationDataset, ...]
    traffic: NDArray[np.int64]
    """[n] seed of each row that is judged on, from 0."""
    work: Path

    def by_error(self) -> list[LoadedTranscoder]:
        """Its training seeds, the smallest error first."""
        (seeds,) = seeds_of(self.work)
        return sorted(seeds, key=lambda one: float(one.provenance.evaluation["fvu"]))

    def judged(self, loaded: LoadedTranscoder, say: Say) -> dict[str, Any]:
        """One transcoder's claims and score, from the disk where they are there already."""
        seed, identity = loaded.provenance.seed, loaded.transcoder.identity
        file = self.work / f"judged-{seed}.json"
        key = [identity, *(dataset.hash for dataset in self.datasets), NULL_DRAWS, CONTROL_DRAWS]
        if file.is_file():
            known: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            if known["key"] == key:
                return known
        say(f"{self.entry.name}: claims of training seed {seed}, {NULL_DRAWS} draws of the null")
        hook = self.entry.hook_points[0]
        proposal, judging = (
            side_of(self.entry, self.policy, dataset, hook, loaded.transcoder)
            for dataset in self.datasets
        )
        made = {
            "key": key,
            "policy_hash": self.policy.policy_hash,
            "transcoder": identity,
            "seed": seed,
            "fvu": float(loaded.provenance.evaluation["fvu"]),
            **_scored(self.policy, loaded, proposal, judging, self.traffic),
        }
        replace_file(file, json.dumps(made, allow_nan=False).encode())
        return made


def _trained(entry: ZooEntry, drives: Sequence[Drives], work: Path, say: Say) -> _Driver:
    """The driver's network over the bank, and every training seed's transcoder."""
    policy = acting_policy(entry.policy, environment=entry.environment)
    banks = [bank_of(drives, half) for half in range(2)]
    datasets = tuple(
        _bank_dataset(entry, policy, bank, work / name)
        for bank, name in zip(banks, HALVES, strict=True)
    )
    train_dataset(
        datasets[0],
        work / TRAINED,
        TrainRequest(
            entry.hook_points,
            n_features=(entry.training.n_features,),
            k=entry.training.k,
            seeds=entry.training.seeds,
        ),
        entry.training.recipe,
        command=COMMAND,
        on_progress=lambda at: say(f"{entry.name}: training, step {at.step:,} of {at.steps:,}"),
    )
    return _Driver(entry, policy, datasets, banks[1].rows.number, work)


def _scored(
    policy: ActingPolicy,
    loaded: LoadedTranscoder,
    proposal: Side,
    judging: Side,
    traffic: NDArray[np.int64],
) -> dict[str, Any]:
    found = verify_dictionary(
        proposal.evidence, judging.evidence, draws=NULL_DRAWS, families=PLAIN_TERMS
    )
    named = {
        rule.feature: to_english(rule.predicate)
        for rule in found.rules
        if rule.predicate is not None and CLAIM_METRIC in metric_names(rule.predicate)
    }
    verified = {f for f, yes in zip(found.features, found.verified, strict=True) if yes}
    chosen = [feature for feature in named if feature in verified]
    head = head_of(policy, loaded, judging)
    density = judging.evidence.density()
    names = [spec.name for spec in judging.evidence.specs]
    speed = judging.evidence.metrics[:, names.index(CLAIM_METRIC)]

    def taken_out(features: Sequence[int]) -> dict[str, Any]:
        return _taken_out(
            head,
            features,
            matched_sets(features, found.features, density, draws=CONTROL_DRAWS, seed=0),
            speed=speed,
            traffic=traffic,
        )

    shares = head.shares() / head.spread
    strongest = sorted(chosen, key=lambda feature: -abs(shares[feature]))
    return {
        "states": len(speed),
        "eligible": len(found.features),
        "verified": len(verified),
        "spread": head.spread,
        "advantage": asdict(clustered_mean(head.advantages / head.spread, traffic)),
        "advantage_in_value": asdict(clustered_mean(head.advantages, traffic)),
        **taken_out(chosen),
        "named": taken_out(list(named)),
        "shown": [
            {
                "feature": feature,
                "words": named[feature],
                "share": float(shares[feature]),
                "density": float(density[feature]),
            }
            for feature in strongest[:SHOWN]
        ],
        "features_for_80_percent": _carriers(np.abs(shares[strongest])),
    }


def _taken_out(
    head: Head,
    features: Sequence[int],
    controls: Sequence[Sequence[int]],
    *,
    speed: NDArray[np.float64],
    traffic: NDArray[np.int64],
) -> dict[str, Any]:
    """What a set of features gives, beside sets of others; ``speed`` and ``traffic`` are [n]."""
    given, shares, own = head.given(features), head.shares(), head.actions()
    asked = speed_asked(speed, own)

    def asked_less(without: Sequence[int]) -> NDArray[np.float64]:
        return asked - speed_asked(speed, head.actions(without))

    return {
        "features": len(features),
        "score": asdict(clustered_mean(given / head.spread, traffic)),
        "score_in_value": asdict(clustered_mean(given, traffic)),
        "asked": asdict(clustered_mean(asked_less(features), traffic)),
        "changed_actions": float((own != head.actions(features)).mean()),
        "control_features": len(controls[0]),
        "random": [float(shares[list(one)].sum()) / head.spread for one in controls],
        "random_asked": [float(asked_less(one).mean()) for one in controls],
    }


def head_of(policy: ActingPolicy, loaded: LoadedTranscoder, judging: Side) -> Head:
    """The driver's head over a hook point that feeds it, as :class:`Head` takes it."""
    head = policy.module.get_submodule("head")
    with torch.no_grad():
        weight = torch.as_tensor(head.weight).double()
        bias = torch.as_tensor(head.bias).double()
        values = torch.from_numpy(judging.y).double() @ weight.T + bias
        effects = loaded.transcoder.W_dec.double() @ weight.T
    return Head(
        np.asarray(values.numpy(), np.float64),
        dense_features(loaded.transcoder, judging.x),
        np.asarray(effects.numpy(), np.float64),
        FASTER,
    )


def _carriers(sizes: NDArray[np.float64]) -> int:
    """How many of the largest [F], in falling order, make up 80 % of their sum."""
    if not len(sizes) or not sizes.sum():
        return 0
    return int(np.searchsorted(sizes.cumsum() / sizes.sum(), 0.8 - 1e-12)) + 1


def _ordered(
    drivers: Sequence[ZooEntry],
    drives: Sequence[Drives],
    judged: Sequence[Mapping[int, dict[str, Any]]],
) -> dict[str, Any]:
    """Drivers with their figures, and every order held against the measured one.

    ``judged`` has a driver's transcoders by their place when the smallest error is first.
    """
    episodes = [episodes_of(one) for one in drives]
    speeds = [mean_over_episodes(np.array(one["speed"])) for one in episodes]
    measured = [one.value for one in speeds]
    places = sorted(judged[0])
    medians = [one[places[len(places) // 2]] for one in judged]
    rewards = [float(entry.name.removeprefix(FAMILY)) for entry in drivers]

    def held(score: Sequence[float]) -> dict[str, Any]:
        return asdict(rank_correlation(score, measured)) | asdict(agreement(score, speeds))

    def of(rows: Sequence[dict[str, Any]], key: str) -> list[float]:
        return [float(row[key]["value"]) for row in rows]

    orders = {
        "score": held(of(medians, "score")),
        "score_in_value": held(of(medians, "score_in_value")),
        "asked": held(of(medians, "asked")),
        "named": held(of([row["named"] for row in medians], "score")),
        "advantage": held(of(medians, "advantage")),
        "advantage_in_value": held(of(medians, "advantage_in_value")),
        "reward": held(rewards),
    }
    return {
        "orders": orders,
        "verdict": verdict(orders["score"]),
        "random": {
            key: _random_order([row[key] for row in medians], measured, orders[against]["rho"])
            for key, against in (("random", "score"), ("random_asked", "asked"))
        },
        "seeds_by_error": [held(of([one[place] for one in judged], "score")) for place in places],
        "drivers": [
            {
                "name": entry.name,
                "reward_for_speed": reward,
                "speed": asdict(speed),
                "crash_rate": float(np.mean(rows["crashed"])),
                "mean_return": float(np.mean(rows["return"])),
                "by_episode": rows,
                **_without_draws(median),
                "scores_by_error": of([one[place] for place in places], "score"),
            }
            for entry, reward, one, speed, rows, median in zip(
                drivers, rewards, judged, speeds, episodes, medians, strict=True
            )
        ],
    }


def episodes_of(drives: Drives) -> dict[str, list[Any]]:
    """Per episode, in the order of the seeds: mean speed m/s, steps, return, whether it crashed."""
    _, first, counts = np.unique(drives.number, return_index=True, return_counts=True)
    last = first + counts - 1
    return {
        "speed": [
            round(float(value), 4) for value in np.add.reduceat(drives.speed, first) / counts
        ],
        "steps": [int(count) for count in counts],
        "return": [round(float(value), 4) for value in np.add.reduceat(drives.reward, first)],
        "crashed": [bool(flag & int(StepFlag.TERMINATED)) for flag in drives.flags[last]],
    }


def verdict(order: dict[str, Any]) -> str:
    """``found``, ``partly found`` or ``not found``, of a score's order."""
    if order["rho"] is None or order["p_greater"] > 0.05:
        return "not found"
    return "found" if order["agree"] == order["pairs"] else "partly found"


def _random_order(
    draws: Sequence[Sequence[float]], measured: Sequence[float], observed: float | None
) -> dict[str, Any]:
    """What random sets of features make of the order; draw i of each driver together."""
    ranks = stats.rankdata(measured)
    every = [
        float(np.corrcoef(stats.rankdata(scores), ranks)[0, 1])
        for scores in zip(*draws, strict=True)
        if np.ptp(scores) > 0
    ]
    if observed is None or not every:
        return {"draws": len(every), "median": None, "p95": None, "p": None}
    as_large = sum(rho >= observed - 1e-9 for rho in every)
    return {
        "draws": len(every),
        "median": float(np.median(every)),
        "p95": float(np.quantile(every, 0.95)),
        "p": (1 + as_large) / (1 + len(every)),
    }


def _without_draws(row: dict[str, Any]) -> dict[str, Any]:
    """A driver's figures, its controls summed up."""
    kept = {name: value for name, value in row.items() if name != "key"}
    kept["named"] = _controls_summed_up(row["named"])
    return _controls_summed_up(kept)


def _controls_summed_up(row: dict[str, Any]) -> dict[str, Any]:
    kept = dict(row)
    for name, against in (("random", "score"), ("random_asked", "asked")):
        values = np.array(row[name])
        low, high = np.quantile(values, [0.025, 0.975])
        kept[name] = {
            **asdict(Estimate(float(values.mean()), float(low), float(high))),
            "percentile": float((values < row[against]["value"]).mean()),
        }
    return kept
