"""Trained policies acting offline, for benchmarks of explanations: rows as a live run gives them.

A :class:`Stage` is one policy in its environment with one transcoder; :meth:`Stage.play` runs whole
episodes side by side and gives feature batches on a simulated wall clock that goes on from one call
to the next. The world may be changed between calls (gravity), and so may what is reported of it (a
metric's sign). Where no transcoder is shipped one is trained in seconds with the trainer that users
have.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np

from interlatent_live.environments.disturbance import Disturbance
from interlatent_live.environments.metric_packs import StepMetrics, metric_pack_for
from interlatent_live.explanations.evidence import EvidenceStore
from interlatent_live.explanations.nulls import NullKind
from interlatent_live.stream import (
    Activations,
    Controller,
    FeatureBatch,
    StepFlag,
    Steps,
)
from interlatent_live.transcoders.acting import acting_policy
from interlatent_live.transcoders.capture import Capture
from interlatent_live.transcoders.collect import RolloutSettings, collect_rollouts
from interlatent_live.transcoders.dataset import ActivationDataset
from interlatent_live.transcoders.encoding import encode_activations
from interlatent_live.transcoders.native import load_transcoder
from interlatent_live.transcoders.rollouts import EnvironmentPool
from interlatent_live.transcoders.training.recipe import Recipe
from interlatent_live.transcoders.training.run import TrainRequest, train_dataset

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from interlatent_live.explanations.evidence import Evidence
    from interlatent_live.stream import MetricSpec
    from interlatent_live.transcoders.acting import ActingPolicy
    from interlatent_live.transcoders.transcoder import Transcoder

HOOK: Final = "hidden.1"
SHIPPED: Final = Path(__file__).parent.parent / "data" / "transcoders"
_SECOND_NS: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Scene:
    """One policy in one environment, and how its transcoder is made where none is shipped."""

    name: str
    environment: str
    policy: str
    shipped: str = ""
    """Folder of the shipped transcoder; empty: train one."""
    n_features: int = 128
    k: int = 8
    head_weight: float = 0.0
    training_steps: int = 1500
    training_episodes: int = 64
    max_steps: int | None = None
    disturbance: Disturbance = field(default_factory=Disturbance)
    null: NullKind = NullKind.REASSIGN
    block_steps: int | None = None
    """Cuts endless runs into the blocks that are resampled."""


CARTPOLE: Final = Scene(
    "CartPole",
    "CartPole-v1",
    "cartpole",
    shipped="cartpole",
    disturbance=Disturbance(start=0.8, push=0.7, push_interval_s=0.8),
)
LUNARLANDER: Final = Scene(
    "LunarLander PPO",
    "LunarLander-v3",
    "lunarlander-ppo",
    shipped="lunarlander",
    disturbance=Disturbance(start=0.7, push=0.5, push_interval_s=1.0),
)
WALKER2D: Final = Scene(
    "Walker2d",
    "Walker2d-v5",
    "walker2d",
    k=8,
    training_episodes=24,
    block_steps=250,
)
HALFCHEETAH: Final = Scene(
    "HalfCheetah SAC",
    "HalfCheetah-v5",
    "halfcheetah-sac",
    n_features=512,
    k=32,
    head_weight=0.1,
    training_episodes=24,
    block_steps=250,
)


class Stage:
    """A scene with its policy loaded; close it, or use it as a context manager.

    Args:
        scene: what is played.
        copies: episodes side by side.
        policy: another policy than the scene's (an untrained one, as a control).
        transcoder: another transcoder than the scene's.
    """

    def __init__(
        self,
        scene: Scene,
        *,
        copies: int = 16,
        policy: ActingPolicy | None = None,
        transcoder: Transcoder | None = None,
    ) -> None:
        self.scene = scene
        self.policy = policy or acting_policy(scene.policy)
        self.transcoder = transcoder or transcoder_of(scene, self.policy)
        self._pool = EnvironmentPool(scene.environment, copies, scene.disturbance)
        pack = metric_pack_for(scene.environment, obs_dim=self._pool.observation_width())
        self._metrics = StepMetrics(pack, self.policy.output_kind)
        self.specs: tuple[MetricSpec, ...] = self._metrics.specs
        self.actions = pack.family.actions
        self.seconds_per_step = pack.family.step_seconds
        self._outputs: NDArray[np.float32] = np.zeros((0, 0), np.float32)
        self._tick = 1
        self._round = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.__exit__(None, None, None)

    @property
    def now_ns(self) -> int:
        """The simulated clock."""
        return round(self._tick * self.seconds_per_step * _SECOND_NS)

    def set_gravity(self, factor: float) -> None:
        """Change gravity from the next episode on, relative to what it is now."""
        for env in self._pool.envs:
            base: Any = env.unwrapped
            if hasattr(base, "gravity"):
                base.gravity *= factor
            else:
                base.model.opt.gravity[2] *= factor

    def play(self, episodes: int, seed: int) -> Iterator[FeatureBatch]:
        """Whole episodes as feature batches, one batch per round of copies.

        Args:
            episodes: how many; episode i starts from ``seed + i``.
            seed: of starts and pushes, and of sampled actions.
        """
        copies = len(self._pool.envs)
        for first in range(0, episodes, copies):
            count = min(copies, episodes - first)
            yield self._round_of(range(seed + first, seed + first + count))

    def evidence(self, episodes: int, seed: int) -> Evidence:
        """The same as evidence of the scene's hook point."""
        return self.evidence_and_outputs(episodes, seed)[0]

    def evidence_and_outputs(
        self, episodes: int, seed: int
    ) -> tuple[Evidence, NDArray[np.float32]]:
        """Evidence, and the hook point's outputs [n, d_out] of its rows."""
        store = EvidenceStore(self.specs, limit_bytes=1 << 30, block_steps=self.scene.block_steps)
        outputs, keys = [], []
        for batch in self.play(episodes, seed):
            store.add(batch)
            outputs.append(self._outputs)
            steps = batch.steps
            keys.append(np.stack([steps.env, steps.episode, steps.t]).astype(np.int64))
        env, episode, t = np.concatenate(keys, axis=1)
        order = np.lexsort((t, episode, env))
        return store.evidence(HOOK), np.concatenate(outputs)[order]

    def _round_of(self, seeds: range) -> FeatureBatch:
        rng = np.random.default_rng([seeds.start])
        capture = Capture(self.policy.module, (HOOK,))
        parts: list[Mapping[str, NDArray[Any]]] = []
        latest: dict[str, Any] = {}

        def act(obs: NDArray[Any], copies: NDArray[np.intp]) -> NDArray[Any]:
            del copies
            latest["outputs"] = self.policy.outputs(obs)
            latest["x"], latest["y"] = capture.take()[HOOK]
            return self.policy.actions(latest["outputs"], rng)

        with capture:
            for step in self._pool.episodes(seeds, act, max_steps=self.scene.max_steps):
                n = len(step.copies)
                ended = step.terminated * int(StepFlag.TERMINATED)
                ended = ended + step.truncated * int(StepFlag.TRUNCATED)
                rows = self._metrics.rows(
                    step.obs.reshape(n, -1),
                    np.full(n, step.t),
                    step.actions,
                    step.rewards,
                    latest["outputs"].double().numpy(),
                )
                parts.append(
                    {
                        "env": step.copies.astype(np.uint16),
                        "t": np.full(n, step.t, np.uint32),
                        "time_ns": np.full(n, self.now_ns, np.int64),
                        "flags": ended.astype(np.uint8),
                        "metrics": rows,
                        "x": latest["x"].float().numpy().copy(),
                        "y": latest["y"].float().numpy().copy(),
                    }
                )
                self._tick += 1
        columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        return self._batch(columns)

    def _batch(self, columns: Mapping[str, NDArray[Any]]) -> FeatureBatch:
        count = len(columns["env"])
        steps = Steps(
            first_seq=0,
            env=columns["env"],
            episode=np.full(count, self._round, np.uint32),
            t=columns["t"],
            time_ns=columns["time_ns"],
            controller=np.full(count, int(Controller.POLICY), np.uint8),
            flags=columns["flags"],
            metrics=columns["metrics"],
        )
        self._round += 1
        self._outputs = columns["y"]
        seen = Activations(columns["x"], columns["y"][:0], np.zeros(0, np.uint16))
        return FeatureBatch(
            "bench",
            "bench",
            steps,
            {HOOK: encode_activations(self.transcoder, seen)},
            {HOOK: self.transcoder.identity},
        )


def transcoder_of(scene: Scene, policy: ActingPolicy) -> Transcoder:
    """The shipped transcoder of the scene's own policy, or one trained now (seconds)."""
    if scene.shipped and policy.name == scene.policy:
        path = SHIPPED / scene.shipped / HOOK
        return load_transcoder(path, policy_hash=policy.policy_hash).transcoder
    with tempfile.TemporaryDirectory(prefix="interlatent-scene-") as folder:
        root = Path(folder)
        settings = RolloutSettings(
            episodes=scene.training_episodes,
            seed=300_000,
            max_steps=scene.max_steps,
            disturbance=scene.disturbance,
        )
        collect_rollouts(policy, (HOOK,), root / "rows", settings)
        trained = train_dataset(
            ActivationDataset(root / "rows"),
            root / "trained",
            TrainRequest(n_features=(scene.n_features,), k=scene.k, seeds=1),
            Recipe(steps=scene.training_steps, head_weight=scene.head_weight),
            policy=policy if scene.head_weight else None,
        )
        return trained[0].transcoder
