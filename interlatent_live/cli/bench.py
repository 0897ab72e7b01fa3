"""``interlatent-live bench``: run a benchmark; each figure stands beside its limit or its peer."""

from __future__ import annotations

import importlib
import inspect
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol, runtime_checkable

import typer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from interlatent_live.bench.report import BenchReport, BenchRow


@runtime_checkable
class Detailed(Protocol):
    """A report with a table of its own beside the judged figures, and a verdict that decides."""

    @property
    def failed(self) -> bool:
        """Whether the command must fail, whatever the goals say."""

    def details(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Header and rows of the table, in words."""


def bench(
    name: Annotated[str, typer.Argument(help="Which one; `list` shows what there is.")],
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the report here too.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer repetitions: a look, not a figure to quote.")
    ] = False,
    device: Annotated[
        str | None, typer.Option(help="cpu or cuda, where the benchmark has the choice.")
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0.1, help="How long at least, where it is a matter of time.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="How many steps at least, where that can be chosen.")
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Only this part, where there are some; repeatable."),
    ] = None,
    require: Annotated[
        bool, typer.Option("--require", help="Exit with 1 when a goal is not met.")
    ] = False,
) -> None:
    """Run one benchmark and show every figure beside the limit or peer measured in the same run."""
    from interlatent_live.bench.registry import BENCHES

    if name == "list":
        _list(BENCHES)
        return
    options: dict[str, Any] = {}
    if quick:
        options["quick"] = True
    given = {"device": device, "minutes": minutes, "steps": steps}
    options |= {option: value for option, value in given.items() if value is not None}
    if only:
        options["only"] = tuple(only)
    with _progress() as say:
        report = run_bench(name, BENCHES, options, progress=say)
    _show(report)
    if json_file is not None:
        report.write(json_file)
    broken = isinstance(report, Detailed) and report.failed
    if broken or (require and not all(row.met for row in report.rows)):
        raise typer.Exit(1)


def run_bench(
    name: str,
    benches: dict[str, str],
    options: dict[str, Any],
    *,
    progress: Callable[..., None] | None = None,
) -> BenchReport:
    """Run a registered benchmark with the options it takes, and ``progress`` where it takes that.

    Raises:
        UserError: when there is no such benchmark, or it can't honour an option.
    """
    from interlatent_live.bench.report import BenchReport
    from interlatent_live.errors import UserError

    if name not in benches:
        known = ", ".join(sorted(benches)) or "none yet"
        raise UserError(f"there is no benchmark {name!r}; there are: {known}")
    function = _function(benches[name])
    takes = inspect.signature(function).parameters
    for option in options:
        if option not in takes:
            raise UserError(f"the benchmark {name} has no --{option}")
    if progress is not None and "progress" in takes:
        options = {**options, "progress": progress}
    report = function(**options)
    if not isinstance(report, BenchReport):
        raise TypeError(f"{benches[name]} returned {type(report).__name__}, not a BenchReport")
    return report


def _function(target: str) -> Callable[..., Any]:
    from interlatent_live.errors import UserError

    module, _, attribute = target.partition(":")
    try:
        function: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.startswith("interlatent_live"):
            raise
        raise UserError(
            f"this benchmark needs the package {error.name}, which is not installed; "
            "docs/dependencies.md says which extra has it"
        ) from error
    return function


@contextmanager
def _progress() -> Iterator[Callable[..., None]]:
    """What runs now, on standard error, from the first word on; nothing where none is said."""
    from rich.console import Console
    from rich.status import Status

    status = Status("", console=Console(stderr=True))

    def say(what: str, *counted: int) -> None:
        status.update(" ".join((what, *(f"{number:,}" for number in counted))))
        status.start()

    try:
        yield say
    finally:
        status.stop()


def _list(benches: dict[str, str]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("benchmark", "what it measures", box=None, pad_edge=False)
    for name, target in sorted(benches.items()):
        try:
            module = importlib.import_module(target.partition(":")[0])
        except ModuleNotFoundError as error:
            about = f"needs the package {error.name}"
        else:
            about = (inspect.getdoc(module) or "").partition("\n\n")[0].replace("\n", " ")
        table.add_row(name, about)
    Console().print(table)


def _show(report: BenchReport) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("case", title=report.name, title_justify="left")
    table.add_column("value", justify="right")
    table.add_column("beside")
    table.add_column("ratio", justify="right")
    table.add_column("goal")
    for row in report.rows:
        table.add_row(
            row.case,
            f"{_number(row.value)} {row.unit}".strip(),
            f"{row.reference}: {_number(row.reference_value)}",
            _number(row.ratio),
            _verdict(row),
            style=None if row.met else "bold red",
        )
    console = Console()
    console.print(table)
    if isinstance(report, Detailed):
        header, rows = report.details()
        whole = Table(title="all of it", title_justify="left", box=None, pad_edge=False)
        for name in header:  # folded, never cut: a figure without its end is another figure
            whole.add_column(name, overflow="fold")
        for cells in rows:
            whole.add_row(*cells)
        console.print(whole)
    for note in report.notes:
        console.print(note, style="dim")
    facts = [*report.machine.values(), *(f"{k} {v}" for k, v in report.versions.items())]
    console.print(", ".join(facts), style="dim")
    judged = [row for row in report.rows if row.goal != "shown"]
    console.print(f"{sum(row.met for row in judged)} of {len(judged)} goals met")


def _verdict(row: BenchRow) -> str:
    if row.goal == "shown":
        return "shown"
    return f"{row.goal}: {'met' if row.met else 'NOT met'}"


def _number(value: float) -> str:
    if value == 0 or 0.01 <= abs(value) < 1e5:
        return f"{value:.4g}"
    return f"{value:.3e}"
