"""``up`` with its real services: it comes up, says so, answers, and ends cleanly."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from typing import TYPE_CHECKING

import psutil
import pytest

from interlatent_live.config import on_free_ports, resolve
from interlatent_live.engine.launch import SERVICES

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_up_starts_everything_and_ends_it(number: signal.Signals, tmp_path: Path) -> None:
    # An audit is written by one system at a time, and others may run here.
    flags = {"console.state": str(tmp_path / "state")}
    settings = on_free_ports(resolve(flags=flags, environment={}).settings)
    log = tmp_path / "log"
    with log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "interlatent_live", "up"],
            env={**os.environ, **settings.environment(), "OMP_NUM_THREADS": "1"},
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("up: agents connect to "), log.read_text()
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) == len(SERVICES)
        for name in SERVICES:
            base = f"http://{settings.endpoints.health(name)}"
            with urllib.request.urlopen(f"{base}/healthz", timeout=20) as answer:
                health = json.loads(answer.read())
            assert health["ready"] is True
            assert health["pid"] in {child.pid for child in children}
            with urllib.request.urlopen(f"{base}/metrics", timeout=20) as answer:
                assert b"interlatent_ready 1.0" in answer.read()
        process.send_signal(number)
        process.communicate(timeout=60)
        assert process.returncode == 0
        assert not any(child.is_running() for child in children)
        events = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
        stopped = {event["service"] for event in events if event["event"] == "stopped"}
        assert stopped >= set(SERVICES)
        assert not any(event["event"] == "killed" for event in events)
    finally:
        process.kill()


@pytest.mark.slow
def test_up_with_shards_looks_like_a_system_without(tmp_path: Path) -> None:
    flags = {"console.state": str(tmp_path / "state")}
    settings = on_free_ports(resolve(flags=flags, environment={}).settings)
    process = subprocess.Popen(
        [sys.executable, "-m", "interlatent_live", "up", "--shards", "2"],
        env={**os.environ, **settings.environment(), "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("up: agents connect to ")
        children = psutil.Process(process.pid).children(recursive=True)
        for name in SERVICES:
            base = f"http://{settings.endpoints.health(name)}"
            with urllib.request.urlopen(f"{base}/healthz", timeout=20) as answer:
                assert json.loads(answer.read())["ready"] is True
        address = f"http://{settings.endpoints.encoder_health}/metrics"
        deadline = time.monotonic() + 20
        while b"interlatent_gateway_shards 2.0" not in urllib.request.urlopen(address).read():
            assert time.monotonic() < deadline, "the gateway has not heard of both shards"
            time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
        assert process.returncode == 0
        assert not any(child.is_running() for child in children)
    finally:
        process.kill()


@pytest.mark.parametrize("words", [("--ray-address", "h:1"), ("--gpus", "1")])
def test_what_is_for_ray_is_refused_without_it(words: tuple[str, ...], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "interlatent_live", "up", *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 2
    assert "are for --engine ray" in done.stderr
