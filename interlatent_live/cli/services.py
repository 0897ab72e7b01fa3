"""``interlatent-live up`` and the services one by one."""

from __future__ import annotations

from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from interlatent_live.cli.options import ConfigOption, SetOption, resolve_options

if TYPE_CHECKING:
    from collections.abc import Callable

    from interlatent_live.config import Settings


def encoder(config: ConfigOption = None, assign: SetOption = None) -> None:
    """Turn the activations that agents send into transcoder features.

    Admits an agent only if a transcoder was trained on its very policy, encodes in micro-batches on
    the best device there is, and hands features to correlators, explainers and recorders with
    credit, to viewers without. Runs until SIGINT or SIGTERM.
    """
    from interlatent_live.services.encoder import serve

    _serve("encoder", resolve_options(config, assign).settings, serve)


def correlator(
    ownership: Annotated[
        Path | None,
        typer.Option(hidden=True, help="File with the runs of a shard, as its shard writes it."),
    ] = None,
    config: ConfigOption = None,
    assign: SetOption = None,
) -> None:
    """Relate features to metrics: rolling statistics with honest intervals.

    Takes features from the encoder and publishes, for every live feature, density, means when on
    and off, and correlations with effective sample sizes. Runs until SIGINT or SIGTERM.
    """
    from interlatent_live.services.correlator import serve

    settings = resolve_options(config, assign).settings
    _serve("correlator", settings, partial(serve, ownership=ownership))


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


def gateway(config: ConfigOption = None, assign: SetOption = None) -> None:
    """Stand in for encoder and correlator before several shards of them.

    Agents and viewers find it where they would find the two; shards find it at
    endpoints.correlator. Started by `up` with shards. Runs until SIGINT or SIGTERM.
    """
    from interlatent_live.services.gateway import serve

    _serve("gateway", resolve_options(config, assign).settings, serve)


def shard(
    name: Annotated[str, typer.Argument(help="Of the shard, such as shard-0.")],
    slots: Annotated[str, typer.Option(help="Its slots, a bit each, in 64 hexadecimal digits.")],
    config: ConfigOption = None,
    assign: SetOption = None,
) -> None:
    """Run one shard: an encoder and a correlator on free ports, for the runs of its slots.

    Started by `up` with shards, on a node that the engine chooses. Runs until SIGINT or SIGTERM, or
    until a later start of the same shard has taken its place.
    """
    from interlatent_live.engine.sharded import SERVING
    from interlatent_live.services.shard import serve

    settings = resolve_options(config, assign).settings
    on_ready = partial(print, SERVING, flush=True)
    _serve("shard", settings, partial(serve, name=name, slots=slots, on_ready=on_ready))


class EngineKind(StrEnum):
    """Where shards run."""

    LOCAL = "local"
    RAY = "ray"


def up(
    engine: Annotated[
        EngineKind, typer.Option(help="Where shards run: on this machine, or on a Ray cluster.")
    ] = EngineKind.LOCAL,
    shards: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Encoders and correlators to spread the runs over. [default: with --engine ray "
            "one for each node; otherwise none, but one encoder and one correlator]",
        ),
    ] = None,
    ray_address: Annotated[
        str | None,
        typer.Option(help="Of the Ray cluster, such as HOST:6379. [default: one started here]"),
    ] = None,
    gpus: Annotated[
        float, typer.Option(min=0, help="GPUs that Ray keeps free for each shard's encoder.")
    ] = 0.0,
    config: ConfigOption = None,
    assign: SetOption = None,
) -> None:
    """Start encoder, correlator, explainer, console and control here and keep them up.

    A service that dies comes back with growing pauses, and what it missed is counted. Point agents
    at endpoints.agents, then look with `interlatent-live watch`. Ctrl-C stops everything.

    With --shards or --engine ray, runs are spread over shards behind a gateway, where agents and
    viewers find them as if there were one (docs/operating.md).
    """
    from interlatent_live.console.sessions import login_address
    from interlatent_live.engine.sharded import System
    from interlatent_live.errors import UserError
    from interlatent_live.logs import configure_logging

    if engine is EngineKind.LOCAL and (ray_address is not None or gpus):
        raise UserError("--ray-address and --gpus are for --engine ray")
    settings = resolve_options(config, assign).settings
    configure_logging("up", level=settings.logging.level, log_format=settings.logging.format)
    if engine is EngineKind.RAY:
        from interlatent_live.engine.ray import RayEngine

        system = System(settings, shards, RayEngine(ray_address), gpus)
    else:
        system = System(settings, shards)
    with system:
        try:
            system.start()
            print(f"up: agents connect to {settings.endpoints.agents}; look at")
            print(f"  {login_address(settings)}")
            print("(which logs you in, once; what follows # is secret) or in a terminal with")
            print("  interlatent-live watch")
            print("Ctrl-C stops everything", flush=True)
            system.watch()
        except KeyboardInterrupt:
            print("stopping …", flush=True)


def _serve(name: str, settings: Settings, serve: Callable[[Settings], None]) -> None:
    from interlatent_live.logs import configure_logging

    configure_logging(name, level=settings.logging.level, log_format=settings.logging.format)
    serve(settings)
