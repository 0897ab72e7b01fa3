"""The demo's agent can be steered, stopped and asked about, as any operator would."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from interlatent_live.audit.log import AuditLog
from interlatent_live.control.commands import Change, Operation
from interlatent_live.control.latch import StopLatch
from interlatent_live.control.machine import Mode
from interlatent_live.demo.control import agent_name, demo_control, was_stopped
from interlatent_live.demo.run import DemoOptions, free_audit, run_demo
from interlatent_live.errors import UserError
from interlatent_live.interventions.values import Intervention, Kind
from interlatent_live.policies.hashing import policy_hash
from interlatent_live.transcoders.acting import acting_policy
from tests.support.control_service import ControlService

CARTPOLE = "CartPole-v1"


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    with ControlService(tmp_path_factory.mktemp("state")) as made:
        yield made


@pytest.fixture
def agent(service):
    process = subprocess.Popen(
        [sys.executable, "-m", "interlatent_live", "demo-agent", "--endpoint",
         service.settings.endpoints.agents, "--control", service.settings.endpoints.control,
         "--copies", "2", "--ask", "cart_position > 1000"],
        env={**os.environ, **service.settings.environment(), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    yield process
    process.send_signal(signal.SIGKILL)
    process.wait(20)


def until(client, condition, timeout_s=30.0):
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        for shown in client.look().agents:
            if shown.silent_ms < 1000 and shown.state is not None and condition(shown):
                return shown
        time.sleep(0.02)
    raise AssertionError("not in time")


def test_the_demo_agent_is_steered_stopped_and_resumed(service, agent):
    with service.client() as client:
        shown = until(client, lambda one: one.state.row > 100)
        assert shown.hello.agent == agent_name(CARTPOLE) == "cartpole-demo"
        assert shown.hello.safe_action
        (offer,) = shown.hello.hook_points
        assert (offer.name, offer.features) == ("hidden.1", 128)
        assert client.renew(shown.hello.agent).accepted
        change = Change(
            offer.name, offer.transcoder, Intervention(3, Kind.STEER, 0.5), offer.max_norm
        )
        result = client.command(
            Operation.INTERVENE, shown, reason="to see", ttl_s=1.0, changes=(change,)
        )
        assert result.accepted, result.reason
        seen = until(client, lambda one: one.state.active and one.state.active[0].applied_steps)
        assert 0 < seen.state.active[0].largest_norm <= offer.max_norm
        assert client.command(Operation.STOP, "cartpole-demo", reason="enough").accepted
        stopped = until(client, lambda one: one.state.mode is Mode.STOPPED and one.state.obeyed)
        assert was_stopped(service.settings, CARTPOLE)
        assert client.command(Operation.RESUME, stopped, reason="on").accepted
        until(client, lambda one: one.state.mode is Mode.RUNNING)
        assert not was_stopped(service.settings, CARTPOLE)


def test_a_counted_demo_refuses_an_agent_that_was_stopped(service):
    folder = service.settings.console.state
    (latch,) = folder.rglob("stop.latch")
    opened = StopLatch(latch)
    opened.stop()
    with pytest.raises(UserError, match="cartpole-demo was stopped by a person"):
        run_demo(DemoOptions(steps=100), service.settings, None)
    opened.resume()
    opened.close()


def test_a_second_system_writes_an_audit_of_its_own(service, tmp_path):
    assert free_audit(service.settings) == service.audit.with_name("audit-demo-1")
    other = service.settings.model_copy(
        update={"control": service.settings.control.model_copy(update={"audit": tmp_path / "a"})}
    )
    assert free_audit(other) == tmp_path / "a"
    with AuditLog(tmp_path / "a"):
        assert free_audit(other) == tmp_path / "a-demo-1"
    assert free_audit(other) == tmp_path / "a"


def test_safe_actions_are_the_environments_own(service):
    endpoint = service.settings.endpoints.control
    held = demo_control(CARTPOLE, "sha256:none", ["hidden.1"], endpoint=endpoint)
    assert not held.transcoders  # another policy can be held, not steered
    acts = [held.safe_action(np.array([1, 1])).tolist() for _ in range(4)]
    assert acts == [[0, 0], [1, 1], [0, 0], [1, 1]]
    lander = demo_control("LunarLander-v3", "", [], endpoint=endpoint)
    assert lander.safe_action(np.array([2, 3])).tolist() == [0, 0]
    assert demo_control("Humanoid-v5", "", [], endpoint=endpoint).safe_action is None
    with pytest.raises(UserError, match="need a safe_action"):
        demo_control("Humanoid-v5", "", [], endpoint=endpoint, ask="tilt > 1")


def test_the_bound_is_how_far_the_output_moves_by_itself(service):
    identity = policy_hash(acting_policy("cartpole").module)
    options = demo_control(
        CARTPOLE, identity, ["hidden.1"], endpoint=service.settings.endpoints.control
    )
    assert options.max_norm["hidden.1"] == pytest.approx(3.202862**0.5, rel=1e-4)
