"""The loop: many hook points, widths and seeds in one pass, resumable to the bit.

Models that share a configuration share a :class:`Stack`; all stacks take each step together. What
a step does depends on the parameters, the step's number and the seeds alone, so a checkpoint of
parameters and optimiser state is all that a killed run needs to end with the result it would have
had.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import torch
from safetensors.torch import save as save_safetensors
from torch import Tensor

from interlatent_live.errors import CorruptFileError, UserError
from interlatent_live.transcoders.tensorfiles import read_checked_tensors, replace_file
from interlatent_live.transcoders.training.finish import finish, unfold
from interlatent_live.transcoders.training.order import RowOrder
from interlatent_live.transcoders.training.stack import Stack

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from interlatent_live.transcoders.config import TranscoderConfig
    from interlatent_live.transcoders.training.job import HookData, Job
    from interlatent_live.transcoders.training.recipe import Recipe
    from interlatent_live.transcoders.transcoder import Transcoder

CHECKPOINT_TENSORS = "checkpoint.safetensors"
CHECKPOINT_JSON = "checkpoint.json"
CHECKPOINT_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class JobProgress:
    """One model's figures at a step, on its training batch."""

    job: Job
    fvu: float
    l0: float
    dead: int


@dataclass(frozen=True, slots=True)
class TrainProgress:
    """How far training is."""

    step: int
    steps: int
    jobs: tuple[JobProgress, ...]
    rows_per_second: float
    """Rows seen by all models together, per second."""


