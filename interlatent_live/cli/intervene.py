"""``interlatent-live intervene``: hold, stop and steer a running agent from any terminal.

Not a safety-rated emergency stop. An intervention lives as long as this command runs and renews its
lease, at most ``--ttl``; Ctrl-C, a closed terminal or a lost machine end it.
"""

from __future__ import annotations

import getpass
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from interlatent_live.cli.options import ConfigOption, SetOption, resolve_options

if TYPE_CHECKING:
    from collections.abc import Iterator

    from interlatent_live.control.client import ControlClient
    from interlatent_live.control.commands import Operation
    from interlatent_live.control.wire import AgentEvent, AgentShown, Result
    from interlatent_live.interventions.values import Kind

app = typer.Typer(
    name="intervene",
    help="Hold, stop, steer or answer a running agent. Not a safety-rated emergency stop.",
    no_args_is_help=True,
)

RENEW_S = 0.4
WAIT_S = 5.0
"""How long to wait for the agent to say from which step a command holds."""

AgentOption = Annotated[str, typer.Option("--agent", help="The agent; empty: the only one.")]
ReasonOption = Annotated[str, typer.Option("--reason", "-r", help="Why, for the audit.")]
TtlOption = Annotated[
    float, typer.Option("--ttl", help="Seconds until it ends by itself.", min=0.05, max=86_400)
]
NormOption = Annotated[
    float | None,
    typer.Option(help="Bound on the change's norm; the agent's own bound without it.", min=0.0),
]
WhenOption = Annotated[
    str | None,
    typer.Option(help="Predicate over metrics; act only after steps in which it held."),
]
DryOption = Annotated[
    bool, typer.Option("--dry-run", help="Tell what it would have done, and do nothing.")
]
FeaturesArgument = Annotated[
    list[str], typer.Argument(help="Features, as HOOK_POINT/INDEX or HOOK_POINT/INDEX@TRANSCODER.")
]


@app.command("list")
def list_(config: ConfigOption = None, assign: SetOption = None) -> None:
    """Show the agents, how they are, what is in force and what waits for an answer."""
    with _client(config, assign) as client:
        shown = client.look()
    if not shown.agents:
        print("no agent is connected")
    for agent in shown.agents:
        _show(agent)
    for command_id in shown.waiting:
        print(f"waits for a second person: {command_id}")


@app.command()
def steer(
    features: FeaturesArgument,
    by: Annotated[float, typer.Option(help="What is added to each feature.")],
    ttl: TtlOption = 10.0,
    agent: AgentOption = "",
    reason: ReasonOption = "",
    max_norm: NormOption = None,
    when: WhenOption = None,
    dry_run: DryOption = False,
    config: ConfigOption = None,
    assign: SetOption = None,
) -> None:
    """Add to features while this command runs."""
    from interlatent_live.interventions.values import Kind

    _intervene(
        features, Kind.STEER, by, ttl, agent, reason, max_norm, when, dry_run, config, assign
    )


@app.command()
def clamp(
    features: FeaturesArgument,
    to: Annotated[float, typer.Option(help="What each feature is held at.", min=0.0)],
    ttl: TtlOption = 10.0,
    agent: AgentOption = "",
    reason: ReasonOption = "",
    max_norm: NormOption = None,
    when: WhenOption = None,
    dry_run: DryOption = False,
    config: ConfigOption = None,
    assign: SetOption = None,
) -> None:
    """Hold features at a value while this command runs."""
    from interlatent_live.interventions.values import Kind

    _intervene(
        features, Kind.CLAMP, to, ttl, agent, reason, max_norm, when, dry_run, config, assign
    )


@app.command()
def scale(
    features: FeaturesArgument,
    by: Annotated[float, typer.Option(help="Factor of each feature.")],
    ttl: TtlOption = 10.0,
    agent: AgentOption = "",
    reason: ReasonOption = "",
    max_norm: NormOption = None,
    when: WhenOption = None,
    dry_run: DryOption = False,
    config: ConfigOption = None,
    assign: SetOption = None,
) -> None:
    """Multiply features while this command runs."""
    from interlatent_live.interventions.values import Kind

    _intervene(
        features, Kind.SCALE, by, ttl, agent, reason, max_norm, when, dry_run, config, assign
    )


@app.command()
def ablate(
    features: FeaturesArgument,
    ttl: TtlOption = 10.0,
    agent: AgentOption = "",
    reason: ReasonOption = "",
    max_norm: NormOption = None,
    when: WhenOption = None,
    dry_run: DryOption = False,
    config: ConfigOption = None,
    assign: SetOption = None,
) -> None:
    """Take features out while this command runs."""
    from interlatent_live.interventions.values import Kind

    _intervene(
        features, Kind.ABLATE, 0.0, ttl, agent, reason, max_norm, when, dry_run, config, assign
    )


@app.command()
def hold(
    ttl: TtlOption = 60.0,
    agent: AgentOption = "",
    reason: ReasonOption = "",
    config: ConfigOption = None,
    assign: SetOption = None,
) -> None:
    """Act safely instead of by the policy until resumed; after --ttl seconds it is a stop."""
    from interlatent_live.control.commands import Operation

    _still(Operation.HOLD, agent, reason, ttl, config, assign)


