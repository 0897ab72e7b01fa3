"""Datasets from rollouts, recordings and live streams.

A rollout is cut into blocks of whole episodes. A block is a function of the settings and its number
alone, so a killed run goes on at its last whole block and ends with the very same bytes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
import torch

from interlatent_live.environments.disturbance import Disturbance
from interlatent_live.environments.metric_packs import StepMetrics, metric_pack_for
from interlatent_live.errors import MismatchError, UserError
from interlatent_live.stream import Controller, StepFlag
from interlatent_live.transcoders.capture import Capture
from interlatent_live.transcoders.config import Target
from interlatent_live.transcoders.dataset import (
    DatasetWriter,
    Header,
    HookWidths,
    Manifest,
    MetricColumn,
    Rows,
)
from interlatent_live.transcoders.evaluation.splice import Splice, replacement
from interlatent_live.transcoders.native import check_binding
from interlatent_live.transcoders.rollouts import EnvironmentPool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from interlatent_live.stream import Manifest as StreamManifest
    from interlatent_live.stream import MetricSpec, StepBatch
    from interlatent_live.transcoders.acting import ActingPolicy
    from interlatent_live.transcoders.native import LoadedTranscoder


@dataclass(frozen=True, slots=True)
class RolloutSettings:
    """What decides the rows of a rollout.

    Args:
        episodes: how many whole episodes.
        seed: episode i is reset with ``seed + i``.
        epsilon: probability of a uniformly random action in a step; it widens the states seen.
        copies: episodes per block, run side by side.
        max_steps: truncates endless episodes.
        disturbance: spread of starts and pushes.
    """

    episodes: int = 200
    seed: int = 0
    epsilon: float = 0.0
    copies: int = 32
    max_steps: int | None = None
    disturbance: Disturbance = field(default_factory=Disturbance)

    def __post_init__(self) -> None:
        if self.episodes < 1 or self.copies < 1:
            raise UserError("collect needs at least 1 episode and 1 copy of the environment")
        if not 0 <= self.epsilon <= 1:
            raise UserError(f"epsilon is {self.epsilon}; it is a probability")


@dataclass(frozen=True, slots=True)
class CollectProgress:
    """How far a collection is."""

    done: int
    total: int
    rows: int
    mean_return: float
    """Over the episodes of this run so far; NaN where unknown."""


def collect_rollouts(
    policy: ActingPolicy,
    hook_points: Sequence[str],
    out: Path,
    settings: RolloutSettings,
    on_progress: Callable[[CollectProgress], None] | None = None,
    *,
    spliced: Sequence[LoadedTranscoder] = (),
) -> Manifest:
    """Run the policy and write what its hook points saw; a second call goes on after a kill.

    With ``spliced`` transcoders, episodes are shared out in turn: the policy by itself, the policy
    acting through the first of them, and so on. Every row still holds the policy's own x and y, so
    a transcoder learns what the policy does in the states that acting through an earlier one leads
    to (DAgger: Ross, Gordon and Bagnell 2011, algorithm 3.1). Such rows are tagged as controlled by
    an intervention, and no figure is reported on them.

    Args:
        policy: who acts.
        hook_points: module names or spans ``first..last``.
        out: directory of the dataset.
        settings: what decides the rows.
        on_progress: called after each block.
        spliced: earlier transcoders of this policy, through which it acts in part of the episodes.

    Returns:
        The complete manifest; its hash depends on the settings and the spliced transcoders only.

    Raises:
        UserError: for an unknown environment or hook point, or another dataset at ``out``.
        MismatchError: when a spliced transcoder was trained on another policy.
    """
    if not hook_points:
        raise UserError("name at least one hook point to collect from")
    for one in spliced:
        check_binding(one.provenance, one.transcoder.identity, policy_hash=policy.policy_hash)
        if one.transcoder.config.target is not Target.OUTPUT:
            raise UserError(f"{one.path} reconstructs its input; only one of the output can act")
    copies = min(settings.copies, settings.episodes)
    with EnvironmentPool(policy.environment, copies, settings.disturbance) as pool:
        pack = metric_pack_for(policy.environment, obs_dim=pool.observation_width())
        metrics = StepMetrics(pack, policy.output_kind)
        capture = Capture(policy.module, hook_points)
        header = Header(
            policy_hash=policy.policy_hash,
            environment=policy.environment,
            hook_points=_probe(policy, capture, pool),
            metrics=tuple(_column(spec) for spec in metrics.specs),
            source="rollout",
            settings={
                "copies": copies,
                **{k: v for k, v in asdict(settings).items() if k != "copies"},
                **({"spliced": [one.transcoder.identity for one in spliced]} if spliced else {}),
            },
        )
        writer = DatasetWriter(out, header)
        if writer.manifest.complete:
            return writer.manifest
        blocks = range(writer.manifest.progress, -(-settings.episodes // copies))
        returns: list[float] = []
        for block in blocks:
            first = block * copies
            count = min(copies, settings.episodes - first)
            returns += _collect_block(
                policy,
                capture,
                metrics,
                pool,
                writer,
                settings=settings,
                spliced=spliced,
                first=first,
                count=count,
            )
            writer.commit(episodes=first + count, progress=block + 1)
            if on_progress is not None:
                on_progress(
                    CollectProgress(
                        first + count, settings.episodes, writer.rows, float(np.mean(returns))
                    )
                )
        return writer.finish()


def collect_stream(
    batches: Iterable[StepBatch],
    manifest: StreamManifest,
    hook_points: Sequence[str],
    out: Path,
    *,
    boot_ids: Iterable[str] | None = None,
    live: bool = False,
    commit_rows: int = 65_536,
    max_rows: int | None = None,
    on_progress: Callable[[CollectProgress], None] | None = None,
) -> Manifest:
    """Write the policy's own operation, live or recorded, as a dataset.

    Only steps that the policy controlled and whose activations are complete are kept: steered rows
    would teach the transcoder states that the policy does not bring about. After a kill, a second
    call over the same recording skips what was committed; a live stream does not come again, so
    there a second call adds to what was committed.

    Args:
        batches: what the agent sent, in order.
        manifest: what the agent said of itself.
        hook_points: names among the manifest's.
        out: directory of the dataset.
        boot_ids: boot of each batch, when the stream spans restarts; episode numbers start again
            with each.
        live: whether the rows are new at each call, and may be those of several runs.
        commit_rows: input rows per commit.
        max_rows: stop after so many input rows, those of earlier calls included.
        on_progress: called after each commit.

    Raises:
        MismatchError: when the agent has no such hook point.
        UserError: when another dataset is at ``out``.
    """
    known = {hook.name: hook for hook in manifest.hook_points}
    for name in hook_points:
        if name not in known:
            raise MismatchError(
                f"agent {manifest.agent} has no hook point {name!r}; it streams {', '.join(known)}"
            )
    header = Header(
        policy_hash=manifest.policy_hash,
        environment=manifest.environment,
        hook_points=tuple(
            HookWidths(name, known[name].d_in, known[name].d_out) for name in hook_points
        ),
        metrics=tuple(_column(spec) for spec in manifest.metrics),
        source="stream",
        settings={"agent": manifest.agent} | ({} if live else {"run_id": manifest.run_id}),
    )
    writer = DatasetWriter(out, header)
    numbers = {str(key): int(value) for key, value in writer.manifest.state.items()}
    skip, uncommitted = writer.manifest.progress, 0
    seen = skip if live else 0
    if max_rows is not None and seen >= max_rows:
        return writer.finish()
    boots = iter(boot_ids) if boot_ids is not None else None
    for batch in batches:
        boot = manifest.boot_id if boots is None else next(boots)
        n = len(batch.steps)
        seen += n
        if seen <= skip:
            continue
        rows = _kept_rows(batch, hook_points, boot, numbers)
        writer.append(rows)
        uncommitted += n
        last = max_rows is not None and seen >= max_rows
        if uncommitted >= commit_rows or last:
            writer.commit(episodes=len(numbers), progress=seen, state=dict(numbers))
            uncommitted = 0
            if on_progress is not None:
                on_progress(CollectProgress(seen, max_rows or 0, writer.rows, float("nan")))
        if last:
            break
    if uncommitted:
        writer.commit(episodes=len(numbers), progress=seen, state=dict(numbers))
    return writer.finish()


def _kept_rows(
    batch: StepBatch, hook_points: Sequence[str], boot: str, numbers: dict[str, int]
) -> Rows:
    steps = batch.steps
    keep = (steps.controller == int(Controller.POLICY)) & (
        steps.flags & int(StepFlag.NO_ACTIVATION) == 0
    )
    for name in hook_points:
        if name not in batch.activations:
            raise MismatchError(f"a batch of the stream lacks hook point {name!r}")
        sampled = np.zeros(len(steps), np.bool_)
        sampled[batch.activations[name].y_rows] = True
        keep &= sampled
    rows = np.flatnonzero(keep)
    episode = np.empty(len(rows), np.uint32)
    for slot, row in enumerate(rows):
        key = f"{boot}/{steps.env[row]}/{steps.episode[row]}"
        episode[slot] = numbers.setdefault(key, len(numbers))
    activations = {}
    for name in hook_points:
        one = batch.activations[name]
        at = np.searchsorted(one.y_rows, rows)
        activations[name] = (one.x[rows].astype(np.float32), one.y[at].astype(np.float32))
    return Rows(
        episode=episode,
        env=steps.env[rows],
        t=steps.t[rows],
        time_ns=steps.time_ns[rows],
        controller=steps.controller[rows],
        flags=steps.flags[rows],
        metrics=steps.metrics[rows],
        activations=activations,
    )


def _probe(policy: ActingPolicy, capture: Capture, pool: EnvironmentPool) -> tuple[HookWidths, ...]:
    """Widths of the hook points, from one forward on one observation."""
    obs = np.asarray(pool.envs[0].reset(seed=0)[0])[None]
    with capture:
        policy.outputs(obs)
        seen = capture.take()
    return tuple(HookWidths(name, x.shape[1], y.shape[1]) for name, (x, y) in seen.items())


def _collect_block(
    policy: ActingPolicy,
    capture: Capture,
    metrics: StepMetrics,
    pool: EnvironmentPool,
    writer: DatasetWriter,
    *,
    settings: RolloutSettings,
    spliced: Sequence[LoadedTranscoder],
    first: int,
    count: int,
) -> list[float]:
    """Append ``count`` episodes from number ``first``; returns their returns."""
    rng = np.random.default_rng([settings.seed, first])
    seeds = [settings.seed + first + i for i in range(count)]
    returns = np.zeros(count)
    # Who acts in episode number i: 0 the policy by itself, j through the j-th transcoder.
    actor = (first + np.arange(count)) % (1 + len(spliced))
    latest: dict[str, Any] = {}

    def act(obs: NDArray[Any], copies: NDArray[np.intp]) -> NDArray[Any]:
        outputs = policy.outputs(obs)
        latest["outputs"] = outputs
        latest["seen"] = capture.take()
        acting = outputs
        for number, one in enumerate(spliced, start=1):
            rows = np.flatnonzero(actor[copies] == number)
            if not len(rows):
                continue
            with Splice(policy.module, one.provenance.hook_point, replacement(one.transcoder)):
                through = policy.outputs(obs[rows])
            acting = acting.index_copy(0, torch.from_numpy(rows), through)
        actions = policy.actions(acting, rng)
        if settings.epsilon > 0:
            actions = _with_noise(actions, pool.action_space, settings.epsilon, rng)
        return actions

    with capture:
        for step in pool.episodes(seeds, act, max_steps=settings.max_steps):
            returns[step.copies] += step.rewards
            n = len(step.copies)
            flags = step.terminated * int(StepFlag.TERMINATED) + step.truncated * int(
                StepFlag.TRUNCATED
            )
            outputs = latest["outputs"].to("cpu").double().numpy()
            writer.append(
                Rows(
                    episode=(first + step.copies).astype(np.uint32),
                    env=step.copies.astype(np.uint16),
                    t=np.full(n, step.t, np.uint32),
                    time_ns=np.zeros(n, np.int64),  # a wall clock would change the hash
                    controller=np.where(
                        actor[step.copies] == 0,
                        int(Controller.POLICY),
                        int(Controller.INTERVENTION),
                    ).astype(np.uint8),
                    flags=flags.astype(np.uint8),
                    metrics=metrics.rows(
                        step.obs.reshape(n, -1),
                        np.full(n, step.t),
                        step.actions,
                        step.rewards,
                        outputs,
                    ),
                    activations={
                        name: (x.to("cpu").float().numpy(), y.to("cpu").float().numpy())
                        for name, (x, y) in latest["seen"].items()
                    },
                )
            )
    return [float(value) for value in returns]


def _with_noise(
    actions: NDArray[Any],
    space: gymnasium.Space[Any],
    epsilon: float,
    rng: np.random.Generator,
) -> NDArray[Any]:
    actions = actions.copy()
    chosen = rng.random(len(actions)) < epsilon
    if isinstance(space, gymnasium.spaces.Discrete):
        actions[chosen] = rng.integers(0, int(space.n), int(chosen.sum()))
    elif isinstance(space, gymnasium.spaces.Box):
        low, high = np.maximum(space.low, -1e6), np.minimum(space.high, 1e6)
        actions[chosen] = rng.uniform(low, high, (int(chosen.sum()), *actions.shape[1:]))
    else:
        raise UserError(f"epsilon-noise knows no actions of type {type(space).__name__}")
    return actions


def _column(spec: MetricSpec) -> MetricColumn:
    return MetricColumn(spec.name, spec.unit, spec.role, spec.description)
