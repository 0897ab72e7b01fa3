"""One moment, twice: what follows without an intervention, and what follows with it.

The agent plays an episode from its seed, the moment is cloned, and the original goes on. Then the
moment is restored and played again without an intervention, which must repeat the original to the
bit (else the clone is none and nothing is said), and once more with it. What differs between the
two branches from one moment is what the intervention did, there and then: one case, no average.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from interlatent_live.environments.metric_packs import metric_pack_for
from interlatent_live.errors import UserError
from interlatent_live.interventions.branches.cloning import restore, take
from interlatent_live.interventions.deltas import apply

if TYPE_CHECKING:
    from collections.abc import Iterator

    import gymnasium
    from numpy.typing import NDArray
    from torch import Tensor

    from interlatent_live.environments.metric_packs import ObservationPack
    from interlatent_live.interventions.values import Plan
    from interlatent_live.transcoders.acting import ActingPolicy
    from interlatent_live.transcoders.transcoder import Transcoder


@dataclass(frozen=True, slots=True, eq=False)
class Track:
    """What happened on one branch, step by step."""

    obs: NDArray[np.float64]
    """[n + 1, d], the cloned moment first."""
    actions: NDArray[np.float64]
    """[n, a]."""
    rewards: NDArray[np.float64]
    """[n]."""
    ended: str
    """``terminated``, ``truncated``, or empty where it went on."""

    def same(self, other: Track) -> bool:
        """Whether both are equal to the bit."""
        return (
            self.ended == other.ended
            and self.obs.tobytes() == other.obs.tobytes()
            and self.actions.tobytes() == other.actions.tobytes()
            and self.rewards.tobytes() == other.rewards.tobytes()
        )


@dataclass(frozen=True, slots=True, eq=False)
class Branches:
    """Two branches from one moment."""

    kind: str
    """How the state was cloned."""
    seed: int
    at: int
    metrics: tuple[str, ...]
    without: Track
    intervened: Track
    measured: tuple[NDArray[np.float64], NDArray[np.float64]]
    """Metrics [n + 1, M] of both, without first."""

    @property
    def first_other_action(self) -> int | None:
        """The first step, counted from the moment, in which the actions differ."""
        n = min(len(self.without.actions), len(self.intervened.actions))
        apart = (self.without.actions[:n] != self.intervened.actions[:n]).any(axis=1)
        return int(apart.argmax()) if apart.any() else None

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        tracks = zip(
            ("without", "with"), (self.without, self.intervened), self.measured, strict=True
        )
        return {
            "cloned": self.kind,
            "seed": self.seed,
            "at": self.at,
            "repeats_to_the_bit": True,
            "first_other_action": self.first_other_action,
            "metrics": list(self.metrics),
            "branches": {
                name: {
                    "return": float(track.rewards.sum()),
                    "steps": len(track.rewards),
                    "ended": track.ended,
                    "rewards": track.rewards.tolist(),
                    "actions": track.actions.tolist(),
                    "metrics": _columns(self.metrics, measured),
                }
                for name, track, measured in tracks
            },
        }


def branch(
    env: gymnasium.Env[Any, Any],
    policy: ActingPolicy,
    transcoder: Transcoder,
    plan: Plan,
    *,
    seed: int,
    at: int,
    steps: int,
    lasts: int | None = None,
) -> Branches:
    """Play the two branches.

    Args:
        env: made by the caller, who closes it.
        policy: acts deterministically.
        transcoder: of the plan's hook point.
        plan: the intervention, with its bound; conditions on metrics are not judged here.
        seed: of the episode.
        at: steps before the moment.
        steps: steps after it.
        lasts: steps for which the intervention is in force; all, unless given.

    Raises:
        UserError: when the state cannot be cloned, the clone does not repeat the original, or the
            episode is over before the moment.
    """
    if any(item.predicate is not None for item in plan.interventions):
        raise UserError("a branch knows no conditions on metrics; give one on a feature, or none")
    obs, _ = env.reset(seed=seed)
    take(env)  # what cannot be cloned is refused before anything is played
    for step in range(at):
        obs, _, terminated, truncated, _ = env.step(_act(policy, obs))
        if terminated or truncated:
            raise UserError(f"the episode of seed {seed} is over after {step + 1} steps")
    moment = take(env)
    original = _play(env, policy, obs, steps)
    restore(env, moment)
    without = _play(env, policy, obs, steps)
    if not without.same(original):
        raise UserError(
            f"a cloned state of {type(env.unwrapped).__name__} does not repeat its own future to "
            "the bit (something of it lies outside of the environment), so branches of it would "
            "show more than the intervention"
        )
    restore(env, moment)
    with _steering(policy, transcoder, plan, lasts):
        intervened = _play(env, policy, obs, steps)
    shape = without.obs.shape[1]
    pack = metric_pack_for(policy.environment, obs_dim=shape)
    return Branches(
        moment.kind, seed, at, tuple(spec.name for spec in pack.specs), without, intervened,
        (_measured(pack, without), _measured(pack, intervened)),
    )  # fmt: skip


def describe(plan: Plan) -> list[dict[str, Any]]:
    """The interventions of a plan as plain values."""
    return [
        {"hook_point": plan.hook_point, "transcoder": plan.transcoder_hash, **asdict(item)}
        for item in plan.interventions
    ]


def _play(env: gymnasium.Env[Any, Any], policy: ActingPolicy, obs: Any, steps: int) -> Track:
    seen, actions, rewards, ended = [_flat(obs)], [], [], ""
    for _ in range(steps):
        action = _act(policy, obs)
        obs, reward, terminated, truncated, _ = env.step(action)
        seen.append(_flat(obs))
        actions.append(np.atleast_1d(np.asarray(action, np.float64)))
        rewards.append(float(reward))
        if terminated or truncated:
            ended = "terminated" if terminated else "truncated"
            break
    return Track(np.stack(seen), np.stack(actions), np.array(rewards), ended)


def _act(policy: ActingPolicy, obs: Any) -> Any:
    return policy.act(np.asarray(obs)[None])[0]


def _flat(obs: Any) -> NDArray[np.float64]:
    return np.asarray(obs, np.float64).reshape(-1)


def _measured(pack: ObservationPack, track: Track) -> NDArray[np.float64]:
    return np.asarray(pack.extract_batch(track.obs), np.float64)


def _columns(names: tuple[str, ...], values: NDArray[np.float64]) -> dict[str, list[float | None]]:
    return {
        name: [None if np.isnan(value) else float(value) for value in column]
        for name, column in zip(names, values.T, strict=True)
    }


@contextmanager
def _steering(
    policy: ActingPolicy, transcoder: Transcoder, plan: Plan, lasts: int | None
) -> Iterator[None]:
    """The plan in force at its hook point, for so many forwards."""
    left = lasts

    def hook(_: Any, args: tuple[Any, ...], output: Tensor) -> Tensor:
        nonlocal left
        if left is not None:
            if left <= 0:
                return output
            left -= 1
        features = transcoder.encode(args[0]) if plan.needs_features else None
        return apply(plan, output, transcoder.W_dec, features)

    handle = policy.module.get_submodule(plan.hook_point).register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
