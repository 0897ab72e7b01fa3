"""Starts the whole system on this machine, lets an agent act in it, and shows or reports it.

The demo is ``up`` plus one agent: the same engine, the same services, the same feed that any viewer
gets. What it shows it has read from the feed.
"""

from __future__ import annotations

import json
import socket
import tempfile
import time
from collections import deque
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from interlatent_live.audit.log import in_use
from interlatent_live.config import (
    EndpointSettings,
    ExplainerSettings,
    on_free_ports,
    split_address,
)
from interlatent_live.console.sessions import login_address
from interlatent_live.demo.control import agent_name, was_stopped
from interlatent_live.demo.report import AgentReport, headless_report
from interlatent_live.engine.launch import service_specs
from interlatent_live.engine.local import LocalEngine
from interlatent_live.engine.port import (
    FINAL_PHASES,
    Phase,
    Restart,
    RestartPolicy,
    ServiceSpec,
    service_command,
    wait_ready,
)
from interlatent_live.errors import UserError
from interlatent_live.feed.client import FeedClient
from interlatent_live.feed.state import FeedState
from interlatent_live.services.control import audit_folder
from interlatent_live.zoo.entry import DATA, find_entry

if TYPE_CHECKING:
    from collections.abc import Iterator

    from interlatent_live.config import Settings
    from interlatent_live.engine.port import OutputLine

AGENT = "demo-agent"
RECORDINGS = DATA / "recordings"
NULL_DRAWS = 99
LINES_KEPT = 200
READY_WITHIN_S = 120.0
FINISH_WITHIN_S = 120.0
POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What the user may choose; ``steps`` counts the steps of all copies together."""

    env: str = "CartPole-v1"
    """An entry of the zoo, or the environment of one that the demo shows."""
    steps: int | None = None
    copies: int | None = None
    hz: float | None = None
    seed: int | None = None
    policy: str | None = None
    ask: str | None = None
    """Predicate under which the agent asks a person before it goes on."""
    pictures: bool = False
    """Whether the console is shown the agent's first copy."""
    shadow: bool = False
    """Whether the agent works out beside itself what its features do, and says why it acts so."""

    def agent_arguments(self) -> list[str]:
        """The same as flags of the agent's command."""
        arguments = ["--env", self.env]
        for flag, value in (
            ("--steps", self.steps),
            ("--copies", self.copies),
            ("--hz", self.hz),
            ("--seed", self.seed),
            ("--policy", self.policy),
            ("--ask", self.ask),
        ):
            if value is not None:
                arguments += [flag, str(value)]
        return arguments


class Screen(Protocol):
    """Who looks at the demo while it runs."""

    def starting(self, message: str) -> None:
        """Something happens before there is anything to watch."""
        ...

    def up(self, url: str) -> None:
        """Every service is ready; ``url`` is the console's."""
        ...

    def update(self, state: FeedState) -> None:
        """The state has moved."""
        ...


def demo_settings(settings: Settings, env: str) -> Settings:
    """The settings with the entry's calibration, blocks and null, where the user chose none.

    Without a recording, claims are proposed from the run's first episodes. The null has fewer draws
    than a publication wants, so that a minute is enough; every report says how many.
    """
    entry = find_entry(env)
    explainer = settings.explainer
    changes: dict[str, Any] = {}
    if explainer.calibration is None and entry.recording.exists():
        changes["calibration"] = entry.recording
    if explainer.block_steps is None:
        changes["block_steps"] = entry.live.block_steps
    if explainer.null_draws == ExplainerSettings().null_draws:
        changes["null_draws"] = NULL_DRAWS
    explainer = explainer.model_copy(update=changes)
    return settings.model_copy(update={"explainer": explainer})


def free_settings(settings: Settings) -> Settings:
    """The configured endpoints where they are free, otherwise free ones.

    So a first demo can be watched with a plain ``interlatent-live watch``, and a second one beside
    a running system still works.
    """
    endpoints = (getattr(settings.endpoints, name) for name in EndpointSettings.model_fields)
    free = all(_is_free(one) for one in (*endpoints, settings.console.http))
    settings = settings if free else on_free_ports(settings)
    audit = free_audit(settings)
    return settings.model_copy(
        update={"control": settings.control.model_copy(update={"audit": audit})}
    )


