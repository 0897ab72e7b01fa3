"""The page's two plots, as SVG that is the same whenever the data are the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from interlatent_live.interventions.reproduction.document import LABELS
from interlatent_live.interventions.reproduction.summary import arm_of, summarise
from interlatent_live.interventions.svg import save_svg, svg_plots

if TYPE_CHECKING:
    from pathlib import Path

ARMS = "reproduction-arms.svg"
REPLACEMENT = "reproduction-replacement.svg"


def draw(data: dict[str, Any], folder: Path) -> None:
    """Write both plots into ``folder``.

    Raises:
        UserError: when matplotlib is missing.
    """
    with svg_plots("reproduction") as plt:
        for name, figure in ((ARMS, _arms(data, plt)), (REPLACEMENT, _replacement(data, plt))):
            save_svg(figure, folder / name, plt)


def _arms(data: dict[str, Any], plt: Any) -> Any:
    policies = data["policies"]
    families = list(LABELS)
    figure, axes = plt.subplots(figsize=(7.5, 3.8))
    for index, policy in enumerate(policies):
        rows = [arm_of(policy, family)["return"] for family in families]
        at = [position + 0.12 * (index - (len(policies) - 1) / 2) for position in range(len(rows))]
        means = [row["mean"] for row in rows]
        errors = [(row["high"] - row["low"]) / 2 for row in rows]
        axes.errorbar(
            means, at, xerr=errors, fmt="o", markersize=3, label=f"policy {policy['training_seed']}"
        )
    axes.set_yticks(range(len(families)), [LABELS[family] for family in families])
    axes.invert_yaxis()
    axes.set_xlabel("held-out mean return, 95 % interval")
    axes.grid(axis="x", alpha=0.3)
    axes.legend(fontsize=7)
    return figure


def _replacement(data: dict[str, Any], plt: Any) -> Any:
    widths = data["settings"]["widths"]
    figure, axes = plt.subplots(figsize=(5.5, 3.2))
    for where, by_width in summarise(data["policies"])["replacement"].items():
        means = [by_width[str(width)]["mean"] for width in widths]
        errors = [(by_width[str(w)]["high"] - by_width[str(w)]["low"]) / 2 for w in widths]
        axes.errorbar(range(len(widths)), means, yerr=errors, marker="o", label=f"{where} replaced")
    unsteered = [arm_of(policy, "unsteered")["return"]["mean"] for policy in data["policies"]]
    axes.axhline(sum(unsteered) / len(unsteered), color="black", linestyle=":", label="the policy")
    axes.set_xticks(range(len(widths)), [str(width) for width in widths])
    axes.set_xlabel("features per transcoder")
    axes.set_ylabel("held-out mean return")
    axes.legend(fontsize=7)
    return figure
