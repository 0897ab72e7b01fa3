"""The page: one table, two plots, one paragraph, all made from the JSON and from nothing else.

A sentence that a figure would contradict cannot be left standing, because the words are chosen by
the figures. The test of this module renders the page in ``docs/`` again and compares.
"""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Any

from interlatent_live.interventions.reproduction.summary import arm_of, summarise, wins

if TYPE_CHECKING:
    from collections.abc import Iterable

LABELS = {
    "unsteered": "unsteered policy",
    "feature at hidden.0": "one feature steered at hidden.0, every step",
    "feature at hidden.1": "one feature steered at hidden.1, every step",
    "random direction at hidden.0": "random direction at hidden.0, searched as hard",
    "random direction at hidden.1": "random direction at hidden.1, searched as hard",
    "constant logit bias": "best constant logit bias",
    "feature while a condition holds": "one feature steered while a condition holds",
    "logit bias while a condition holds": "logit bias while a condition holds",
}


WRITTEN_BY = (
    "Written by `interlatent-live reproduce cartpole-multiscale`; a test holds it to "
    "`reproduction.json`."
)
READING = (
    "Mean over the policies with its 95 % interval (over episodes, policies fixed); differences "
    "are paired by episode. *Tried* is the number of arms searched per policy on at most "
    "{selection} selection episodes; the winner alone was tested."
)


def render(data: dict[str, Any]) -> str:
    """The Markdown page of a result file."""
    policies, summary = data["policies"], summarise(data["policies"])
    settings = data["settings"]
    lines = [
        "# The CartPole experiment, reproduced with controls",
        "",
        WRITTEN_BY,
        "",
        paragraph(data),
        "",
        f"## Held-out returns ({settings['held_out_episodes']} episodes per policy and arm)",
        "",
        READING.format(selection=settings["selection_episodes"]),
        "",
        *_table(
            ("arm", "tried", "return", "over unsteered", "over best constant bias"),
            (
                (
                    LABELS[family],
                    str(row["tried"]),
                    _interval(row["return"]),
                    "" if family == "unsteered" else _signed(row["over"]["unsteered"]),
                    ""
                    if family in ("unsteered", "constant logit bias")
                    else _signed(row["over"]["bias"]),
                )
                for family, row in summary["pooled"].items()
            ),
        ),
        "",
        "![Held-out return of each arm and policy](reproduction-arms.svg)",
        "",
        "## Replacing layers by their transcoders (reconstruction only)",
        "",
        *_table(
            ("replaced", *(f"{width} features" for width in settings["widths"])),
            (
                (where, *(_interval(widths[str(w)]) for w in settings["widths"]))
                for where, widths in summary["replacement"].items()
            ),
        ),
        "",
        "![Return with layers replaced, by width](reproduction-replacement.svg)",
        "",
        "## Each policy",
        "",
        *_table(
            (
                "policy",
                "unsteered",
                "feature at hidden.0",
                "feature at hidden.1",
                "constant bias",
                "feature, conditional",
                "bias, conditional",
                "knee",
            ),
            (
                (
                    str(policy["training_seed"]),
                    *(
                        f"{arm_of(policy, family)['return']['mean']:.1f}"
                        for family in (
                            "unsteered",
                            "feature at hidden.0",
                            "feature at hidden.1",
                            "constant logit bias",
                            "feature while a condition holds",
                            "logit bias while a condition holds",
                        )
                    ),
                    str(knee or "none"),
                )
                for policy, knee in zip(policies, summary["knees"], strict=True)
            ),
        ),
        "",
        "Winning arms, fixed before the held-out episodes were played:",
        "",
        *(
            f"- policy {policy['training_seed']}: "
            + "; ".join(
                arm_of(policy, family)["arm"]
                for family in (
                    "feature at hidden.0",
                    "feature at hidden.1",
                    "constant logit bias",
                    "feature while a condition holds",
                    "logit bias while a condition holds",
                )
            )
            for policy in policies
        ),
        "",
        _cost(data),
        "",
    ]
    return "\n".join(lines)


def paragraph(data: dict[str, Any]) -> str:
    """The one paragraph, in words that the figures choose."""
    policies, settings = data["policies"], data["settings"]
    summary = summarise(policies)
    pooled = summary["pooled"]
    n = len(policies)
    first, second = pooled["feature at hidden.0"], pooled["feature at hidden.1"]
    gains = [
        max(
            arm_of(policy, family)["over"]["unsteered"]["mean"]
            for family in ("feature at hidden.0", "feature at hidden.1")
        )
        for policy in policies
    ]
    beating = sum(wins(summary, f"feature at hidden.{layer}", "bias") for layer in (0, 1))
    big = sum(gain >= 62 / 2 for gain in gains)
    layers = "-".join(map(str, settings["layers"]))
    band = f"{settings['target_return']:g} ± {settings['tolerance']:g}"
    opening = (
        f"{n} REINFORCE policies ({layers}, ReLU) were stopped at a mean return of {band}; "
        f"unsteered they hold {_interval(pooled['unsteered']['return'])} on held-out episodes."
    )
    steered = (
        "Adding α times one feature's decoder direction on every step, the best of "
        f"{first['tried']} tries at each hidden layer, changes that by "
        f"{_signed(first['over']['unsteered'])} (hidden.0) and "
        f"{_signed(second['over']['unsteered'])} (hidden.1), and by {min(gains):+.0f} to "
        f"{max(gains):+.0f} for the better layer of a single policy; the published gain is +62, "
        f"and {big} of {n} policies gain at least half of it."
    )
    sentences = [
        opening,
        steered,
        _against_bias(summary, beating, n),
        _arithmetic(summary),
        _random(pooled, policies),
        _knees(summary, settings["widths"]),
        _conditional(summary, n),
    ]
    return " ".join(sentences)


