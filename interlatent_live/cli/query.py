"""``interlatent-live query``: ask a running correlator, from any terminal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interlatent_live.cli.options import ConfigOption, SetOption, resolve_options

if TYPE_CHECKING:
    from interlatent_live.queries.client import StatisticsClient

app = typer.Typer(
    name="query",
    help="Ask a running correlator about runs, features, metrics, drift and discoveries.",
    no_args_is_help=True,
)

RunOption = Annotated[str, typer.Option(help="Run; empty: the newest.")]
HookOption = Annotated[str, typer.Option("--hook-point", help="Hook point; empty: the only one.")]
WindowOption = Annotated[str, typer.Option(help="Window or slice; `query slices` lists them.")]
LimitOption = Annotated[int, typer.Option(help="Items of a page.", min=1, max=1000)]
CursorOption = Annotated[str | None, typer.Option(help="Where the page before ended.")]
JsonOption = Annotated[bool, typer.Option("--json", help="The whole answer as JSON.")]
MetricOption = Annotated[str | None, typer.Option(help="Only this metric.")]


@app.command()
def runs(
    limit: LimitOption = 50,
    cursor: CursorOption = None,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    assign: SetOption = None,
) -> None:
    """List the runs that the correlator knows, newest first."""
    from interlatent_live.queries.messages import Runs

    _ask(
        Runs(limit=limit, cursor=cursor),
        ("run_id", "agent", "environment", "rows", "ended", "hook_points"),
        as_json, config, assign,
    )  # fmt: skip


@app.command("hook-points")
def hook_points(
    run: RunOption = "",
    as_json: JsonOption = False,
    config: ConfigOption = None,
    assign: SetOption = None,
) -> None:
    """List the hook points of a run with their rows, losses and live features."""
    from interlatent_live.queries.messages import HookPoints

    columns = (
        "source.hook_point", "source.n_features", "live_features", "source.rows", "episodes",
        "source.missing",
    )  # fmt: skip
    _ask(HookPoints(run=run), columns, as_json, config, assign)


@app.command()
def features(
    run: RunOption = "",
    hook_point: HookOption = "",
    window: WindowOption = "all",
    metric: MetricOption = None,
    live: Annotated[bool, typer.Option("--live", help="Only live features.")] = False,
    min_density: Annotated[
        float, typer.Option(help="Least share of steps it is on in.", min=0, max=1)
    ] = 0.0,
    max_density: Annotated[
        float, typer.Option(help="Largest share of steps it is on in.", min=0, max=1)
    ] = 1.0,
    sort: Annotated[
        str, typer.Option(help="feature, density, mean_activation, episodes, abs_r or auroc.")
    ] = "density",
    ascending: Annotated[bool, typer.Option("--ascending", help="Smallest first.")] = False,
    limit: LimitOption = 50,
    cursor: CursorOption = None,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    assign: SetOption = None,
) -> None:
    """List features: how often they fire, in how many episodes, and what they go with most."""
    from interlatent_live.queries.messages import Features

    question = Features(
        run=run, hook_point=hook_point, window=window, metric=metric, live=live,
        min_density=min_density, max_density=max_density, sort=sort, descending=not ascending,
        limit=limit, cursor=cursor,
    )  # fmt: skip
    columns = (
        "feature", "density", "mean_activation", "episodes", "bouts", "strongest.name",
        "strongest.r", "strongest.lo", "strongest.hi", "strongest.n_eff", "reason",
    )  # fmt: skip
    _ask(question, columns, as_json, config, assign)


@app.command()
def pairs(
    run: RunOption = "",
    hook_point: HookOption = "",
    window: WindowOption = "all",
    metric: MetricOption = None,
    clear: Annotated[
        bool, typer.Option("--clear", help="Only pairs whose interval lies clear of 0.")
    ] = False,
    sort: Annotated[
        str, typer.Option(help="feature, density, r, abs_r, effect_size, auroc or n_eff.")
    ] = "abs_r",
    ascending: Annotated[bool, typer.Option("--ascending", help="Smallest first.")] = False,
    limit: LimitOption = 50,
    cursor: CursorOption = None,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    assign: SetOption = None,
) -> None:
    """List feature × metric pairs with correlation, interval and effective n."""
    from interlatent_live.queries.messages import Pairs

    question = Pairs(
        run=run, hook_point=hook_point, window=window, metric=metric, excludes_zero=clear,
        sort=sort, descending=not ascending, limit=limit, cursor=cursor,
    )  # fmt: skip
    _ask(question, _PAIR, as_json, config, assign)


@app.command()
def profile(
    feature: Annotated[int, typer.Argument(help="Index of the feature.", min=0)],
    run: RunOption = "",
    hook_point: HookOption = "",
    window: WindowOption = "all",
    as_json: JsonOption = False,
    config: ConfigOption = None,
    assign: SetOption = None,
) -> None:
    """Show all that is known of one feature."""
    from interlatent_live.queries.messages import Profile

    question = Profile(feature=feature, run=run, hook_point=hook_point, window=window)
    with _client(config, assign) as client:
        answer: Any = client.ask(question)
    if as_json:
        _json(answer)
        return
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


@app.command()
def metric(
    name: Annotated[str, typer.Argument(help="Name of the metric.")],
    run: RunOption = "",
    hook_point: HookOption = "",
    window: WindowOption = "all",
    by: Annotated[str, typer.Option(help="r, effect_size or auroc.")] = "r",
    limit: LimitOption = 20,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    assign: SetOption = None,
) -> None:
    """Show one metric and the features that go with it most."""
    from interlatent_live.queries.messages import MetricView

    question = MetricView(
        metric=name, run=run, hook_point=hook_point, window=window, by=by, limit=limit
    )
    _ask(question, _PAIR, as_json, config, assign)


@app.command()
def screening(
    run: RunOption = "",
    hook_point: HookOption = "",
    window: WindowOption = "all",
    limit: LimitOption = 50,
    cursor: CursorOption = None,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    assign: SetOption = None,
) -> None:
    """List pairs to look at; looked at repeatedly, this list has no error rate."""
    from interlatent_live.queries.messages import Screening

    question = Screening(run=run, hook_point=hook_point, window=window, limit=limit, cursor=cursor)
    _ask(question, ("feature", "metric", "r", "p"), as_json, config, assign)


@app.command()
def discoveries(
    run: RunOption = "",
    hook_point: HookOption = "",
    procedure: Annotated[str, typer.Option(help="e-bh (any time) or by (declared looks).")] = (
        "e-bh"
    ),
    limit: LimitOption = 50,
    cursor: CursorOption = None,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    assign: SetOption = None,
) -> None:
    """List pairs found under a false discovery rate that holds over the whole run."""
    from interlatent_live.queries.messages import Discoveries

    question = Discoveries(
        run=run, hook_point=hook_point, procedure=procedure, limit=limit, cursor=cursor
    )
    _ask(question, ("feature", "metric", "r", "log_e", "p", "look"), as_json, config, assign)


@app.command()
def alerts(
    run: RunOption = "",
    as_json: JsonOption = False,
    config: ConfigOption = None,
    assign: SetOption = None,
) -> None:
    """Show alert rules, drift and conformal alarms of a run."""
    from interlatent_live.queries.messages import Alerts

    with _client(config, assign) as client:
        answer: Any = client.ask(Alerts(run=run))
    if as_json:
        _json(answer)
        return
    console = _console()
    rules = ("rule", "hook_point", "phase", "severity", "summary")
    _table(console, answer.alerts.alerts, rules)
    drift = ("hook_point", "name", "since_pane", "reference_mean", "recent_mean", "false_alarm")
    _table(console, answer.alerts.drift, drift)
    conformal = ("hook_point", "score", "phase", "blocks", "alarms", "rate", "threshold", "reason")
    _table(console, answer.alerts.conformal, conformal)


@app.command()
def slices(
    run: RunOption = "",
    hook_point: HookOption = "",
    as_json: JsonOption = False,
    config: ConfigOption = None,
    assign: SetOption = None,
) -> None:
    """List windows and slices, with their rows."""
    from interlatent_live.queries.messages import Slices

    columns = ("name", "kind", "rows", "predicate", "reason")
    _ask(Slices(run=run, hook_point=hook_point), columns, as_json, config, assign)


@app.command()
def snapshots(
    run: RunOption = "",
    limit: LimitOption = 50,
    cursor: CursorOption = None,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    assign: SetOption = None,
) -> None:
    """List saved states, newest first."""
    from interlatent_live.queries.messages import Snapshots

    columns = ("id", "run_id", "hook_point", "rows", "saved_ns", "bytes")
    _ask(Snapshots(run=run, limit=limit, cursor=cursor), columns, as_json, config, assign)


@app.command()
def compare(
    before: Annotated[str, typer.Argument(help="now, a snapshot's id, or yesterday.")],
    after: Annotated[str, typer.Argument(help="The same.")] = "now",
    run: RunOption = "",
    hook_point: HookOption = "",
    window: WindowOption = "all",
    after_window: Annotated[str | None, typer.Option(help="Another window for AFTER.")] = None,
    limit: LimitOption = 50,
    cursor: CursorOption = None,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    assign: SetOption = None,
) -> None:
    """Show what changed between two states, windows or slices, the clearest changes first."""
    from interlatent_live.queries.messages import Compare

    question = Compare(
        before=before, after=after, run=run, hook_point=hook_point, window=window,
        after_window=after_window, limit=limit, cursor=cursor,
    )  # fmt: skip
    columns = (
        "feature", "metric", "r_before", "r_after", "z_difference", "lo", "hi", "reason",
    )  # fmt: skip
    _ask(question, columns, as_json, config, assign)


@app.command()
def export(
    file: Annotated[Path, typer.Argument(help="File to write.")],
    run: RunOption = "",
    hook_point: HookOption = "",
    window: WindowOption = "all",
    format_: Annotated[str, typer.Option("--format", help="parquet or csv.")] = "parquet",
    config: ConfigOption = None,
    assign: SetOption = None,
) -> None:
    """Write every feature × metric pair as Parquet or CSV."""
    from interlatent_live.errors import UserError
    from interlatent_live.statistics.export import columns_to_csv, columns_to_parquet

    if format_ not in ("parquet", "csv"):
        raise UserError(f"there is no format {format_!r}; use parquet or csv")
    with _client(config, assign) as client:
        columns = client.columns(run=run, hook_point=hook_point, window=window)
    write = columns_to_parquet if format_ == "parquet" else columns_to_csv
    print(f"{file}: {write(columns, file)} pairs")


_PAIR = (
    "feature", "density", "association.name", "association.r", "association.lo", "association.hi",
    "association.n_eff", "association.auroc", "association.effect_size",
)  # fmt: skip


def _client(config: Path | None, assign: list[str] | None) -> StatisticsClient:
    from interlatent_live.queries.client import StatisticsClient
    from interlatent_live.wire.keys import ServerKeys

    settings = resolve_options(config, assign).settings
    folder = settings.security.keys
    keys = None if folder is None else ServerKeys.load(folder).client()
    return StatisticsClient(settings.endpoints.correlator_queries, keys=keys)


def _ask(
    question: Any,
    columns: tuple[str, ...],
    as_json: bool,
    config: Path | None,
    assign: list[str] | None,
) -> None:
    with _client(config, assign) as client:
        answer: Any = client.ask(question)
    if as_json:
        _json(answer)
        return
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


def _json(answer: Any) -> None:
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
