"""What can be measured of an environment at each step, with names, units and roles.

An observation is a vector of unnamed numbers; an explanation needs names and units. A *metric pack*
turns the observation of one environment family into named state metrics in SI units, adds what the
physics makes of them (a pole's tip, a distance, a tilt) and names the actions. :class:`StepMetrics`
puts a whole step together: state metrics of obs_t, clock, action a_t, what the policy's output said
of itself, and the outcome reward_{t+1}.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from interlatent_live.environments.families import (
    cartpole,
    driving,
    fetch,
    humanoid,
    lunarlander,
    mspacman,
    mujoco,
    unitree,
)
from interlatent_live.environments.families.family import Family
from interlatent_live.errors import UserError
from interlatent_live.stream import MetricSpec, Role

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import ArrayLike, NDArray

FAMILIES: Mapping[str, Family] = {
    family.environment: family
    for family in (
        cartpole.CARTPOLE,
        lunarlander.LUNARLANDER,
        mujoco.HALFCHEETAH,
        mujoco.WALKER2D,
        humanoid.HUMANOID,
        mspacman.MSPACMAN,
        mspacman.MSPACMAN_FROM_PIXELS,
        driving.HIGHWAY,
        unitree.G1,
        unitree.G1_LEGS,
        fetch.FETCH,
    )
}
_BY_BARE_ID: Mapping[str, Family] = {
    name.rpartition(":")[2]: family for name, family in FAMILIES.items()
}
"""An environment's own spec does not say which module registered it."""


class MetricPack(Protocol):
    """Names, units and values of an environment's state metrics."""

    @property
    def specs(self) -> tuple[MetricSpec, ...]:
        """The state metrics, in the order of the columns."""
        ...

    def extract(self, obs: ArrayLike, info: Mapping[str, Any], env: object) -> NDArray[np.float64]:
        """One row [M] for one observation; NaN where a metric is absent."""
        ...


@dataclass(frozen=True, slots=True)
class ObservationPack:
    """A pack that needs the observation and nothing else, so that it also works on batches."""

    family: Family

    @property
    def specs(self) -> tuple[MetricSpec, ...]:
        """The state metrics, in the order of the columns."""
        return self.family.specs

    def extract(self, obs: ArrayLike, info: Mapping[str, Any], env: object) -> NDArray[np.float64]:
        """One row [M]; ``info`` and ``env`` are not looked at."""
        del info, env
        row: NDArray[np.float64] = self.extract_batch(np.asarray(obs)[None])[0]
        return row

    def extract_batch(self, obs: ArrayLike) -> NDArray[np.float64]:
        """State metrics [n, M] for observations [n, d], or [n, …] of d numbers.

        Raises:
            ValueError: when an observation does not have the family's size.
        """
        array: NDArray[Any] = np.asarray(obs)
        if array.ndim > 2:
            array = array.reshape(len(array), -1)
        if array.ndim != 2 or array.shape[1] != self.family.obs_dim:
            raise ValueError(
                f"{self.family.environment} has observations [n, {self.family.obs_dim}], "
                f"not {list(array.shape)}"
            )
        return self.family.measure(np.asarray(array[:, self.family.measured_from :], np.float64))


def metric_pack_for(env_id: str, *, obs_dim: int | None = None) -> ObservationPack:
    """The pack of an environment; of an unknown one, ``obs_0 … obs_{d−1}`` without units.

    Raises:
        UserError: when the environment is unknown and ``obs_dim`` is not given.
    """
    family = FAMILIES.get(env_id) or _BY_BARE_ID.get(env_id)
    if family is not None:
        return ObservationPack(family)
    if obs_dim is None:
        raise UserError(
            f"there is no metric pack for {env_id}: give obs_dim for unnamed observations, or pass "
            f"a MetricPack of your own (known: {', '.join(FAMILIES)})"
        )
    return ObservationPack(unnamed_family(env_id, obs_dim))


def metric_pack_of(env: Any) -> ObservationPack | None:
    """The pack of a Gymnasium environment whose observations are those that the pack knows.

    None for an environment without a pack, and where a wrapper may have made something else of the
    observation: names and units of the raw one would then be wrong.
    """
    spec = getattr(env, "spec", None)
    if spec is None or hasattr(env, "num_envs"):
        return None
    family = FAMILIES.get(spec.id) or _BY_BARE_ID.get(spec.id)
    inner = env
    while hasattr(inner, "env"):
        if hasattr(inner, "observation") or inner.observation_space != inner.env.observation_space:
            return None
        inner = inner.env
    return None if family is None else ObservationPack(family)


