"""Writes docs/cli.md from the commands themselves, so that it can't drift from them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer.main

from interlatent_live.cli.main import app

if TYPE_CHECKING:
    from collections.abc import Iterator

FILE = Path(__file__).resolve().parent.parent / "docs" / "cli.md"
HEAD = (
    "# The command `interlatent-live`\n\n"
    "Made by `make docs` from the commands' own help; edit that instead.\n"
)


def commands() -> Iterator[tuple[str, Any]]:
    """Every command that can be run, with its full name."""
    yield from _below("interlatent-live", typer.main.get_command(app))


def _below(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    inner = getattr(command, "commands", None)
    if inner is None:
        yield name, command
        return
    for key in sorted(inner):
        if not inner[key].hidden:
            yield from _below(f"{name} {key}", inner[key])


def page() -> str:
    """The whole document."""
    return HEAD + "".join(_section(name, command) for name, command in commands())


def _section(name: str, command: Any) -> str:
    lines = ["", f"## {name}", "", (command.help or "").strip().replace("\b\n", ""), ""]
    rows = [row for parameter in command.params if (row := _row(parameter))]
    if rows:
        lines += ["| option | default | what it does |", "| --- | --- | --- |", *rows]
    return "\n".join(lines).rstrip() + "\n"


def _row(parameter: object) -> str:
    names = [*getattr(parameter, "opts", []), *getattr(parameter, "secondary_opts", [])]
    if "--help" in names:
        return ""
    is_option = getattr(parameter, "param_type_name", "") == "option"
    shown = " / ".join(f"`{name}`" for name in names) if is_option else f"`{names[0].upper()}`"
    default = getattr(parameter, "default", None)
    is_plain = isinstance(default, int | float | str | Path) and default not in {"", False}
    text = (getattr(parameter, "help", "") or "").replace("|", "\\|").replace("\n", " ")
    return f"| {shown} | {f'`{default}`' if is_plain else ''} | {text} |"


def main() -> int:
    """Write the page; with ``--check`` only say whether it is out of date."""
    new = page()
    if sys.argv[1:] == ["--check"]:
        if FILE.is_file() and FILE.read_text(encoding="utf-8") == new:
            return 0
        sys.stdout.write("docs/cli.md is out of date: make docs\n")
        return 1
    FILE.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