def _against_bias(summary: dict[str, Any], beating: int, n: int) -> str:
    bias = summary["pooled"]["constant logit bias"]["over"]["unsteered"]
    verdict = (
        "in none of them does a steered feature beat that"
        if beating == 0
        else f"a steered feature beats that in {beating} of {2 * n} comparisons"
    )
    return (
        f"The best constant logit bias gives {_signed(bias)}, and {verdict} (Holm's p ≤ .05 over "
        "all promised comparisons)."
    )


def _arithmetic(summary: dict[str, Any]) -> str:
    text = (
        "At hidden.1 a constant added before a linear head is a constant added to the logits, so "
        "unconditional steering there *is* a logit bias"
    )
    if wins(summary, "feature at hidden.1", "bias"):
        text += "; where it beats the chosen bias, the difference lies in the choosing"
    return text + "."


def _random(pooled: dict[str, Any], policies: list[dict[str, Any]]) -> str:
    parts = [
        f"{_signed(pooled[f'random direction at hidden.{layer}']['over']['unsteered'])} "
        f"(hidden.{layer})"
        for layer in (0, 1)
    ]
    beaten = [
        median(policy["percentile"][f"feature at hidden.{layer}"] for policy in policies)
        for layer in (0, 1)
    ]
    return (
        f"Random directions of the same norms, searched as hard, give {parts[0]} and {parts[1]}; "
        "against unsearched ones of its own norm the winner beats "
        f"{beaten[0]:.0%} and {beaten[1]:.0%} (medians over the policies)."
    )


def _knees(summary: dict[str, Any], widths: Iterable[int]) -> str:
    both = summary["replacement"]["both"]
    returns = " / ".join(f"{both[str(width)]['mean']:.0f}" for width in widths)
    knees = summary["knees"]
    counted = ", ".join(
        f"{knee if knee is not None else 'none of these'} for {knees.count(knee)}"
        for knee in sorted(set(knees), key=lambda value: value or 10**6)
    )
    return (
        f"With both layers replaced by transcoders of {' / '.join(map(str, widths))} features the "
        f"policies hold {returns}; the smallest width that keeps 90 % of the return is {counted} "
        "of them."
    )


def _conditional(summary: dict[str, Any], n: int) -> str:
    row = summary["pooled"]["feature while a condition holds"]
    over_bias = wins(summary, "feature while a condition holds", "bias")
    over_same = wins(summary, "feature while a condition holds", "conditional_bias")
    opening = (
        "Steering a feature only while a condition holds (a position beyond a threshold, or a "
        f"feature on) gives {_signed(row['over']['unsteered'])} and beats the best constant bias "
        f"in {over_bias} of {n} policies, by {_signed(row['over']['bias'])} on average"
    )
    if over_same == 0:
        verb = "does better" if row["over"]["conditional_bias"]["high"] < 0 else "does no worse"
        return (
            f"{opening}; but a logit bias under a condition, searched in the same way, {verb} "
            f"({_signed(row['over']['conditional_bias'])} for the feature, ahead in none of the "
            "policies): the condition is what helps, not the feature."
        )
    return (
        f"{opening}, and a logit bias under a condition in {over_same} of {n}, by "
        f"{_signed(row['over']['conditional_bias'])}."
    )


def _cost(data: dict[str, Any]) -> str:
    each = [policy["cpu_seconds"] for policy in data["policies"]]
    whole = (
        f"Run in {data['seconds'] / 60:.1f} minutes with {data['workers']} worker processes"
        if not data["resumed"]
        else f"Finished from {data['resumed']} policies of an interrupted run"
    )
    return (
        f"{whole}, which used {sum(each) / 60:.1f} minutes of processor time together "
        f"({min(each):.0f} to {max(each):.0f} s per policy). Settings {data['settings_digest']}."
    )


def _interval(data: dict[str, Any]) -> str:
    return f"{data['mean']:.1f} [{data['low']:.1f}, {data['high']:.1f}]"


def _signed(data: dict[str, Any]) -> str:
    return f"{data['mean']:+.1f} [{data['low']:+.1f}, {data['high']:+.1f}]"


def _table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    return [
        "| " + " | ".join(header) + " |",
        "| " + " | ".join("---" for _ in header) + " |",
        *("| " + " | ".join(row) + " |" for row in rows),
    ]
