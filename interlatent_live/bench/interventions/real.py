"""The control service, an agent and operators as real processes, for measuring and for killing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from typing import TYPE_CHECKING, Any, Final, Self

from interlatent_live.audit.log import FIRST_KEY, LOG, STATE, read_key, verify
from interlatent_live.bench.interventions.agent_process import (
    AGENT,
    HOOK,
    Witnessed,
    provenance,
    read_witness,
    transcoder,
)
from interlatent_live.config import on_free_ports, resolve
from interlatent_live.console.secrets import load_token, state_folder
from interlatent_live.control.client import ControlClient
from interlatent_live.control.commands import Change, Operation
from interlatent_live.control.machine import Mode
from interlatent_live.control.wire import Role, control_key
from interlatent_live.errors import UserError
from interlatent_live.interventions.values import Intervention, Kind
from interlatent_live.transcoders.native import save_transcoder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import TracebackType

    from interlatent_live.control.wire import AgentShown, Result

DATA: Final = ("encoder", "correlator", "explainer")
"""Services that own data; control needs none of them."""
READY_S: Final = 180.0
FEATURE: Final = 3
"""The one that is steered: felt in every step."""


class Rig:
    """A control service, one agent and operators; start, freeze and kill any of them.

    Args:
        folder: for all that they write; made.
        period_ms: of the agent's steps.
        watched: also encoder, correlator, explainer and console, and the agent streams.
    """

    def __init__(self, folder: Path, *, period_ms: float, watched: bool = False) -> None:
        self.folder, self.period_ms = folder, period_ms
        state = folder / "state"
        state.mkdir(mode=0o700, parents=True)
        save_transcoder(folder / "transcoders" / "first", transcoder(), provenance())
        flags = {
            "console.state": str(state),
            "logging.level": "error",
            "encoder.transcoders": [str(folder / "transcoders")],
        }
        self.settings = on_free_ports(resolve(flags=flags, environment={}).settings)
        self._token = load_token(state_folder(self.settings))
        self._key = control_key(self._token)
        self.audit = state / "audit"
        self._agent_folder = folder / "agent"
        self._agent_folder.mkdir(mode=0o700)
        self._stream = self.settings.endpoints.agents if watched else ""
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        try:
            for name in (*((*DATA, "console") if self._stream else ()), "control"):
                self.start(name)
            self.start_agent()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Kill everything."""
        for name in tuple(self._processes):
            self.kill(name)

    # -- processes -----------------------------------------------------------------------------

    def start(self, name: str) -> None:
        """Start a service and wait until it is ready.

        Raises:
            UserError: when it does not get ready.
        """
        self._processes[name] = self._run("-m", "interlatent_live", name)
        address = getattr(self.settings.endpoints, f"{name}_health")
        until(lambda: _healthy(f"http://{address}/healthz"), READY_S, name)

    def start_agent(self) -> None:
        """Start it and wait until it steps.

        Raises:
            UserError: when it does not.
        """
        before = len(self.witness())
        words = [self.settings.endpoints.control, str(self._agent_folder), str(self.period_ms)]
        process = self._run(
            "-m", "interlatent_live.bench.interventions.agent_process", *words,
            *([self._stream] if self._stream else []), stdin=subprocess.PIPE,
        )  # fmt: skip
        self._processes["agent"] = process
        if process.stdin is not None:
            process.stdin.write(self._key.hex().encode() + b"\n")
            process.stdin.close()
        until(lambda: len(self.witness()) > before, READY_S, "the agent")

    def start_operator(self, ttl_s: float) -> None:
        """Somebody steers from a terminal, and renews the lease until killed."""
        self._processes["operator"] = self._run(
            "-m", "interlatent_live", "intervene", "steer", f"{HOOK}/{FEATURE}", "--by", "1",
            "--max-norm", "5", "--ttl", f"{ttl_s:.3f}", "--agent", AGENT,
            stdout=subprocess.DEVNULL,
        )  # fmt: skip

    def runs(self, name: str) -> bool:
        """Whether the process is there (frozen counts)."""
        process = self._processes.get(name)
        return process is not None and process.poll() is None

    def kill(self, name: str, number: int = signal.SIGKILL) -> None:
        """Send a signal to a process, by name; after SIGKILL it is gone."""
        process = self._processes[name]
        process.send_signal(number)
        if number == signal.SIGKILL:
            process.wait()

    def _run(
        self, *words: str, stdin: int | None = None, stdout: int | None = None
    ) -> subprocess.Popen[bytes]:
        return subprocess.Popen(  # noqa: S603 - our own services, agent and command
            [sys.executable, *words],
            env={**os.environ, **self.settings.environment()},
            stdin=stdin,
            stdout=stdout,
            stderr=subprocess.DEVNULL,
        )

    # -- what they say -------------------------------------------------------------------------

    def client(self, actor: str = "bench") -> ControlClient:
        """An operator in this process."""
        endpoint = self.settings.endpoints.control_requests
        return ControlClient(endpoint, self._key, actor=actor, role=Role.ADMIN, timeout_s=3.0)

    def click(self, operation: Operation) -> int:
        """Command the agent as the page does, over the console's HTTP; the agent's version after.

        Raises:
            UserError: when the console or the agent refuses.
        """
        body = {"operation": operation, "reason": "bench", "ttl_s": 60.0}
        request = urllib.request.Request(
            f"http://{self.settings.console.http}/api/v1/control/agents/{AGENT}/commands",
            data=json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=6) as answer:  # noqa: S310 - likewise
                said = json.load(answer)
        except OSError as error:
            raise UserError(f"the console did not take the command: {error}") from error
        if not said["accepted"]:
            raise UserError(f"refused: {said['reason']}")
        return int(said["version"])

    def look(
        self, client: ControlClient, condition: Callable[[AgentShown], bool], timeout_s: float = 15
    ) -> AgentShown:
        """The agent, once it is heard of and the condition holds.

        Raises:
            UserError: when it does not come to that.
        """
        found: list[AgentShown] = []

        def there() -> bool:
            found[:] = [
                one
                for one in client.look(follow=True).agents
                if one.silent_ms < 800 and one.state is not None and condition(one)
            ]
            return bool(found)

        until(there, timeout_s, "the agent's state")
        return found[0]

    def witness(self) -> list[Witnessed]:
        """All steps of all lives of the agent."""
        return list(read_witness(self._agent_folder / "witness"))

    def entries(self) -> list[dict[str, Any]]:
        """The audit, read back."""
        text = (self.audit / LOG).read_text(encoding="utf-8") if self.audit.exists() else ""
        # The last line may just be being written.
        return [json.loads(line) for line in text.rpartition("\n")[0].splitlines()]

    def verify(self) -> int:
        """Number of the audit's entries, all in order.

        Raises:
            CorruptFileError: when they are not.
        """
        key = read_key(self.audit / FIRST_KEY)
        return verify(self.audit / LOG, key, state=self.audit / STATE).entries

    def journal(self) -> list[dict[str, Any]]:
        """What the agent itself wrote down, in order."""
        lines: list[dict[str, Any]] = []
        for path in sorted(self._agent_folder.rglob("journal*.jsonl")):
            for line in path.read_bytes().splitlines():
                try:
                    lines.append(json.loads(line))
                except ValueError:
                    continue  # the line that was being written when the agent was killed
        return sorted(lines, key=lambda line: int(line["time_ns"]))


