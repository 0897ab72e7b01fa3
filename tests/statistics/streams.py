"""Synthetic streams with known truth, for the statistics tests."""

from __future__ import annotations

import numpy as np

from interlatent_live.stream import SparseCodes, StepFlag, Steps, steps_without_columns


def codes_from_dense(dense: np.ndarray) -> SparseCodes:
    """Sparse codes of a dense [n, F] array of activations ≥ 0."""
    on = dense > 0
    indptr = np.zeros(len(dense) + 1, np.uint32)
    np.cumsum(on.sum(axis=1), out=indptr[1:])
    rows, index = np.nonzero(on)
    value = dense[rows, index].astype(np.float32)
    nan = np.full(len(dense), np.nan, np.float32)
    return SparseCodes(dense.shape[1], indptr, index.astype(np.uint32), value, nan, nan)


def steps_of(
    metrics: np.ndarray,
    *,
    first_seq: int = 0,
    envs: int = 1,
    episode_steps: int = 100,
    terminated: bool = True,
) -> Steps:
    """Rows of ``envs`` interleaved copies with episodes of equal length."""
    n, m = metrics.shape
    steps = steps_without_columns(n, m, first_seq)
    seq = np.arange(first_seq, first_seq + n)
    steps.env[:] = seq % envs
    own = seq // envs
    steps.episode[:] = own // episode_steps
    steps.t[:] = own % episode_steps
    end = StepFlag.TERMINATED if terminated else StepFlag.TRUNCATED
    steps.flags[:] = np.where(steps.t == episode_steps - 1, int(end), 0)
    steps.metrics[:] = metrics
    return steps


def part(steps: Steps, low: int, high: int) -> Steps:
    """Rows low … high − 1 of a batch."""
    return Steps(
        first_seq=steps.first_seq + low,
        env=steps.env[low:high],
        episode=steps.episode[low:high],
        t=steps.t[low:high],
        time_ns=steps.time_ns[low:high],
        controller=steps.controller[low:high],
        flags=steps.flags[low:high],
        metrics=steps.metrics[low:high],
    )


def rows_of(steps: Steps, mask: np.ndarray) -> tuple[Steps, np.ndarray]:
    """A shard's rows with their own sequence numbers."""
    seq = np.arange(steps.first_seq, steps.first_seq + len(steps), dtype=np.uint64)[mask]
    chosen = Steps(
        first_seq=0,
        env=steps.env[mask],
        episode=steps.episode[mask],
        t=steps.t[mask],
        time_ns=steps.time_ns[mask],
        controller=steps.controller[mask],
        flags=steps.flags[mask],
        metrics=steps.metrics[mask],
    )
    return chosen, seq


def ar1(rng: np.random.Generator, phi: float, shape: tuple[int, ...]) -> np.ndarray:
    """Stationary AR(1) of unit variance along the first axis."""
    out = rng.normal(size=shape)
    scale = np.sqrt(1 - phi * phi)
    for i in range(1, shape[0]):
        out[i] = phi * out[i - 1] + scale * out[i]
    return out


def sparse_dense(
    rng: np.random.Generator, n: int, features: int, density: float = 0.1
) -> np.ndarray:
    """Random sparse activations [n, features], float32 values as float64."""
    values = rng.exponential(size=(n, features)).astype(np.float32).astype(np.float64) + 0.125
    return np.where(rng.random((n, features)) < density, values, 0.0).astype(np.float32)


def known(value: float | None) -> float:
    """A value that must be defined."""
    assert value is not None
    return value
