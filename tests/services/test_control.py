"""Operator, control service and agent as they run: commands, refusals, deaths, and the audit."""

import json
import os
import subprocess
import sys
import time

import pytest
import torch

from interlatent_live.audit.log import FIRST_KEY, LOG, STATE, read_key, verify
from interlatent_live.control.commands import Operation
from interlatent_live.control.machine import Mode
from interlatent_live.control.wire import Role
from interlatent_live.errors import CorruptFileError, UserError
from tests.support.control_kit import agent_of, steer
from tests.support.control_service import ControlService

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    with ControlService(tmp_path_factory.mktemp("control")) as made:
        yield made


@pytest.fixture
def agent(tmp_path, service):
    made = agent_of(service, tmp_path)
    yield made
    made.close()


def until(client, condition, timeout_s=10.0):
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        for shown in client.look(follow=True).agents:
            if shown.silent_ms < 1000 and shown.state is not None and condition(shown):
                return shown
        time.sleep(0.02)
    raise AssertionError("not in time")


def mine(agent):
    return lambda shown: shown.hello.boot_id == agent.tap.boot_id


def rows(service, kind):
    lines = (service.audit / LOG).read_text().splitlines()
    return [row["body"] for row in map(json.loads, lines) if row["kind"] == kind]


def checked(service):
    return verify(
        service.audit / LOG, read_key(service.audit / FIRST_KEY), state=service.audit / STATE
    )


def test_an_intervention_from_permission_to_its_end(service, agent, tmp_path):
    with service.client() as client:
        shown = until(client, mine(agent))
        assert client.renew("walker").accepted
        change = steer(3, policy=agent.policy)
        result = client.command(
            Operation.INTERVENE, shown, reason="to see", ttl_s=20, changes=(change,)
        )
        assert result.accepted, result.reason
        active = until(client, lambda one: one.state.active and one.state.obeyed)
        assert active.state.active[0].actor == "ada"
        # Nobody renews: the lease ends it.
        until(client, lambda one: mine(agent)(one) and not one.state.active, 4.0)
    deadline = time.monotonic() + 5
    ids = [result.command_id]
    while time.monotonic() < deadline:
        ended = [r for r in rows(service, "agent-lease_lost") if r["command_id"] in ids]
        if ended:
            break
        time.sleep(0.05)
    (permitted,) = [r for r in rows(service, "permitted") if r["command_id"] in ids]
    (applied,) = [r for r in rows(service, "applied") if r["command_id"] in ids]
    assert permitted["changes"][0]["feature"].startswith("first/3@sha256:")
    assert applied["permitted_here"]
    assert 0 <= applied["row"] < ended[0]["row"]
    journal = next(tmp_path.rglob("journal.jsonl")).read_text()
    seal = next(
        line["seal"]
        for line in map(json.loads, journal.splitlines())
        if line["kind"] == "command" and line["command_id"] in ids
    )
    report = verify(service.audit / LOG, read_key(service.audit / FIRST_KEY), anchor=seal)
    assert report.anchored


def test_a_viewer_a_stranger_and_a_forged_key_command_nothing(service, agent):
    with service.client(role=Role.VIEWER) as viewer:
        until(viewer, mine(agent))
        assert "viewer" in viewer.command(Operation.STOP, "walker", reason="x").reason
    with (
        service.client(key=b"a forged key", timeout_s=0.5) as stranger,
        pytest.raises(UserError, match="no answer"),
    ):
        stranger.command(Operation.STOP, "walker", reason="x")
    with service.client() as client:
        assert until(client, mine(agent)).state.mode is Mode.RUNNING


def test_a_stop_outlives_the_service_the_agent_and_needs_neither(service, agent, tmp_path):
    with service.client() as client:
        until(client, mine(agent))
        assert client.command(Operation.STOP, "walker", reason="enough").accepted
        until(client, lambda one: mine(agent)(one) and one.state.mode is Mode.STOPPED)
    service.end()
    time.sleep(0.2)
    moved = agent.moved_at
    time.sleep(0.3)
    assert agent.moved_at == moved, "without a service it stays stopped"
    agent.close()
    service.start()
    again = agent_of(service, tmp_path)
    with service.client() as client:
        shown = until(client, mine(again))
        assert shown.state.mode is Mode.STOPPED
        assert again.moved_at == 0.0
        assert client.command(Operation.RESUME, shown, reason="checked").accepted
        until(client, lambda one: mine(again)(one) and one.state.mode is Mode.RUNNING)
    again.close()
    assert checked(service).entries > 0


def test_a_full_disk_refuses_energy_and_never_a_stop(tmp_path):
    with ControlService(tmp_path / "state") as service:
        agent = agent_of(service, tmp_path / "agent")
        with service.client() as client:
            shown = until(client, mine(agent))
            assert client.command(Operation.HOLD, shown, reason="x").accepted
            shown = until(client, lambda one: one.state.mode is Mode.HELD and one.state.obeyed)
            # A folder in the place of the state file: it cannot be replaced, as on a full disk.
            (service.audit / STATE).rename(tmp_path / "kept")
            (service.audit / STATE).mkdir()
            (service.audit / STATE / "x").touch()
            refused = client.command(Operation.RESUME, shown, reason="x")
            assert "audit cannot be written" in refused.reason
            assert client.command(Operation.STOP, shown, reason="x").accepted
            until(client, lambda one: one.state.mode is Mode.STOPPED)
        agent.close()


def test_the_command_line_stops_steers_and_verifies(service, agent):
    environment = {**os.environ, **service.settings.environment(), "OMP_NUM_THREADS": "1"}

    def run(*words, status=0):
        done = subprocess.run(
            [sys.executable, "-m", "interlatent_live", *words], env=environment, text=True,
            capture_output=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr

    with service.client() as client:
        until(client, mine(agent))
    assert "walker: running" in run("intervene", "list")
    said = run("intervene", "steer", "first/3", "--by", "1", "--ttl", "1", "--agent", "walker")
    assert "intervene applied from step" in said
    assert "expired" in said
    assert "no feature" in run("intervene", "ablate", "first", "--agent", "walker", status=2)
    assert "stop applied from step" in run("intervene", "stop", "--agent", "walker")
    assert "resume applied from step" in run("intervene", "resume", "--agent", "walker")
    assert "entries in order" in run("audit", "verify", str(service.audit))


@pytest.mark.parametrize("attack", ["altered", "cut", "rewritten"])
def test_an_audit_that_was_tampered_with_is_found_out(service, tmp_path, attack):
    folder = tmp_path / "copy"
    folder.mkdir()
    for name in (LOG, STATE, FIRST_KEY):
        (folder / name).write_bytes((service.audit / name).read_bytes())
    lines = (folder / LOG).read_bytes().splitlines(keepends=True)
    key = read_key(folder / FIRST_KEY)
    assert verify(folder / LOG, key, state=folder / STATE).entries == len(lines)
    match attack:
        case "altered":
            lines[1] = lines[1].replace(b'"kind":"', b'"kind":"x', 1)
        case "cut":
            lines = lines[:-1]
        case "rewritten":
            key_of_theirs = b"\x01" * 32
            from interlatent_live.audit.chain import ChainState, append  # noqa: PLC0415 - only here

            state = ChainState.start(key_of_theirs)
            lines = []
            for n in range(3):
                entry, state = append(state, "agent", {"n": n}, n)
                lines.append(entry.line())
    (folder / LOG).write_bytes(b"".join(lines))
    with pytest.raises(CorruptFileError):
        verify(folder / LOG, key, state=folder / STATE)
