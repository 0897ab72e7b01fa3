"""The terminal view of a feed: one screen, readable at 80 columns, redrawn in place.

Rendering is a pure function of :class:`FeedState`; text that comes from agents and models is shown
as text (rich markup and control characters are never interpreted).
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from rich.console import RenderableType

    from interlatent_live.feed.documents import AgentStatus, NarrationDocument
    from interlatent_live.feed.state import CopyNow, FeedState

VERDICT_STYLE = {
    "verified": ("✓", "green"),
    "weak": ("~", "yellow"),
    "contradicted": ("✗", "red"),
    "stale": ("!", "magenta"),
    "pending": ("…", "cyan"),
    "abstained": ("-", "dim"),
}
"""Verdict → (mark, colour): the mark carries the meaning, the colour only helps."""

VERDICT_ORDER = tuple(VERDICT_STYLE)


def clean(text: str, limit: int = 200) -> str:
    """Other people's text made harmless: one line, no control characters, bounded."""
    one_line = " ".join(text.split())
    kept = "".join(c for c in one_line if unicodedata.category(c)[0] != "C")
    return kept if len(kept) <= limit else kept[: limit - 1] + "…"


@dataclass(frozen=True, slots=True)
class Room:
    """How much of each thing fits a terminal."""

    metrics: int = 24
    features: int = 6
    claims: int = 8
    sentences: int = 5
    sentence_length: int = 300


SMALL = Room(metrics=5, features=3, claims=3, sentences=1, sentence_length=150)
SMALL_BELOW = 44
"""Lines of a terminal below which :data:`SMALL` is shown; it fits 24 lines of 80 columns."""


def room_for(height: int) -> Room:
    """What fits a terminal of so many lines."""
    return SMALL if height < SMALL_BELOW else Room()


def render(state: FeedState, *, env: int = 0, room: Room | None = None) -> RenderableType:
    """The whole screen.

    Args:
        state: what the viewer knows.
        env: the agent copy whose present is shown.
        room: how much of each thing is shown.
    """
    room = room or Room()
    if state.agents is None or not state.agents.agents:
        return Panel(
            Text("waiting for an agent to connect …"), title="interlatent-live", expand=True
        )
    status = state.agents.agents[-1]
    run = state.runs.get((status.run_id, status.boot_id))
    copy = run.copies.get(env) if run else None
    missed = run.steps_missed if run else 0
    return Group(
        _header(status, state, missed),
        _now(status, copy, state, env=env, room=room),
        _claims(state, status.run_id, room.claims),
        _narration(state, status.run_id, room),
    )


def _milliseconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}g}"


def _header(status: AgentStatus, state: FeedState, missed: int) -> Panel:
    declared = sum(status.dropped_declared.values())
    feed = state.step_to_feed
    feature = status.step_to_feature_ms
    head = Text()
    head.append(clean(status.agent, 30), style="bold")
    head.append(f"  {clean(status.environment, 24)} × {status.env_count}")
    head.append(f"  policy {status.policy_hash.removeprefix('sha256:')[:8]}")
    head.append("  ended" if status.ended else f"  {status.steps_per_second:,.0f} steps/s")
    loss = Text(
        f"steps {status.steps_encoded:,} encoded"
        f"  dropped {declared:,} declared, {status.gaps_undeclared:,} undeclared,"
        f" {missed:,} missed here"
    )
    delay = Text(
        f"step→feature p50 {_milliseconds(feature.p50)} p99 {_milliseconds(feature.p99)} ms"
        f"   step→feed p50 {_milliseconds(feed.percentile(50))}"
        f" p99 {_milliseconds(feed.percentile(99))} ms"
    )
    lines: list[Text] = [head, loss, delay]
    lines.extend(
        Text(
            f"{clean(hook.name, 24)}@{hook.transcoder.removeprefix('sha256:')[:8]}"
            f"  {hook.n_features} features"
            f"  FVU {_number(hook.fvu)} (affine {_number(hook.fvu_affine)})"
        )
        for hook in status.hook_points
    )
    return Panel(Group(*lines), title="interlatent-live", title_align="left")


