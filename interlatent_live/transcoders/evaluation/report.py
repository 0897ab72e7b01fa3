"""The evaluation as Markdown, as one self-contained page with plots, and as JSON."""

from __future__ import annotations

import html
import json
from typing import TYPE_CHECKING, Any

from interlatent_live.errors import UserError
from interlatent_live.transcoders.evaluation.plots import plots
from interlatent_live.transcoders.tensorfiles import replace_file

if TYPE_CHECKING:
    from pathlib import Path

_SHOWN_FEATURES = 30


def write_report(report: dict[str, Any], out: Path) -> dict[str, Path]:
    """Write ``report.json``, ``report.md`` and, where matplotlib is installed, ``report.html``.

    Returns:
        The paths written, by suffix.
    """
    out.mkdir(parents=True, exist_ok=True)
    paths = {"json": out / "report.json", "md": out / "report.md"}
    text = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    replace_file(paths["json"], text.encode())
    replace_file(paths["md"], markdown(report).encode())
    try:
        page = webpage(report)
    except UserError:
        return paths
    paths["html"] = out / "report.html"
    replace_file(paths["html"], page.encode())
    return paths


def markdown(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    lines = [
        f"# Transcoders at `{report['hook_point']}` of {report['policy']}",
        "",
        (
            f"{report['environment']}, policy `{report['policy_hash'][:19]}…`, dataset "
            f"`{report['dataset_hash'][:19]}…`. Figures are medians over training seeds on "
            f"{report['held_out']['rows']:,} held-out steps of "
            f"{report['held_out']['episodes']} episodes."
        ),
        "",
    ]
    if report["original_return"] is not None:
        own, ablated = report["original_return"], report["mean_ablated_return"]
        lines += [
            (
                f"Return of the original {_pm(own)}, mean-ablated {_pm(ablated)}, over "
                f"{own['episodes']} paired seeds."
            ),
            "",
        ]
    lines += _table(report)
    for group in report["groups"]:
        lines += ["", f"## {group['name']}", "", group["gate"]["verdict"], ""]
        lines += _seed_table(group)
        lines += ["", *_notes(group), ""]
        lines += _feature_lines(group)
    return "\n".join(lines) + "\n"


def webpage(report: dict[str, Any]) -> str:
    """The report as one HTML page, plots inside.

    Raises:
        UserError: when matplotlib is not installed.
    """
    figures = "".join(
        f'<figure><img alt="{html.escape(title)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{html.escape(title)}</figcaption></figure>"
        for title, data in plots(report)
    )
    body = _html_from_markdown(markdown(report))
    title = html.escape(f"Transcoders at {report['hook_point']} of {report['policy']}")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f"<title>{title}</title><style>body{{font:15px/1.5 system-ui,sans-serif;max-width:72rem;"
        "margin:2rem auto;padding:0 1rem}table{border-collapse:collapse;margin:1rem 0}"
        "td,th{border:1px solid #bbb;padding:.2rem .5rem;text-align:right}"
        "td:first-child,th:first-child{text-align:left}figure{display:inline-block;margin:.5rem}"
        f"img{{max-width:34rem}}</style></head><body>{body}<h2>Plots</h2>{figures}</body></html>\n"
    )


_COLUMNS = (
    ("FVU", "fvu", ".5f"),
    ("affine", "fvu_affine", ".4f"),
    ("mean-ablated", "fvu_mean_ablation", ".2f"),
    ("beyond affine", "fvu_beyond_affine", ".3f"),
    ("L0", "l0", ".2f"),
    ("dead", "dead", ".0%"),
    ("always on", "always_on", ".1%"),
    ("live", "live", ".0f"),
    ("eligible", "eligible", ".0f"),
    ("memorised", "memorised_share", ".1%"),
    ("agreement", "agreement", ".3f"),
    ("KL, nat", "kl", ".4f"),
    ("Q-regret", "regret", ".3f"),
    ("action RMSE, sd", "rmse", ".3f"),
    ("output FVU", "output_fvu", ".4f"),
    ("return", "return", ".1f"),
    ("kept", "kept", ".1%"),
    ("first divergence", "first_divergence", ".0f"),
    ("feature share", "feature_share", ".2f"),
    ("stability", "stability", ".2f"),
    ("random", "stability_random", ".2f"),
)


def _table(report: dict[str, Any]) -> list[str]:
    """One row per figure that any group has, one column per group."""
    groups = report["groups"]
    lines = [
        "| figure | " + " | ".join(group["name"] for group in groups) + " |",
        "| --- |" + " ---: |" * len(groups),
    ]
    for title, key, form in _COLUMNS:
        values = [group["median"].get(key) for group in groups]
        if all(value is None for value in values):
            continue
        shown = ["–" if value is None else format(value, form) for value in values]
        lines.append(f"| {title} | " + " | ".join(shown) + " |")
    heads = [group["head"] for group in groups]
    if any(heads):
        shown = ["–" if head is None else f"{head['action_fvu']:.4f}" for head in heads]
        lines.append("| FVU of the action | " + " | ".join(shown) + " |")
    if any(head and head["decoder_energy_in_row_space"] is not None for head in heads):
        shown = [
            "–" if head is None else f"{head['decoder_energy_in_row_space']:.2f}" for head in heads
        ]
        lines.append("| decoder energy that acts | " + " | ".join(shown) + " |")
    equal = [_equivalence(group["median"]) for group in groups]
    if any(text != "–" for text in equal):
        lines.append("| behaviour equivalent | " + " | ".join(equal) + " |")
    gates = ["pass" if group["gate"]["passed"] else "fail" for group in groups]
    lines.append("| gate | " + " | ".join(gates) + " |")
    return lines


