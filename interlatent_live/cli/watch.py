"""``interlatent-live watch``: look at a running system from any terminal."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

REDRAWS_PER_S = 4


def watch(
    endpoint: Annotated[
        list[str] | None,
        typer.Option(
            help="Feed endpoint to subscribe to; give it once per service. "
            "Without it, the feeds of the configuration."
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="TOML file of the system to watch.", show_default=False)
    ] = None,
    env: Annotated[int, typer.Option(help="The agent copy whose present is shown.", min=0)] = 0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Write JSON lines instead of drawing the screen.")
    ] = False,
    every_step: Annotated[
        bool, typer.Option(help="With --json: every feature batch, not only four a second.")
    ] = False,
    rerun: Annotated[
        str | None,
        typer.Option(
            help="Log to Rerun instead (extra rerun): a new file that ends in .rrd, or a viewer's "
            "address such as rerun+http://127.0.0.1:9876/proxy."
        ),
    ] = None,
    features: Annotated[
        int, typer.Option(help="With --rerun: features of a hook point that are logged.", min=1)
    ] = 16,
    seconds: Annotated[
        float | None, typer.Option(help="Stop after so many seconds.", min=0.0)
    ] = None,
) -> None:
    """Show live what agents are doing: features, claims with verdicts, narration, drops, latency.

    Attaches to a system started by `up` or `demo` from another terminal, and never slows it: a
    viewer that can't keep up misses steps, and counts them. Ctrl-C ends it.
    """
    from interlatent_live.config import load_settings
    from interlatent_live.feed.client import FeedClient

    named = None if endpoint else load_settings(config).endpoints
    endpoints = tuple(endpoint or ()) if named is None else named.feeds()
    until = None if seconds is None else time.monotonic() + seconds
    with FeedClient(endpoints) as client:
        try:
            if rerun is not None:
                _to_rerun(client, until, rerun, features, named.pictures_feed if named else None)
            elif as_json:
                _json_lines(client, until, every_step=every_step)
            else:
                _screen(client, until, env)
        except KeyboardInterrupt:
            return


def _screen(client: Any, until: float | None, env: int) -> None:
    from rich.console import Console
    from rich.live import Live

    from interlatent_live.feed.state import FeedState
    from interlatent_live.feed.view import render, room_for

    state = FeedState()
    console = Console()
    with Live(render(state), console=console, auto_refresh=False, screen=False) as live:
        while until is None or time.monotonic() < until:
            for event in client.events(1 / REDRAWS_PER_S):
                state.take(event)
            room = room_for(console.height)
            live.update(render(state, env=env, room=room), refresh=True)


def _to_rerun(
    client: Any, until: float | None, target: str, features: int, pictures: str | None
) -> None:
    from contextlib import ExitStack

    from interlatent_live.feed.pictures import PictureClient
    from interlatent_live.feed.rerun_sink import RerunSink, open_stream

    with ExitStack() as stack:
        sink = stack.enter_context(RerunSink(open_stream(target), features))
        eye = None if pictures is None else stack.enter_context(PictureClient(pictures))
        while until is None or time.monotonic() < until:
            for event in client.events(1 / REDRAWS_PER_S):
                sink.take(event)
            for picture in () if eye is None else eye.pictures():
                sink.picture(picture)


def _json_lines(client: Any, until: float | None, *, every_step: bool) -> None:
    from interlatent_live.feed.lines import JsonLines

    lines = JsonLines(every_step=every_step)
    while until is None or time.monotonic() < until:
        for event in client.events(1 / REDRAWS_PER_S):
            for value in lines.take(event):
                print(json.dumps(value, ensure_ascii=False, allow_nan=False), flush=True)
        for value in lines.present():
            print(json.dumps(value, ensure_ascii=False, allow_nan=False), flush=True)
        if sys.stdout.closed:
            return