@app.command()
def stop(
    agent: AgentOption = "",
    reason: ReasonOption = "",
    config: ConfigOption = None,
    assign: SetOption = None,
) -> None:
    """Act safely until an explicit resume; survives restarts of everything."""
    from interlatent_live.control.commands import Operation

    _still(Operation.STOP, agent, reason, 60.0, config, assign)


@app.command()
def revert(
    agent: AgentOption = "",
    reason: ReasonOption = "",
    config: ConfigOption = None,
    assign: SetOption = None,
) -> None:
    """End all interventions now."""
    from interlatent_live.control.commands import Operation

    _still(Operation.REVERT, agent, reason, 60.0, config, assign)


@app.command()
def step(
    agent: AgentOption = "",
    reason: ReasonOption = "",
    config: ConfigOption = None,
    assign: SetOption = None,
) -> None:
    """Let a held agent take one step of its policy."""
    from interlatent_live.control.commands import Operation

    _energise(Operation.STEP, agent, reason, config, assign)


@app.command()
def resume(
    agent: AgentOption = "",
    reason: ReasonOption = "",
    config: ConfigOption = None,
    assign: SetOption = None,
) -> None:
    """End a hold or a stop: the policy acts again."""
    from interlatent_live.control.commands import Operation

    _energise(Operation.RESUME, agent, reason, config, assign)


@app.command()
def approve(
    agent: AgentOption = "",
    reason: ReasonOption = "",
    action: Annotated[
        str, typer.Option(help="Another action for the next step: numbers, with commas.")
    ] = "",
    config: ConfigOption = None,
    assign: SetOption = None,
) -> None:
    """Let an agent that asked go on, perhaps with another action for one step."""
    from interlatent_live.control.commands import Operation

    _energise(Operation.APPROVE, agent, reason, config, assign, _numbers(action))


@app.command()
def refuse(
    agent: AgentOption = "",
    reason: ReasonOption = "",
    config: ConfigOption = None,
    assign: SetOption = None,
) -> None:
    """Tell an agent that asked no: it stays held, and then stops."""
    from interlatent_live.control.commands import Operation

    _energise(Operation.REFUSE, agent, reason, config, assign)


@app.command()
def escalate(
    agent: AgentOption = "",
    reason: ReasonOption = "",
    config: ConfigOption = None,
    assign: SetOption = None,
) -> None:
    """Hand an agent's question to an admin, once, with its time begun anew."""
    from interlatent_live.control.commands import Operation

    _energise(Operation.ESCALATE, agent, reason, config, assign)


@app.command()
def second(
    command_id: Annotated[str, typer.Argument(help="The command that waits, as `list` shows it.")],
    config: ConfigOption = None,
    assign: SetOption = None,
) -> None:
    """Agree, as a second person, to a large intervention of another one."""
    with _client(config, assign) as client:
        _expect(client.second(command_id))
    print("agreed")


# -------------------------------------------------------------------------------------- doing it


@contextmanager
def _client(config: ConfigOption, assign: SetOption) -> Iterator[ControlClient]:
    from interlatent_live.console.secrets import load_token, state_folder
    from interlatent_live.control.client import ControlClient
    from interlatent_live.control.wire import Role, control_key
    from interlatent_live.wire.keys import ServerKeys

    settings = resolve_options(config, assign).settings
    keys = None
    key = None
    if settings.security.keys is not None:
        keys = ServerKeys.load(settings.security.keys).client()
    else:
        key = control_key(load_token(state_folder(settings)))
    # Whoever can read this user's token, or a service's key, may do everything here.
    with ControlClient(
        settings.endpoints.control_requests,
        key,
        actor=f"{getpass.getuser()} (terminal)",
        role=Role.ADMIN,
        keys=keys,
    ) as client:
        yield client


def _still(
    operation: Operation,
    agent: str,
    reason: str,
    ttl: float,
    config: ConfigOption,
    assign: SetOption,
) -> None:
    with _client(config, assign) as client:
        # Named, it needs no look first: whatever the agent's state is, it shall be still.
        shown = client.agent(agent) if not agent else None
        name = agent or (shown.hello.agent if shown is not None else "")
        client.look(follow=True)
        result = _expect(
            client.command(operation, name, reason=reason or "from a terminal", ttl_s=ttl)
        )
        _say_applied(client, result, operation)


def _energise(
    operation: Operation,
    agent: str,
    reason: str,
    config: ConfigOption,
    assign: SetOption,
    action: tuple[float, ...] = (),
) -> None:
    from interlatent_live.control.commands import ANSWERING
    from interlatent_live.errors import UserError

    with _client(config, assign) as client:
        shown = client.agent(agent)
        targets: tuple[str, ...] = ()
        if operation in ANSWERING:
            question = shown.state.question if shown.state is not None else None
            if question is None:
                raise UserError(f"{shown.hello.agent} asks nothing")
            targets = (question.question_id,)
        result = _expect(
            client.command(
                operation, shown, reason=reason or "from a terminal", targets=targets, action=action
            )
        )
        _say_applied(client, result, operation)


