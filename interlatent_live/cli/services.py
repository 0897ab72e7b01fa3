"""``interlatent-live up`` and the services one by one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from interlatent_live.cli.options import ConfigOption, SetOption, resolve_options

if TYPE_CHECKING:
    from collections.abc import Callable

    from interlatent_live.config import ServiceName, Settings


def encoder(config: ConfigOption = None, assign: SetOption = None) -> None:
    """Turn the activations that agents send into transcoder features.

    Admits an agent only if a transcoder was trained on its very policy, encodes in micro-batches on
    the best device there is, and hands features to correlators, explainers and recorders with
    credit, to viewers without. Runs until SIGINT or SIGTERM.
    """
    from interlatent_live.services.encoder import serve

    _serve("encoder", resolve_options(config, assign).settings, serve)


def correlator(config: ConfigOption = None, assign: SetOption = None) -> None:
    """Relate features to metrics: rolling statistics with honest intervals.

    Takes features from the encoder and publishes, for every live feature, density, means when on
    and off, and correlations with effective sample sizes. Runs until SIGINT or SIGTERM.
    """
    from interlatent_live.services.correlator import serve

    _serve("correlator", resolve_options(config, assign).settings, serve)


def explainer(config: ConfigOption = None, assign: SetOption = None) -> None:
    """Say what features stand for, check it on later episodes, and tell what the agent does.

    Works without any language model; a hosted one is called only when explainer.writer names it
    and explainer.money_limit allows it. Runs until SIGINT or SIGTERM.
    """
    from interlatent_live.services.explainer import serve

    _serve("explainer", resolve_options(config, assign).settings, serve)


def console(config: ConfigOption = None, assign: SetOption = None) -> None:
    """Keep a running system's claims, verdicts, costs and narration in a database.

    Follows the feeds and slows nobody, and tells it all over HTTP at console.http (docs/api.md).
    SQLite in the state folder, or the database that console.store names. Restarted, it goes on
    where it was. Runs until SIGINT or SIGTERM.
    """
    from interlatent_live.services.console import serve

    _serve("console", resolve_options(config, assign).settings, serve)


def control(config: ConfigOption = None, assign: SetOption = None) -> None:
    """Let people hold, stop and steer agents, and write down who did what.

    Agents with control connect to endpoints.control; the console and `interlatent-live intervene`
    command at endpoints.control_requests. Owns no data: with every other service frozen, a stop
    still arrives. Runs until SIGINT or SIGTERM.
    """
    from interlatent_live.services.control import serve

    _serve("control", resolve_options(config, assign).settings, serve)


def record(
    folder: Annotated[
        Path | None, typer.Option(help="Where the recordings go; otherwise recorder.folder.")
    ] = None,
    foxglove: Annotated[
        bool | None,
        typer.Option(
            "--foxglove/--no-foxglove",
            help="Write some rows as JSON too, for Foxglove. [default: recorder.foxglove]",
        ),
    ] = None,
    config: ConfigOption = None,
    assign: SetOption = None,
) -> None:
    """Record features, metrics and documents into files that a kill does not spoil.

    Started by `up` where recorder.folder is set, and then the encoder sends it features by itself;
    for a recorder of its own, name its endpoint in encoder.consumers. Runs until SIGINT or SIGTERM.
    """
    from interlatent_live.services.recorder import serve

    flags = {"recorder.folder": folder, "recorder.foxglove": foxglove}
    _serve("recorder", resolve_options(config, assign, flags).settings, serve)


def up(config: ConfigOption = None, assign: SetOption = None) -> None:
    """Start encoder, correlator, explainer, console and control here and keep them up.

    A service that dies comes back with growing pauses, and what it missed is counted. Point agents
    at endpoints.agents, then look with `interlatent-live watch`. Ctrl-C stops everything.
    """
    from interlatent_live.console.sessions import login_address
    from interlatent_live.engine.launch import service_specs
    from interlatent_live.engine.local import LocalEngine
    from interlatent_live.engine.port import wait_ready, wait_until_one_fails
    from interlatent_live.logs import configure_logging

    settings = resolve_options(config, assign).settings
    configure_logging("up", level=settings.logging.level, log_format=settings.logging.format)
    specs = service_specs(settings)
    with LocalEngine() as engine:
        try:
            for spec in specs:
                engine.start(spec)
            wait_ready(engine, [spec.name for spec in specs], timeout_s=120.0)
            print(f"up: agents connect to {settings.endpoints.agents}; look at")
            print(f"  {login_address(settings)}")
            print("(which logs you in, once; what follows # is secret) or in a terminal with")
            print("  interlatent-live watch")
            print("Ctrl-C stops everything", flush=True)
            wait_until_one_fails(engine)
        except KeyboardInterrupt:
            print("stopping …", flush=True)


def _serve(name: ServiceName, settings: Settings, serve: Callable[[Settings], None]) -> None:
    from interlatent_live.logs import configure_logging

    configure_logging(name, level=settings.logging.level, log_format=settings.logging.format)
    serve(settings)
