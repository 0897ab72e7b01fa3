"""Keeps the figures in the documents equal to committed reports.

In a document a figure stands as::

    <!-- figure: docs/figures/demo.json#/latency_ms/p50 .1f ms -->4.2 ms<!-- /figure -->

that is: a JSON file relative to the repository, ``#`` and a JSON pointer (RFC 6901), then, where
wanted, a format specification and a unit. In a list of rows a name picks the row whose ``case`` it
is, with ``_`` for a space. Run without arguments it refreshes all documents; ``--check`` names what
is out of date instead. A file or a pointer that does not exist is an error in both.
One that directly follows a backtick only shows how a figure is written.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
FIGURE = re.compile(
    r"(?<!`)<!-- figure: (?P<file>[^#\s]+)#(?P<pointer>/\S*)"
    r"(?: (?P<format>(?!--)\S+))?(?: (?P<unit>(?!--)\S+))?"
    r" -->(?P<value>.*?)<!-- /figure -->",
    re.DOTALL,
)


class FigureError(Exception):
    """A figure that names what is not there."""


def documents() -> Iterator[Path]:
    """The Markdown files whose figures are kept."""
    yield from sorted(ROOT.glob("*.md"))
    yield from sorted((ROOT / "docs").rglob("*.md"))
    yield from sorted((ROOT / "deploy").rglob("*.md"))


def refreshed(text: str, where: str) -> str:
    """The text with every figure as its report has it.

    Raises:
        FigureError: when a file or a value is not there, or the value is no scalar.
    """

    def replace(match: re.Match[str]) -> str:
        value = shown(
            look_up(match["file"], match["pointer"], where), match["format"] or "", match["unit"]
        )
        return match[0][: match.start("value") - match.start()] + value + "<!-- /figure -->"

    return FIGURE.sub(replace, text)


def look_up(file: str, pointer: str, where: str) -> Any:
    """The value at a JSON pointer of a committed file."""
    path = ROOT / file
    if not path.is_file():
        raise FigureError(f"{where}: there is no {file}")
    value = json.loads(path.read_text(encoding="utf-8"))
    for part in pointer.removeprefix("/").split("/"):
        key = part.replace("~1", "/").replace("~0", "~")
        try:
            value = _step(value, key)
        except (KeyError, IndexError, StopIteration, TypeError) as error:
            raise FigureError(f"{where}: {file} has no {pointer} (at {key!r})") from error
    if isinstance(value, dict | list):
        raise FigureError(f"{where}: {file}#{pointer} is no single value")
    return value


def _step(value: Any, key: str) -> Any:
    if not isinstance(value, list):
        return value[key]
    if key.isdecimal():
        return value[int(key)]
    # In a report's rows, by the case's name; spaces can't stand in a pointer.
    return next(row for row in value if str(row["case"]).replace(" ", "_") == key)


def shown(value: Any, spec: str, unit: str | None) -> str:
    """A value in its format, with its unit."""
    text = format(value, spec) if spec else str(value)
    return f"{text} {unit}" if unit else text


def main() -> int:
    """Refresh, or check; 1 when a check finds a figure that is out of date."""
    stale = 0
    for path in documents():
        where = str(path.relative_to(ROOT))
        old = path.read_text(encoding="utf-8")
        try:
            new = refreshed(old, where)
        except FigureError as error:
            sys.exit(f"error: {error}")
        if new == old:
            continue
        stale += 1
        sys.stdout.write(f"{where}: out of date\n")
        if "--check" not in sys.argv:
            path.write_text(new, encoding="utf-8")
    return int(stale > 0 and "--check" in sys.argv)


if __name__ == "__main__":
    sys.exit(main())
