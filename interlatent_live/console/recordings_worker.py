"""The process that reads recordings for the console, so that no file can hold up its event loop.

``python -m interlatent_live.console.recordings_worker FOLDER`` takes one JSON request a line on its
standard input and answers each with three little-endian u32 (status, bytes of JSON, bytes of body),
the JSON and the body. It runs at the lowest priority but one, and ends by itself when nobody asks
for a while, so that what it remembers of the files is given back, or when its console is gone.
"""

from __future__ import annotations

import os
import select
import signal
import struct
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
from msgspec import Meta

from interlatent_live.console.live import View
from interlatent_live.console.moments import Query
from interlatent_live.console.recorded import NotThereError, RecordedFolder
from interlatent_live.errors import UserError
from interlatent_live.explanations.predicates.parser import PredicateError

if TYPE_CHECKING:
    from collections.abc import Sequence

IDLE_S: Final = 300.0
NICE: Final = 18
HEAD: Final = struct.Struct("<III")
Name = Annotated[str, Meta(max_length=256)]
Time = Annotated[float, Meta(ge=0, le=1e9)]
Copy = Annotated[int, Meta(ge=0, lt=2**16)]


class Request(msgspec.Struct, frozen=True, kw_only=True, tag_field="ask"):
    """Something to read; the subclass says what."""


class Listing(Request, frozen=True, kw_only=True, tag="listing"):
    """Which recordings there are."""


class Described(Request, frozen=True, kw_only=True, tag="described"):
    """One of them with its streams."""

    name: Name


class StepsAsked(Request, frozen=True, kw_only=True, tag="steps"):
    """Points between two times."""

    name: Name
    run_id: Name
    hook_point: Name
    env: Copy = 0
    from_s: Time = 0.0
    to_s: Time = 60.0
    points: Annotated[int, Meta(ge=1, le=100_000)] = 3600


class Words(Request, frozen=True, kw_only=True, tag="words"):
    """Claims and narration between two times."""

    name: Name
    run_id: Name
    hook_point: Name
    from_s: Time = 0.0
    to_s: Time = 60.0


class PictureAsked(Request, frozen=True, kw_only=True, tag="picture"):
    """The newest picture until a time."""

    name: Name
    run_id: Name
    env: Copy = 0
    at_s: Time = 0.0


class Moments(Request, frozen=True, kw_only=True, tag="moments"):
    """Moments like one."""

    name: Name
    run_id: Name
    hook_point: Name = ""
    env: Copy | None = None
    predicate: Annotated[str, Meta(max_length=1000)] = ""
    feature: Annotated[int, Meta(ge=0, lt=2**31)] | None = None
    above: Annotated[float, Meta(ge=0, le=1e30)] = 0.0
    from_s: Time = 0.0
    limit: Annotated[int, Meta(ge=1, le=500)] = 100


Asked = Listing | Described | StepsAsked | Words | PictureAsked | Moments


def answer(folder: RecordedFolder, line: bytes) -> tuple[int, dict[str, Any], bytes]:
    """Status, JSON and body for one request; a refusal is one sentence under ``detail``."""
    try:
        return _answer(folder, msgspec.json.decode(line, type=Asked))
    except msgspec.MsgspecError as error:
        return 422, {"detail": str(error)}, b""
    except PredicateError as error:
        return 422, {"detail": str(error), "why": "predicate", "position": error.position}, b""
    except NotThereError as error:
        return 404, {"detail": str(error)}, b""
    except UserError as error:
        return 422, {"detail": str(error)}, b""


def _answer(folder: RecordedFolder, asked: Asked) -> tuple[int, dict[str, Any], bytes]:
    match asked:
        case Listing():
            return 200, folder.listing(), b""
        case Described(name=name):
            return 200, folder.described(name), b""
        case StepsAsked():
            view = View(asked.run_id, asked.hook_point, asked.env)
            head, blocks = folder.steps(asked.name, view, asked.from_s, asked.to_s, asked.points)
            return 200, head, b"".join(blocks)
        case Words():
            found = folder.words(
                asked.name, asked.run_id, asked.hook_point, asked.from_s, asked.to_s
            )
            return 200, found, b""
        case PictureAsked():
            picture = folder.picture(asked.name, asked.run_id, asked.env, asked.at_s)
            return (204, {}, b"") if picture is None else (200, {"at": picture[0]}, picture[1])
        case Moments():
            query = Query(
                asked.run_id, asked.hook_point, asked.env, asked.predicate, asked.feature,
                asked.above,
            )  # fmt: skip
            return 200, folder.moments(asked.name, query, asked.from_s, asked.limit), b""


def main(arguments: Sequence[str]) -> None:
    """Answer until nobody asks any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the console, whose end is ours
    os.nice(NICE)
    folder = RecordedFolder(Path(arguments[0]))
    source, out = sys.stdin.buffer, sys.stdout.buffer
    # One request is answered before the next is written: nothing waits in ``source``'s buffer.
    while select.select([source], [], [], IDLE_S)[0]:
        line = source.readline()
        if not line:
            return
        status, said, body = answer(folder, line)
        text = msgspec.json.encode(said)
        out.write(HEAD.pack(status, len(text), len(body)) + text + body)
        out.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