def steering(value: float = 1.0) -> Change:
    """A change that is felt in every step."""
    return Change(HOOK, transcoder().identity, Intervention(FEATURE, Kind.STEER, value), 5.0)


def intervene(client: ControlClient, shown: AgentShown, ttl_s: float) -> Result:
    """Renew the lease and intervene."""
    client.renew(AGENT)
    return client.command(
        Operation.INTERVENE, shown, reason="bench", ttl_s=ttl_s, changes=(steering(),)
    )


def resumed(rig: Rig, client: ControlClient, *, after: int = 0) -> AgentShown:
    """The agent, running; ``after``: a version that it must have come past.

    Raises:
        UserError: when it does not come to that.
    """
    past = after

    def settled(one: AgentShown) -> bool:
        return one.state is not None and one.state.obeyed and one.state.version >= past

    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        shown = rig.look(client, settled)
        if shown.state is not None and shown.state.mode is Mode.RUNNING:
            return shown
        # Refused where something happened since that state was told; then it is told anew.
        past = max(past, client.command(Operation.RESUME, shown, reason="bench").version)
    raise UserError("the agent did not resume")


def first_step(rig: Rig, since_ns: int, what: int, timeout_s: float = 5.0) -> int:
    """When the agent did ``what`` first after a moment; ns on CLOCK_MONOTONIC.

    Raises:
        UserError: when it does not.
    """
    found: list[int] = []

    def seen() -> bool:
        found[:] = [
            one.at_ns for one in rig.witness()[-500:] if one.at_ns >= since_ns and one.what == what
        ]
        return bool(found)

    until(seen, timeout_s, "the agent's step")
    return found[0]


def until(condition: Callable[[], bool], timeout_s: float, what: str) -> None:
    """Wait for a condition.

    Raises:
        UserError: when it does not hold in time.
    """
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if condition():
            return
        time.sleep(0.002)
    raise UserError(f"{what} was not there within {timeout_s:g} s")


def _healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1) as answer:  # noqa: S310 - our own address
            return bool(answer.status == 200)
    except OSError:
        return False
