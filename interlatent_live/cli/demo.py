"""``interlatent-live demo``: the main job in one command."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from interlatent_live.cli.options import ConfigOption, SetOption, resolve_options

EnvOption = Annotated[
    str, typer.Option(help="CartPole-v1 or LunarLander-v3 (needs the extra box2d).")
]
AskOption = Annotated[
    str | None,
    typer.Option(
        help="Predicate over metrics, such as 'pole_angle > 0.15': the agent asks a person before "
        "it goes on."
    ),
]
HEADLESS_STEPS = 24_000
DISPLAYS = {"DISPLAY", "WAYLAND_DISPLAY"}
"""One of them is set where there is a desktop; elsewhere a browser would take the terminal."""


def demo(
    env: EnvOption = "CartPole-v1",
    headless: Annotated[
        bool, typer.Option(help="Draw nothing; run --steps steps, write --json and end.")
    ] = False,
    steps: Annotated[
        int | None,
        typer.Option(
            help="Stop after so many steps, counted over all copies together. "
            f"[default: until Ctrl-C; {HEADLESS_STEPS} when headless]",
            min=1,
        ),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the run as one JSON object to this file.")
    ] = None,
    copies: Annotated[
        int | None, typer.Option(help="Copies of the environment side by side.", min=1, max=64)
    ] = None,
    hz: Annotated[
        float | None, typer.Option(help="Steps per second and copy.", min=0.1, max=10_000)
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of starts and pushes; fixed by default.", min=0)
    ] = None,
    ask: AskOption = None,
    open_page: Annotated[
        bool | None,
        typer.Option(
            "--open/--no-open",
            help="Open the console's page in a browser. [default: where there is a desktop]",
        ),
    ] = None,
    config: ConfigOption = None,
    assign: SetOption = None,
) -> None:
    """A trained agent explained while it acts: everything on this machine, nothing to set up.

    Starts all services as processes of their own and an agent in several copies of its environment,
    which you can hold, stop and steer. Claims are proposed from a recording that comes with the
    package and verified only on the episodes you see. No key, no network, no GPU needed. Look at
    the console's page, whose address is shown, or from another terminal with
    `interlatent-live watch`. Ctrl-C ends everything.
    """
    from interlatent_live.demo.report import summary_lines
    from interlatent_live.demo.run import (
        DemoOptions,
        demo_settings,
        free_settings,
        run_demo,
        write_report,
    )
    from interlatent_live.demo.screen import LiveScreen, PlainScreen
    from interlatent_live.zoo.entry import find_entry

    find_entry(env)
    settings = free_settings(demo_settings(resolve_options(config, assign).settings, env))
    if headless and steps is None:
        steps = HEADLESS_STEPS
    options = DemoOptions(
        env=env,
        steps=steps,
        copies=copies,
        hz=hz,
        seed=seed,
        ask=ask,
        pictures=not headless,
        shadow=not headless,
    )
    if open_page is None:
        open_page = sys.stdout.isatty() and bool(DISPLAYS & os.environ.keys())
    screen = (
        PlainScreen(options) if headless else LiveScreen(options, settings, open_page=open_page)
    )
    with screen:
        try:
            report = run_demo(options, settings, screen)
        except KeyboardInterrupt:
            print("stopped", file=sys.stderr)
            return
    if json_file is not None:
        write_report(report, json_file)
    print("\n".join(summary_lines(report)))


def demo_agent(
    endpoint: Annotated[str, typer.Option(help="Where the encoder takes steps.")],
    control: Annotated[
        str | None, typer.Option(help="Where the control service takes agents.")
    ] = None,
    ask: AskOption = None,
    pictures: Annotated[str | None, typer.Option(help="Where the console takes pictures.")] = None,
    explainer: Annotated[
        str | None, typer.Option(help="Where the explainer takes reports and asks why.")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Write the agent's account here.")] = None,
    env: EnvOption = "CartPole-v1",
    steps: Annotated[
        int | None, typer.Option(help="Stop after so many steps of all copies.", min=1)
    ] = None,
    copies: Annotated[int | None, typer.Option(help="Copies side by side.", min=1)] = None,
    hz: Annotated[float | None, typer.Option(help="Steps per second and copy.", min=0.1)] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of starts and pushes.", min=0)] = None,
    policy: Annotated[str | None, typer.Option(help="Another policy than the demo's.")] = None,
) -> None:
    """Run only the demo's agent, for a system that is up already."""
    from interlatent_live.demo.agent import run_agent

    run_agent(
        env,
        endpoint=endpoint,
        control=control,
        ask=ask,
        pictures=pictures,
        explainer=explainer,
        report=report,
        steps=steps,
        copies=copies,
        hz=hz,
        seed=seed,
        policy=policy,
    )
