"""Feed documents and batches for tests, small and valid."""

import numpy as np

from interlatent_live.feed.documents import (
    AgentsDocument,
    AgentStatus,
    ClaimCost,
    ClaimsDocument,
    CostsDocument,
    HookPointStatus,
    NarrationDocument,
    NarrationLine,
    Percentiles,
)
from interlatent_live.stream import FeatureBatch, SparseCodes, Steps

HASH = "sha256:0123456789ab"


def agent_status(**changes) -> AgentStatus:
    values = {
        "agent": "cartpole-demo",
        "run_id": "run-1",
        "boot_id": "boot-1",
        "environment": "CartPole-v1",
        "policy_hash": "sha256:" + "ab" * 32,
        "env_count": 8,
        "control_hz": 100.0,
        "actions": ["push left", "push right"],
        "metrics": [
            {"name": "pole angle", "unit": "rad", "role": "state", "description": ""},
            {"name": "cart position", "unit": "m", "role": "state", "description": ""},
        ],
        "hook_points": [HookPointStatus("hidden.1", HASH, 256, 0.0007, 0.0018, 1000)],
        "steps_received": 1000,
        "steps_encoded": 1000,
        "dropped_declared": {},
        "gaps_undeclared": 0,
        "duplicates": 0,
        "steps_per_second": 800.0,
        "step_to_feature_ms": Percentiles(4.2, 11.0),
        "last_step_ns": 1,
        "ended": False,
    }
    return AgentStatus(**(values | changes))


def agents_document(**changes) -> AgentsDocument:
    return AgentsDocument([agent_status(**changes)], {}, 1)


def claim(index=3, verdict="verified", **changes):
    values = {
        "address": f"hidden.1/{index}@{HASH}",
        "label": "pole leans right",
        "description": "On while the pole leans right.",
        "predicate": "pole_angle > 0.02",
        "verdict": verdict,
        "balanced_accuracy": 0.93,
        "precision": 0.71,
    }
    return values | changes


def claims_document(claims) -> ClaimsDocument:
    counts: dict[str, int] = {}
    for item in claims:
        counts[item["verdict"]] = counts.get(item["verdict"], 0) + 1
    return ClaimsDocument(
        "run-1", "boot-1", "hidden.1", HASH, claims, counts, {}, "builtin", 10, False, 1
    )


def narration_document(text="The pole leans right.", env=0) -> NarrationDocument:
    line = NarrationLine(text, [{"feature": f"hidden.1/3@{HASH}"}])
    return NarrationDocument("run-1", "cartpole-demo", env, 2, 0, 100, [line], 1)


def feature_batch(first_seq=0, envs=(0, 1), time_ns=1_000_000, active=((3, 1.5),)):
    n = len(envs)
    steps = Steps(
        first_seq=first_seq,
        env=np.array(envs, np.uint16),
        episode=np.full(n, 2, np.uint32),
        t=np.full(n, 17, np.uint32),
        time_ns=np.full(n, time_ns, np.int64),
        controller=np.zeros(n, np.uint8),
        flags=np.zeros(n, np.uint8),
        metrics=np.tile([0.05, -1.0], (n, 1)),
    )
    codes = SparseCodes(
        n_features=256,
        indptr=np.arange(n + 1, dtype=np.uint32) * len(active),
        index=np.array([i for i, _ in active] * n, np.uint32),
        value=np.array([v for _, v in active] * n, np.float32),
        error=np.full(n, np.nan, np.float32),
        error_affine=np.full(n, np.nan, np.float32),
    )
    return FeatureBatch("run-1", "boot-1", steps, {"hidden.1": codes}, {"hidden.1": HASH}, 2)


def costs_document(**changes) -> CostsDocument:
    values = {
        "writer": "openai:small",
        "since_ns": 5,
        "requests": 3,
        "input_tokens": 900,
        "output_tokens": 120,
        "dollars": 0.02,
        "limit_dollars": 1.0,
        "dollars_per_hour": 0.4,
        "refused": {},
        "claims": [ClaimCost(f"hidden.1/3@{HASH}", 3, 900, 120, 0.02)],
        "published_ns": 9,
    }
    return CostsDocument(**(values | changes))
