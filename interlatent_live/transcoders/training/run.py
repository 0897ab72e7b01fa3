"""From a dataset to saved transcoders: the whole of ``interlatent-live train`` but the terminal."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import torch

from interlatent_live.bench.report import version_facts
from interlatent_live.errors import MismatchError, UserError
from interlatent_live.transcoders.config import Architecture, Target, TranscoderConfig
from interlatent_live.transcoders.dataset import split_by_episode
from interlatent_live.transcoders.evaluation.reconstruction import reconstruction_summary
from interlatent_live.transcoders.native import Provenance, save_transcoder
from interlatent_live.transcoders.tails import head_metric
from interlatent_live.transcoders.training.job import HookData, Job, hook_data
from interlatent_live.transcoders.training.trainer import Trainer, TrainProgress

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from interlatent_live.transcoders.acting import ActingPolicy
    from interlatent_live.transcoders.dataset import ActivationDataset
    from interlatent_live.transcoders.training.recipe import Recipe
    from interlatent_live.transcoders.transcoder import Transcoder

CHECKPOINT_FOLDER = "checkpoint"


@dataclass(frozen=True, slots=True)
class TrainRequest:
    """Which transcoders to train.

    Args:
        hook_points: names in the dataset; empty means all.
        architecture: shared by all.
        n_features: widths F, each trained.
        k: features per row, where the architecture takes it.
        l1: L1 weight, where the architecture takes it.
        skip: whether to train a skip path.
        target: reconstruct the output, or the input (a sparse autoencoder).
        seeds: seeds 0 … seeds − 1, each trained.
        widths: prefix lengths of Matryoshka; ``None`` means F/8, F/4, F/2, F.
    """

    hook_points: tuple[str, ...] = ()
    architecture: Architecture = Architecture.BATCHTOPK
    n_features: tuple[int, ...] = (256,)
    k: int | None = 8
    l1: float | None = None
    skip: bool = False
    target: Target = Target.OUTPUT
    seeds: int = 3
    widths: tuple[int, ...] | None = None

    def config(self, d_in: int, d_out: int, n_features: int) -> TranscoderConfig:
        """The configuration for one hook point and width.

        Raises:
            UserError: when the architecture cannot honour the request.
        """
        takes_k = self.architecture is not Architecture.RELU
        widths = self.widths
        if widths is None and self.architecture is Architecture.MATRYOSHKA:
            halves = {max(1, n_features >> shift) for shift in (3, 2, 1, 0)}
            widths = tuple(sorted(halves))
        return TranscoderConfig(
            architecture=self.architecture,
            d_in=d_in,
            d_out=d_in if self.target is Target.INPUT else d_out,
            n_features=n_features,
            k=self.k if takes_k else None,
            l1=self.l1,
            widths=widths,
            skip=self.skip,
            target=self.target,
        )


@dataclass(frozen=True, slots=True)
class Trained:
    """One saved transcoder and how it does on held-out episodes."""

    job: Job
    path: Path
    transcoder: Transcoder
    summary: dict[str, Any]


def train_dataset(
    dataset: ActivationDataset,
    out: Path,
    request: TrainRequest,
    recipe: Recipe,
    *,
    policy: ActingPolicy | None = None,
    device: str = "cpu",
    command: str = "",
    max_bytes: int = 2 << 30,
    on_progress: Callable[[TrainProgress], None] | None = None,
    stop_after: int | None = None,
) -> list[Trained]:
    """Train, calibrate, measure and save; a second call goes on after a kill.

    Args:
        dataset: complete activation pairs.
        out: receives one folder per transcoder, and the checkpoint while training.
        request: which transcoders.
        recipe: how they are trained.
        policy: needed for the head-weighted loss; must be the dataset's.
        device: ``cpu``, ``cuda`` or ``auto``.
        command: the command line, for the provenance.
        max_bytes: memory for the rows of one hook point.
        on_progress: told how it goes.
        stop_after: stop after this step, leaving a checkpoint and no result.

    Raises:
        UserError: when the request cannot be honoured.
        MismatchError: when the policy is not the dataset's.
    """
    header = dataset.header
    if not dataset.manifest.complete:
        raise UserError(f"{dataset.path} is not complete; run the same collect again to finish it")
    if policy is not None and policy.policy_hash != header.policy_hash:
        raise MismatchError(
            f"the dataset was collected from policy {header.policy_hash}, but {policy.name} is "
            f"{policy.policy_hash}; name the policy that it was collected from"
        )
    chosen = torch.device(_device(device))
    names = request.hook_points or tuple(hook.name for hook in header.hook_points)
    data = {
        name: _hook_data(
            dataset, name, request, recipe, policy=policy, device=chosen, max_bytes=max_bytes
        )
        for name in names
    }
    jobs = [
        Job(name, request.config(*data[name].widths, n_features), seed)
        for name in names
        for n_features in request.n_features
        for seed in range(request.seeds)
    ]
    trainer = Trainer(jobs, data, recipe, device=chosen, fingerprint=dataset.hash)
    trainer.run(checkpoint=out / CHECKPOINT_FOLDER, on_progress=on_progress, stop_after=stop_after)
    if trainer.step < recipe.steps:
        return []
    return [
        _save(
            out,
            job,
            transcoder,
            data=data[job.hook_point],
            dataset=dataset,
            recipe=recipe,
            command=command,
        )
        for job, transcoder in trainer.results()
    ]


def _hook_data(
    dataset: ActivationDataset,
    name: str,
    request: TrainRequest,
    recipe: Recipe,
    *,
    policy: ActingPolicy | None,
    device: torch.device,
    max_bytes: int,
) -> HookData:
    rows = dataset.load(name, max_bytes=max_bytes)
    split = split_by_episode(rows.episode)
    head = None
    if recipe.head_weight > 0 and policy is not None and request.target is Target.OUTPUT:
        head = head_metric(policy, name, torch.from_numpy(rows.y[split.train]), device)
    return hook_data(
        rows,
        split,
        target=request.target,
        normalise=recipe.normalise,
        device=device,
        head=head,
        head_weight=recipe.head_weight,
    )


def _save(
    out: Path,
    job: Job,
    transcoder: Transcoder,
    *,
    data: HookData,
    dataset: ActivationDataset,
    recipe: Recipe,
    command: str,
) -> Trained:
    summary = reconstruction_summary(transcoder, *data.test)
    scales = data.scales
    provenance = Provenance(
        policy_hash=dataset.header.policy_hash,
        hook_point=job.hook_point,
        dataset_hash=dataset.hash,
        seed=job.seed,
        command=command,
        created=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        versions=version_facts(),
        normalisation={
            "y_scale": scales.y_scale,
            "x_scale_min": float(scales.x_scale.min()),
            "x_scale_max": float(scales.x_scale.max()),
        },
        training=msgspec.to_builtins(recipe),
        evaluation=summary,
        environment=dataset.header.environment,
    )
    path = save_transcoder(out / job.name, transcoder, provenance)
    return Trained(job, path, transcoder, summary)


def _device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UserError("device cuda was asked for, but torch sees no CUDA device; use cpu or auto")
    if not name.startswith("cuda") and name != "cpu":
        raise UserError(f"device {name!r} is unknown; use cpu, cuda or auto")
    return name


__all__ = ["CHECKPOINT_FOLDER", "TrainRequest", "Trained", "train_dataset"]
