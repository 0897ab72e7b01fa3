"""How an incident is shown: a table for a terminal of 80 columns, and a drawing."""

from __future__ import annotations

import html
import io
from typing import TYPE_CHECKING, Any, Final

from interlatent_live.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from rich.console import RenderableType

    from interlatent_live.client import Incident, Incidents, UnusualFeature

NOTE: Final = (
    "Rare: share of the other episodes' stretches that were as extreme. "
    "What comes before a failure need not be its cause."
)
STYLES: Final = {"verified": "green", "contradicted": "red", "stale": "red"}


def lines(found: Incidents) -> Iterator[RenderableType]:
    """What is printed, in order."""
    from rich.table import Table
    from rich.text import Text

    for one in found.items:
        yield Text(_head(one, found.control_hz), style="bold")
        if not one.features:
            yield Text("Nothing was unusual in the features there.")
        else:
            table = Table(box=None, pad_edge=False, expand=True)
            table.add_column("feature", justify="right", no_wrap=True)
            table.add_column("what is claimed of it", ratio=1)
            for name in ("on", "usually", "rare", "before the end"):
                table.add_column(name, justify="right", no_wrap=True)
            for feature in one.features:
                table.add_row(
                    f"{feature.feature} {_arrow(feature)}",
                    Text(_claim(feature), style=STYLES.get(feature.verdict or "", "")),
                    _percent(feature.activity),
                    _percent(feature.usual),
                    _percent(feature.as_extreme),
                    _lead(feature, found.control_hz),
                )
            yield table
        if one.nearest:
            cases = "; ".join(
                f"episode {case.episode} of copy {case.env} "
                f"(likeness {case.similarity:.2f}, {case.steps} steps)"
                for case in one.nearest
            )
            yield Text(f"Ended most alike: {cases}.")
        yield Text("")
    yield Text(NOTE, style="dim")


def _head(one: Incident, hz: float | None) -> str:
    span = f" ({one.window_steps / hz:.1f} s)" if hz else ""
    return (
        f"{one.hook_point}: the last {one.window_steps}{span} of {one.steps} steps of episode "
        f"{one.episode} of copy {one.env}, beside {one.reference_episodes} others"
    )


def _arrow(feature: UnusualFeature) -> str:
    return "↑" if feature.direction == "more active" else "↓"


def _claim(feature: UnusualFeature) -> str:
    if not feature.label:
        return "nothing is claimed"
    return f"{feature.label} ({feature.verdict})"


def _percent(share: float) -> str:
    if 0 < share < 0.005:
        return "<1 %"
    return f"{share:.0%}".replace("%", " %")


def _lead(feature: UnusualFeature, hz: float | None) -> str:
    if feature.lead_steps is None:
        return "–"
    return f"{feature.lead_steps / hz:.1f} s" if hz else f"{feature.lead_steps} steps"


# ------------------------------------------------------------------------------------ the drawing


def draw(found: Incidents, file: Path) -> None:
    """A ``.png``, or an ``.html`` page with the drawing and the table inside.

    Raises:
        UserError: when matplotlib is not installed, or the file cannot be written.
    """
    if file.suffix == ".png":
        body = _figure(found, "png")
    else:
        body = _page(found, _figure(found, "svg").decode()).encode()
    try:
        file.write_bytes(body)
    except OSError as error:
        raise UserError(f"{file} can't be written: {error.strerror}") from error


def _figure(found: Incidents, kind: str) -> bytes:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("a drawing needs matplotlib: install interlatent-live[plots]") from error
    rows = [max(len(one.features), 1) for one in found.items]
    figure = Figure(figsize=(10, 1.2 * len(rows) + 0.32 * sum(rows)), layout="constrained")
    grid = figure.subplots(
        len(rows), 2, squeeze=False, gridspec_kw={"width_ratios": (3, 1), "height_ratios": rows}
    )
    for (course, share), one in zip(grid, found.items, strict=True):
        _courses(course, one, found.control_hz)
        _shares(share, one)
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=120)
    return buffer.getvalue()


def _courses(axes: Any, one: Incident, hz: float | None) -> None:
    """Each feature's activation over the window, scaled by its own largest, darker is stronger."""
    unit = 1 / hz if hz else 1.0
    start = -one.window_steps * unit
    for place, feature in enumerate(one.features):
        top = max(feature.course) or 1.0
        axes.imshow(
            [[value / top for value in feature.course]],
            extent=(start, 0, place + 0.4, place - 0.4),
            aspect="auto", cmap="Greys", vmin=0, vmax=1, interpolation="nearest",
        )  # fmt: skip
        if feature.lead_steps is not None:
            since = max(start, -feature.lead_steps * unit)
            axes.plot([since, since], [place - 0.4, place + 0.4], color="tab:red", linewidth=2)
    axes.set_xlim(start, 0)
    axes.set_ylim(max(len(one.features), 1) - 0.5, -0.5)
    names = [f"{_short(_claim(f))}  {f.feature} {_arrow(f)}" for f in one.features]
    axes.set_yticks(range(len(names)), names, fontsize=8)
    for label in axes.get_yticklabels():
        label.set_parse_math(False)  # other people's words are text, whatever signs are in them
    axes.set_xlabel("seconds before the end" if hz else "steps before the end")
    axes.set_title(
        f"{one.hook_point}, episode {one.episode} of copy {one.env}; red: unusual from here on",
        fontsize=9, parse_math=False,
    )  # fmt: skip


def _shares(axes: Any, one: Incident) -> None:
    places = range(len(one.features))
    axes.barh(places, [f.activity for f in one.features], height=0.6, label="now")
    axes.plot([f.usual for f in one.features], places, "k|", markersize=12, label="usually")
    axes.set_ylim(max(len(one.features), 1) - 0.5, -0.5)
    axes.set_xlim(0, 1)
    axes.set_yticks([])
    axes.set_xlabel("share of steps on")
    if one.features:
        axes.legend(fontsize=7)


def _short(text: str, most: int = 48) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _page(found: Incidents, svg: str) -> str:
    drawing = svg[svg.index("<svg") :]
    tables = "".join(_table(one, found.control_hz) for one in found.items)
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        f"<title>Incident in {html.escape(found.run_id)}</title>"
        "<style>body{font:15px system-ui,sans-serif;margin:2rem auto;max-width:70rem;"
        "padding:0 1rem}svg{max-width:100%;height:auto}td,th{padding:.2rem .8rem;text-align:left}"
        "table{border-collapse:collapse}tr+tr{border-top:1px solid #ccc}</style>"
        f"<h1>Incident in run {html.escape(found.run_id)}</h1>{drawing}{tables}"
        f"<p>{html.escape(NOTE)}</p></html>\n"
    )


def _table(one: Incident, hz: float | None) -> str:
    head = ("feature", "what is claimed of it", "predicate", "on", "usually", "rare", "before end")
    rows = [
        (
            f"{feature.feature} {_arrow(feature)}",
            _claim(feature),
            feature.predicate or "",
            _percent(feature.activity),
            _percent(feature.usual),
            _percent(feature.as_extreme),
            _lead(feature, hz),
        )
        for feature in one.features
    ]
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    cells = "".join(f"<th>{name}</th>" for name in head)
    near = "; ".join(
        f"episode {case.episode} of copy {case.env} (likeness {case.similarity:.2f})"
        for case in one.nearest
    )
    return (
        f"<h2>{html.escape(_head(one, hz))}</h2><table><tr>{cells}</tr>{body}</table>"
        f"<p>Ended most alike: {html.escape(near) or 'none'}.</p>"
    )
