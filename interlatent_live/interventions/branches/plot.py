"""Two branches side by side, as SVG that is the same whenever the data are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from interlatent_live.interventions.svg import save_svg, svg_plots

if TYPE_CHECKING:
    from pathlib import Path

    from interlatent_live.interventions.branches.branching import Branches

SHOWN: Final = 4
"""Metrics that are drawn: those that come to differ most, in units of their own spread."""


def draw(branches: Branches, title: str, path: Path) -> None:
    """Write the plot.

    Raises:
        UserError: when matplotlib is missing.
    """
    without, intervened = branches.measured
    chosen = most_different(without, intervened)
    with svg_plots("branch") as plt:
        figure, panels = plt.subplots(
            len(chosen) + 1, 1, figsize=(7.5, 1.7 * (len(chosen) + 1)), sharex=True, squeeze=False
        )
        for panel, column in zip(panels[:-1, 0], chosen, strict=True):
            panel.plot(without[:, column], color="0.4", label="without")
            panel.plot(intervened[:, column], color="C3", linestyle="--", label="with")
            panel.set_ylabel(branches.metrics[column], fontsize=8)
        last = panels[-1, 0]
        last.plot(np.cumsum(branches.without.rewards), color="0.4", label="without")
        last.plot(np.cumsum(branches.intervened.rewards), color="C3", linestyle="--", label="with")
        last.set_ylabel("reward so far", fontsize=8)
        last.set_xlabel(f"steps after step {branches.at} of the episode of seed {branches.seed}")
        panels[0, 0].set_title(title, fontsize=9, loc="left")
        panels[0, 0].legend(fontsize=8, loc="best")
        figure.tight_layout()
        save_svg(figure, path, plt)


def most_different(without: Any, intervened: Any) -> list[int]:
    """Columns of metrics [n, M] that differ most, in their order."""
    n = min(len(without), len(intervened))
    apart = np.abs(np.nan_to_num(intervened[:n] - without[:n])).max(axis=0)
    spread = np.nan_to_num(np.concatenate([without, intervened]).std(axis=0))
    score = apart / np.where(spread > 0, spread, 1.0)
    return sorted(int(i) for i in np.argsort(-score, kind="stable")[:SHOWN])
