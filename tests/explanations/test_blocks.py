"""How long the blocks of an endless run are."""

from __future__ import annotations

import numpy as np
import pytest

from interlatent_live.explanations.blocks import (
    LEAST_STEPS,
    MOST_STEPS,
    TIMES,
    autocorrelation_steps,
    block_length,
)
from interlatent_live.explanations.evidence import EvidenceStore
from interlatent_live.stream import FeatureBatch, MetricSpec, Role, SparseCodes, Steps

SPECS = (MetricSpec("slow", "", Role.STATE), MetricSpec("clock", "s", Role.CLOCK))


def evidence(values, copies=1):
    store = EvidenceStore(SPECS)
    n = len(values)
    for env in range(copies):
        steps = Steps(
            first_seq=env * n,
            env=np.full(n, env, np.uint16),
            episode=np.zeros(n, np.uint32),
            t=np.arange(n, dtype=np.uint32),
            time_ns=np.arange(n, dtype=np.int64),
            controller=np.zeros(n, np.uint8),
            flags=np.zeros(n, np.uint8),
            metrics=np.stack([values, np.arange(n) / 50], axis=1),
        )
        none = np.full(n, np.nan, np.float32)
        empty = np.zeros(0, np.uint32)
        codes = SparseCodes(
            4, np.zeros(n + 1, np.uint32), empty, empty.astype(np.float32), none, none
        )
        store.add(FeatureBatch("run", "boot", steps, {"h": codes}, {"h": "sha256:x"}, 1))
    return store.evidence("h")


def autoregressive(phi, n, seed=0):
    random, out = np.random.default_rng(seed), np.zeros(n)
    for t in range(1, n):
        out[t] = phi * out[t - 1] + random.normal()
    return out


@pytest.mark.parametrize("phi", [0.9, 0.99])
def test_a_block_is_twenty_times_the_decay_of_the_slowest_metric(phi):
    found = evidence(autoregressive(phi, 60_000))
    # φᵗ falls below 1/e at t = −1 / ln φ.
    expected = -1 / np.log(phi)
    assert autocorrelation_steps(found) == pytest.approx(expected, rel=0.25)
    assert block_length(found, 16) == TIMES * autocorrelation_steps(found)
    assert block_length(found, 100_000) is None


def test_a_fast_metric_and_a_constant_one_have_the_shortest_block_and_a_drift_the_longest():
    fast = evidence(np.random.default_rng(0).normal(size=8000))
    assert block_length(fast, 16) == LEAST_STEPS
    assert block_length(evidence(np.zeros(8000)), 16) == LEAST_STEPS
    assert block_length(evidence(np.full(8000, np.nan)), 16) == LEAST_STEPS
    drift = evidence(np.arange(50_000.0))
    assert block_length(drift, 5) == MOST_STEPS
    assert block_length(drift, 6) is None


def test_the_blocks_of_all_copies_count():
    values = autoregressive(0.9, 2000)
    assert block_length(evidence(values), 16) is None
    assert block_length(evidence(values, copies=4), 16) is not None
