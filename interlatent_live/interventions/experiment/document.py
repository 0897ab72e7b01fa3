"""The report as a page and a plot, made from ``report.json`` alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from interlatent_live.interventions.experiment.setup import KINDS, Unit
from interlatent_live.interventions.svg import save_svg, svg_plots

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

PAGE: Final = "report.md"
PLOT: Final = "effects.svg"


def page(report: Mapping[str, Any]) -> str:
    """The whole of it in Markdown: what was promised, what came of it, every control."""
    plan, setup = report["plan"], report["plan"]["setup"]
    sealed, audit = report["preregistered"], report["audit"]
    sizes = setup["sizes"]
    unit = f"{report['starts']} paired held-out episodes"
    if setup["unit"] == Unit.BRANCHES:
        unit = (
            f"{report['starts']} paired branches of {setup['horizon']} steps from "
            f"{report['units']} held-out cloned states"
        )
    who = (
        f"Policy {setup['policy']} (`{plan['policy_hash'][:19]}`) in {report['environment']}, "
        f"steered at `{plan['hook_point']}` by features of `{plan['transcoder'][:19]}`, live: "
        "every arm was an intervention that the control service permitted and the agent obeyed."
    )
    when = (
        f"Preregistered as `sha256:{report['plan_sha256'][:16]}` in entry {sealed['entry']} of "
        f"the audit (seal `{sealed['seal'][:16]}`), before the first intervention of the test. "
        f"The audit verifies: {audit['entries']} entries, {audit['permitted']} permitted, "
        f"{audit['applied']} applied."
    )
    what = (
        f"Test: {unit}; the {sizes['per_kind'] * len(KINDS)} controls of equal norm of each "
        f"hypothesis play the first {sizes['controls']} of these starts. An untouched agent "
        f"played twice differs by {_figure(report['untouched_twice'])} at most."
    )
    small = "A quick look: smaller than the definitions ask for, and no result."
    lines = [
        *(f"# {setup['name']}", "", who, "", when, "", what, ""),
        *((small, "") if setup["quick"] else ()),
        "| hypothesis | over the untouched agent | over the best bias | controls | verdict |",
        "| --- | --- | --- | --- | --- |",
        *(_row(one) for one in report["hypotheses"]),
        *("", f"![Effects of treatment and controls]({PLOT})"),
    ]
    for promised, one in zip(plan["hypotheses"], report["hypotheses"], strict=True):
        lines += ["", f"## {one['sentence'][0].upper()}{one['sentence'][1:]}", ""]
        lines += _details(promised, one, report["untouched"])
    lines += ["", "## Analysis, as preregistered", "", plan["analysis"], ""]
    return "\n".join(lines)


def draw(report: Mapping[str, Any], path: Path) -> None:
    """The effects of treatment and all controls, one panel for each hypothesis, as SVG.

    Raises:
        UserError: when matplotlib is missing.
    """
    hypotheses = report["hypotheses"]
    with svg_plots("experiment") as plt:
        figure, panels = plt.subplots(
            len(hypotheses), 1, figsize=(7.5, 2.9 * len(hypotheses)), squeeze=False
        )
        for panel, one in zip(panels[:, 0], hypotheses, strict=True):
            _panel(panel, one)
        figure.tight_layout()
        save_svg(figure, path, plt)


def _panel(panel: Any, one: Mapping[str, Any]) -> None:
    others = _arms(one)
    labels = [*others, *KINDS]
    for at, effect in enumerate(others.values()):
        mean = effect["mean"]
        panel.errorbar(
            mean, at, xerr=[[mean - effect["low"]], [effect["high"] - mean]], capsize=3,
            fmt="s" if at else "o", color="C0" if at else "C3",
        )  # fmt: skip
    for at, kind in enumerate(KINDS, start=len(others)):
        means = [item["mean"] for item in one["controls"] if item["kind"] == kind]
        # Spread by their order: every control is seen.
        heights = [at - 0.3 + 0.6 * i / max(1, len(means) - 1) for i in range(len(means))]
        panel.plot(means, heights, "o", markersize=3, color="0.5")
    panel.axvline(one["among_controls"]["bar"], color="0.3", linestyle=":", linewidth=1)
    panel.axvline(0.0, color="0.7", linewidth=0.8)
    panel.set_yticks(range(len(labels)), labels)
    panel.invert_yaxis()
    panel.set_title(one["sentence"], fontsize=9, loc="left")
    panel.set_xlabel("difference to the untouched agent; dotted: 95th percentile of the controls")


def _row(one: Mapping[str, Any]) -> str:
    where, verdict = one["among_controls"], one["verdict"]
    why = "; ".join(verdict["reasons"])
    place = f"above {_percent(where, 'share')} % of {where['controls']}"
    cells = (
        one["sentence"],
        f"{_difference(one['over_untouched'])}, p {_p(verdict['p_untouched'])}",
        f"{_difference(one['over_bias'])}, p {_p(verdict['p_bias'])}",
        f"{place} ({_percent(where, 'low')} to {_percent(where, 'high')})",
        "**supported**" if verdict["supported"] else f"not supported: {why}",
    )
    return f"| {' | '.join(cells)} |"


def _details(
    promised: Mapping[str, Any], one: Mapping[str, Any], untouched: Mapping[str, Any]
) -> list[str]:
    metric = promised["metric"]
    chosen = (
        f"Chosen among {promised['tried']} arms on the selection seeds, where its effect on "
        f"{metric} was {_figure(promised['selected_effect'])}; the bias, "
        f"{promised['bias']:+g} on output {promised['bias_output']}, among "
        f"{promised['bias_tried']}, with {_figure(promised['bias_selected_effect'])}. Dose "
        f"{promised['dose']:+g} median activations, norm {_figure(promised['norm'])}. Untouched: "
        f"{metric} {_figure(untouched[metric]['mean'])} (sd {_figure(untouched[metric]['sd'])})."
    )
    ranges = {
        kind: [item["mean"] for item in one["controls"] if item["kind"] == kind] for kind in KINDS
    }
    return [
        chosen,
        "",
        f"| arm | effect on {metric} | steps steered | largest norm |",
        "| --- | --- | --- | --- |",
        *(
            f"| {name} | {_difference(arm)} | {100 * arm['steered']:.1f} % | "
            f"{_figure(arm['largest_norm'])} |"
            for name, arm in _arms(one).items()
        ),
        *(
            f"| {kind}, {len(found)} | {_figure(min(found))} to {_figure(max(found))} | | |"
            for kind, found in ranges.items()
            if found
        ),
        "",
        "| other metrics | change |",
        "| --- | --- |",
        *(f"| {name} | {_difference(change)} |" for name, change in one["off_target"].items()),
    ]


def _arms(one: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "the feature": one["treatment"],
        "at its off-moments": one["off_moments"],
        **one["doses"],
        "best constant bias": one["best_bias"],
    }


def _difference(found: Mapping[str, Any]) -> str:
    mean, low, high = (_figure(found[name], "+") for name in ("mean", "low", "high"))
    return f"{mean} ({low} to {high})"


def _figure(value: float, sign: str = "") -> str:
    return f"{value:{sign}.3g}"


def _percent(where: Mapping[str, Any], name: str) -> str:
    return f"{100 * where[name]:.0f}"


def _p(value: float) -> str:
    return "< .001" if value < 0.001 else f"{value:.3f}"
