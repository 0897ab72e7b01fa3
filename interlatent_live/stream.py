"""The values that travel: metrics, hook points, manifests, steps and sparse features.

Every part of the system speaks of these, so they live in one place, are frozen, hold NumPy arrays
only (no torch) and check nothing that costs more than a comparison of shapes. Arrays inside a batch
are columns: one row is one *step*, that is one environment step of one agent copy.

Alignment: a row holds the activations of the forward on ``obs_t``, the state metrics of ``obs_t``,
the action ``a_t`` and the outcome at ``t + 1`` (reward, terminated, truncated).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, IntFlag, StrEnum
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray


class Role(StrEnum):
    """What a metric speaks of; *when* predicates may use only state and clock metrics."""

    STATE = "state"
    ACTION = "action"
    OUTCOME = "outcome"
    INTERNAL = "internal"
    CLOCK = "clock"


class Controller(IntEnum):
    """Who chose the action of a step; only ``POLICY`` rows enter the default statistics."""

    POLICY = 0
    HUMAN = 1
    HOLD = 2
    INTERVENTION = 3


class StepFlag(IntFlag):
    """Facts about one step, kept in one byte per row."""

    TERMINATED = 1
    TRUNCATED = 2
    NO_ACTIVATION = 4
    """A hook point did not fire for this step: metrics count, features do not exist."""


EPISODE_END: Final = int(StepFlag.TERMINATED | StepFlag.TRUNCATED)


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """A named scalar per step. ``unit`` is a plain SI-like string, ``""`` when dimensionless."""

    name: str
    unit: str = ""
    role: Role = Role.STATE
    description: str = ""


@dataclass(frozen=True, slots=True)
class HookPointSpec:
    """A module of the policy whose input x [d_in] and output y [d_out] are streamed."""

    name: str
    d_in: int
    d_out: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """What an agent says of itself once, when it connects.

    ``run_id`` is unique per run, ``boot_id`` per connection of a restarted agent process;
    ``policy_hash`` is ``"sha256:…"``, as :mod:`interlatent_live.policies.hashing` makes it.
    """

    agent: str
    run_id: str
    boot_id: str
    policy_hash: str
    hook_points: tuple[HookPointSpec, ...]
    metrics: tuple[MetricSpec, ...]
    env_count: int = 1
    control_hz: float | None = None
    environment: str = ""
    actions: tuple[str, ...] = ()
    """Names of discrete actions, index by index; empty for continuous control."""

    def metric_names(self) -> tuple[str, ...]:
        """Names of the metric columns, in order."""
        return tuple(metric.name for metric in self.metrics)


@dataclass(frozen=True, slots=True, eq=False)
class Steps:
    """The columns every batch of n steps carries, whatever else comes along.

    ``first_seq`` numbers the first row; rows are consecutive within a batch, and the sender numbers
    every row of a boot without holes, so a hole seen by a receiver is a loss.
    """

    first_seq: int
    env: NDArray[np.uint16]
    """[n] agent copy."""
    episode: NDArray[np.uint32]
    """[n] index of the episode within (boot, env), from 0."""
    t: NDArray[np.uint32]
    """[n] step within the episode, from 0."""
    time_ns: NDArray[np.int64]
    """[n] wall clock of the agent when the step was complete, ns since the epoch."""
    controller: NDArray[np.uint8]
    """[n] :class:`Controller`."""
    flags: NDArray[np.uint8]
    """[n] :class:`StepFlag`."""
    metrics: NDArray[np.float64]
    """[n, M] in the manifest's order; NaN where a metric was absent in that step."""

    def __len__(self) -> int:
        return len(self.env)


@dataclass(frozen=True, slots=True, eq=False)
class Activations:
    """What one hook point saw. ``y`` may be sampled: row ``y_rows[i]`` of the batch is ``y[i]``."""

    x: NDArray[np.floating]
    """[n, d_in] float32 or float16."""
    y: NDArray[np.floating]
    """[m, d_out] float32 or float16, m ≤ n."""
    y_rows: NDArray[np.uint16]
    """[m] ascending row numbers within the batch."""


@dataclass(frozen=True, slots=True, eq=False)
class StepBatch:
    """Steps with raw activations: what an agent sends to an encoder."""

    steps: Steps
    activations: Mapping[str, Activations]
    """By hook point name."""


@dataclass(frozen=True, slots=True, eq=False)
class SparseCodes:
    """Feature activations of n steps in compressed sparse rows; values are > 0.

    Row i's features are ``index[indptr[i]:indptr[i+1]]``, ascending.
    """

    n_features: int
    indptr: NDArray[np.uint32]
    """[n + 1]."""
    index: NDArray[np.uint32]
    """[nnz]."""
    value: NDArray[np.float32]
    """[nnz]."""
    error: NDArray[np.float32]
    """[n] ‖y − ŷ‖² / E‖y − ȳ‖² with the training variance; its mean is the live FVU.

    NaN where y was not sampled.
    """
    error_affine: NDArray[np.float32]
    """[n] the same for the affine baseline stored with the transcoder; NaN where unknown."""

    def __len__(self) -> int:
        return len(self.indptr) - 1

    def dense(self) -> NDArray[np.float32]:
        """Feature activations as [n, n_features] float32."""
        out = np.zeros((len(self), self.n_features), np.float32)
        counts = np.diff(self.indptr).astype(np.intp)
        rows = np.repeat(np.arange(len(self)), counts)
        out[rows, self.index] = self.value
        return out


@dataclass(frozen=True, slots=True, eq=False)
class FeatureBatch:
    """Steps with sparse features: what an encoder sends to correlators, explainers, recorders."""

    run_id: str
    boot_id: str
    steps: Steps
    codes: Mapping[str, SparseCodes]
    """By hook point name."""
    transcoders: Mapping[str, str]
    """Transcoder hash by hook point name."""
    encoded_ns: int = 0
    """Wall clock of the encoder when the features were ready, ns since the epoch."""


@dataclass(frozen=True, slots=True)
class FeatureAddress:
    """``hook_point/index@transcoder_hash``: names one latent for ever."""

    hook_point: str
    index: int
    transcoder_hash: str

    def __str__(self) -> str:
        return f"{self.hook_point}/{self.index}@{self.transcoder_hash}"

    @classmethod
    def parse(cls, text: str) -> FeatureAddress:
        """Parse an address.

        Raises:
            ValueError: when the text is not ``hook_point/index@hash``.
        """
        location, separator, digest = text.rpartition("@")
        hook_point, slash, index = location.rpartition("/")
        if not (separator and slash and hook_point and digest and index.isdecimal()):
            raise ValueError(f"{text!r} is not a feature address (hook_point/index@hash)")
        return cls(hook_point, int(index), digest)


def steps_without_columns(count: int, n_metrics: int, first_seq: int = 0) -> Steps:
    """Zeroed columns for ``count`` steps, to be filled by tests and builders."""
    return Steps(
        first_seq=first_seq,
        env=np.zeros(count, np.uint16),
        episode=np.zeros(count, np.uint32),
        t=np.zeros(count, np.uint32),
        time_ns=np.zeros(count, np.int64),
        controller=np.zeros(count, np.uint8),
        flags=np.zeros(count, np.uint8),
        metrics=np.zeros((count, n_metrics), np.float64),
    )
