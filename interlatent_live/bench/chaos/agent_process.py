"""The agent process from outside: start it, give it orders, end it."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any, Self

from interlatent_live.bench.chaos.orders import (
    Answer,
    Closed,
    Look,
    Mark,
    Open,
    Opened,
    Order,
    Progress,
    Shut,
    decode_answer,
    encode,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

ANSWER_WITHIN_S = 60.0


class AgentProcess:
    """A context manager around one agent process.

    Raises:
        RuntimeError: when the process ends or does not answer.
    """

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        self._environment = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}
        self._process: subprocess.Popen[bytes] | None = None
        self._rest = b""

    def __enter__(self) -> Self:
        """Start it; it answers once torch is there."""
        command = [sys.executable, "-m", "interlatent_live.bench.chaos.agent"]
        self._process = subprocess.Popen(  # noqa: S603 - our own module, by this very interpreter
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=self._environment,
            bufsize=0,
        )
        self.look()
        return self

    def __exit__(self, *_: object) -> None:
        """End it."""
        if self._process is None:
            return
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    @property
    def pid(self) -> int:
        """Of the process."""
        if self._process is None:
            raise RuntimeError("the agent process was not started")
        return self._process.pid

    def open(self, endpoint: str, agent: str, options: Mapping[str, Any]) -> Opened:
        """Attach a tap and act until :meth:`shut`."""
        answer = self._ask(Open(endpoint, agent, dict(options)))
        if not isinstance(answer, Opened):
            raise TypeError(f"the agent answered {answer!r} to an order to open")
        return answer

    def keep_times(self, *, keep: bool) -> Progress:
        """Begin or end keeping step times."""
        return self._progress(Mark(keep))

    def look(self) -> Progress:
        """How things stand."""
        return self._progress(Look())

    def shut(self, timeout_s: float = 15.0) -> Closed:
        """Close the tap; the final books."""
        answer = self._ask(Shut(timeout_s))
        if not isinstance(answer, Closed):
            raise TypeError(f"the agent answered {answer!r} to an order to close")
        return answer

    def _progress(self, order: Order) -> Progress:
        answer = self._ask(order)
        if not isinstance(answer, Progress):
            raise TypeError(f"the agent answered {answer!r} to {order!r}")
        return answer

    def _ask(self, order: Order) -> Answer:
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            raise RuntimeError("the agent process was not started")
        process.stdin.write(encode(order) + b"\n")
        deadline = time.monotonic() + ANSWER_WITHIN_S
        while b"\n" not in self._rest:
            left = max(0.0, deadline - time.monotonic())
            if not select.select([process.stdout], [], [], left)[0]:
                raise RuntimeError(f"the agent did not answer {order!r} in {ANSWER_WITHIN_S} s")
            data = os.read(process.stdout.fileno(), 65536)
            if not data:
                raise RuntimeError(f"the agent process ended with {process.wait()} at {order!r}")
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        answer: Answer = decode_answer(line)
        return answer
