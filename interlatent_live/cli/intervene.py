"""``interlatent-live intervene``: hold, stop and steer a running agent from any terminal.

Not a safety-rated emergency stop. An intervention lives as long as this command runs and renews its
lease, at most ``--ttl``; Ctrl-C, a closed terminal or a lost machine end it.
"""

from __future__ import annotations

import getpass
import inspect
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interlatent_live.cli.options import ConfigOption, SetOption, resolve_options

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from interlatent_live.control.client import ControlClient
    from interlatent_live.control.commands import Change, Operation
    from interlatent_live.control.wire import AgentEvent, AgentShown, Result

app = typer.Typer(
    name="intervene",
    help="Hold, stop, steer or answer a running agent. Not a safety-rated emergency stop.",
    no_args_is_help=True,
)

RENEW_S = 0.4
_KEYWORD = inspect.Parameter.POSITIONAL_OR_KEYWORD
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


def _option(name: str, default: object, annotation: object) -> inspect.Parameter:
    return inspect.Parameter(name, _KEYWORD, default=default, annotation=annotation)


_WHOM = (
    _option("agent", "", AgentOption),
    _option("reason", "", ReasonOption),
    _option("config", None, ConfigOption),
    _option("assign", None, SetOption),
)
_WHAT = (_option("features", inspect.Parameter.empty, FeaturesArgument),)
_HOW = (
    _option("ttl", 10.0, TtlOption),
    _option("max_norm", None, NormOption),
    _option("when", None, WhenOption),
    _option("dry_run", default=False, annotation=DryOption),
)


@dataclass(frozen=True)
class _Asked:
    """Whom a command is for, and why."""

    agent: str
    reason: str
    config: Path | None
    assign: list[str] | None


@dataclass(frozen=True)
class _Bounds:
    """How far and how long an intervention goes."""

    ttl: float
    max_norm: float | None
    when: str | None
    dry_run: bool


def _command(make: Callable[..., None]) -> Callable[..., None]:
    """Make a command of a function of what it asks and :class:`_Asked`."""

    def command(
        *, agent: str, reason: str, config: Path | None, assign: list[str] | None, **own: Any
    ) -> None:
        make(_Asked(agent, reason, config, assign), **own)

    return _registered(make, command, (), _WHOM)


def _intervention(make: Callable[..., tuple[str, float]]) -> Callable[..., None]:
    """Make a command of a function that says what is done to the features, and how much."""

    def command(
        *, features: list[str], agent: str, reason: str, config: Path | None,
        assign: list[str] | None, ttl: float, max_norm: float | None, when: str | None,
        dry_run: bool, **own: Any,
    ) -> None:  # fmt: skip
        bounds = _Bounds(ttl, max_norm, when, dry_run)
        kind, value = make(None, **own)
        _intervene(_Asked(agent, reason, config, assign), features, kind, value, bounds)

    return _registered(make, command, _WHAT, (*_HOW, *_WHOM))


def _registered(
    make: Callable[..., Any],
    command: Callable[..., None],
    before: tuple[inspect.Parameter, ...],
    after: tuple[inspect.Parameter, ...],
) -> Callable[..., None]:
    # The first parameter is filled in here; the rest are the command's own options.
    _, *own = inspect.signature(make, eval_str=True).parameters.values()
    first = [one for one in own if one.default is inspect.Parameter.empty]
    others = [one for one in own if one not in first]
    parameters = [*before, *first, *others, *after]
    command.__signature__ = inspect.Signature(  # type: ignore[attr-defined] # typer reads it
        parameters, return_annotation=None
    )
    command.__annotations__ = {one.name: one.annotation for one in parameters}
    command.__name__, command.__doc__ = make.__name__, make.__doc__
    return app.command()(command)


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


@_intervention
def steer(
    _: None, by: Annotated[float, typer.Option(help="What is added to each feature.")]
) -> tuple[str, float]:
    """Add to features while this command runs."""
    return "steer", by


@_intervention
def clamp(
    _: None, to: Annotated[float, typer.Option(help="What each feature is held at.", min=0.0)]
) -> tuple[str, float]:
    """Hold features at a value while this command runs."""
    return "clamp", to


@_intervention
def scale(
    _: None, by: Annotated[float, typer.Option(help="Factor of each feature.")]
) -> tuple[str, float]:
    """Multiply features while this command runs."""
    return "scale", by


@_intervention
def ablate(_: None) -> tuple[str, float]:
    """Take features out while this command runs."""
    return "ablate", 0.0


@_command
def hold(asked: _Asked, ttl: TtlOption = 60.0) -> None:
    """Act safely instead of by the policy until resumed; after --ttl seconds it is a stop."""
    from interlatent_live.control.commands import Operation

    _still(asked, Operation.HOLD, ttl)


@_command
def stop(asked: _Asked) -> None:
    """Act safely until an explicit resume; survives restarts of everything."""
    from interlatent_live.control.commands import Operation

    _still(asked, Operation.STOP)


@_command
def revert(asked: _Asked) -> None:
    """End all interventions now."""
    from interlatent_live.control.commands import Operation

    _still(asked, Operation.REVERT)


@_command
def step(asked: _Asked) -> None:
    """Let a held agent take one step of its policy."""
    from interlatent_live.control.commands import Operation

    _energise(asked, Operation.STEP)


