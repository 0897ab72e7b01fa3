"""The comparison of drivers for people: Markdown, and one picture of scores against speed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from interlatent_live.demo.run import write_report
from interlatent_live.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

SCORES: Final = {
    "score": "**features**: what speed-claimed features give to the advantage of FASTER",
    "score_in_value": "the same in units of value",
    "asked": "what they give to the speed asked for",
    "named": "features whose rule names speed, whatever its verdict",
    "advantage": "raw values: mean advantage of FASTER, no feature",
    "advantage_in_value": "the same in units of value",
    "reward": "the reward for speed that each was trained with",
}


def summary_lines(made: dict[str, Any]) -> list[str]:
    """The outcome in a few lines."""
    order, raw = made["orders"]["score"], made["orders"]["advantage"]
    return [
        f"the order by features is {made['verdict']}: {_order_words(order)}",
        f"by raw values alone: {_order_words(raw)}",
        f"random features of equal density: {_random_words(made['random']['random'])}",
    ]


def write_files(made: dict[str, Any], out: Path) -> tuple[Path, ...]:
    """Write ``drivers.json``, ``drivers.md`` and ``drivers.png``.

    Raises:
        UserError: when matplotlib is not installed.
    """
    name = made["name"]
    files = (out / f"{name}.json", out / f"{name}.md", out / f"{name}.png")
    write_report(made, files[0])
    files[1].write_text("\n".join(markdown(made)) + "\n", encoding="utf-8")
    _draw(made, files[2])
    return files


def markdown(made: dict[str, Any]) -> list[str]:
    """The whole report, line by line."""
    return [
        "# Drivers that differ in their reward for speed",
        "",
        (
            f"Made by `{made['command']}`; do not edit. {made['environment']}, hook point "
            f"`{made['hook_point']}`. The protocol stands in `interlatent_live/zoo/compare.py` and "
            "was fixed before any score was computed; a timing run on a fifth of the episodes had "
            "shown how many claims one driver has, and the score over every rule that names speed "
            "was declared as secondary after that."
        ),
        "",
        *_outcome(made),
        "",
        "![scores against measured speed](drivers.png)",
        "",
        *_measured(made),
        "",
        *_scored(made),
        "",
        *_orders(made),
        "",
        *_carriers(made),
    ]


def _outcome(made: dict[str, Any]) -> list[str]:
    order, raw = made["orders"]["score"], made["orders"]["advantage"]
    lines = [
        "## Outcome",
        "",
        f"- The order by speed-claimed features is **{made['verdict']}**: {_order_words(order)}.",
        f"- Raw values alone, without any feature: {_order_words(raw)}.",
        f"- The same in units of value: {_order_words(made['orders']['advantage_in_value'])}.",
        f"- Random features of equal density: {_random_words(made['random']['random'])}.",
        (
            f"- The speed asked for: {_order_words(made['orders']['asked'])}; random features: "
            f"{_random_words(made['random']['random_asked'])}."
        ),
    ]
    if made["verdict"] == "found" and (raw["rho"] or 0) >= (order["rho"] or 0):
        lines.append("- Raw values order the drivers at least as well: features add no order here.")
    without = [one["name"] for one in made["drivers"] if not one["features"]]
    if without:
        lines.append(f"- No verified speed claim, and so a score of 0: {', '.join(without)}.")
    inside = [
        one["name"]
        for one in made["drivers"]
        if one["features"] and 0.025 <= one["random"]["percentile"] <= 0.975
    ]
    if inside:
        lines.append(
            "- Taking the speed-claimed features out does no more than taking out as many random "
            f"ones: {', '.join(inside)}."
        )
    small = [one["name"] for one in made["drivers"] if one["control_features"] < one["features"]]
    if small:
        lines.append(
            f"- Fewer other eligible features than speed-claimed ones, so that the control is the "
            f"rest of the dictionary: {', '.join(small)}."
        )
    return lines


def _measured(made: dict[str, Any]) -> list[str]:
    return [
        "## Measured",
        "",
        (
            f"{made['episodes']} episodes each on the same seeds; speed is the mean over episodes "
            "of the mean over steps, with Student's 95 % interval."
        ),
        "",
        "| driver | reward for speed | speed, m/s | crashes | return |",
        "| --- | ---: | ---: | ---: | ---: |",
        *(
            f"| {one['name']} | {one['reward_for_speed']} | {_bounds(one['speed'], 2)} | "
            f"{one['crash_rate']:.0%} | {one['mean_return']:.1f} |"
            for one in _by_speed(made)
        ),
    ]


def _scored(made: dict[str, Any]) -> list[str]:
    states = made["drivers"][0]["states"]
    return [
        "## Scores",
        "",
        (
            f"On one bank of {states:,} states of all drivers, which nothing was trained on or "
            "proposed from. Score: mean advantage of FASTER minus the same without the "
            "speed-claimed features, in units of the driver's own spread of advantages (root mean "
            "square); intervals by bootstrap over seeds. Random: as many other eligible features "
            f"of equal density, {made['control_draws']} draws, and the share that it is above."
        ),
        "",
        (
            "| driver, slowest first | verified, of eligible | of them on speed | score | random | "
            "above random | speed asked for, m/s | changed actions | raw advantage |"
        ),
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        *(
            f"| {one['name']} | {one['verified']} of {one['eligible']} | {one['features']} | "
            f"{_bounds(one['score'], 3)} | {_bounds(one['random'], 3)} | "
            f"{_above(one)} | {_bounds(one['asked'], 3)} | "
            f"{one['changed_actions']:.0%} | {_bounds(one['advantage'], 3)} |"
            for one in _by_speed(made)
        ),
    ]


def _orders(made: dict[str, Any]) -> list[str]:
    first = made["orders"]["score"]
    lines = [
        "## Orders against measured speed",
        "",
        (
            f"Spearman's ρ over {len(made['drivers'])} drivers with its exact permutation p (all "
            f"{first['orders']:,} orders). Of {first['of']} pairs of drivers {first['pairs']} have "
            "disjoint speed intervals; only those must agree."
        ),
        "",
        "| ordered by | ρ | p, one-sided | p, two-sided | pairs that agree |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    named = [(words, made["orders"][name]) for name, words in SCORES.items()]
    count = len(made["seeds_by_error"])
    named += [
        (f"features, each driver's transcoder number {place + 1} of {count} by error", order)
        for place, order in enumerate(made["seeds_by_error"])
        if count > 1
    ]
    for words, order in named:
        lines.append(
            f"| {words} | {_figure(order['rho'], 2)} | {_figure(order['p_greater'], 4)} | "
            f"{_figure(order['p_two_sided'], 4)} | {order['agree']} of {order['pairs']} |"
        )
    return lines


def _carriers(made: dict[str, Any]) -> list[str]:
    lines = [
        "## Which features carry it",
        "",
        (
            "What each gives to the advantage of FASTER, mean over the bank, in the score's unit; "
            "the shares of all speed-claimed features add up to the score."
        ),
    ]
    for one in _by_speed(made):
        lines += ["", f"### {one['name']}", ""]
        if not one["shown"]:
            lines.append("No feature has a verified claim about speed.")
            continue
        lines += [
            f"{one['features_for_80_percent']} of {one['features']} make up 80 % of the sizes.",
            "",
            "| feature | share | density | on when |",
            "| ---: | ---: | ---: | --- |",
            *(
                f"| {row['feature']} | {row['share']:+.3f} | {row['density']:.1%} | "
                f"{row['words']} |"
                for row in one["shown"]
            ),
        ]
    return lines


def _by_speed(made: dict[str, Any]) -> list[dict[str, Any]]:
    return sorted(made["drivers"], key=lambda one: float(one["speed"]["value"]))


def _order_words(order: dict[str, Any]) -> str:
    if order["rho"] is None:
        return "all drivers score alike, so there is no order"
    return (
        f"Spearman's ρ {order['rho']:.2f} with measured speed, exact p {order['p_greater']:.4f} "
        f"one-sided, {order['agree']} of {order['pairs']} pairs with disjoint intervals agree"
    )


def _random_words(random: dict[str, Any]) -> str:
    if random["median"] is None:
        return "no order to compare with"
    return (
        f"ρ {random['median']:.2f} in the median draw, {random['p95']:.2f} at the 95th percentile; "
        f"{random['p']:.1%} of {random['draws']} draws reach the features' ρ"
    )


def _bounds(interval: dict[str, Any], digits: int) -> str:
    value, low, high = (f"{interval[key]:.{digits}f}" for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def _above(one: dict[str, Any]) -> str:
    return f"{one['random']['percentile']:.0%}" if one["features"] else "–"


def _figure(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _draw(made: dict[str, Any], file: Path) -> None:
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise UserError(
            "the picture needs matplotlib: install the extra interlatent-live[plots]"
        ) from error
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, key, title in (
        (panels[0], "score", "given to FASTER by speed-claimed features"),
        (panels[1], "advantage", "raw advantage of FASTER"),
    ):
        _panel(axes, made["drivers"], key)
        axes.set_xlabel(f"{title}\n(own spreads of advantage)")
    panels[0].set_ylabel("measured speed, m/s")
    panels[0].legend(fontsize=7)
    figure.savefig(file, dpi=110)


def _panel(axes: Any, drivers: Sequence[dict[str, Any]], key: str) -> None:
    for one in drivers:
        at, speed = one[key], one["speed"]
        axes.errorbar(
            at["value"],
            speed["value"],
            xerr=[[at["value"] - at["low"]], [at["high"] - at["value"]]],
            yerr=[[speed["value"] - speed["low"]], [speed["high"] - speed["value"]]],
            fmt="o",
            color="C0",
        )
        axes.annotate(
            str(one["reward_for_speed"]),
            (at["value"], speed["value"]),
            textcoords="offset points",
            xytext=(4, 4),
            fontsize=8,
        )
    if key == "score":
        axes.plot(
            [one["random"]["value"] for one in drivers],
            [one["speed"]["value"] for one in drivers],
            "x",
            color="C7",
            label="as many random features",
        )
