from __future__ import annotations

import errno
import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest
import zmq

from interlatent_live.config import Settings
from interlatent_live.engine.local import PARENT_PIPE_VARIABLE
from interlatent_live.errors import UserError
from interlatent_live.services.runtime import MOST_REQUESTS, ServiceRuntime, explained

if TYPE_CHECKING:
    from collections.abc import Iterator

ANY_PORT = "127.0.0.1:0"


@pytest.fixture
def runtime() -> Iterator[ServiceRuntime]:
    with ServiceRuntime("encoder", health=ANY_PORT) as runtime:
        yield runtime


def get(runtime: ServiceRuntime, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://{runtime.address}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def health(runtime: ServiceRuntime) -> tuple[int, dict[str, Any]]:
    status, body = get(runtime, "/healthz")
    return status, json.loads(body)


def test_what_is_loaded_when_a_service_is_ready_is_not_gone_through_for_garbage_again() -> None:
    with ServiceRuntime("encoder", health=ANY_PORT) as runtime:
        assert gc.get_freeze_count() == 0
        runtime.ready()
        assert gc.get_freeze_count() > 10_000
    assert gc.get_freeze_count() == 0


def test_health_follows_the_service_from_start_to_stop(runtime: ServiceRuntime) -> None:
    status, starting = health(runtime)
    assert (status, starting["ready"], starting["why"]) == (503, False, "starting")
    runtime.ready(device="cpu")
    status, ready = health(runtime)
    assert (status, ready["ready"], ready["device"], ready["pid"]) == (
        200,
        True,
        "cpu",
        os.getpid(),
    )
    runtime.not_ready("the disk is full")
    assert health(runtime)[1]["why"] == "the disk is full"
    runtime.ready()
    runtime.request_stop("enough")
    status, stopping = health(runtime)
    assert (status, stopping["why"]) == (503, "stopping")


def test_a_loop_that_no_longer_turns_is_not_live() -> None:
    with ServiceRuntime("encoder", health=ANY_PORT, live_within_s=0.05) as runtime:
        runtime.ready()
        assert get(runtime, "/healthz/live")[0] == 200  # has not begun to turn
        runtime.beat()
        time.sleep(0.1)
        assert get(runtime, "/healthz/live")[0] == 503
        assert health(runtime)[0] == 503
        runtime.beat()
        assert health(runtime)[1]["live"] is True


def test_metrics_are_the_processs_own_and_name_the_buffers() -> None:
    budget = Settings().buffers("encoder")
    with ServiceRuntime("encoder", health=ANY_PORT, budget=budget) as runtime:
        runtime.ready()
        status, text = get(runtime, "/metrics")
    assert status == 200
    assert 'interlatent_service_info{service="encoder"' in text
    assert "interlatent_ready 1.0" in text
    values = [
        float(line.split()[-1])
        for line in text.splitlines()
        if line.startswith("interlatent_buffer_limit_bytes")
    ]
    assert sum(values) == budget.total
    assert "process_resident_memory_bytes" in text


def test_two_runtimes_in_one_process_share_no_metric() -> None:
    with (
        ServiceRuntime("a", health=ANY_PORT) as first,
        ServiceRuntime("b", health=ANY_PORT) as second,
    ):
        first.ready()
        assert "interlatent_ready 1.0" in get(first, "/metrics")[1]
        assert "interlatent_ready 0.0" in get(second, "/metrics")[1]


def test_other_paths_are_not_found_and_other_methods_are_refused(runtime: ServiceRuntime) -> None:
    assert get(runtime, "/etc/passwd")[0] == 404
    request = urllib.request.Request(f"http://{runtime.address}/healthz", method="POST")
    with pytest.raises(urllib.error.HTTPError, match="501") as refused:
        urllib.request.urlopen(request, timeout=10)
    refused.value.close()


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 503),
        ("127.0.0.1:8", 503),
        ("localhost:8", 503),
        ("[::1]:8", 503),
        ("[::1]", 503),
        ("evil.example:8", 403),
        ("localhost.evil.example", 403),
        ("", 403),
    ],
)
def test_a_page_under_another_name_can_not_read_health(
    runtime: ServiceRuntime, host: str, status: int
) -> None:
    request = urllib.request.Request(f"http://{runtime.address}/healthz", headers={"Host": host})
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=10)
    refused.value.close()
    assert refused.value.code == status


def test_a_port_in_use_is_one_sentence_with_the_setting(runtime: ServiceRuntime) -> None:
    with (
        pytest.raises(UserError, match=r"listens there already; .* endpoints\.explainer_health"),
        ServiceRuntime("explainer", health=runtime.address),
    ):
        pass


