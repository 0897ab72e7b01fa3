"""``interlatent-live query``: ask a running correlator, from any terminal."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interlatent_live.cli.options import ConfigOption, SetOption, resolve_options
from interlatent_live.cli.query_output import show_alerts, show_json, show_list, show_profile

if TYPE_CHECKING:
    from collections.abc import Callable

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

_KEYWORD = inspect.Parameter.POSITIONAL_OR_KEYWORD
_PAIR = (
    "feature", "density", "association.name", "association.r", "association.lo", "association.hi",
    "association.n_eff", "association.auroc", "association.effect_size",
)  # fmt: skip
_SHARED = (
    inspect.Parameter("as_json", _KEYWORD, default=False, annotation=JsonOption),
    inspect.Parameter("config", _KEYWORD, default=None, annotation=ConfigOption),
    inspect.Parameter("assign", _KEYWORD, default=None, annotation=SetOption),
)


def _command(
    *columns: str, name: str | None = None, show: Callable[[Any], None] | None = None
) -> Callable[[Callable[..., Any]], Callable[..., None]]:
    """Make a command of a function that makes a question.

    The command has the function's options and ``--json``, ``--config`` and ``--set``; it asks, and
    prints the answer: as JSON, by ``show``, or as a list with ``columns``.
    """

    def decorate(make: Callable[..., Any]) -> Callable[..., None]:
        def command(
            *, as_json: bool, config: Path | None, assign: list[str] | None, **given: Any
        ) -> None:
            question = make(**given)
            with _client(config, assign) as client:
                answer: Any = client.ask(question)
            if as_json:
                show_json(answer)
            elif show is not None:
                show(answer)
            else:
                show_list(answer, columns)

        own = inspect.signature(make, eval_str=True)
        signature = own.replace(
            parameters=[*own.parameters.values(), *_SHARED], return_annotation=None
        )
        command.__signature__ = signature  # type: ignore[attr-defined] # typer reads it
        command.__annotations__ = {
            one.name: one.annotation for one in signature.parameters.values()
        }
        command.__name__, command.__doc__ = make.__name__, make.__doc__
        return app.command(name)(command)

    return decorate


@_command("run_id", "agent", "environment", "rows", "ended", "hook_points")
def runs(
    limit: LimitOption = 50,
    cursor: CursorOption = None,
) -> Any:
    """List the runs that the correlator knows, newest first."""
    from interlatent_live.queries.messages import Runs

    return Runs(limit=limit, cursor=cursor)


@_command(
    "source.hook_point", "source.n_features", "live_features", "source.rows", "episodes",
    "source.missing",
    name="hook-points",
)  # fmt: skip
def hook_points(
    run: RunOption = "",
) -> Any:
    """List the hook points of a run with their rows, losses and live features."""
    from interlatent_live.queries.messages import HookPoints

    return HookPoints(run=run)


@_command(
    "feature", "density", "mean_activation", "episodes", "bouts", "strongest.name",
    "strongest.r", "strongest.lo", "strongest.hi", "strongest.n_eff", "reason",
)  # fmt: skip
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
) -> Any:
    """List features: how often they fire, in how many episodes, and what they go with most."""
    from interlatent_live.queries.messages import Features

    return Features(
        run=run, hook_point=hook_point, window=window, metric=metric, live=live,
        min_density=min_density, max_density=max_density, sort=sort, descending=not ascending,
        limit=limit, cursor=cursor,
    )  # fmt: skip


@_command(*_PAIR)
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
) -> Any:
    """List feature × metric pairs with correlation, interval and effective n."""
    from interlatent_live.queries.messages import Pairs

    return Pairs(
        run=run, hook_point=hook_point, window=window, metric=metric, excludes_zero=clear,
        sort=sort, descending=not ascending, limit=limit, cursor=cursor,
    )  # fmt: skip


@_command(show=show_profile)
def profile(
    feature: Annotated[int, typer.Argument(help="Index of the feature.", min=0)],
    run: RunOption = "",
    hook_point: HookOption = "",
    window: WindowOption = "all",
) -> Any:
    """Show all that is known of one feature."""
    from interlatent_live.queries.messages import Profile

    return Profile(feature=feature, run=run, hook_point=hook_point, window=window)


@_command(*_PAIR)
def metric(
    name: Annotated[str, typer.Argument(help="Name of the metric.")],
    run: RunOption = "",
    hook_point: HookOption = "",
    window: WindowOption = "all",
    by: Annotated[str, typer.Option(help="r, effect_size or auroc.")] = "r",
    limit: LimitOption = 20,
) -> Any:
    """Show one metric and the features that go with it most."""
    from interlatent_live.queries.messages import MetricView

    return MetricView(
        metric=name, run=run, hook_point=hook_point, window=window, by=by, limit=limit
    )


@_command("feature", "metric", "r", "p")
def screening(
    run: RunOption = "",
    hook_point: HookOption = "",
    window: WindowOption = "all",
    limit: LimitOption = 50,
    cursor: CursorOption = None,
) -> Any:
    """List pairs to look at; looked at repeatedly, this list has no error rate."""
    from interlatent_live.queries.messages import Screening

    return Screening(run=run, hook_point=hook_point, window=window, limit=limit, cursor=cursor)


@_command("feature", "metric", "r", "log_e", "p", "look")
def discoveries(
    run: RunOption = "",
    hook_point: HookOption = "",
    procedure: Annotated[str, typer.Option(help="e-bh (any time) or by (declared looks).")] = (
        "e-bh"
    ),
    limit: LimitOption = 50,
    cursor: CursorOption = None,
) -> Any:
    """List pairs found under a false discovery rate that holds over the whole run."""
    from interlatent_live.queries.messages import Discoveries

    return Discoveries(
        run=run, hook_point=hook_point, procedure=procedure, limit=limit, cursor=cursor
    )


@_command(show=show_alerts)
def alerts(
    run: RunOption = "",
) -> Any:
    """Show alert rules, drift and conformal alarms of a run."""
    from interlatent_live.queries.messages import Alerts

    return Alerts(run=run)


@_command("name", "kind", "rows", "predicate", "reason")
def slices(
    run: RunOption = "",
    hook_point: HookOption = "",
) -> Any:
    """List windows and slices, with their rows."""
    from interlatent_live.queries.messages import Slices

    return Slices(run=run, hook_point=hook_point)


@_command("id", "run_id", "hook_point", "rows", "saved_ns", "bytes")
def snapshots(
    run: RunOption = "",
    limit: LimitOption = 50,
    cursor: CursorOption = None,
) -> Any:
    """List saved states, newest first."""
    from interlatent_live.queries.messages import Snapshots

    return Snapshots(run=run, limit=limit, cursor=cursor)


@_command("feature", "metric", "r_before", "r_after", "z_difference", "lo", "hi", "reason")
def compare(
    before: Annotated[str, typer.Argument(help="now, a snapshot's id, or yesterday.")],
    after: Annotated[str, typer.Argument(help="The same.")] = "now",
    run: RunOption = "",
    hook_point: HookOption = "",
    window: WindowOption = "all",
    after_window: Annotated[str | None, typer.Option(help="Another window for AFTER.")] = None,
    limit: LimitOption = 50,
    cursor: CursorOption = None,
) -> Any:
    """Show what changed between two states, windows or slices, the clearest changes first."""
    from interlatent_live.queries.messages import Compare

    return Compare(
        before=before, after=after, run=run, hook_point=hook_point, window=window,
        after_window=after_window, limit=limit, cursor=cursor,
    )  # fmt: skip


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


def _client(config: Path | None, assign: list[str] | None) -> StatisticsClient:
    from interlatent_live.queries.client import StatisticsClient
    from interlatent_live.wire.keys import ServerKeys

    settings = resolve_options(config, assign).settings
    folder = settings.security.keys
    keys = None if folder is None else ServerKeys.load(folder).client()
    return StatisticsClient(settings.endpoints.correlator_queries, keys=keys)