def _equivalence(median: dict[str, Any]) -> str:
    if median.get("equivalent") is None:
        return "–"
    word = "yes" if median["equivalent"] else "no"
    return f"{word}: {median['lo']:+.1f}…{median['hi']:+.1f} in ±{median['margin']:.1f}"


def _seed_table(group: dict[str, Any]) -> list[str]:
    lines = ["| seed | identity | FVU | L0 | dead | live | return |", "| --- |" + " ---: |" * 6]
    for seed in group["seeds"]:
        figures = seed["reconstruction"]
        own = "–" if seed["behaviour"] is None else _pm(seed["behaviour"]["return"])
        lines.append(
            f"| {seed['seed']} | `{seed['identity']}` | {figures['fvu']:.5f} | {figures['l0']:.2f} "
            f"| {figures['dead']:.0%} | {seed['live']} | {own} |"
        )
    return lines


def _notes(group: dict[str, Any]) -> list[str]:
    notes = []
    stability = group["stability"]
    if stability is not None:
        notes.append(
            f"Seeds: matched features correlate {stability['correlation']:.2f} (median; "
            f"{stability['share_above_07']:.0%} above 0.7; decoder cosine "
            f"{stability['decoder_cosine']:.2f}); random dictionaries "
            f"{stability['random_correlation']:.2f} ({stability['random_share_above_07']:.0%})."
        )
    twice = group["seeds"][0]["redundancy"]
    if twice is not None:
        notes.append(
            f"Redundancy: {twice['share']:.0%} of live features correlate above 0.95 with another; "
            f"the nearest other correlates {twice['median_nearest']:.2f} (median)."
        )
    return notes


def _feature_lines(group: dict[str, Any]) -> list[str]:
    table = group["features"]
    if not table:
        return ["No live features."]
    lines = [
        (
            f"Features of `{group['features_of']}`, {min(len(table), _SHOWN_FEATURES)} of "
            f"{len(table)} live ones, most frequent first. The effect is the mean change of each "
            "(centred) output while the feature is on."
        ),
        "",
        "| feature | density | episodes | bouts | median when on | effect | changes action |",
        "| --- |" + " ---: |" * 6,
    ]
    # A probe is what somebody asked for, so it is shown however rare it is.
    named = [row for row in table if row["name"]]
    unnamed = [row for row in table if not row["name"]]
    for row in (named + unnamed)[:_SHOWN_FEATURES]:
        effect = "–" if row["effect"] is None else " ".join(f"{v:+.2f}" for v in row["effect"])
        if row["changes_action"] is not None:
            changes = f"{row['changes_action']:.0%}"
        elif row["action_change"] is not None:
            changes = f"by {row['action_change']:.3f}"
        else:
            changes = "–"
        lines.append(
            f"| {_called(row)} | {row['density']:.3%} | {row['episodes']} | {row['bouts']} | "
            f"{row['quantiles']['0.5']:.2f} | {effect} | {changes} |"
        )
    return lines


def _called(row: dict[str, Any]) -> str:
    return f"{row['feature']} ({row['name']})" if row["name"] else str(row["feature"])


def _pm(value: dict[str, float]) -> str:
    return f"{value['mean']:.1f} ± {value['standard_error']:.1f}"


def _html_from_markdown(text: str) -> str:
    """The few forms that :func:`markdown` uses: headings, paragraphs, tables, code."""
    out: list[str] = []
    rows: list[str] = []
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            rows.append(line)
            continue
        if rows:
            out.append(_html_table(rows))
            rows = []
        if line.startswith("## "):
            out.append(f"<h2>{_inline(line[3:])}</h2>")
        elif line.startswith("# "):
            out.append(f"<h1>{_inline(line[2:])}</h1>")
        elif line:
            out.append(f"<p>{_inline(line)}</p>")
    return "\n".join(out)


def _html_table(rows: list[str]) -> str:
    lines = []
    for place, row in enumerate(rows):
        if place == 1:  # the line of dashes
            continue
        tag = "th" if place == 0 else "td"
        cells = row.strip().strip("|").split("|")
        line = "".join(f"<{tag}>{_inline(cell.strip())}</{tag}>" for cell in cells)
        lines.append(f"<tr>{line}</tr>")
    return "<table>" + "\n".join(lines) + "</table>"


def _inline(part: str) -> str:
    pieces = html.escape(part).split("`")
    return "".join(
        f"<code>{piece}</code>" if place % 2 else piece for place, piece in enumerate(pieces)
    )
