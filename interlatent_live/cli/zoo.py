"""``interlatent-live zoo``: agents that come along, explained live, trained for and judged."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from interlatent_live.cli.options import ConfigOption, SetOption, resolve_options

if TYPE_CHECKING:
    from collections.abc import Callable

    from interlatent_live.zoo.entry import ZooEntry

app = typer.Typer(
    name="zoo",
    help="Agents worth explaining: list, run, train, evaluate, report and compare.",
    no_args_is_help=True,
)

FINISH_WITHIN_S = 900.0
"""A large dictionary with many metrics takes its null longer than the demo's."""

NameArgument = Annotated[str, typer.Argument(help="Entry, as `zoo list` shows it.")]
WorkOption = Annotated[
    Path | None,
    typer.Option(help="Datasets, results and new transcoders. [default: out/zoo/NAME]"),
]


@app.command("list")
def list_() -> None:
    """List the entries: environment, policy, and whether transcoders come along."""
    from rich.console import Console
    from rich.table import Table

    from interlatent_live.zoo.entry import entries

    table = Table("name", "agent", "environment", "policy", "transcoders", "can run here")
    for entry in entries():
        table.add_row(
            entry.name,
            entry.title,
            entry.environment.rpartition(":")[2],
            entry.policy,
            ", ".join(entry.shipped) or f"zoo train {entry.name}",
            "yes" if entry.installed else f"install interlatent-live[{entry.extra}]",
        )
    Console().print(table)


@app.command()
def show(name: NameArgument) -> None:
    """Say all that an entry is made of: policy and its origin, metrics, recipe, questions."""
    from interlatent_live.zoo.entry import find_entry
    from interlatent_live.zoo.report import description_lines

    print("\n".join(description_lines(find_entry(name))))


@app.command()
def run(
    name: NameArgument,
    steps: Annotated[
        int | None, typer.Option(help="Steps of all copies. [default: the entry's]", min=1)
    ] = None,
    copies: Annotated[
        int | None, typer.Option(help="Copies of the environment.", min=1, max=64)
    ] = None,
    hz: Annotated[
        float | None,
        typer.Option(help="Steps per second and copy. [default: its control rate]", min=0.1),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the episodes.", min=0)] = None,
    work: WorkOption = None,
    config: ConfigOption = None,
    assign: SetOption = None,
) -> None:
    """Run an entry live through all services, headless, and say what was found.

    What `interlatent-live demo` does, for any entry. The whole run is left as live.json in the work
    folder, from which `zoo report` takes its figures.
    """
    from interlatent_live.demo.report import summary_lines
    from interlatent_live.demo.run import (
        DemoOptions,
        demo_settings,
        free_settings,
        run_demo,
        write_report,
    )
    from interlatent_live.demo.screen import PlainScreen
    from interlatent_live.zoo.entry import find_entry
    from interlatent_live.zoo.report import LIVE, live_lines

    entry = find_entry(name)
    _ = entry.environment_version  # says which extra is missing before anything is started
    folder = _work(entry, work)
    settings = demo_settings(resolve_options(config, assign).settings, name)
    trained = folder / "transcoders"
    if trained.is_dir():
        encoder = settings.encoder
        more = {"transcoders": (trained, *encoder.transcoders)}
        settings = settings.model_copy(update={"encoder": encoder.model_copy(update=more)})
    options = DemoOptions(
        env=name, steps=steps or entry.live.steps, copies=copies, hz=hz, seed=seed
    )
    with PlainScreen(options) as screen:
        try:
            report = run_demo(
                options, free_settings(settings), screen, finish_within_s=FINISH_WITHIN_S
            )
        except KeyboardInterrupt:
            print("stopped", file=sys.stderr)
            return
    write_report(report, folder / LIVE)
    print("\n".join([*summary_lines(report), *live_lines(report)]))
    print(f"written to {folder / LIVE}")


@app.command()
def train(
    name: NameArgument,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Receives transcoders/NAME and, for the demo's entries, recordings/NAME.mcap. "
            "[default: the work folder, where `zoo run` finds them]"
        ),
    ] = None,
    work: WorkOption = None,
) -> None:
    """Collect and train with the entry's recipe; killed and started again, it goes on.

    Every training seed stays in the work folder for `zoo evaluate`; the one with the median error
    is what `zoo run` uses. `--out interlatent_live/data` makes anew what the package carries.
    """
    from interlatent_live.zoo.build import build_entry
    from interlatent_live.zoo.entry import find_entry

    _one_thread()
    entry = find_entry(name)
    folder = _work(entry, work)
    with _Telling() as say:
        built = build_entry(entry, out or folder, folder, say)
    for path in (*built.transcoders, *filter(None, [built.recording])):
        print(f"wrote {path}")