def _intervene(
    features: list[str],
    kind: Kind,
    value: float,
    ttl: float,
    agent: str,
    reason: str,
    max_norm: float | None,
    when: str | None,
    dry_run: bool,
    config: ConfigOption,
    assign: SetOption,
) -> None:
    from interlatent_live.control.commands import Change, Operation
    from interlatent_live.errors import UserError
    from interlatent_live.interventions.values import Intervention

    with _client(config, assign) as client:
        shown = client.agent(agent)
        offers = {one.name: one for one in shown.hello.hook_points}
        changes = []
        for text in features:
            place, _, transcoder = text.partition("@")
            point, _, index = place.rpartition("/")
            offer = offers.get(point)
            if offer is None or not index.isdecimal():
                raise UserError(
                    f"{text!r} is no feature that {shown.hello.agent} can be steered by; write "
                    f"HOOK_POINT/INDEX with one of {', '.join(sorted(offers)) or 'no hook points'}"
                )
            changes.append(
                Change(
                    point,
                    transcoder or offer.transcoder,
                    Intervention(int(index), kind, value, predicate=when),
                    max_norm or offer.max_norm,
                )
            )
        name = shown.hello.agent
        _expect(client.renew(name))
        result = _expect(
            client.command(
                Operation.INTERVENE, shown, reason=reason or "from a terminal", ttl_s=ttl,
                changes=tuple(changes), dry_run=dry_run,
            )
        )  # fmt: skip
        try:
            _stay(client, name, result.command_id, ttl)
        except KeyboardInterrupt:
            _expect(
                client.command(
                    Operation.REVERT,
                    name,
                    reason="Ctrl-C",
                    targets=(result.command_id,),
                    ttl_s=60.0,
                )
            )
            print("\nreverted", flush=True)


def _stay(client: ControlClient, agent: str, command_id: str, ttl: float) -> None:
    """Renew the lease and count down until the agent says that the intervention ended."""
    from rich.console import Console

    console = Console()
    until = time.monotonic() + ttl
    renew_at = 0.0
    with console.status("") as status:
        while time.monotonic() < until + 2.0:
            if time.monotonic() >= renew_at:
                client.renew(agent)
                client.look(follow=True)
                renew_at = time.monotonic() + RENEW_S
            client.listen(0.1)
            left = max(0.0, until - time.monotonic())
            status.update(f"in force, {left:.1f} s left; Ctrl-C reverts")
            for event in _events(client, command_id):
                console.print(_sentence(event), markup=False, highlight=False)
                if event.fate != "applied":
                    return


def _say_applied(client: ControlClient, result: Result, operation: Operation) -> None:
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        for event in _events(client, result.command_id):
            print(_sentence(event), flush=True)
            return
        client.listen(0.1)
    print(
        f"{operation} was accepted, but the agent has taken no step since: see "
        "`interlatent-live intervene list`"
    )
    raise typer.Exit(1)


def _events(client: ControlClient, command_id: str) -> list[AgentEvent]:
    found = [one.event for one in client.told if one.event.command_id == command_id]
    client.told.clear()
    return found


def _sentence(event: AgentEvent) -> str:
    where = "" if event.row < 0 else f" from step {event.row}"
    return f"{event.operation} {event.fate}{where}" + (f": {event.detail}" if event.detail else "")


def _expect(result: Result) -> Result:
    from interlatent_live.errors import UserError

    if not result.accepted:
        extra = f" (command {result.command_id})" if result.waits_for_second else ""
        raise UserError(f"refused: {result.reason}{extra}")
    return result


def _numbers(text: str) -> tuple[float, ...]:
    from interlatent_live.errors import UserError

    try:
        return tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise UserError(f"{text!r} is no action; write numbers with commas between") from error


def _show(agent: AgentShown) -> None:
    hello, state = agent.hello, agent.state
    silent = f", silent for {agent.silent_ms / 1000:.1f} s" if agent.silent_ms > 2000 else ""
    if state is None:
        print(f"{hello.agent}: nothing heard of its state{silent}")
        return
    obeyed = "" if state.obeyed else ", not yet acted on"
    print(f"{hello.agent}: {state.mode} at step {state.row}{obeyed}{silent}")
    for offer in hello.hook_points:
        print(f"  {offer.name}: {offer.features} features, norm up to {offer.max_norm:g}")
    for one in state.active:
        kind = "dry run" if one.dry_run else "in force"
        print(
            f"  {', '.join(one.changes)}: {kind}, by {one.actor}, {one.left_ms / 1000:.1f} s left, "
            f"{one.applied_steps} rows, norm up to {one.largest_norm:.3g}"
        )
    if state.question is not None:
        question = state.question
        print(f"  asks: {question.rule} ({question.left_ms / 1000:.1f} s to answer)")
    if state.trouble:
        print(f"  {state.trouble}")
