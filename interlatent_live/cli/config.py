"""``interlatent-live config``: what the configuration is, and where each value came from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from interlatent_live.cli.options import ConfigOption, SetOption, resolve_options

app = typer.Typer(
    name="config",
    help="Show the configuration, or a file to start from.",
    no_args_is_help=True,
)


@app.command()
def show(
    config: ConfigOption = None,
    sets: SetOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Show every setting, its value, and where the value came from."""
    from interlatent_live.config import leaves

    resolved = resolve_options(config, sets)
    values = {name: _plain(value) for name, value in leaves(resolved.settings)}
    if as_json:
        rows = {
            name: {"value": value, "from": resolved.origin[name]} for name, value in values.items()
        }
        print(json.dumps(rows, indent=1, ensure_ascii=False))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("setting", "value", "from", box=None, pad_edge=False)
    for name, value in values.items():
        source = resolved.origin[name]
        style = "dim" if source == "default" else "bold"
        table.add_row(name, _shown(value), source, style=style)
    Console(soft_wrap=False).print(table)


@app.command()
def template() -> None:
    """Print an interlatent.toml with every setting, its default and what it is for."""
    from interlatent_live.config import Settings, describe, leaves

    defaults = {name: _plain(value) for name, value in leaves(Settings())}
    print("# interlatent-live reads this file as ./interlatent.toml, or where --config says.")
    print("# Each line shows a default. The environment beats it: INTERLATENT_ENCODER__DEVICE=cpu.")
    for name, text in describe():
        if name not in defaults:
            print(f"\n# {text}\n[{name}]")
            continue
        for line in text.splitlines():
            print(f"# {line.strip()}")
        value = defaults[name]
        key = name.partition(".")[2]
        print(f"# {key} =" if value is None else f"{key} = {_toml(value)}")


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return str(value) if value != "" else "none"


def _toml(value: Any) -> str:
    # JSON's spelling of numbers, booleans, lists and plain text is TOML's too.
    return json.dumps(value, ensure_ascii=False)
