"""Makes what an entry's run needs: its transcoders, and the recording that claims come from.

The products of the demo's entries and the transcoders of the others are committed under ``data/``;
running the command again makes them anew from nothing but the policy and the entry's numbers.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from interlatent_live.recordings import RecordingWriter
from interlatent_live.stream import FeatureBatch, HookPointSpec, Manifest
from interlatent_live.transcoders.acting import acting_policy
from interlatent_live.transcoders.collect import RolloutSettings, collect_rollouts
from interlatent_live.transcoders.dataset import ActivationDataset
from interlatent_live.transcoders.encoding import encode_activations
from interlatent_live.transcoders.native import find_transcoders, load_transcoder
from interlatent_live.transcoders.training.run import TrainRequest, train_dataset
from interlatent_live.wire.codec import encode_features, encode_hello

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from interlatent_live.environments.disturbance import Disturbance
    from interlatent_live.transcoders.acting import ActingPolicy
    from interlatent_live.transcoders.collect import CollectProgress
    from interlatent_live.transcoders.native import LoadedTranscoder
    from interlatent_live.transcoders.training.trainer import TrainProgress
    from interlatent_live.transcoders.transcoder import Transcoder
    from interlatent_live.zoo.entry import Episodes, ZooEntry

ROWS_PER_MESSAGE: Final = 256
FIRST: Final = "first"
TRAINING: Final = "training"
CALIBRATION: Final = "calibration"
LATER: Final = "later"
FAILURES: Final = "failures"
TRAINED: Final = "trained"
"""Folders of an entry's work: datasets, and every training seed's transcoder."""


@dataclass(frozen=True, slots=True)
class Built:
    """Where the products of one entry are."""

    transcoders: tuple[Path, ...]
    recording: Path | None
    rows: int


def build_entry(
    entry: ZooEntry, out: Path, work: Path, say: Callable[[str], None] = lambda _: None
) -> Built:
    """Collect, train, choose and record for one entry; a second call goes on after a kill.

    Args:
        entry: whose.
        out: receives ``transcoders/NAME/HOOK_POINT`` and, of the demo's entries, which must be able
            to propose claims at once, ``recordings/NAME.mcap``.
        work: datasets, checkpoints and every training seed, to be kept until the entry is judged.
        say: told what is being done.

    Raises:
        UserError: when the environment's package is not installed.
    """
    policy = acting_policy(entry.policy, environment=entry.environment)
    train_entry(entry, policy, work, say)
    chosen = choose(entry, work, out / "transcoders" / entry.name)
    if not entry.demo:
        return Built(tuple(chosen.values()), None, 0)
    dataset = collect_for(entry, policy, entry.calibration, work / CALIBRATION, say)
    recording = out / "recordings" / f"{entry.name}.mcap"
    transcoders = {hook: load_transcoder(path).transcoder for hook, path in chosen.items()}
    return Built(tuple(chosen.values()), recording, record(policy, dataset, transcoders, recording))


def train_entry(
    entry: ZooEntry, policy: ActingPolicy, work: Path, say: Callable[[str], None]
) -> None:
    """Collect the training set and train every seed; a second call goes on after a kill."""
    spliced: list[LoadedTranscoder] = []
    training = entry.training
    if training.first is not None:
        first = training.first
        episodes = _Episodes(first.episodes, first.seed)
        dataset = collect_for(entry, policy, episodes, work / FIRST / "rows", say)
        train_dataset(
            dataset,
            work / FIRST / TRAINED,
            TrainRequest(
                entry.hook_points, n_features=(training.n_features,), k=training.k, seeds=1
            ),
            first.recipe,
            command=_command(entry),
            on_progress=_told(say, "the first transcoder"),
        )
        spliced = [found[0].load() for found in find_transcoders(work / FIRST / TRAINED).values()]
    dataset = collect_for(
        entry,
        policy,
        _Episodes(training.episodes, training.seed),
        work / TRAINING,
        say,
        also=training.also_collect,
        spliced=spliced,
    )
    train_dataset(
        dataset,
        work / TRAINED,
        TrainRequest(
            entry.hook_points,
            n_features=(training.n_features,),
            k=training.k,
            seeds=training.seeds,
        ),
        training.recipe,
        policy=policy if training.recipe.head_weight else None,
        command=_command(entry),
        on_progress=_told(say, f"{training.seeds} seeds at {', '.join(entry.hook_points)}"),
    )


def choose(entry: ZooEntry, work: Path, out: Path) -> dict[str, Path]:
    """Copy the seed with the median error of each hook point to ``out``/HOOK_POINT.

    The median, not the best: what users see is what training gives.
    """
    chosen = {}
    for loaded in seeds_of(work):
        hook = loaded[0].provenance.hook_point
        ranked = sorted(loaded, key=lambda one: float(one.provenance.evaluation["fvu"]))
        chosen[hook] = out / hook
        shutil.rmtree(chosen[hook], ignore_errors=True)
        shutil.copytree(ranked[len(ranked) // 2].path, chosen[hook])
    return {hook: chosen[hook] for hook in entry.hook_points}


def seeds_of(work: Path) -> Iterator[list[LoadedTranscoder]]:
    """The training seeds under an entry's work, one list per hook point."""
    for found in find_transcoders(work / TRAINED).values():
        yield [one.load() for one in found]


