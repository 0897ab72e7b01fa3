"""How the answers of the statistics look in a terminal."""

from __future__ import annotations

from typing import Any


def show_list(answer: Any, columns: tuple[str, ...]) -> None:
    """A page of items, after what it rests on."""
    console = _console()
    about = getattr(answer, "source", None)
    if about is not None:
        console.print(
            f"{about.run_id} {about.hook_point}: {about.rows} rows, "
            f"{sum(about.left_out.values())} left out, {about.missing} missing",
            markup=False, highlight=False,
        )  # fmt: skip
    note = getattr(answer, "note", "")
    if note:
        console.print(f"{answer.title}, {answer.procedure}: {note}", markup=False)
    _table(console, answer.items, columns)
    if getattr(answer, "next_cursor", None):
        console.print(
            f"{len(answer.items)} of {answer.matched}; more: --cursor {answer.next_cursor}",
            markup=False, highlight=False, soft_wrap=True,
        )  # fmt: skip


def show_profile(answer: Any) -> None:
    """One feature."""
    console = _console()
    console.print(answer.address, markup=False, highlight=False)
    for name in (
        "n", "density", "mean_activation", "episodes", "episodes_total", "bouts", "dwell_mean",
        "dwell_longest", "scope",
    ):  # fmt: skip
        value = getattr(answer, name)
        console.print(f"  {name}: {_cell(value)}  {answer.reasons.get(name, '')}", markup=False)
    columns = ("name", "unit", "r", "lo", "hi", "n_eff", "mean_on", "mean_off", "auroc", "method")
    _table(console, answer.metrics, columns, reason=lambda one: one.reasons.get("r", ""))
    _table(console, answer.lags, ("metric", "peak", "peak_r"))
    if answer.partial is not None:
        _table(
            console,
            answer.partial.metrics,
            ("metric", "beta", "lo", "hi", "vif"),
            reason=lambda one: one.reasons.get("beta", ""),
        )
    _table(console, answer.partners, ("feature", "together", "jaccard", "lift"))
    _table(console, answer.exemplars[:8], ("kind", "env", "t", "activation", "position"))


def show_alerts(answer: Any) -> None:
    """Rules, drift and conformal alarms."""
    console = _console()
    rules = ("rule", "hook_point", "phase", "severity", "summary")
    _table(console, answer.alerts.alerts, rules)
    drift = ("hook_point", "name", "since_pane", "reference_mean", "recent_mean", "false_alarm")
    _table(console, answer.alerts.drift, drift)
    conformal = ("hook_point", "score", "phase", "blocks", "alarms", "rate", "threshold", "reason")
    _table(console, answer.alerts.conformal, conformal)


def show_json(answer: Any) -> None:
    """The whole answer, indented."""
    import msgspec

    print(msgspec.json.format(msgspec.json.encode(answer), indent=1).decode())


def _console() -> Any:
    from rich.console import Console

    return Console()


def _table(console: Any, items: Any, columns: tuple[str, ...], reason: Any = None) -> None:
    from rich.table import Table
    from rich.text import Text

    if not items:
        return
    table = Table(*(name.rpartition(".")[2] for name in columns), box=None)
    if reason is not None:
        table.add_column("reason")
    for item in items:
        # Text, not markup: the names are other people's.
        cells = [Text(_cell(_field(item, name))) for name in columns]
        if reason is not None:
            cells.append(Text(reason(item)))
        table.add_row(*cells)
    console.print(table)


def _field(item: Any, path: str) -> Any:
    for name in path.split("."):
        item = None if item is None else getattr(item, name)
    return item


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
