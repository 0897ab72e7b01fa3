"""A stream with one feature that follows a metric, in the shapes that services exchange."""

import numpy as np

from interlatent_live.stream import (
    FeatureBatch,
    HookPointSpec,
    Manifest,
    MetricSpec,
    Role,
    SparseCodes,
    Steps,
)

HOOK = "hidden"
TRANSCODER = "sha256:feedc0ffee00"
LEAN, SPEED = 0, 1
"""Feature 0 is on while the lean is above 0.8; feature 1 follows nothing."""


def manifest(run_id="run", boot_id="boot", **changes):
    values = {
        "agent": "walker",
        "run_id": run_id,
        "boot_id": boot_id,
        "policy_hash": "sha256:" + "1" * 64,
        "hook_points": (HookPointSpec(HOOK, 4, 4),),
        "metrics": (
            MetricSpec("lean", "rad", Role.STATE),
            MetricSpec("speed", "m/s", Role.STATE),
            MetricSpec("reward", "", Role.OUTCOME),
        ),
        "env_count": 1,
        "environment": "Walker",
    }
    return Manifest(**(values | changes))


def episodes(count, length=120, *, seed=0, boot_id="boot", run_id="run", start_ns=1, flipped=False):
    """Feature batches of whole episodes, one batch an episode; time advances 10 ms a step."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        noise = rng.normal(size=(length, 2))
        metrics = np.zeros((length, 3))
        for t in range(1, length):
            metrics[t, :2] = 0.9 * metrics[t - 1, :2] + noise[t]
        metrics[:, 2] = 1.0
        lean = -metrics[:, 0] if flipped else metrics[:, 0]
        on = np.stack([lean > 0.8, rng.random(length) < 0.05], axis=1)
        first = number * length
        steps = Steps(
            first_seq=first,
            env=np.zeros(length, np.uint16),
            episode=np.full(length, number, np.uint32),
            t=np.arange(length, dtype=np.uint32),
            time_ns=start_ns + 10_000_000 * np.arange(first, first + length, dtype=np.int64),
            controller=np.zeros(length, np.uint8),
            flags=np.concatenate([np.zeros(length - 1, np.uint8), [1]]).astype(np.uint8),
            metrics=metrics,
        )
        rows, index = np.nonzero(on)
        codes = SparseCodes(
            n_features=4,
            indptr=np.concatenate([[0], np.cumsum(on.sum(1))]).astype(np.uint32),
            index=index.astype(np.uint32),
            value=(1 + rng.random(len(rows))).astype(np.float32),
            error=np.full(length, np.nan, np.float32),
            error_affine=np.full(length, np.nan, np.float32),
        )
        yield FeatureBatch(run_id, boot_id, steps, {HOOK: codes}, {HOOK: TRANSCODER}, 1)