class Trainer:
    """Trains all jobs together.

    Args:
        jobs: what to train; order decides nothing.
        data: per hook point, its rows.
        recipe: how.
        device: where.
        fingerprint: anything else that decides the result (dataset hash); part of what a checkpoint
            must match.
        start: trained transcoders to go on from, by job; others start from their seed.
        after_step: a projection of each stack's parameters, applied after each step.

    Raises:
        UserError: when a job's widths are not its hook point's, or a head-weighted loss is asked
            for at a hook point whose tail is unknown.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        data: Mapping[str, HookData],
        recipe: Recipe,
        *,
        device: torch.device | None = None,
        fingerprint: str = "",
        start: Mapping[Job, Transcoder] | None = None,
        after_step: Callable[[Stack], None] | None = None,
    ) -> None:
        self.recipe, self.data, self._after_step = recipe, data, after_step
        self.device = device or torch.device("cpu")
        if recipe.bf16 and self.device.type != "cuda":
            raise UserError("bf16 pays on CUDA only; train in float32 on this device")
        for job in jobs:
            _check_job(job, data[job.hook_point], recipe)
        grouped: dict[TranscoderConfig, list[Job]] = {}
        for job in sorted(jobs, key=lambda job: job.name):
            grouped.setdefault(job.config, []).append(job)
        self.groups = [
            (Stack(config, [_model_seed(job) for job in group], recipe, self.device), group)
            for config, group in grouped.items()
        ]
        self._unmix = {
            hook: torch.linalg.inv(one.scales.y_mix).float().to(self.device)
            for hook, one in data.items()
            if one.scales.y_mix is not None and one.head is not None
        }
        self._orders = {
            (hook, seed): RowOrder(len(data[hook].x), recipe.batch, seed, self.device)
            for hook, seed in {(job.hook_point, job.seed) for job in jobs}
        }
        for job, transcoder in (start or {}).items():
            self._start_from(job, transcoder)
            fingerprint += transcoder.identity
        self.step = 0
        names = [job.name for _, group in self.groups for job in group]
        described = msgspec.json.encode([names, list(grouped), recipe, fingerprint])
        self.fingerprint = hashlib.sha256(described).hexdigest()

    def run(
        self,
        *,
        checkpoint: Path | None = None,
        checkpoint_seconds: float | None = None,
        log_every: int = 50,
        on_progress: Callable[[TrainProgress], None] | None = None,
        stop_after: int | None = None,
    ) -> None:
        """Train from the current step to the last.

        Args:
            checkpoint: folder for checkpoints; when it holds one of this very run, goes on there.
            checkpoint_seconds: time between checkpoints; default :data:`CHECKPOINT_SECONDS`.
            log_every: steps between calls of ``on_progress``; only these read from the device.
            on_progress: told how it goes.
            stop_after: return after this step, with a checkpoint, as if killed.

        Raises:
            UserError: when the checkpoint is of another run.
            CorruptFileError: when it is damaged.
        """
        if checkpoint is not None and (checkpoint / CHECKPOINT_JSON).exists():
            self.load_checkpoint(checkpoint)
        pause = CHECKPOINT_SECONDS if checkpoint_seconds is None else checkpoint_seconds
        saved_at = logged_at = time.monotonic()
        logged_step = self.step
        last = self.recipe.steps if stop_after is None else min(stop_after, self.recipe.steps)
        with torch.no_grad():
            while self.step < last:
                record = on_progress is not None and (
                    (self.step + 1) % log_every == 0 or self.step + 1 == last
                )
                self._one_step(record=record)
                if record and on_progress is not None:
                    now = time.monotonic()
                    rows = (self.step - logged_step) * self.recipe.batch * len(self._jobs())
                    on_progress(self._progress(rows / max(now - logged_at, 1e-9)))
                    logged_at, logged_step = now, self.step
                if checkpoint is not None and time.monotonic() - saved_at > pause:
                    self.save_checkpoint(checkpoint)
                    saved_at = time.monotonic()
        if checkpoint is not None:
            self.save_checkpoint(checkpoint)

    def results(self) -> Iterator[tuple[Job, Transcoder]]:
        """Every job's finished transcoder."""
        for stack, group in self.groups:
            for model, job in enumerate(group):
                parameters = {name: value[model] for name, value in stack.parameters.items()}
                yield job, finish(job.config, parameters, self.data[job.hook_point])

    def save_checkpoint(self, folder: Path) -> None:
        """Write parameters and optimiser state; a crash while writing leaves the last one."""
        folder.mkdir(parents=True, exist_ok=True)
        payload = save_safetensors(self._state())
        replace_file(folder / f"{self.step:09d}.{CHECKPOINT_TENSORS}", payload)
        facts = {
            "step": self.step,
            "fingerprint": self.fingerprint,
            "sha256": hashlib.sha256(payload).hexdigest(),
        }
        replace_file(folder / CHECKPOINT_JSON, msgspec.json.encode(facts))
        for old in folder.glob(f"*.{CHECKPOINT_TENSORS}"):
            if old.name != f"{self.step:09d}.{CHECKPOINT_TENSORS}":
                old.unlink()

    def load_checkpoint(self, folder: Path) -> None:
        """Go on from a checkpoint of this very run.

        Raises:
            UserError: when it was made with other jobs, settings or data.
            CorruptFileError: when it is damaged.
        """
        try:
            facts = msgspec.json.decode(
                (folder / CHECKPOINT_JSON).read_bytes(), type=dict[str, Any]
            )
            step, sha256 = int(facts["step"]), str(facts["sha256"])
            fingerprint = str(facts["fingerprint"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CorruptFileError(
                f"the checkpoint in {folder} is damaged ({error}); remove it to start anew"
            ) from error
        if fingerprint != self.fingerprint:
            raise UserError(
                f"{folder} holds the checkpoint of a run with other settings or data; name another "
                "output directory or remove it"
            )
        own = self._state()
        expected = {name: (_DTYPE_NAMES[t.dtype], tuple(t.shape)) for name, t in own.items()}
        path = folder / f"{step:09d}.{CHECKPOINT_TENSORS}"
        loaded = read_checked_tensors(path, expected, sha256=sha256)
        for index, (stack, _) in enumerate(self.groups):
            state = {}
            for place, (name, parameter) in enumerate(stack.parameters.items()):
                parameter.data.copy_(loaded[f"{index}.{name}"])
                state[place] = {
                    key: loaded[f"{index}.{name}.{key}"]
                    for key in ("step", "exp_avg", "exp_avg_sq")
                }
            stack.optimizer.load_state_dict(
                {"state": state, "param_groups": stack.optimizer.state_dict()["param_groups"]}
            )
            stack.since_fired.copy_(loaded[f"{index}.since_fired"])
        self.step = step

    def _start_from(self, job: Job, transcoder: Transcoder) -> None:
        parameters = unfold(transcoder, self.data[job.hook_point].scales)
        for stack, group in self.groups:
            if job in group:
                with torch.no_grad():
                    for name, value in parameters.items():
                        stack.parameters[name][group.index(job)].copy_(value)

    def _jobs(self) -> list[Job]:
        return [job for _, group in self.groups for job in group]

    def _one_step(self, *, record: bool) -> None:
        rows = {key: order.rows(self.step) for key, order in self._orders.items()}
        for stack, group in self.groups:
            for models in stack.chunks():
                members = group[models]
                chosen = [rows[job.hook_point, job.seed] for job in members]
                x = self._gather(members, chosen, "x")
                y = self._gather(members, chosen, "y")  # scaled unlike x, also where y is x
                head = self._head_gradient(members, y)
                stack.compute(models, x, y, self.step, error_gradient=head, record=record)
            stack.advance(self.step)
            if self._after_step is not None:
                self._after_step(stack)
        self.step += 1

    def _gather(self, members: Sequence[Job], chosen: Sequence[Tensor], side: str) -> Tensor:
        rows = [
            getattr(self.data[job.hook_point], side).index_select(0, index)
            for job, index in zip(members, chosen, strict=True)
        ]
        return rows[0].unsqueeze(0) if len(rows) == 1 else torch.stack(rows)

    def _head_gradient(
        self, members: Sequence[Job], y: Tensor
    ) -> Callable[[Tensor], Tensor] | None:
        """The head-weighted term of the members whose tail is curved, if any."""
        weight = self.recipe.head_weight
        if weight == 0 or all(self.data[job.hook_point].head is None for job in members):
            return None

        def gradient(error: Tensor) -> Tensor:
            return torch.stack(
                [
                    self._curved(self.data[job.hook_point], y[model], error[model], weight)
                    for model, job in enumerate(members)
                ]
            )

        return gradient

    def _curved(self, data: HookData, target: Tensor, mixed: Tensor, weight: float) -> Tensor:
        """What to add to the gradient of ‖mixed‖² so that it is the weighted loss's, in its units.

        ``target`` [n, d_out] is y' and ``mixed`` the error in its coordinates, e' = e T. The loss
        is ‖e‖² + weight · ‖J(y) e‖² / Var(J y), whose gradient with respect to e' is its gradient
        with respect to e times T⁻¹ (T is symmetric).
        """
        if data.head is None:
            return torch.zeros_like(mixed)
        scales, n = data.scales, len(mixed)
        back = self._unmix[data.hook_point]
        error = mixed @ back
        own = (target @ back) * scales.y_scale + scales.y_mean.to(target.device)
        _, pull = data.head.loss_and_gradient(own, error * scales.y_scale)
        wanted: Tensor = (error * (2 / n) + pull * (weight * scales.y_scale)) @ back
        return wanted - mixed * (2 / n)

    def _progress(self, rate: float) -> TrainProgress:
        reports = []
        for stack, group in self.groups:
            stats = stack.stats
            columns = zip(
                group, stats.loss.tolist(), stats.l0.tolist(), stats.dead.tolist(), strict=True
            )
            reports += [JobProgress(job, fvu, l0, int(dead)) for job, fvu, l0, dead in columns]
        return TrainProgress(self.step, self.recipe.steps, tuple(reports), rate)

    def _state(self) -> dict[str, Tensor]:
        state = {}
        for index, (stack, _) in enumerate(self.groups):
            for name, parameter in stack.parameters.items():
                state[f"{index}.{name}"] = parameter.detach()
                own = stack.optimizer.state.get(parameter, {})
                zero = torch.zeros_like(parameter)
                state[f"{index}.{name}.exp_avg"] = own.get("exp_avg", zero)
                state[f"{index}.{name}.exp_avg_sq"] = own.get("exp_avg_sq", zero)
                state[f"{index}.{name}.step"] = own.get("step", torch.zeros(()))
            state[f"{index}.since_fired"] = stack.since_fired
        return {name: tensor.to("cpu").contiguous().clone() for name, tensor in state.items()}


_DTYPE_NAMES = {torch.float32: "F32"}


def _model_seed(job: Job) -> int:
    """A seed of its own per (hook point, seed), stable between runs and Python processes."""
    digest = hashlib.sha256(f"{job.hook_point}:{job.seed}".encode()).digest()
    return int.from_bytes(digest[:6], "little")


def _check_job(job: Job, data: HookData, recipe: Recipe) -> None:
    config = job.config
    if (config.d_in, config.d_out) != data.widths:
        raise UserError(
            f"job {job.name} is for widths {config.d_in} → {config.d_out}, but hook point "
            f"{job.hook_point!r} has {data.widths[0]} → {data.widths[1]}"
        )
    if recipe.head_weight > 0 and data.head is None and data.scales.y_mix is None:
        raise UserError(
            f"the head-weighted loss needs to know what follows {job.hook_point!r}: name the "
            "policy with --policy, or set head_weight to 0"
        )