def test_zeromq_errors_are_explained_too() -> None:
    with zmq.Context() as context, context.socket(zmq.ROUTER) as first:
        port = first.bind_to_random_port("tcp://127.0.0.1")
        endpoint = f"tcp://127.0.0.1:{port}"
        with context.socket(zmq.ROUTER) as second:
            with (
                pytest.raises(
                    UserError, match=rf"agents' link can't listen on {endpoint}: another"
                ),
                explained("the agents' link", endpoint, "endpoints.agents"),
            ):
                second.bind(endpoint)
            with (
                pytest.raises(UserError, match="no such address"),
                explained("it", "tcp://nowhere0:1", "endpoints.agents"),
            ):
                second.bind("tcp://nowhere0:1")


def test_a_bug_is_not_explained_away() -> None:
    with pytest.raises(KeyError), explained("it", "x", "y"):
        raise KeyError("x")
    with pytest.raises(UserError, match="no space"), explained("it", "x", "y"):
        raise OSError(errno.ENOSPC, "no space")


def test_idle_connections_neither_block_health_nor_pile_up(runtime: ServiceRuntime) -> None:
    host, _, port = runtime.address.rpartition(":")
    idle = [socket.create_connection((host, int(port)), timeout=10) for _ in range(4)]
    try:
        assert health(runtime)[0] == 503
        more = [socket.create_connection((host, int(port)), timeout=10) for _ in range(20)]
        refused = sum(_hangs_up(one) for one in more)
        for one in more:
            one.close()
        assert refused >= 20 - MOST_REQUESTS
    finally:
        for one in idle:
            one.close()


def _hangs_up(connection: socket.socket) -> bool:
    connection.settimeout(0.3)
    try:
        return connection.recv(1) == b""
    except TimeoutError:
        return False
    except ConnectionError:
        return True


def test_stop_is_asked_for_once_and_wakes_both_kinds_of_loop(runtime: ServiceRuntime) -> None:
    poll = select.poll()
    poll.register(runtime.wakeup_fd, select.POLLIN)
    assert poll.poll(0) == []
    threading.Timer(0.05, runtime.request_stop, ["the first reason"]).start()
    assert runtime.stop_event.wait(10)
    assert poll.poll(10_000)
    runtime.request_stop("the second reason")
    assert runtime.stop_reason == "the first reason"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_asks_for_a_stop_and_is_given_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with ServiceRuntime("encoder", health=ANY_PORT) as runtime:
        os.kill(os.getpid(), number)
        assert runtime.stop_event.wait(10)
        assert runtime.stop_reason == number.name
    assert signal.getsignal(number) is before
    runtime.request_stop("after the end: harmless")


def test_it_runs_on_another_thread_without_touching_signals() -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen: list[bool] = []

    def serve() -> None:
        with ServiceRuntime("encoder", health=ANY_PORT) as runtime:
            seen.append(signal.getsignal(signal.SIGTERM) is before)
            runtime.request_stop("done")

    thread = threading.Thread(target=serve)
    thread.start()
    thread.join(20)
    assert seen == [True]


def test_no_thread_or_descriptor_stays_behind() -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - cheap and enough

    with ServiceRuntime("warm-up", health=ANY_PORT):
        pass
    threads, files = threading.active_count(), descriptors()
    for _ in range(5):
        with ServiceRuntime("encoder", health=ANY_PORT) as runtime:
            runtime.ready()
            health(runtime)
    deadline = time.monotonic() + 10
    while (threading.active_count(), descriptors()) > (threads, files):
        assert time.monotonic() < deadline
        time.sleep(0.05)


SERVICE = """
import sys, time
from interlatent_live.services.runtime import ServiceRuntime
with ServiceRuntime("encoder", health="127.0.0.1:0") as runtime:
    print("here I am", flush=True)
    {loop}
print("stopped:", runtime.stop_reason, flush=True)
"""


def start(loop: str) -> tuple[subprocess.Popen[str], int]:
    """A service whose parent pipe's write end is the returned descriptor."""
    read, write = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", SERVICE.format(loop=loop)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        pass_fds=(read,),
        env={**os.environ, PARENT_PIPE_VARIABLE: str(read)},
    )
    os.close(read)
    assert process.stdout is not None
    assert process.stdout.readline() == "here I am\n"
    return process, write


def test_the_parents_death_is_a_clean_stop() -> None:
    process, write = start("runtime.stop_event.wait()")
    os.close(write)
    out, _ = process.communicate(timeout=30)
    assert out == "stopped: the process that started this one is gone\n"
    assert process.returncode == 0


def test_the_parents_death_ends_even_a_service_that_never_looks() -> None:
    process, write = start("\n    while True: time.sleep(0.1)")
    os.close(write)
    process.communicate(timeout=30)
    assert process.returncode == -signal.SIGALRM


def test_a_second_interrupt_ends_a_service_that_does_not_stop() -> None:
    process, write = start("\n    while True: time.sleep(0.1)")
    try:
        process.send_signal(signal.SIGINT)
        time.sleep(1.5)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
        assert process.returncode == -signal.SIGINT
    finally:
        os.close(write)