def _now(
    status: AgentStatus, copy: CopyNow | None, state: FeedState, *, env: int, room: Room
) -> Panel:
    title = f"now: copy {env}"
    if copy is None:
        return Panel(Text("no step of this copy yet"), title=title, title_align="left")
    units = {metric["name"]: metric["unit"] for metric in status.metrics}
    values = Text()
    for name, value in [*copy.metrics.items()][: room.metrics]:
        unit = units.get(name, "")
        shown = f"{value:.3g}" if value == value else "–"  # noqa: PLR0124 - NaN differs from itself
        values.append(f"{clean(name, 28)} ")
        values.append(f"{shown}{' ' + clean(unit, 8) if unit else ''}", style="bold")
        values.append("   ")
    claims = state.claim_by_address()
    table = Table(box=None, padding=(0, 1), show_header=False, expand=True)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(ratio=1, overflow="ellipsis", no_wrap=True)
    hashes = {hook.name: hook.transcoder for hook in status.hook_points}
    names = {hook.name: hook.feature_names for hook in status.hook_points}
    shown_features = [
        (hook, index, value) for hook, active in copy.active.items() for index, value in active
    ]
    shown_features.sort(key=lambda item: -item[2])
    for hook, index, value in shown_features[: room.features]:
        claim = claims.get(f"{hook}/{index}@{hashes.get(hook, '')}")
        name = names.get(hook, {}).get(str(index), "")
        table.add_row(f"{clean(hook, 16)}/{index}", f"{value:.2f}", _claim_label(claim, name))
    title += f", episode {copy.episode}, step {copy.t}" + (" (ended)" if copy.ended else "")
    return Panel(Group(values, table), title=title, title_align="left")


def _claim_label(claim: dict[str, Any] | None, name: str) -> Text:
    """What a feature stands for: its name, if it has one by construction, and what is claimed."""
    text = Text(f"{clean(name, 60)}  " if name else "", style="bold")
    if claim is None:
        return text if name else Text("no claim yet", style="dim")
    mark, colour = VERDICT_STYLE.get(claim.get("verdict", ""), ("?", ""))
    text.append(f"{mark} ", style=colour)
    text.append(clean(str(claim.get("label", "")), 120), style="")
    return text


def _claims(state: FeedState, run_id: str, rows: int) -> Panel:
    documents = [doc for (run, _), doc in state.claims.items() if run == run_id]
    counts: dict[str, int] = {}
    claims: list[dict[str, Any]] = []
    for document in documents:
        claims.extend(document.claims)
        for verdict, count in document.counts.items():
            counts[verdict] = counts.get(verdict, 0) + count
    table = Table(box=None, padding=(0, 1), expand=True, header_style="dim")
    table.add_column("feature", no_wrap=True)
    table.add_column("claim", ratio=1, overflow="ellipsis", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    table.add_column("bal.acc", justify="right", no_wrap=True)
    table.add_column("prec", justify="right", no_wrap=True)
    claims.sort(key=_claim_order)
    for claim in claims[:rows]:
        mark, colour = VERDICT_STYLE.get(claim.get("verdict", ""), ("?", ""))
        table.add_row(
            clean(str(claim["address"]).rpartition("@")[0], 16),
            Text(clean(str(claim.get("label", "")), 120)),
            Text(f"{mark} {claim.get('verdict')}", style=colour),
            _number(claim.get("balanced_accuracy"), 2),
            _number(claim.get("precision"), 2),
        )
    tally = ", ".join(f"{counts[v]} {v}" for v in VERDICT_ORDER if counts.get(v))
    return Panel(table, title=f"claims: {tally or 'none yet'}", title_align="left")


def _claim_order(claim: dict[str, Any]) -> tuple[int, float]:
    verdict = claim.get("verdict", "")
    rank = VERDICT_ORDER.index(verdict) if verdict in VERDICT_ORDER else len(VERDICT_ORDER)
    return rank, -(claim.get("balanced_accuracy") or 0.0)


def _narration(state: FeedState, run_id: str, room: Room) -> Panel:
    newest = [doc for doc in state.narration if doc.run_id == run_id][-room.sentences :]
    lines = [
        Text(f"[copy {doc.env}] {clean(line.text, room.sentence_length)}")
        for doc in newest
        for line in doc.lines[:2]
    ][-room.sentences :]
    body = Group(*lines) if lines else Text("nothing to say yet: claims are being verified")
    return Panel(body, title=f"what it is doing{_truth(newest)}", title_align="left")


def _truth(newest: list[NarrationDocument]) -> str:
    """How true the lines have been as of late, of the run's newest one."""
    truth = newest[-1].truth if newest else None
    if truth is None or truth.rate is None or truth.still_rate is None:
        return ""
    return (
        f": {truth.rate:.0%} of {truth.of} cited predicates held, "
        f"{truth.still_rate:.0%} still did when told"
    )
