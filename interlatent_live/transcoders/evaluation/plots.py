"""The report's plots, as PNG in base64; drawn without a display and without global state."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any

from interlatent_live.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable

    Draw = Callable[[Any, dict[str, Any]], None]


def plots(report: dict[str, Any]) -> list[tuple[str, str]]:
    """(Title, base64 PNG) of each plot.

    Raises:
        UserError: when matplotlib is not installed.
    """
    drawn: list[tuple[str, Draw]] = [
        ("FVU beside its baselines", _fvu),
        ("How often features fire", _density),
    ]
    if report["groups"][0]["features"]:
        drawn.append(("Activations of live features", _quantiles))
    if report["original_return"] is not None:
        drawn.append(("Return with the transcoder spliced in", _returns))
    return [(title, _png(draw, report)) for title, draw in drawn]


def _png(draw: Draw, report: dict[str, Any]) -> str:
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise UserError("the page needs matplotlib: install interlatent-live[plots]") from error
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    draw(figure.subplots(), report)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return base64.b64encode(buffer.getvalue()).decode()


def _fvu(axes: Any, report: dict[str, Any]) -> None:
    groups = report["groups"]
    for place, group in enumerate(groups):
        values = [seed["reconstruction"]["fvu"] for seed in group["seeds"]]
        axes.plot([place] * len(values), values, "o")
    axes.axhline(groups[0]["median"]["fvu_affine"], linestyle="--", label="affine map")
    axes.axhline(1.0, linestyle=":", label="mean ablation")
    axes.set_yscale("log")
    axes.set_ylabel("FVU, held out")
    names = [group["name"].replace(", ", "\n") for group in groups]
    axes.set_xticks(range(len(names)), names, fontsize=7)
    axes.legend()


def _density(axes: Any, report: dict[str, Any]) -> None:
    for group in report["groups"]:
        histogram = group["seeds"][0]["density_histogram"]
        axes.plot(range(len(histogram["counts"])), histogram["counts"], "o-", label=group["name"])
        labels = [f"<{edge:g}" for edge in histogram["edges"][1:]]
        axes.set_xticks(range(len(labels)), labels, fontsize=7)
    axes.set_xlabel("share of held-out steps in which a feature is on")
    axes.set_ylabel("features")
    axes.legend(fontsize=7)


def _quantiles(axes: Any, report: dict[str, Any]) -> None:
    table = report["groups"][0]["features"]
    for name in ("0.05", "0.5", "0.95"):
        axes.plot([row["quantiles"][name] for row in table], label=f"quantile {name}")
    axes.set_xlabel("live features, most frequent first")
    axes.set_ylabel("activation while on")
    axes.legend()


def _returns(axes: Any, report: dict[str, Any]) -> None:
    arms = [
        ("original", report["original_return"]),
        ("mean-ablated", report["mean_ablated_return"]),
        *(
            (f"{group['name']}\nseed {seed['seed']}", seed["behaviour"]["return"])
            for group in report["groups"]
            for seed in group["seeds"]
            if seed["behaviour"] is not None
        ),
    ]
    axes.errorbar(
        [arm["mean"] for _, arm in arms],
        range(len(arms)),
        xerr=[1.96 * arm["standard_error"] for _, arm in arms],
        fmt="o",
    )
    axes.set_yticks(range(len(arms)), [name for name, _ in arms], fontsize=7)
    axes.set_xlabel("return, 95 % interval")
    axes.invert_yaxis()
