"""``interlatent-live up`` and the services one by one."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Callable

    from interlatent_live.config import ServiceName, Settings

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        help="TOML file; without it interlatent.toml here, if there is one.", show_default=False
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="NAME=VALUE on top of file and environment, such as encoder.device=cpu."
    ),
]


def settings_of(config: Path | None, assignments: list[str] | None) -> Settings:
    """The settings that file, environment and flags add up to."""
    from interlatent_live.config import load_settings, parse_flag

    return load_settings(config, dict(parse_flag(text) for text in assignments or []))


def encoder(config: ConfigOption = None, assign: SetOption = None) -> None:
    """Turn the activations that agents send into transcoder features.

    Admits an agent only if a transcoder was trained on its very policy, encodes in micro-batches on
    the best device there is, and hands features to correlators, explainers and recorders with
    credit, to viewers without. Runs until SIGINT or SIGTERM.
    """
    from interlatent_live.services.encoder import serve

    _serve("encoder", settings_of(config, assign), serve)


def correlator(config: ConfigOption = None, assign: SetOption = None) -> None:
    """Relate features to metrics: rolling statistics with honest intervals.

    Takes features from the encoder and publishes, for every live feature, density, means when on
    and off, and correlations with effective sample sizes. Runs until SIGINT or SIGTERM.
    """
    from interlatent_live.services.correlator import serve

    _serve("correlator", settings_of(config, assign), serve)


def explainer(config: ConfigOption = None, assign: SetOption = None) -> None:
    """Say what features stand for, check it on later episodes, and tell what the agent does.

    Works without any language model; a hosted one is called only when explainer.writer names it
    and explainer.money_limit allows it. Runs until SIGINT or SIGTERM.
    """
    from interlatent_live.services.explainer import serve

    _serve("explainer", settings_of(config, assign), serve)


def up(config: ConfigOption = None, assign: SetOption = None) -> None:
    """Start encoder, correlator and explainer on this machine and keep them up.

    A service that dies comes back with growing pauses, and what it missed is counted. Point agents
    at endpoints.agents, then look with `interlatent-live watch`. Ctrl-C stops everything.
    """
    from interlatent_live.engine.launch import service_specs
    from interlatent_live.engine.local import LocalEngine
    from interlatent_live.engine.port import wait_ready
    from interlatent_live.logs import configure_logging

    settings = settings_of(config, assign)
    configure_logging("up", level=settings.logging.level, log_format=settings.logging.format)
    specs = service_specs(settings)
    with LocalEngine() as engine:
        try:
            for spec in specs:
                engine.start(spec)
            wait_ready(engine, [spec.name for spec in specs], timeout_s=120.0)
            print(f"up: agents connect to {settings.endpoints.agents}; look with")
            print("  interlatent-live watch")
            print("Ctrl-C stops everything", flush=True)
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            print("stopping …", flush=True)


def _serve(name: ServiceName, settings: Settings, serve: Callable[[Settings], None]) -> None:
    from interlatent_live.logs import configure_logging

    configure_logging(name, level=settings.logging.level, log_format=settings.logging.format)
    serve(settings)
