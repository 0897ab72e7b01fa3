"""What the policies say together: the figures that the paragraph and the table rest on."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from interlatent_live.interventions.reproduction.paired import (
    Estimate,
    holm,
    over_policies,
    p_greater,
)

KNEE_SHARE = 0.9
"""The knee is the smallest width whose replacement keeps this share of the return."""

TESTED = (
    ("feature at hidden.0", "bias"),
    ("feature at hidden.1", "bias"),
    ("feature while a condition holds", "bias"),
    ("feature while a condition holds", "conditional_bias"),
)
"""The comparisons that were promised before the test; Holm runs over all of them together."""


def estimate_from(data: dict[str, Any]) -> Estimate:
    """Read an :class:`Estimate` back from JSON."""
    return Estimate(float(data["mean"]), float(data["low"]), float(data["high"]), int(data["n"]))


def arm_of(policy: dict[str, Any], family: str) -> dict[str, Any]:
    """A policy's row of a family.

    Raises:
        KeyError: when there is none.
    """
    for row in policy["arms"]:
        if row["family"] == family:
            return dict(row)
    raise KeyError(family)


def summarise(policies: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over policies, the promised tests with Holm's p, and each policy's knee."""
    families = [row["family"] for row in policies[0]["arms"]]
    pooled = {}
    for family in families:
        rows = [arm_of(policy, family) for policy in policies]
        pooled[family] = {
            "return": asdict(over_policies([estimate_from(row["return"]) for row in rows])),
            "tried": rows[0]["tried"],
            "over": {
                name: asdict(over_policies([estimate_from(row["over"][name]) for row in rows]))
                for name in rows[0]["over"]
            },
        }
    tests = [
        {
            "family": family,
            "against": against,
            "policy": index,
            "difference": arm_of(policy, family)["over"][against],
        }
        for family, against in TESTED
        for index, policy in enumerate(policies)
    ]
    adjusted = holm([p_greater(estimate_from(test["difference"])) for test in tests])
    for test, p in zip(tests, adjusted, strict=True):
        test["p_holm"] = p
    replaced: dict[str, dict[str, Any]] = {}
    for row in policies[0]["replacement"]:
        same = [
            estimate_from(other["return"])
            for policy in policies
            for other in policy["replacement"]
            if (other["width"], other["replaced"]) == (row["width"], row["replaced"])
        ]
        replaced.setdefault(row["replaced"], {})[str(row["width"])] = asdict(over_policies(same))
    return {
        "pooled": pooled,
        "tests": tests,
        "replacement": replaced,
        "knees": [knee(policy) for policy in policies],
    }


def knee(policy: dict[str, Any]) -> int | None:
    """The smallest width at which both layers replaced keep the share of the return; or None."""
    unsteered = arm_of(policy, "unsteered")["return"]["mean"]
    kept = sorted(
        row["width"]
        for row in policy["replacement"]
        if row["replaced"] == "both" and row["return"]["mean"] >= KNEE_SHARE * unsteered
    )
    return kept[0] if kept else None


def wins(summary: dict[str, Any], family: str, against: str) -> int:
    """In how many policies a promised comparison holds at Holm's p ≤ .05."""
    return sum(
        test["p_holm"] <= 0.05
        for test in summary["tests"]
        if (test["family"], test["against"]) == (family, against)
    )
