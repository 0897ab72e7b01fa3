"""The system that faults are put to: a supervisor with its services, and a witness at the end.

The supervisor is ``interlatent-live up`` as an operator starts it, in a process of its own, so that
it can be frozen and killed too; an engine here brings it back, as an init system would. All of it
dies with this process, however that ends.
"""

from __future__ import annotations

import json
import resource
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final, Self

from interlatent_live.bench.chaos.faults.clock import Clock
from interlatent_live.bench.chaos.faults.disk import SmallDisk
from interlatent_live.bench.chaos.policy import write_transcoders
from interlatent_live.bench.chaos.resources import holding
from interlatent_live.bench.chaos.witness import Witness
from interlatent_live.config import on_free_ports, resolve
from interlatent_live.engine.launch import SERVICES
from interlatent_live.engine.local import LocalEngine
from interlatent_live.engine.port import (
    LineReady,
    RestartPolicy,
    ServiceSpec,
    service_command,
    wait_ready,
)
from interlatent_live.feed.client import FeedClient
from interlatent_live.feed.documents import Topic
from interlatent_live.feed.state import FeedState

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from interlatent_live.bench.chaos.resources import Holding
    from interlatent_live.config import ServiceName, Settings

SUPERVISOR: Final = "supervisor"
DESCRIPTORS: Final = 4096
"""Room for the encoder's sockets; an init system's unit would set it."""
SNAPSHOT_EVERY_S: Final = 2.0
_KEPT_LINES: Final = 200


class Rig:
    """Supervisor, encoder, correlator, explainer, witness; a context manager.

    Args:
        folder: for transcoders and scratch files.
        flags: settings on top of the rig's own.

    Attributes:
        endpoint: where agents connect.
        witness: the last consumer.
        transcoders: folder of the transcoders, watched by the encoder.
        version: of the transcoders that were written last.
        clock: of the services.
        disk: where snapshots and the console's store lie, and room for spools.
    """

    def __init__(self, folder: Path, flags: Mapping[str, Any] | None = None) -> None:
        self.folder = folder
        self.transcoders = folder / "transcoders"
        self.transcoder_folders = write_transcoders(self.transcoders)
        self.version = 0
        self.clock = Clock(folder / "clock", python_start=True)
        self.disk = SmallDisk(folder / "disk")
        self.witness = Witness()
        self.state = FeedState(max_runs=4096)
        self.lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._flags = dict(flags or {})
        self._stack = ExitStack()
        self._stop = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="watch", daemon=True)
        self.settings: Settings
        self.engine: LocalEngine

    def __enter__(self) -> Self:
        """Start everything and wait until it takes work."""
        with ExitStack() as undo:
            allow_descriptors()
            undo.enter_context(self.witness)
            undo.enter_context(self.disk)
            flags = {
                "encoder.transcoders": [str(self.transcoders)],
                "encoder.consumers": [self.witness.endpoint],
                "explainer.null_draws": 99,
                "correlator.publish_every_s": 0.5,
                "correlator.snapshots": str(self.disk.folder / "snapshots"),
                "correlator.snapshot_every_s": SNAPSHOT_EVERY_S,
                "correlator.snapshots_kept": 1,
                "console.state": str(self.disk.folder / "state"),
                "limits.agents": 1024,
                "logging.level": "warning",
                "logging.format": "json",
                **self._flags,
            }
            self.settings = on_free_ports(resolve(flags=flags, environment={}).settings)
            self.engine = undo.enter_context(
                LocalEngine(on_line=lambda line: self.lines.append(line.text), seed=0)
            )
            self.engine.start(
                ServiceSpec(
                    SUPERVISOR,
                    service_command("up"),
                    environment={**self.settings.environment(), **self.clock.environment()},
                    readiness=LineReady("up: agents connect to"),
                    ready_within_s=120.0,
                    grace_s=15.0,
                    nice=0,
                    restart=RestartPolicy(initial_s=0.1),
                )
            )
            wait_ready(self.engine, [SUPERVISOR], 120)
            self._watcher.start()
            undo.callback(self._watcher.join)
            undo.callback(self._stop.set)
            self._stack = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop everything."""
        self._stack.close()

    @property
    def endpoint(self) -> str:
        """Where agents connect."""
        return self.settings.endpoints.agents

    # -- processes -------------------------------------------------------------------------------

    def pid(self, name: str) -> int:
        """Process id of the supervisor or of a service.

        Raises:
            RuntimeError: when it is not up.
        """
        if name == SUPERVISOR:
            (status,) = self.engine.status()
            found = status.pid
        else:
            health = self.health(_service(name))
            found = None if health is None else int(health["pid"])
        if found is None:
            raise RuntimeError(f"{name} is not up; last words: {list(self.lines)[-3:]}")
        return found

    def pids(self) -> dict[str, int]:
        """All that are up."""
        found = {}
        for name in (SUPERVISOR, *SERVICES):
            try:
                found[name] = self.pid(name)
            except RuntimeError:
                continue
        return found

    def health(self, name: ServiceName) -> dict[str, Any] | None:
        """What ``/healthz`` of a service says; ``None`` when it does not answer or is not ready."""
        url = f"http://{self.settings.endpoints.health(name)}/healthz"
        try:
            with urllib.request.urlopen(url, timeout=1.0) as answer:
                found: dict[str, Any] = json.load(answer)
        except (OSError, ValueError, urllib.error.URLError):
            return None
        return found

    def is_another(self, name: str, before: int) -> bool:
        """Whether a service is up again in another process."""
        if name == SUPERVISOR:
            (status,) = self.engine.status()
            return status.pid not in {None, before} and all(
                self.health(service) is not None for service in SERVICES
            )
        health = self.health(_service(name))
        return health is not None and int(health["pid"]) != before

    def holdings(self) -> dict[str, tuple[int, Holding]]:
        """Process id and what it holds, by name, of all that are up."""
        found = {}
        for name, pid in self.pids().items():
            held = holding(pid)
            if held is not None:
                found[name] = (pid, held)
        return found

    # -- what is known ---------------------------------------------------------------------------

    def consumer(self, name: ServiceName) -> dict[str, Any]:
        """The encoder's link to one of its consumers, as of its newest status."""
        endpoint = getattr(self.settings.endpoints, name)
        links = () if self.state.agents is None else self.state.agents.service["consumers"]
        return next((dict(one) for one in links if one["endpoint"] == endpoint), {})

    def processed(self, run_id: str) -> int:
        """One more than the highest row of a run that the correlator published statistics of."""
        found = [
            document.processed_seq
            for (run, _), document in list(self.state.profiles.items())
            if run == run_id
        ]
        return min(found, default=0)

    def wait(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Wait for a condition; whether it came true."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.01)
        return True

    def _watch(self) -> None:
        topics = (Topic.AGENTS, Topic.PROFILES)
        with FeedClient(self.settings.endpoints.feeds(), topics) as client:
            while not self._stop.is_set():
                for event in client.events(0.05):
                    self.state.take(event)


def _service(name: str) -> ServiceName:
    for one in SERVICES:
        if one == name:
            return one
    raise ValueError(f"there is no service {name!r}")


def allow_descriptors() -> None:
    """Raise this process's soft limit of descriptors, which its children inherit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def port_of(endpoint: str) -> tuple[str, int]:
    """Host and port of a ``tcp://`` endpoint."""
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    return host, int(port)
