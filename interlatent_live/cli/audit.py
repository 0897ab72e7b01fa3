"""``interlatent-live audit``: check that the record of who commanded what is as it was written."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="audit",
    help="Check and read the audit of commands to agents.",
    no_args_is_help=True,
)


@app.command()
def verify(
    file: Annotated[Path, typer.Argument(help="audit.jsonl, or the folder that it lies in.")],
    key: Annotated[
        Path | None,
        typer.Option(help="File with the first key; first.key beside the audit without it."),
    ] = None,
    anchor: Annotated[
        str | None,
        typer.Option(help="A seal that was seen elsewhere, as in an agent's journal.jsonl."),
    ] = None,
    state: Annotated[
        bool,
        typer.Option("--state/--no-state", help="Also hold the end against state.json beside it."),
    ] = True,
) -> None:
    """Detect an altered entry, a cut end or a rewritten file.

    Who can write the whole folder can rewrite it with a key of their own: keep first.key elsewhere,
    or give an anchor. Exit status 2 when anything is wrong.
    """
    from interlatent_live.audit.log import FIRST_KEY, LOG, STATE
    from interlatent_live.audit.log import read_key as read
    from interlatent_live.audit.log import verify as check

    log = file / LOG if file.is_dir() else file
    report = check(
        log,
        read(key or log.parent / FIRST_KEY),
        state=log.parent / STATE if state else None,
        anchor=anchor,
    )
    print(f"{log}: {report.entries} entries in order")
    if report.first_ns is not None and report.last_ns is not None:
        print(f"from {_time(report.first_ns)} to {_time(report.last_ns)}")
    print(f"last seal {report.seal}")
    if report.anchored:
        print("the anchor is among them")


def _time(ns: int) -> str:
    return datetime.fromtimestamp(ns / 1e9, UTC).isoformat(timespec="milliseconds")
