"""``interlatent-live alerts``: look at alert rules before a service does."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(name="alerts", help="Alert rules.", no_args_is_help=True)


@app.callback()
def _root() -> None:
    """Alert rules."""


@app.command()
def check(
    file: Annotated[Path, typer.Argument(help="TOML file with [[rule]] tables.")],
    prometheus: Annotated[
        bool, typer.Option("--prometheus", help="Print them as a Prometheus rule file.")
    ] = False,
) -> None:
    """Read a file with alert rules and say what is in it, or where its first mistake is."""
    from interlatent_live.alerts.rulefile import load_rules
    from interlatent_live.statistics.rules import prometheus_rules

    rules = load_rules(file)
    if prometheus:
        print(prometheus_rules(tuple(one.rule for one in rules)), end="")
        return
    for one in rules:
        parts = [f"{c.name} {c.op} {c.threshold:g}" for c in one.rule.conditions]
        parts += [one.predicate] if one.predicate else []
        until = f", until {one.clear}" if one.clear else ""
        what = f"{' and '.join(parts)}, for {one.rule.for_s:g} s{until}"
        print(f"{one.rule.name} ({one.rule.severity}): {what}")
    print(f"{len(rules)} rules")
