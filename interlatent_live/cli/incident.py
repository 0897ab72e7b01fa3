"""``interlatent-live incident``: what was unusual before an end, and where it was seen before."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from interlatent_live.cli.options import ConfigOption, SetOption, resolve_options

if TYPE_CHECKING:
    from collections.abc import Callable

    from interlatent_live.client import Incidents
    from interlatent_live.config import Settings

STEPS = 100


def incident(
    run: Annotated[
        str, typer.Argument(help="A recording (.mcap), or the id of a run that is still up.")
    ],
    episode: Annotated[int, typer.Argument(help="Number of the episode within its copy.", min=0)],
    copy: Annotated[int, typer.Option(help="Copy of the environment.", min=0)] = 0,
    steps: Annotated[
        int | None,
        typer.Option(
            help=f"Steps before the end that are looked at. [default: {STEPS}]", min=1, max=10_000
        ),
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(help="Seconds before the end, instead of --steps.", min=0.01)
    ] = None,
    hook_point: Annotated[
        str, typer.Option("--hook-point", help="Only this hook point; otherwise all.")
    ] = "",
    plot: Annotated[
        Path | None,
        typer.Option(help="Also draw it: a .png, or an .html page that needs nothing else."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    config: ConfigOption = None,
    assign: SetOption = None,
) -> None:
    """Say what was unusual in the features at the end of an episode.

    Each feature's activity in the last steps is held beside all stretches of the same length of
    the other episodes. Shows how rare it was, since when before the end, what is claimed of the
    feature, and which other episodes ended alike. What comes before a failure need not be its
    cause.

    From a recording nothing needs to be up; claims then come from the console's store, if it knows
    the transcoder.
    """
    from interlatent_live.errors import UserError

    if steps is not None and seconds is not None:
        raise UserError("give --steps or --seconds, not both")
    if plot is not None and plot.suffix not in {".png", ".html"}:
        raise UserError(f"--plot {plot}: write a .png or an .html file")
    settings = resolve_options(config, assign).settings

    def window(control_hz: float | None) -> int:
        return _window(steps, seconds, control_hz)

    if run.endswith(".mcap") or Path(run).is_file():
        found = _recorded(Path(run), episode, copy, window, hook_point, settings)
    else:
        from interlatent_live.client import ConsoleClient

        with ConsoleClient.of(settings, timeout_s=120.0) as console:
            hz = console.run(run).control_hz if seconds is not None else None
            found = console.incidents(
                run, episode, env=copy, window=window(hz), hook_point=hook_point
            )
    _show(found, plot, as_json=as_json)


def _window(steps: int | None, seconds: float | None, control_hz: float | None) -> int:
    from interlatent_live.errors import UserError

    if seconds is None:
        return steps or STEPS
    if not control_hz:
        raise UserError("the agent does not say how many steps a second has; give --steps")
    return min(max(round(seconds * control_hz), 1), 10_000)


def _show(found: Incidents, plot: Path | None, *, as_json: bool) -> None:
    import msgspec
    from rich.console import Console

    from interlatent_live.cli.incident_view import draw, lines

    if plot is not None:
        draw(found, plot)
    if as_json:
        print(msgspec.json.format(msgspec.json.encode(found), indent=1).decode())
        return
    out = Console(highlight=False)
    for line in lines(found):
        out.print(line)
    if plot is not None:
        out.print(f"drawn: {plot}", markup=False)


def _recorded(
    file: Path,
    episode: int,
    copy: int,
    window: Callable[[float | None], int],
    hook_point: str,
    settings: Settings,
) -> Incidents:
    """From a file, with claims from the store where there is one already."""
    from contextlib import closing, nullcontext

    import msgspec

    from interlatent_live.client import Incidents
    from interlatent_live.console.state import existing_store
    from interlatent_live.pipeline.incidents import recorded_incidents

    store = existing_store(settings)
    with nullcontext() if store is None else closing(store):
        found = recorded_incidents(
            file, episode, env=copy, steps=window, hook_point=hook_point, store=store
        )
    return msgspec.convert(found, Incidents)
