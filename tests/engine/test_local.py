from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from interlatent_live.engine import (
    EventKind,
    HttpReady,
    LocalEngine,
    OutputLine,
    Phase,
    RestartPolicy,
    ServiceSpec,
    wait_ready,
)
from tests.engine.behaviour import SLEEPS, EngineBehaviour, program, status_of, until, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator


class TestLocalEngine(EngineBehaviour):
    @pytest.fixture
    def engine(self) -> Iterator[LocalEngine]:
        with LocalEngine(seed=1) as engine:
            yield engine


SERVER = """
import http.server, json, os, sys
claimed = {claimed}
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({{"pid": claimed}}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
server = http.server.HTTPServer(("127.0.0.1", {port}), Handler)
server.serve_forever()
"""


def web_service(name: str, port: int, claimed: str, **fields: Any) -> ServiceSpec:
    return ServiceSpec(
        name,
        (sys.executable, "-I", "-S", "-c", SERVER.format(port=port, claimed=claimed)),
        readiness=HttpReady(f"http://127.0.0.1:{port}/healthz"),
        restart=RestartPolicy(initial_s=0.05),
        **fields,
    )


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_healthz_makes_a_service_ready(port: int) -> None:
    with LocalEngine() as engine:
        engine.start(web_service("web", port, "os.getpid()"))
        wait_ready(engine, ["web"], 30)


def test_another_instance_on_the_port_does_not_vouch_for_this_one(port: int) -> None:
    with LocalEngine() as engine:
        engine.start(web_service("web", port, "1", ready_within_s=1.0))
        event = wait_for(engine, "web", EventKind.UNRESPONSIVE)
        assert "was not ready within 1 s" in event.message


def test_a_frozen_service_is_restarted_only_when_asked_to(port: int) -> None:
    with LocalEngine() as engine:
        engine.start(web_service("web", port, "os.getpid()", hang_after_s=2.0, grace_s=0.2))
        wait_ready(engine, ["web"], 30)
        frozen = status_of(engine, "web").pid
        assert frozen is not None
        os.kill(frozen, signal.SIGSTOP)
        hung = wait_for(engine, "web", EventKind.UNRESPONSIVE)
        wait_for(engine, "web", EventKind.READY, after=hung.sequence)
        assert status_of(engine, "web").pid != frozen


def test_services_are_nice_and_single_threaded_and_lead_their_own_session() -> None:
    lines: list[OutputLine] = []
    code = (
        "import os, time; print('here I am', os.nice(0), os.environ['OMP_NUM_THREADS'],"
        "os.getsid(0) == os.getpid(), os.environ['COLOUR'], flush=True); time.sleep(600)"
    )
    spec = program("one", code)
    with LocalEngine(on_line=lines.append) as engine:
        engine.start(
            ServiceSpec(
                spec.name,
                spec.command,
                environment={"COLOUR": "blue"},
                readiness=spec.readiness,
            )
        )
        wait_ready(engine, ["one"], 30)
    own = os.nice(0)
    assert lines[0].text == f"here I am {min(own + 5, 19)} 1 True blue"
    assert (lines[0].service, lines[0].stream) == ("one", "stdout")


def test_what_a_service_started_ends_with_it() -> None:
    code = (
        "import subprocess, sys, time;"
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']);"
        "print('here I am', p.pid, flush=True); time.sleep(600)"
    )
    lines: list[OutputLine] = []
    with LocalEngine(on_line=lines.append) as engine:
        engine.start(program("one", code))
        wait_ready(engine, ["one"], 30)
        grandchild = int(lines[0].text.split()[-1])
        assert psutil.pid_exists(grandchild)
        pid = status_of(engine, "one").pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        until(lambda: not _runs(grandchild), "the grandchild is gone")


def test_long_lines_broken_text_and_a_broken_listener_do_no_harm() -> None:
    seen: list[OutputLine] = []

    def listener(line: OutputLine) -> None:
        seen.append(line)
        raise RuntimeError("the listener is broken")

    code = (
        "import sys, time; out = sys.stdout.buffer;"
        "out.write(b'x' * 300_000 + b'\\n' + b'\\xff\\xfe broken\\n'); out.write(b'here I am\\n');"
        "out.flush(); time.sleep(600)"
    )
    with LocalEngine(on_line=listener) as engine:
        engine.start(program("one", code))
        wait_ready(engine, ["one"], 30)
    texts = [line.text for line in seen]
    assert sum(text.count("x") for text in texts) == 300_000
    assert max(map(len, texts)) <= 128 * 1024 + 1
    assert "\ufffd\ufffd broken" in texts


def test_backoff_grows_between_crashes() -> None:
    policy = RestartPolicy(initial_s=0.1, factor=3.0, maximum_s=5.0, jitter=0.0, crash_limit=3)
    with LocalEngine() as engine:
        engine.start(program("bad", "raise SystemExit(1)", restart=policy))
        wait_for(engine, "bad", EventKind.FAILED)
        events = engine.events()
    started = [event.at_s for event in events if event.kind is EventKind.STARTED]
    backoff = [event.at_s for event in events if event.kind is EventKind.BACKOFF]
    waits = [start - at for start, at in zip(started[1:], backoff, strict=True)]
    # A busy machine makes a wait longer, never shorter.
    assert [wait >= bound for wait, bound in zip(waits, (0.1, 0.3, 0.9), strict=True)] == [True] * 3


SUPERVISOR = """
import sys, time
from interlatent_live.engine import LocalEngine, wait_ready
from tests.engine.behaviour import DEAF, SLEEPS, program
with LocalEngine(on_line=lambda line: None) as engine:
    engine.start(program("one", SLEEPS))
    engine.start(program("deaf", DEAF, grace_s=0.5))
    wait_ready(engine, ["one", "deaf"], 30)
    try:
        print(*(status.pid for status in engine.status()), flush=True)
        time.sleep(600)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
print("closed", flush=True)
"""


@pytest.fixture
def supervisor() -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SUPERVISOR)],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        assert process.stdout is not None
        pids = [int(word) for word in process.stdout.readline().split()]
        assert len(pids) == 2
        yield process, pids
        process.kill()


def test_no_orphan_survives_a_killed_supervisor(
    supervisor: tuple[subprocess.Popen[str], list[int]],
) -> None:
    process, pids = supervisor
    os.kill(pids[0], signal.SIGSTOP)  # not even a frozen one
    process.kill()
    process.wait()
    until(lambda: not any(_runs(pid) for pid in pids), "the children are gone", 10)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_everything_cleanly(
    supervisor: tuple[subprocess.Popen[str], list[int]], number: signal.Signals
) -> None:
    process, pids = supervisor
    began = time.monotonic()
    process.send_signal(number)
    out, _ = process.communicate(timeout=30)
    assert out.split() == ["interrupted", "closed"]
    assert process.returncode == 0
    assert not any(_runs(pid) for pid in pids)
    assert time.monotonic() - began < 20


def test_closing_twice_is_fine_and_status_stays_readable() -> None:
    engine = LocalEngine()
    engine.start(program("one", SLEEPS))
    engine.close()
    engine.close()
    assert status_of(engine, "one").phase is Phase.STOPPED
    assert engine.events(after=10_000, timeout_s=30.0) == ()


def _runs(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def test_a_program_that_handles_sigterm_itself_keeps_doing_so() -> None:
    caught: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: caught.append(number))
    try:
        with LocalEngine():
            os.kill(os.getpid(), signal.SIGTERM)
        assert caught == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_sigterm_is_given_back() -> None:
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    with pytest.raises(KeyboardInterrupt), LocalEngine():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