@app.command()
def evaluate(
    name: NameArgument,
    work: WorkOption = None,
    draws: Annotated[int, typer.Option(help="Draws of the claims' null.", min=19)] = 199,
    episodes: Annotated[
        int | None,
        typer.Option(help="Paired seeds of fidelity; 0: none. [default: the entry's]", min=0),
    ] = None,
) -> None:
    """Measure what an entry's transcoders are worth, and leave it as evaluation.json.

    Fidelity of reconstruction and behaviour over every training seed (needs `zoo train`), the
    verified share of the dictionary that is run beside its controls, and the entry's questions.
    """
    from interlatent_live.demo.run import write_report
    from interlatent_live.zoo.entry import find_entry
    from interlatent_live.zoo.evaluate import evaluate_entry
    from interlatent_live.zoo.report import EVALUATION, evaluation_lines

    _one_thread()
    entry = find_entry(name)
    folder = _work(entry, work)
    with _Telling() as say:
        found = evaluate_entry(entry, folder, say, draws=draws, episodes=episodes)
    write_report(found, folder / EVALUATION)
    print("\n".join(evaluation_lines(found)))
    print(f"written to {folder / EVALUATION}")


@app.command()
def report(
    name: NameArgument,
    out: Annotated[Path, typer.Option(help="Receives NAME.json, NAME.md and pictures.")] = Path(
        "docs/zoo"
    ),
    work: WorkOption = None,
    pictures: Annotated[
        bool, typer.Option(help="Act again to draw where the questions' features fire most.")
    ] = True,
) -> None:
    """Write an entry's report from what `zoo run` and `zoo evaluate` left in the work folder."""
    from interlatent_live.zoo.entry import find_entry
    from interlatent_live.zoo.pictures import draw_exemplars
    from interlatent_live.zoo.report import make_report, write_files

    _one_thread()
    entry = find_entry(name)
    folder = _work(entry, work)
    made = make_report(entry, folder)
    if pictures:
        with _Telling() as say:
            made["pictures"] = draw_exemplars(entry, folder, made, out, say)
    for path in write_files(made, out):
        print(f"wrote {path}")


@app.command()
def table(
    out: Annotated[Path, typer.Option(help="Folder with the entries' JSON.")] = Path("docs/zoo"),
) -> None:
    """Print the table over the zoo from the committed reports, as the README shows it."""
    from interlatent_live.zoo.table import zoo_table

    print(zoo_table(out))


@app.command()
def compare(
    family: Annotated[str, typer.Argument(help="What to compare: drivers.")],
    out: Annotated[
        Path, typer.Option(help="Receives FAMILY.json, FAMILY.md and FAMILY.png.")
    ] = Path("docs/zoo"),
    work: Annotated[
        Path | None,
        typer.Option(help="Drives, datasets and transcoders. [default: out/zoo/FAMILY]"),
    ] = None,
    episodes: Annotated[int, typer.Option(help="Per driver; a multiple of 10.", min=20)] = 100,
    every_seed: Annotated[
        bool, typer.Option(help="Judge every training seed, not only the median one.")
    ] = False,
    transcoders: Annotated[
        Path | None,
        typer.Option(help="Receives NAME/HOOK_POINT of each driver's transcoder, besides."),
    ] = None,
) -> None:
    """Order agents that differ in one thing by what their features do, and hold it to the truth.

    The drivers differ in their reward for speed. On one bank of states each driver's features with
    a verified claim about speed are taken out; what that does to the advantage of FASTER orders the
    drivers, beside random features and raw values. Killed and started again, it goes on.
    """
    from interlatent_live.errors import UserError
    from interlatent_live.zoo.compare import compare_drivers, driver_entries
    from interlatent_live.zoo.compare_report import summary_lines, write_files

    if family != "drivers":
        raise UserError(f"there is nothing to compare called {family!r}; there is: drivers")
    _one_thread()
    folder = work or Path("out") / "zoo" / family
    with _Telling() as say:
        made = compare_drivers(
            driver_entries(),
            folder,
            say,
            episodes=episodes,
            every_seed=every_seed,
            transcoders=transcoders,
        )
    print("\n".join(summary_lines(made)))
    for path in write_files(made, out):
        print(f"wrote {path}")


def _work(entry: ZooEntry, work: Path | None) -> Path:
    return work or Path("out") / "zoo" / entry.name


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)  # two compute threads on two busy cores collapse


class _Telling:
    """A spinner on standard error whose line says what is being done."""

    def __enter__(self) -> Callable[[str], None]:
        from rich.console import Console
        from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        self._progress = Progress(
            SpinnerColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.description}"),
            console=Console(stderr=True),
        )
        self._progress.__enter__()
        task = self._progress.add_task("starting", total=None)
        return lambda text: self._progress.update(task, description=text)

    def __exit__(self, *exception: object) -> None:
        self._progress.__exit__(None, None, None)
