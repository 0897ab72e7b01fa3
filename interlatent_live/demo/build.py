"""Makes what the demo ships: transcoders and the calibration recording of one target, with seeds.

The products are committed under ``data/``; running the command again makes them anew from nothing
but the policy and the numbers in :mod:`interlatent_live.environments.demo_targets`.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from interlatent_live.environments.demo_targets import demo_target, slug
from interlatent_live.recordings import RecordingWriter
from interlatent_live.stream import FeatureBatch, HookPointSpec, Manifest
from interlatent_live.transcoders.acting import acting_policy
from interlatent_live.transcoders.collect import RolloutSettings, collect_rollouts
from interlatent_live.transcoders.dataset import ActivationDataset
from interlatent_live.transcoders.encoding import encode_activations
from interlatent_live.transcoders.native import load_transcoder
from interlatent_live.transcoders.training.recipe import Recipe
from interlatent_live.transcoders.training.run import TrainRequest, train_dataset
from interlatent_live.wire.codec import encode_features, encode_hello

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from interlatent_live.environments.demo_targets import DemoTarget
    from interlatent_live.transcoders.acting import ActingPolicy
    from interlatent_live.transcoders.transcoder import Transcoder

SEEDS = 3
ROWS_PER_MESSAGE = 256


@dataclass(frozen=True, slots=True)
class Built:
    """Where the products of one target are."""

    transcoders: tuple[Path, ...]
    recording: Path
    rows: int


def build_demo(
    environment: str,
    out: Path,
    work: Path,
    say: Callable[[str], None] = lambda _: None,
) -> Built:
    """Collect, train, choose and record for one target; a second call goes on after a kill.

    Args:
        environment: a demo target.
        out: receives ``transcoders/NAME/HOOK_POINT`` and ``recordings/NAME.mcap``.
        work: datasets and checkpoints, to be kept until the build is done.
        say: told what is being done.

    Raises:
        UserError: for an unknown target.
    """
    target = demo_target(environment)
    policy = acting_policy(target.policy)
    say(f"collecting {target.training_episodes} episodes to train on")
    _collect(policy, target, work / "training", target.training_episodes, target.training_seed)
    say(f"training {SEEDS} seeds for each of {', '.join(target.hook_points)}")
    chosen = _train(target, work, out / "transcoders" / slug(environment))
    say(f"recording {target.calibration_episodes} episodes to propose claims from")
    _collect(
        policy, target, work / "calibration", target.calibration_episodes, target.calibration_seed
    )
    recording = out / "recordings" / f"{slug(environment)}.mcap"
    transcoders = {hook: load_transcoder(path).transcoder for hook, path in chosen.items()}
    rows = record(policy, ActivationDataset(work / "calibration"), transcoders, recording)
    return Built(tuple(chosen.values()), recording, rows)


def _collect(policy: ActingPolicy, target: DemoTarget, out: Path, episodes: int, seed: int) -> None:
    settings = RolloutSettings(
        episodes=episodes,
        seed=seed,
        max_steps=target.max_episode_steps,
        disturbance=target.disturbance,
    )
    collect_rollouts(policy, target.hook_points, out, settings)


def _train(target: DemoTarget, work: Path, out: Path) -> dict[str, Path]:
    """Train, and put the seed with the median FVU of each hook point into ``out``."""
    trained = train_dataset(
        ActivationDataset(work / "training"),
        work / "trained",
        TrainRequest(n_features=(target.n_features,), k=target.k, seeds=SEEDS),
        Recipe(steps=target.training_steps),
        command=f"interlatent-live demo-build --env {target.environment}",
    )
    chosen: dict[str, Path] = {}
    for hook_point in target.hook_points:
        ranked = sorted(
            (one for one in trained if one.job.hook_point == hook_point),
            key=lambda one: float(one.summary["fvu"]),
        )
        path = out / hook_point
        shutil.rmtree(path, ignore_errors=True)
        # The median, not the best: what users see is what training gives.
        shutil.copytree(ranked[len(ranked) // 2].path, path)
        chosen[hook_point] = path
    return chosen


def record(
    policy: ActingPolicy,
    dataset: ActivationDataset,
    transcoders: Mapping[str, Transcoder],
    out: Path,
) -> int:
    """Encode a dataset and write it as a recording of features; returns its rows."""
    header = dataset.header
    actions = getattr(policy.module, "action_names", ())
    manifest = Manifest(
        agent=f"{slug(header.environment)}-calibration",
        run_id=f"calibration-{dataset.hash.removeprefix('sha256:')[:12]}",
        boot_id=dataset.hash.removeprefix("sha256:")[:32],
        policy_hash=header.policy_hash,
        hook_points=tuple(
            HookPointSpec(hook.name, hook.d_in, hook.d_out) for hook in header.hook_points
        ),
        metrics=tuple(column.spec() for column in header.metrics),
        env_count=1 << 16,
        environment=header.environment,
        actions=tuple(actions),
    )
    hashes = {hook: transcoder.identity for hook, transcoder in transcoders.items()}
    rows = 0
    part = out.with_suffix(".part")
    part.unlink(missing_ok=True)
    provenance = {"dataset": dataset.hash, "policy": policy.name, **_as_text(header.settings)}
    with RecordingWriter(part, provenance=provenance) as writer:
        writer.write(encode_hello(manifest, transcoders=hashes), time_ns=0)
        for batch in dataset.step_batches(ROWS_PER_MESSAGE):
            codes = {
                hook: encode_activations(transcoders[hook], seen)
                for hook, seen in batch.activations.items()
            }
            features = FeatureBatch(
                manifest.run_id, manifest.boot_id, batch.steps, codes, hashes, encoded_ns=0
            )
            rows += len(batch.steps)
            writer.write(encode_features(features), time_ns=rows)
    part.replace(out)
    return rows


def _as_text(settings: Mapping[str, object]) -> dict[str, str]:
    return {name: str(value) for name, value in settings.items()}


def timed(say: Callable[[str], None]) -> Callable[[str], None]:
    """Say what is done with the seconds since the first word."""
    began = time.monotonic()
    return lambda text: say(f"[{time.monotonic() - began:5.1f} s] {text}")
