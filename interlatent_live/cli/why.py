"""``interlatent-live why``: one decision of a running agent taken apart."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from interlatent_live.cli.options import ConfigOption, SetOption, resolve_options

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.console import RenderableType

    from interlatent_live.client import Why, WhyTerm

ROWS = 12
NOTE = (
    "Each list adds up to the same number. A term is what it adds to the action's score; that of "
    "an observation is beside what is usual in the last samples."
)


def why(
    agent: Annotated[str, typer.Argument(help="Name of an agent that is running.")],
    copy: Annotated[int, typer.Option(help="Copy of the environment.", min=0)] = 0,
    step: Annotated[
        int | None, typer.Option(help="Step within the episode. [default: the newest held]", min=0)
    ] = None,
    episode: Annotated[
        int | None, typer.Option(help="Episode of --step. [default: the newest]", min=0)
    ] = None,
    component: Annotated[
        str,
        typer.Option(
            help="Part of a continuous action, by name or number; or an action whose score, less "
            "its mean, is explained. [default: the best action over the second best, or the part "
            "that is furthest from usual]"
        ),
    ] = "",
    run: Annotated[str, typer.Option(help="Id of a run; otherwise the agent's newest.")] = "",
    rows: Annotated[int, typer.Option(help="Terms shown of each list.", min=1)] = ROWS,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, with edges.")] = False,
    config: ConfigOption = None,
    assign: SetOption = None,
) -> None:
    """Say why an agent acted as it did: which features, and before them which observations.

    The agent's shadow takes one sampled step apart on a copy of the policy, completely: features,
    constants and what the transcoders leave out add up to the difference between the best action's
    score and the second best's. The largest features are also taken out one by one, and what that
    changes stands beside their terms. The agent notices nothing.

    Needs a running console, and an agent that was attached with a shadow.
    """
    from interlatent_live.client import ConsoleClient
    from interlatent_live.errors import UserError

    if episode is not None and step is None:
        raise UserError("give --step with --episode")
    settings = resolve_options(config, assign).settings
    with ConsoleClient.of(settings) as console:
        found = console.why(
            agent, run_id=run, env=copy, episode=episode, t=step, component=component
        )
    if as_json:
        import msgspec

        print(msgspec.json.format(msgspec.json.encode(found), indent=1).decode())
        return
    from rich.console import Console

    out = Console(highlight=False)
    for line in lines(found, rows):
        out.print(line)


def lines(found: Why, rows: int) -> Iterator[RenderableType]:
    """What is printed, in order."""
    from rich.text import Text

    where = f"step {found.t} of episode {found.episode}, copy {found.env}"
    yield Text(f"{found.agent}, {where}, {found.age_s:.1f} s ago", style="bold")
    yield Text(f"{found.label}: {found.value:+.4f}; {found.verdict}")
    measured = {one.name: one.measured for one in found.ablations}
    for depth, level in enumerate(found.levels):
        last = depth == len(found.levels) - 1
        yield Text("")
        yield _table("from the observation" if last else "at the action", level, measured, rows)
    agrees = "–" if found.rank_agreement is None else f"{found.rank_agreement:.2f}"
    yield Text("")
    yield Text(
        f"The terms miss the number by {found.residual:.1e} at most; taking the largest features "
        f"out ranks them alike with ρ = {agrees}."
    )
    if found.note:
        yield Text(found.note)
    yield Text(NOTE, style="dim")


def _table(
    title: str, level: Sequence[WhyTerm], measured: dict[str, float], rows: int
) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, expand=True)
    table.add_column(title, ratio=1)
    table.add_column("adds", justify="right", no_wrap=True)
    table.add_column("taken out", justify="right", no_wrap=True)
    for term in level[:rows]:
        out = measured.get(term.name)
        table.add_row(
            Text(_words(term)),
            f"{term.contribution:+.4f}",
            "" if out is None else f"{out:+.4f}",
        )
    if rest := level[rows:]:
        count = sum(term.count for term in rest)
        total = sum(term.contribution for term in rest)
        table.add_row(Text(f"{count} more"), f"{total:+.4f}", "")
    return table


def _words(term: WhyTerm) -> str:
    if term.claim is not None:
        return f"{term.label}: {term.claim.label or term.claim.predicate}"
    if term.value is not None and term.usual is not None:
        unit = f" {term.unit}" if term.unit else ""
        return f"{term.label} {term.value:.4g}{unit} (usual {term.usual:.4g})"
    return f"{term.count} {term.label}" if term.kind == "others" else term.label