@dataclass(frozen=True, slots=True)
class _Episodes:
    """Has what :class:`~interlatent_live.zoo.entry.Episodes` has."""

    episodes: int
    seed: int


def collect_for(
    entry: ZooEntry,
    policy: ActingPolicy,
    episodes: Episodes | _Episodes,
    out: Path,
    say: Callable[[str], None],
    *,
    also: tuple[str, ...] = (),
    spliced: list[LoadedTranscoder] | None = None,
    disturbance: Disturbance | None = None,
) -> ActivationDataset:
    """Whole episodes of the entry's policy as it runs live; what is there already is not redone."""

    def tell(progress: CollectProgress) -> None:
        say(
            f"{out.name}: {progress.done} of {progress.total} episodes, {progress.rows:,} rows, "
            f"mean return {progress.mean_return:.1f}"
        )

    settings = RolloutSettings(
        episodes=episodes.episodes,
        seed=episodes.seed,
        max_steps=entry.max_episode_steps,
        disturbance=entry.disturbance if disturbance is None else disturbance,
    )
    hooks = (*also, *entry.hook_points)
    collect_rollouts(policy, hooks, out, settings, tell, spliced=spliced or [])
    return ActivationDataset(out)


def _told(say: Callable[[str], None], what: str) -> Callable[[TrainProgress], None]:
    def tell(progress: TrainProgress) -> None:
        fvu = sorted(job.fvu for job in progress.jobs)[len(progress.jobs) // 2]
        say(f"training {what}: step {progress.step:,}, median FVU {fvu:.4f}")

    return tell


def _command(entry: ZooEntry) -> str:
    return f"interlatent-live zoo train {entry.name}"


def feature_batches(
    policy: ActingPolicy, dataset: ActivationDataset, transcoders: Mapping[str, Transcoder]
) -> tuple[Manifest, Iterator[FeatureBatch]]:
    """A dataset as the encoder would have passed it on, and the agent's first words."""
    header = dataset.header
    manifest = Manifest(
        agent=f"{policy.name}-calibration",
        run_id=f"calibration-{dataset.hash.removeprefix('sha256:')[:12]}",
        boot_id=dataset.hash.removeprefix("sha256:")[:32],
        policy_hash=header.policy_hash,
        hook_points=tuple(
            HookPointSpec(hook.name, hook.d_in, hook.d_out)
            for hook in header.hook_points
            if hook.name in transcoders
        ),
        metrics=tuple(column.spec() for column in header.metrics),
        env_count=1 << 16,
        environment=header.environment,
        actions=tuple(getattr(policy.module, "action_names", ())),
    )
    hashes = {hook: transcoder.identity for hook, transcoder in transcoders.items()}

    def batches() -> Iterator[FeatureBatch]:
        for batch in dataset.step_batches(ROWS_PER_MESSAGE):
            codes = {
                hook: encode_activations(transcoder, batch.activations[hook])
                for hook, transcoder in transcoders.items()
            }
            yield FeatureBatch(
                manifest.run_id, manifest.boot_id, batch.steps, codes, hashes, encoded_ns=0
            )

    return manifest, batches()


def record(
    policy: ActingPolicy,
    dataset: ActivationDataset,
    transcoders: Mapping[str, Transcoder],
    out: Path,
) -> int:
    """Encode a dataset and write it as a recording of features; returns its rows."""
    manifest, batches = feature_batches(policy, dataset, transcoders)
    hashes = {hook: transcoder.identity for hook, transcoder in transcoders.items()}
    rows = 0
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_suffix(".part")
    part.unlink(missing_ok=True)
    settings = {name: str(value) for name, value in dataset.header.settings.items()}
    provenance = {"dataset": dataset.hash, "policy": policy.name, **settings}
    with RecordingWriter(part, provenance=provenance) as writer:
        writer.write(encode_hello(manifest, transcoders=hashes), time_ns=0)
        for features in batches:
            rows += len(features.steps)
            writer.write(encode_features(features), time_ns=rows)
    part.replace(out)
    return rows
