"""The console as a real process beside a real system: what it keeps, killed and started again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import httpx2
import pytest

from interlatent_live.console.secrets import load_token, request_key, state_folder
from interlatent_live.console.state import store_url
from interlatent_live.explanations.requests import ClaimByPerson, Refused, open_answer, seal
from interlatent_live.services.network import Network
from interlatent_live.store import ClaimFilter, open_store
from interlatent_live.wire.sockets import receive_message, send_message
from tests.support.system import HOOK, System, Walker, save, transcoder


@pytest.fixture(scope="module")
def system(tmp_path_factory):
    folder = tmp_path_factory.mktemp("transcoders")
    save(folder, transcoder())
    state = tmp_path_factory.mktemp("state")
    flags = {"encoder.transcoders": [str(folder)], "console.state": str(state)}
    with System(without=("console",), **flags) as running:
        yield running


@contextmanager
def console(system):
    process = subprocess.Popen(
        [sys.executable, "-m", "interlatent_live", "console"],
        env={**os.environ, **system.settings.environment(), "OMP_NUM_THREADS": "1"},
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def wait(condition, timeout_s=90.0):
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.1)
    raise AssertionError("not in time")


def test_a_run_and_its_claims_are_kept_once_though_the_console_is_killed(system):
    store = open_store(store_url(system.settings))
    with system.tap() as tap:
        walker = Walker(tap)
        with console(system) as process:
            walker.walk(2000, hz=2000)
            wait(lambda: any(run["run_id"] == tap.run_id for run in store.runs()))
            process.send_signal(signal.SIGKILL)
        walker.walk(4000, hz=2000)
        run_id = tap.run_id
    system.wait(lambda state: state.settled(run_id))
    shown = {one["address"]: one for one in system.state.claims[run_id, HOOK].claims}
    assert shown
    wanted = ClaimFilter(run_id=run_id)
    with console(system) as process:
        kept = wait(lambda: store.claims(wanted, limit=1000))
        wait(lambda: next(run for run in store.runs() if run["run_id"] == run_id)["ended"])
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert {row.address: row.verdict for row in kept} == {
        address: claim["verdict"] for address, claim in shown.items()
    }
    before = {row.id: store.history(row.id) for row in kept}
    for history in before.values():
        keys = [(row["version"], row["at_ns"], row["verdict"]) for row in history["verdicts"]]
        assert keys
        assert len(set(keys)) == len(keys)
        assert len(history["versions"]) == 1
    with console(system):
        time.sleep(3)
    assert {row.id: store.history(row.id) for row in kept} == before
    store.close()


def test_a_request_needs_the_key_of_this_user(system):
    token = load_token(state_folder(system.settings))
    request = ClaimByPerson("r1", time.time_ns(), "nobody", HOOK, 0, "phase > 0.5", "ada")
    with Network(None) as network:
        for key, answers in ((b"another user's", 0), (request_key(token), 1)):
            socket = network.dealer(system.settings.endpoints.explainer_requests)
            send_message(socket, seal(key, request))
            found = []
            deadline = time.monotonic() + (10 if answers else 1.5)
            while time.monotonic() < deadline and not found:
                frames = receive_message(socket)
                if frames is not None:
                    found.append(open_answer(key, frames))
                time.sleep(0.02)
            socket.close()
            assert len(found) == answers
    assert isinstance(found[0], Refused)
    assert "no run 'nobody'" in found[0].message


def answered(address):
    try:
        found = httpx2.get(address, timeout=5)
    except httpx2.TransportError:
        return None
    return found if found.status_code == 200 else None


def test_a_run_is_read_followed_and_refused_over_http_and_the_end_is_clean(system):
    base = f"http://{system.settings.console.http}/api/v1"
    write = {"Authorization": f"Bearer {load_token(state_folder(system.settings))}"}
    body = {
        "run_id": "nobody",
        "hook_point": HOOK,
        "feature": 0,
        "predicate": "phase > 0.5",
        "person": "ada",
    }
    with console(system) as process, httpx2.Client(timeout=30) as client:
        assert wait(lambda: answered(f"{base}/health")).json()["ready"]
        assert client.post(f"{base}/claims", json=body).status_code == 401
        refused = client.post(f"{base}/claims", json=body, headers=write)
        assert refused.status_code == 409
        assert "no run 'nobody'" in refused.json()["detail"]
        lines = {"Accept": "application/x-ndjson"}
        with client.stream("GET", f"{base}/feed?topics=agents", headers=lines) as feed:
            with system.tap() as tap:
                Walker(tap).walk(500, hz=1000)
                run_id = tap.run_id
                for line in feed.iter_lines():
                    agents = json.loads(line)["value"]["agents"] if line else []
                    if any(one["run_id"] == run_id for one in agents):
                        break
            wait(
                lambda: any(
                    one["run_id"] == run_id for one in client.get(f"{base}/runs").json()["items"]
                )
            )
            statistics = client.get(f"{base}/statistics/runs").json()
            assert run_id in json.dumps(statistics)
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
