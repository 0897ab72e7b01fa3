"""``interlatent-live inspect`` and ``export-rows``: what is in recordings, and it as a table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from interlatent_live.recordings import RecordingInfo


def inspect(
    file: Annotated[Path, typer.Argument(help="A recording (.mcap), or a folder of them.")],
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object; of a folder, one by file.")
    ] = False,
) -> None:
    """Say what is in a recording: agents, rows, losses, topics, and whether it was closed.

    Of a folder, each file in the order of recording, and what they have together.
    """
    import json

    from interlatent_live.recordings import recording_info
    from interlatent_live.recordings.playing import recording_files

    if not file.is_dir():
        info = recording_info(file)
        if as_json:
            print(json.dumps(_plain(info), indent=1, ensure_ascii=False))
        else:
            _show(file, info)
        return
    infos = {path: recording_info(path) for path in recording_files([file])}
    if as_json:
        plain = {str(path): _plain(info) for path, info in infos.items()}
        print(json.dumps(plain, indent=1, ensure_ascii=False))
    else:
        _show_folder(infos)


def export_rows(
    files: Annotated[list[Path], typer.Argument(help="Recordings, or folders of them.")],
    to: Annotated[Path, typer.Option("--to", help="The Parquet file to write.")],
    from_s: Annotated[
        float, typer.Option("--from", help="Leave out rows before this second.", min=0)
    ] = 0.0,
    to_s: Annotated[
        float | None, typer.Option("--until", help="End at this second of the recording.", min=0)
    ] = None,
    agent: Annotated[str | None, typer.Option(help="Only this agent.")] = None,
) -> None:
    """Write recorded steps as a Parquet table: one row a step, one column a metric.

    Active features are list columns, index and value, for each hook point. Takes little memory
    however long the recording is. Needs pyarrow.
    """
    import sys

    from rich.console import Console
    from rich.status import Status

    from interlatent_live.recordings.exporting import export_rows as export
    from interlatent_live.recordings.playing import Selection, recording_files

    with Status("exporting", console=Console(stderr=True)) as status:
        rows = export(
            recording_files(files),
            to,
            selection=Selection(agent, from_s, to_s),
            told=lambda what: print(what, file=sys.stderr),
            on_progress=lambda rows: status.update(f"{rows:,} rows"),
        )
    print(f"{to}: {rows:,} rows, {to.stat().st_size / 1e6:.1f} MB")


def _show_folder(infos: dict[Path, RecordingInfo]) -> None:
    import time

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("file", "begun (UTC)", "seconds", "MB", "rows", "lost", "agents", box=None)
    rows = lost = 0
    for path, info in infos.items():
        first, last = info.first_ns or 0, info.last_ns or 0
        here = sum(stream.rows for stream in info.streams.values())
        gone = sum(stream.declared for stream in info.streams.values())
        agents = {one.manifest.agent for one in info.streams.values() if one.manifest}
        rows, lost = rows + here, lost + gone
        table.add_row(
            Text(path.name + ("" if info.complete else " (cut off)")),
            time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(first / 1e9)),
            f"{(last - first) / 1e9:.1f}",
            f"{info.size / 1e6:.2f}",
            f"{here:,}",
            f"{gone:,}",
            Text(", ".join(sorted(agents))),
        )
    console = Console()
    console.print(table)
    size = sum(info.size for info in infos.values()) / 1e6
    console.print(f"{len(infos)} files, {size:.2f} MB, {rows:,} rows, {lost:,} declared lost")


def _show(file: Path, info: RecordingInfo) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    state = "complete" if info.complete else "cut off: its writer did not close it"
    seconds = 0.0
    if info.first_ns is not None and info.last_ns is not None:
        seconds = (info.last_ns - info.first_ns) / 1e9
    console.print(Text(f"{file}: {info.size / 1e6:.2f} MB, {state}"))
    console.print(f"{info.messages} messages in {info.chunks} chunks over {seconds:.1f} s")
    if info.unread_bytes:
        console.print(f"{info.unread_bytes} bytes of an unfinished record at the end")
    for name, value in info.provenance.items():
        console.print(Text(f"{name}: {value}", style="dim"))
    streams = Table("agent", "run", "rows", "lost", "hook points", "transcoders", box=None)
    for boot_id, stream in info.streams.items():
        manifest = stream.manifest
        hooks = ", ".join(hook.name for hook in manifest.hook_points) if manifest else ""
        # Text, not markup: the names are other people's.
        streams.add_row(
            Text(manifest.agent if manifest else "?"),
            Text(manifest.run_id if manifest else boot_id),
            str(stream.rows),
            str(stream.declared),
            Text(hooks),
            Text(", ".join(digest[:15] for digest in stream.transcoders.values())),
        )
    if info.streams:
        console.print(streams)
    topics = Table("topic", "messages", box=None)
    for topic, count in info.topics.items():
        topics.add_row(Text(topic), str(count))
    console.print(topics)


def _plain(info: RecordingInfo) -> dict[str, Any]:
    return {
        "complete": info.complete,
        "size": info.size,
        "unread_bytes": info.unread_bytes,
        "chunks": info.chunks,
        "messages": info.messages,
        "topics": dict(info.topics),
        "first_ns": info.first_ns,
        "last_ns": info.last_ns,
        "provenance": dict(info.provenance),
        "streams": {
            boot_id: {
                "agent": stream.manifest.agent if stream.manifest else None,
                "run_id": stream.manifest.run_id if stream.manifest else None,
                "policy_hash": stream.manifest.policy_hash if stream.manifest else None,
                "metrics": list(stream.manifest.metric_names()) if stream.manifest else None,
                "transcoders": dict(stream.transcoders),
                "rows": stream.rows,
                "declared": stream.declared,
            }
            for boot_id, stream in info.streams.items()
        },
    }
