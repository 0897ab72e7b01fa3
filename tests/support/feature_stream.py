"""Small features messages of one stream, for whoever records and replays them."""

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
from interlatent_live.wire.messages import FeaturesMessage

HOOK = "net.0"
START_NS = 1_700_000_000_000_000_000
HZ = 50


def manifest(agent="lander", boot="boot-1", run="run-1"):
    return Manifest(
        agent=agent,
        run_id=run,
        boot_id=boot,
        policy_hash="sha256:" + "0" * 64,
        hook_points=(HookPointSpec(HOOK, 4, 4),),
        metrics=(
            MetricSpec("height", "m", Role.STATE, "above the pad"),
            MetricSpec("pilot_pulse", "1/s", Role.STATE),
            MetricSpec("thrust", "N", Role.ACTION),
            MetricSpec("reward", "", Role.OUTCOME),
        ),
        control_hz=float(HZ),
    )


def message(first_seq, rows=10, *, who=None, drops=(), n_features=16):
    """Rows of copy 0 at 50 Hz in episodes of 25 steps; row s has feature s mod 16 on."""
    who = who or manifest()
    seqs = np.arange(first_seq, first_seq + rows)
    steps = Steps(
        first_seq=first_seq,
        env=np.zeros(rows, np.uint16),
        episode=(seqs // 25).astype(np.uint32),
        t=(seqs % 25).astype(np.uint32),
        time_ns=START_NS + seqs.astype(np.int64) * (1_000_000_000 // HZ),
        controller=np.zeros(rows, np.uint8),
        flags=(seqs % 25 == 24).astype(np.uint8),
        metrics=np.stack([seqs, seqs * 2, -seqs, seqs % 3], axis=1).astype(np.float64),
    )
    codes = SparseCodes(
        n_features=n_features,
        indptr=np.arange(rows + 1, dtype=np.uint32),
        index=(seqs % n_features).astype(np.uint32),
        value=np.full(rows, 0.5, np.float32),
        error=np.full(rows, 0.1, np.float32),
        error_affine=np.full(rows, 0.2, np.float32),
    )
    batch = FeatureBatch(
        who.run_id, who.boot_id, steps, {HOOK: codes}, {HOOK: "sha256:" + "1" * 64}
    )
    return FeaturesMessage(batch, tuple(drops), START_NS + first_seq)


TRANSCODERS = {HOOK: "sha256:" + "1" * 64}
