"""The command ``interlatent-live``: one Typer app, one module per command group.

Command modules import only what ``--help`` needs; the heavy imports (torch, sockets, SDKs) happen
inside the functions, so that help and errors are instant.
"""

from __future__ import annotations

import sys

import typer

from interlatent_live.cli import (
    alerts,
    audit,
    bench,
    branch,
    claims,
    config,
    demo,
    diff,
    doctor,
    health,
    incident,
    intervene,
    keys,
    plan,
    policies,
    probes,
    query,
    recordings,
    replay,
    reproduce,
    services,
    store,
    transcoders,
    users,
    watch,
    why,
    zoo,
)
from interlatent_live.errors import UserError

app = typer.Typer(
    name="interlatent-live",
    help="See live what a reinforcement-learning agent is doing, in claims the stream checks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.command()(demo.demo)
app.command()(watch.watch)
app.command()(services.up)
app.command()(services.encoder)
app.command()(services.correlator)
app.command()(services.explainer)
app.command()(services.console)
app.command()(services.control)
app.command()(services.record)
app.command("recorder", hidden=True)(services.record)  # as `up` starts each by its name
app.command(hidden=True)(services.gateway)
app.command(hidden=True)(services.shard)
app.command(hidden=True)(demo.demo_agent)
app.command()(transcoders.collect)
app.command()(transcoders.train)
app.command()(transcoders.evaluate)
app.command()(transcoders.export)
app.command("import")(transcoders.import_)
app.command()(transcoders.finetune)
app.add_typer(probes.app)
app.command()(diff.diff)
app.add_typer(policies.app)
app.add_typer(zoo.app)
app.add_typer(reproduce.app)
app.add_typer(config.app)
app.add_typer(keys.app)
app.add_typer(query.app)
app.add_typer(alerts.app)
app.add_typer(intervene.app)
app.command()(branch.branch)
app.add_typer(audit.app)
app.add_typer(users.app)
app.add_typer(claims.app)
app.add_typer(store.app)
app.command()(incident.incident)
app.command()(why.why)
app.command()(recordings.inspect)
app.command()(recordings.export_rows)
app.command()(replay.replay)
app.command()(health.health)
app.command()(doctor.doctor)
app.command()(bench.bench)
app.command()(plan.plan)


@app.callback()
def _root() -> None:
    """See live what a reinforcement-learning agent is doing, in claims the stream checks."""


def main() -> None:
    """Run the command line; a user's mistake is one sentence and exit status 2."""
    try:
        app()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
