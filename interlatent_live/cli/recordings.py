"""``interlatent-live inspect``: what is in a recording."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from interlatent_live.recordings import RecordingInfo


def inspect(
    file: Annotated[Path, typer.Argument(help="A recording (.mcap).")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Say what is in a recording: agents, rows, losses, topics, and whether it was closed."""
    import json

    from interlatent_live.recordings import recording_info

    info = recording_info(file)
    if as_json:
        print(json.dumps(_plain(info), indent=1, ensure_ascii=False))
    else:
        _show(file, info)


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