def free_audit(settings: Settings) -> Path:
    """The configured audit or, where a running system is writing that one, one of our own beside.

    Raises:
        UserError: when none of ten is free.
    """
    wanted = audit_folder(settings)
    folders = [wanted, *(wanted.with_name(f"{wanted.name}-demo-{i}") for i in range(1, 10))]
    for folder in folders:
        if not in_use(folder):
            return folder
    raise UserError(f"{len(folders)} systems are running on {wanted.parent} already; stop one")


def _is_free(endpoint: str) -> bool:
    host, port = split_address(endpoint.removeprefix("tcp://"))
    if port < 0:
        return True
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def run_demo(
    options: DemoOptions,
    settings: Settings,
    screen: Screen,
    *,
    on_line: Any = None,
    finish_within_s: float = FINISH_WITHIN_S,
) -> dict[str, Any]:
    """Run the demo until its agent ends, and report the run once the services settled it.

    Raises:
        UserError: when a service or the agent does not start, the agent fails, or it is to take a
            number of steps and was stopped by a person before.
        KeyboardInterrupt: when the user ends it; every process has ended by then.
    """
    lines: deque[OutputLine] = deque(maxlen=LINES_KEPT)
    stopped = was_stopped(settings, options.env)
    if stopped and options.steps is not None:
        raise UserError(
            f"{agent_name(options.env)} was stopped by a person and stays so: run the demo without "
            "--headless and --steps, and resume the agent on the page"
        )
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="interlatent-demo-")))
        engine = stack.enter_context(LocalEngine(on_line=on_line or lines.append))
        specs = service_specs(settings)
        for spec in specs:
            engine.start(spec)
        screen.starting(f"starting {', '.join(spec.name for spec in specs)} …")
        wait_ready(engine, [spec.name for spec in specs], READY_WITHIN_S)
        screen.up(login_address(settings))
        client = stack.enter_context(FeedClient(settings.endpoints.feeds()))
        report_file = folder / "agent.json"
        started_ns = time.time_ns()
        engine.start(_agent_spec(options, settings, report_file))
        screen.starting(
            "the agent was stopped by a person: resume it on the page"
            if stopped
            else "starting the agent …"
        )
        state = FeedState()
        for _ in _until_agent_ends(engine, client, state):
            screen.update(state)
        _check_agent(engine)
        agent_report = msgspec.json.decode(report_file.read_bytes(), type=AgentReport)
        for _ in _until_settled(client, state, agent_report.run_id, finish_within_s):
            screen.update(state)
        return headless_report(
            state, agent_report, started_ns=started_ns, env=find_entry(options.env).environment
        )


def _agent_spec(options: DemoOptions, settings: Settings, report: Path) -> ServiceSpec:
    return ServiceSpec(
        name=AGENT,
        command=service_command(
            AGENT,
            "--endpoint",
            settings.endpoints.agents,
            "--control",
            settings.endpoints.control,
            "--report",
            str(report),
            *(("--pictures", settings.endpoints.pictures) if options.pictures else ()),
            *(("--explainer", settings.endpoints.explainer_requests) if options.shadow else ()),
            *options.agent_arguments(),
        ),
        environment=settings.environment(),
        restart=RestartPolicy(when=Restart.NEVER),
        grace_s=10.0,
        nice=0,
    )


def _until_agent_ends(engine: LocalEngine, client: FeedClient, state: FeedState) -> Iterator[None]:
    while True:
        for event in client.events(POLL_S):
            state.take(event)
        yield
        status = {one.name: one for one in engine.status()}
        if status[AGENT].phase in FINAL_PHASES:
            return
        failed = [one for one in status.values() if one.phase is Phase.FAILED]
        if failed:
            raise UserError(f"{failed[0].name} failed: {failed[0].reason}")


def _check_agent(engine: LocalEngine) -> None:
    status = {one.name: one for one in engine.status()}[AGENT]
    if status.exit_code != 0:
        raise UserError(f"the agent failed: {status.reason}")


def _until_settled(
    client: FeedClient, state: FeedState, run_id: str, within_s: float
) -> Iterator[None]:
    """Until the statistics and the claims say that they have seen the whole run."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        for event in client.events(POLL_S):
            state.take(event)
        yield
        if state.settled(run_id):
            return
    raise UserError(
        f"the services had not finished the run {within_s:.0f} s after its end; "
        "this machine is too busy, or a service hangs (see its log)"
    )


def write_report(report: dict[str, Any], file: Path) -> None:
    """Write the report as JSON; NaN would be a bug and is refused."""
    file.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False)
    file.write_text(text + "\n", encoding="utf-8")