def unnamed_family(env_id: str, obs_dim: int) -> Family:
    """A family that measures each observation as it is, without a unit."""
    specs = tuple(
        MetricSpec(f"obs_{index}", "", Role.STATE, f"observation {index}")
        for index in range(obs_dim)
    )
    return Family(env_id, obs_dim, specs, lambda obs: obs)


class OutputKind(StrEnum):
    """What the numbers at a policy's head mean, as far as they can be read as a metric."""

    LOGITS = "logits"
    VALUES = "values"
    CONTINUOUS = "continuous"


def internal_specs(kind: OutputKind) -> tuple[MetricSpec, ...]:
    """Policy-internal metrics that the head's output gives for free."""
    role = Role.INTERNAL
    if kind is OutputKind.LOGITS:
        return (
            MetricSpec("logit_gap", "", role, "largest minus second largest logit"),
            MetricSpec("entropy", "nat", role, "entropy of the softmax over the actions"),
            MetricSpec("chosen_logit", "", role, "chosen action's logit minus the mean logit"),
        )
    if kind is OutputKind.VALUES:
        return (
            MetricSpec("value_gap", "", role, "largest minus second largest action value"),
            MetricSpec("chosen_value", "", role, "value of the chosen action"),
        )
    return (MetricSpec("output_norm", "", role, "norm of the head's output before any squashing"),)


def internal_metrics(
    kind: OutputKind, outputs: ArrayLike, actions: ArrayLike
) -> NDArray[np.float64]:
    """Values [n, len(internal_specs(kind))] for outputs [n, d_out] and actions [n] or [n, A]."""
    out: NDArray[np.float64] = np.asarray(outputs, np.float64)
    if kind is OutputKind.CONTINUOUS:
        norm: NDArray[np.float64] = np.linalg.norm(out, axis=1, keepdims=True)
        return norm
    chosen = out[np.arange(len(out)), np.asarray(actions, np.intp)]
    top = np.partition(out, -2, axis=1)[:, -2:] if out.shape[1] > 1 else out[:, [0, 0]]
    gap = top[:, 1] - top[:, 0]
    if kind is OutputKind.VALUES:
        return np.stack([gap, chosen], axis=1)
    shifted = out - out.max(axis=1, keepdims=True)
    log_z = np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    log_p = shifted - log_z
    entropy = -(np.exp(log_p) * log_p).sum(axis=1)
    return np.stack([gap, entropy, chosen - out.mean(axis=1)], axis=1)


@dataclass(frozen=True, slots=True)
class StepMetrics:
    """All metric columns of a step: state, clock, action, policy-internal, outcome.

    ``output`` is None where the policy's output is not at hand; then the internal metrics are not
    among the columns.
    """

    pack: ObservationPack
    output: OutputKind | None = None

    @property
    def specs(self) -> tuple[MetricSpec, ...]:
        """Specs of every column, in order."""
        internal = () if self.output is None else internal_specs(self.output)
        return (
            *self.pack.specs,
            MetricSpec("time_in_episode", "s", Role.CLOCK, "simulated time since the reset"),
            *self.pack.family.action_specs,
            *internal,
            MetricSpec("reward", "", Role.OUTCOME, "reward for the step, known one step later"),
        )

    def rows(
        self,
        obs: ArrayLike,
        t: ArrayLike,
        actions: ArrayLike,
        rewards: ArrayLike,
        outputs: ArrayLike | None = None,
    ) -> NDArray[np.float64]:
        """Columns [n, len(specs)] for n steps.

        ``obs`` [n, d] is what the policy saw, ``t`` [n] the step within the episode, ``actions``
        [n] or [n, A] what it did, ``rewards`` [n] what came of it, ``outputs`` [n, d_out] the
        head's output (needed when ``output`` is set).

        Raises:
            ValueError: when ``outputs`` is missing.
        """
        family = self.pack.family
        parts = [
            self.pack.extract_batch(obs),
            np.asarray(t, np.float64)[:, None] * family.step_seconds,
            family.measure_actions(np.asarray(actions)),
        ]
        if self.output is not None:
            if outputs is None:
                raise ValueError("the internal metrics need the policy's outputs")
            parts.append(internal_metrics(self.output, outputs, actions))
        parts.append(np.asarray(rewards, np.float64)[:, None])
        return np.concatenate(parts, axis=1)
