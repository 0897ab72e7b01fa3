"""What ``demo --headless --json`` writes: the whole run in one object, from what a viewer saw.

The schema is a contract: names and meanings stay, additions are allowed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from interlatent_live.feed.documents import AgentStatus, ClaimsDocument, ProfilesDocument
    from interlatent_live.feed.state import FeedState

SCHEMA = "interlatent-live/demo/1"

CLAIM_FIELDS = (
    "label",
    "description",
    "predicate",
    "verdict",
    "balanced_accuracy",
    "balanced_accuracy_lo",
    "balanced_accuracy_hi",
    "precision",
    "recall",
    "p_adjusted",
    "bouts",
    "episodes_heldout",
    "best_rule_balanced_accuracy",
    "writer",
    "reason",
)
METRIC_FIELDS = ("name", "r", "lo", "hi", "n", "n_eff", "window")
VERDICTS = ("verified", "weak", "contradicted", "abstained", "pending", "stale")


class AgentReport(msgspec.Struct, frozen=True):
    """What the agent process says of its own run when it ends."""

    run_id: str
    steps_sent: int
    declared: dict[str, int]
    episodes: int
    mean_return: float | None
    wall_s: float
    tap_on_us: float
    """Median time of one policy step with the tap on, in paired interleaved blocks."""
    tap_off_us: float
    """The same without the tap."""


def headless_report(
    state: FeedState, agent_report: AgentReport, *, started_ns: int, env: str
) -> dict[str, Any]:
    """The run as one JSON-ready object.

    Args:
        state: what the viewer saw of the whole run.
        agent_report: the agent's own account.
        started_ns: wall clock when the first step was taken, ns since the epoch.
        env: environment id.

    Raises:
        LookupError: when the encoder never reported the run.
    """
    run_id = agent_report.run_id
    status = state.agent(run_id)
    if status is None:
        raise LookupError(f"the encoder reported nothing of run {run_id}")
    profiles = [doc for (run, _), doc in state.profiles.items() if run == run_id]
    claims = [doc for (run, _), doc in state.claims.items() if run == run_id]
    first = status.hook_points[0]
    return {
        "schema": SCHEMA,
        "environment": env,
        "policy_hash": status.policy_hash,
        "transcoder_hash": first.transcoder,
        "hook_points": [msgspec.to_builtins(hook) for hook in status.hook_points],
        "fvu": first.fvu,
        "fvu_affine": first.fvu_affine,
        "agent_step_us": {"tap_on": agent_report.tap_on_us, "tap_off": agent_report.tap_off_us},
        "agent": {
            "copies": status.env_count,
            "control_hz": status.control_hz,
            "episodes": agent_report.episodes,
            "mean_return": agent_report.mean_return,
            "wall_s": agent_report.wall_s,
        },
        "steps": _steps(status, agent_report),
        "latency_ms": {
            "step_to_feature": msgspec.to_builtins(status.step_to_feature_ms),
            "step_to_feed": {
                "p50": state.step_to_feed.percentile(50),
                "p99": state.step_to_feed.percentile(99),
            },
        },
        "features": _features(profiles, claims),
        "claims": _claim_counts(claims),
        "null": {doc.hook_point: doc.null for doc in claims},
        "narration": [
            {
                "text": line.text,
                "references": line.references,
                "env": document.env,
                "episode": document.episode,
                "from_t": document.from_t,
                "to_t": document.to_t,
            }
            for document in state.narration
            if document.run_id == run_id
            for line in document.lines
        ],
        "time_to_first_verified_claim_s": _first_verified(claims),
        "started_ns": started_ns,
        "writers": sorted({doc.writer for doc in claims}),
    }


def _steps(status: AgentStatus, agent_report: AgentReport) -> dict[str, Any]:
    declared = dict(agent_report.declared)
    for reason, count in status.dropped_declared.items():
        declared[reason] = max(count, declared.get(reason, 0))
    return {
        "sent": agent_report.steps_sent,
        "encoded": status.steps_encoded,
        "dropped_declared": sum(declared.values()),
        "dropped_by_reason": declared,
        "gaps_undeclared": status.gaps_undeclared,
        "duplicates": status.duplicates,
    }


def _features(
    profiles: list[ProfilesDocument], claims: list[ClaimsDocument]
) -> list[dict[str, Any]]:
    by_address = {claim["address"]: claim for doc in claims for claim in doc.claims}
    found: list[dict[str, Any]] = []
    for document in profiles:
        for feature in document.features:
            claim = by_address.get(feature.address)
            found.append(
                {
                    "address": feature.address,
                    "density": feature.density,
                    "claim": (
                        None if claim is None else {name: claim.get(name) for name in CLAIM_FIELDS}
                    ),
                    "metrics": [
                        {name: getattr(metric, name) for name in METRIC_FIELDS}
                        for metric in feature.metrics
                    ],
                }
            )
    return found


def _claim_counts(claims: list[ClaimsDocument]) -> dict[str, Any]:
    total: dict[str, int] = dict.fromkeys(("live", "eligible", *VERDICTS), 0)
    for document in claims:
        for name in total:
            total[name] += document.counts.get(name, 0)
    eligible = total["eligible"]
    return total | {"verified_share": total["verified"] / eligible if eligible else None}


def _first_verified(claims: list[ClaimsDocument]) -> float | None:
    times = [
        doc.time_to_first_verified_s for doc in claims if doc.time_to_first_verified_s is not None
    ]
    return min(times, default=None)


def summary_lines(report: dict[str, Any]) -> list[str]:
    """The run in a few lines for people."""
    steps, claims, latency = report["steps"], report["claims"], report["latency_ms"]
    cost = report["agent_step_us"]
    share = claims["verified_share"]
    return [
        (
            f"steps    {steps['sent']:,} sent, {steps['encoded']:,} encoded, "
            f"{steps['dropped_declared']} dropped and declared, "
            f"{steps['gaps_undeclared']} lost undeclared"
        ),
        "latency  "
        + ", ".join(
            f"{name.replace('_', ' ')} p50 {_ms(value['p50'])} p99 {_ms(value['p99'])} ms"
            for name, value in latency.items()
        ),
        f"claims   {claims['live']} live features, {claims['eligible']} eligible, "
        f"{claims['verified']} verified" + ("" if share is None else f" ({share:.0%})"),
        (
            f"agent    one step takes {cost['tap_on']:.0f} µs with the tap, "
            f"{cost['tap_off']:.0f} µs without"
        ),
    ]


def _ms(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"
