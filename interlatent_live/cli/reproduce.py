"""``interlatent-live reproduce``: published experiments, done again with their controls."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="reproduce",
    help="Run published experiments again, with controls beside them.",
    no_args_is_help=True,
)


@app.callback()
def _root() -> None:
    """Run published experiments again, with controls beside them."""


@app.command("cartpole-multiscale")
def cartpole_multiscale(
    out: Annotated[Path, typer.Option(help="Folder for the page, the plots and the JSON.")] = Path(
        "reproduction"
    ),
    work: Annotated[
        Path | None, typer.Option(help="Folder to resume from; default: `work` in the other.")
    ] = None,
    policies: Annotated[int, typer.Option(help="REINFORCE policies to train.", min=1)] = 5,
    held_out: Annotated[int, typer.Option(help="Held-out episodes per arm.", min=100)] = 2000,
    workers: Annotated[int, typer.Option(help="Processes, one policy each.", min=1)] = 2,
) -> None:
    """Steer 2, 4 and 8 features of CartPole policies, beside every control that might do as well.

    Trains REINFORCE policies to a return of 261 ± 25, transcoders on both hidden layers, searches
    features, random directions, constant biases and conditional steering on selection episodes,
    writes the plan, and plays the winners on held-out episodes. Under ten minutes on two cores.
    Interrupted runs go on where a policy was finished.
    """
    import json
    import time

    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from interlatent_live.interventions.reproduction.runner import finished, run_policies
    from interlatent_live.interventions.reproduction.settings import STAGES, Settings

    settings = Settings(policies=policies, held_out_episodes=held_out)
    folder = work or out / "work"
    resumed = finished(settings, folder)
    began = time.monotonic()
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns) as bar:
        tasks = [bar.add_task(f"policy {i + 1}", total=STAGES) for i in range(policies)]
        results = run_policies(
            settings,
            folder,
            workers,
            lambda done: bar.update(
                tasks[done.policy],
                advance=1,
                description=f"policy {done.policy + 1}: {done.stage}",
            ),
        )
        for task in tasks:
            bar.update(task, completed=STAGES)
    seconds = time.monotonic() - began

    from interlatent_live.interventions.reproduction.document import paragraph, render
    from interlatent_live.interventions.reproduction.plots import draw

    # Through JSON and back, so that the page is made of what the file says, to the digit.
    data = json.loads(
        json.dumps(
            {
                "settings": settings.as_json(),
                "settings_digest": settings.digest(),
                "seconds": round(seconds, 1),
                "workers": workers,
                "resumed": resumed,
                "policies": results,
            }
        )
    )
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(data, indent=1, ensure_ascii=False) + "\n"
    (out / "reproduction.json").write_text(text, encoding="utf-8")
    (out / "reproduction.md").write_text(render(data), encoding="utf-8")
    draw(data, out)
    print(paragraph(data))
