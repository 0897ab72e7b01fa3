"""``interlatent-live replay``: recordings once more, through the services of a live run."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interlatent_live.cli.options import ConfigOption, SetOption, resolve_options

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from interlatent_live.config import Resolved
    from interlatent_live.feed.state import FeedState
    from interlatent_live.recordings.playing import Playing, Selection
    from interlatent_live.services.player import PlayCounts

SETTLE_S = 600.0


def replay(
    files: Annotated[list[Path], typer.Argument(help="Recordings, or folders of them.")],
    speed: Annotated[
        str, typer.Option(help="Times the recording's own pace, such as 1 or 10, or max.")
    ] = "max",
    from_s: Annotated[
        float, typer.Option("--from", help="Leave out rows before this second.", min=0)
    ] = 0.0,
    to_s: Annotated[
        float | None, typer.Option("--to", help="End at this second of the recording.", min=0)
    ] = None,
    agent: Annotated[str | None, typer.Option(help="Only this agent.")] = None,
    into: Annotated[
        bool,
        typer.Option("--into", help="Into the running system of the configuration instead."),
    ] = False,
    stay: Annotated[
        bool, typer.Option("--stay", help="Keep page and services until Ctrl-C when all is played.")
    ] = False,
    config: ConfigOption = None,
    assign: SetOption = None,
) -> None:
    """Play recordings again: the same rows, at any pace, through correlator, explainer and console.

    Starts these three on free ports and stands in the encoder's place; look at the page whose
    address is shown. Played whole, statistics and verdicts come out as in the live run, because
    when claims were scored is recorded too. No row is dropped to keep a pace. Ctrl-C ends it.
    """
    from interlatent_live.recordings.playing import Playing, Selection, recording_files

    pace = _pace(speed)
    resolved = resolve_options(config, assign)
    found = recording_files(files)
    selection = Selection(agent, from_s, to_s)
    playing = Playing(found, selection, lambda what: print(what, file=sys.stderr))
    with ExitStack() as stack:
        progress = stack.enter_context(_progress(_seconds(found)))
        try:
            if into:
                counts, state = _into(resolved, playing, pace, progress), None
            else:
                counts, state = _beside(
                    resolved, found, playing, selection, pace, progress, stay=stay
                )
        except KeyboardInterrupt:
            stack.close()
            print("stopped", file=sys.stderr)
            return
    _sum_up(counts, playing, state)


def _pace(text: str) -> float | None:
    from interlatent_live.errors import UserError

    if text == "max":
        return None
    with contextlib.suppress(ValueError):
        if (value := float(text)) > 0:
            return value
    raise UserError(f"--speed {text}: give a number such as 1 or 10, or max")


def _seconds(files: list[Path]) -> float | None:
    """How long the recording is, by the indexes of its files; None where a file has none."""
    from mcap.exceptions import McapError
    from mcap.reader import make_reader

    starts, ends = [], []
    for path in files:
        with path.open("rb") as file, contextlib.suppress(McapError, ValueError, OSError):
            summary = make_reader(file).get_summary()
            if summary is not None and summary.statistics is not None:
                starts.append(summary.statistics.message_start_time)
                ends.append(summary.statistics.message_end_time)
    return (max(ends) - min(starts)) / 1e9 if len(ends) == len(files) else None


@contextlib.contextmanager
def _progress(seconds: float | None) -> Iterator[Callable[[PlayCounts], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(),
        TextColumn("{task.fields[rows]:,} rows, {task.fields[rate]:,.0f}/s"),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True)) as shown:
        task = shown.add_task("replaying", total=seconds, rows=0, rate=0.0)

        def told(counts: PlayCounts) -> None:
            done = counts.recorded_s
            shown.update(task, completed=done, rows=counts.rows, rate=counts.rows_per_s)

        yield told


def _beside(
    resolved: Resolved,
    files: list[Path],
    playing: Playing,
    selection: Selection,
    pace: float | None,
    progress: Callable[[PlayCounts], None],
    *,
    stay: bool,
) -> tuple[PlayCounts, FeedState]:
    from interlatent_live.recordings import recording_provenance
    from interlatent_live.recordings.origins import with_recorded
    from interlatent_live.services.replay import ReplaySystem, replay_settings

    settings = with_recorded(resolved, recording_provenance(files[0]))
    with tempfile.TemporaryDirectory(prefix="interlatent-replay-") as folder:
        # Looks at a part of the rows would be looks at other rows than were looked at.
        whole = selection.from_s == 0 and selection.to_s is None
        settings = replay_settings(settings, files if whole else (), Path(folder))
        with ReplaySystem(settings) as system:
            feeds = settings.endpoints.feeds()
            print(f"replaying: look at {system.page}", flush=True)
            print("or in a terminal with", flush=True)
            print("  interlatent-live watch " + " ".join(f"--endpoint {one}" for one in feeds))
            counts = system.play(playing.messages(), speed=pace, on_progress=progress)
            if not system.settle(SETTLE_S):
                print("some claims were not finished in time", file=sys.stderr)
            if stay:
                print("all is played; Ctrl-C ends it", flush=True)
            while stay:
                try:
                    system.show()
                except KeyboardInterrupt:
                    break
            return counts, system.state


def _into(
    resolved: Resolved,
    playing: Playing,
    pace: float | None,
    progress: Callable[[PlayCounts], None],
) -> PlayCounts:
    from interlatent_live.errors import UserError
    from interlatent_live.services.network import Network
    from interlatent_live.services.player import Player

    settings = resolved.settings
    window, endpoints = settings.limits.consumer_bytes, settings.endpoints
    # Not to a recorder: what it plays is recorded.
    consumers = (endpoints.correlator, endpoints.explainer, *settings.encoder.consumers)
    with Network(settings.security.keys) as network:
        try:
            player = Player(network, consumers, endpoints.encoder_feed, window)
        except UserError:
            # An encoder runs and has the feed; consumers take rows from several.
            player = Player(network, consumers, None, window)
        try:
            return player.play(
                playing.messages(), speed=pace, stopping=lambda: False, on_progress=progress
            )
        finally:
            player.close()


def _sum_up(counts: PlayCounts, playing: Playing, state: FeedState | None) -> None:
    seconds = (counts.ended or counts.began) - counts.began
    print(
        f"{counts.rows:,} rows of {counts.runs} runs in {seconds:.1f} s "
        f"({counts.rows_per_s:,.0f} a second; recorded in {counts.recorded_s:.1f} s)"
    )
    for number, what in (
        (counts.declared, "rows are declared lost in the recording"),
        (playing.twice, "rows were recorded twice and played once"),
        (counts.lost, "rows did not reach a consumer that died"),
    ):
        if number:
            print(f"{number:,} {what}")
    for (run, hook_point), claims in () if state is None else state.claims.items():
        verdicts: dict[str, Any] = {name: n for name, n in claims.counts.items() if n}
        said = ", ".join(f"{n} {name}" for name, n in verdicts.items()) or "no claims"
        print(f"{run} at {hook_point}: {said}")