@_command
def resume(asked: _Asked) -> None:
    """End a hold or a stop: the policy acts again."""
    from interlatent_live.control.commands import Operation

    _energise(asked, Operation.RESUME)


@_command
def approve(
    asked: _Asked,
    action: Annotated[
        str, typer.Option(help="Another action for the next step: numbers, with commas.")
    ] = "",
) -> None:
    """Let an agent that asked go on, perhaps with another action for one step."""
    from interlatent_live.control.commands import Operation

    _energise(asked, Operation.APPROVE, _numbers(action))


@_command
def refuse(asked: _Asked) -> None:
    """Tell an agent that asked no: it stays held, and then stops."""
    from interlatent_live.control.commands import Operation

    _energise(asked, Operation.REFUSE)


@_command
def escalate(asked: _Asked) -> None:
    """Hand an agent's question to an admin, once, with its time begun anew."""
    from interlatent_live.control.commands import Operation

    _energise(asked, Operation.ESCALATE)


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


@app.command()
def experiment(
    setup: Annotated[
        Path, typer.Argument(help="What to show, on which policy; docs/oversight.md has one.")
    ],
    out: Annotated[
        Path, typer.Option(help="Folder of the experiment; started again, it goes on there.")
    ],
) -> None:
    """Test what steering a feature does: preregistered in an audit, live, beside all controls.

    Example: interlatent-live intervene experiment lander.toml --out experiments/lander
    """
    import json

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from interlatent_live.interventions.experiment.document import PAGE, PLOT, draw, page
    from interlatent_live.interventions.experiment.running import REPORT, run_experiment
    from interlatent_live.interventions.experiment.setup import read_setup

    plan = read_setup(setup)
    arm_column = TextColumn("{task.fields[arm]}")
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), arm_column)
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=None, arm="")

        def say(arm: str, done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, arm=arm)

        run_experiment(plan, setup.parent, out, say)
    # What is shown is what is kept: figures as the file has them.
    report = json.loads((out / REPORT).read_text("utf-8"))
    (out / PAGE).write_text(page(report), encoding="utf-8")
    draw(report, out / PLOT)
    for one in report["hypotheses"]:
        why = "; ".join(one["verdict"]["reasons"])
        print(f"{one['sentence']}: {'not supported: ' + why if why else 'supported'}")
    print(f"all of it: {out / PAGE}")


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


def _still(asked: _Asked, operation: Operation, ttl: float = 60.0) -> None:
    with _client(asked.config, asked.assign) as client:
        # Named, it needs no look first: whatever the agent's state is, it shall be still.
        name = asked.agent or client.agent().hello.agent
        client.look(follow=True)
        result = _expect(
            client.command(operation, name, reason=asked.reason or "from a terminal", ttl_s=ttl)
        )
        _say_applied(client, result, operation)


def _energise(asked: _Asked, operation: Operation, action: tuple[float, ...] = ()) -> None:
    from interlatent_live.control.commands import ANSWERING
    from interlatent_live.errors import UserError

    with _client(asked.config, asked.assign) as client:
        shown = client.agent(asked.agent)
        targets: tuple[str, ...] = ()
        if operation in ANSWERING:
            question = shown.state.question if shown.state is not None else None
            if question is None:
                raise UserError(f"{shown.hello.agent} asks nothing")
            targets = (question.question_id,)
        reason = asked.reason or "from a terminal"
        result = _expect(
            client.command(operation, shown, reason=reason, targets=targets, action=action)
        )
        _say_applied(client, result, operation)


def _intervene(
    asked: _Asked, features: list[str], kind: str, value: float, bounds: _Bounds
) -> None:
    from interlatent_live.control.commands import Operation

    with _client(asked.config, asked.assign) as client:
        shown = client.agent(asked.agent)
        changes = tuple(_change(shown, text, kind, value, bounds) for text in features)
        name = shown.hello.agent
        _expect(client.renew(name))
        result = _expect(
            client.command(
                Operation.INTERVENE, shown, reason=asked.reason or "from a terminal",
                ttl_s=bounds.ttl, changes=changes, dry_run=bounds.dry_run,
            )
        )  # fmt: skip
        try:
            _stay(client, name, result.command_id, bounds.ttl)
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


def _change(shown: AgentShown, text: str, kind: str, value: float, bounds: _Bounds) -> Change:
    """The change of a feature written as ``HOOK_POINT/INDEX`` or ``HOOK_POINT/INDEX@HASH``."""
    from interlatent_live.control.commands import Change
    from interlatent_live.errors import UserError
    from interlatent_live.interventions.values import Intervention, Kind

    offers = {one.name: one for one in shown.hello.hook_points}
    place, _, transcoder = text.partition("@")
    point, _, index = place.rpartition("/")
    offer = offers.get(point)
    if offer is None or not index.isdecimal():
        raise UserError(
            f"{text!r} is no feature that {shown.hello.agent} can be steered by; write "
            f"HOOK_POINT/INDEX with one of {', '.join(sorted(offers)) or 'no hook points'}"
        )
    return Change(
        point,
        transcoder or offer.transcoder,
        Intervention(int(index), Kind(kind), value, predicate=bounds.when),
        bounds.max_norm or offer.max_norm,
    )


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
