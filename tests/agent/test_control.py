"""An agent under command over a real socket: hold, stop, step, ask, and end by itself."""

import threading
import time

import numpy as np
import pytest
import torch

from interlatent_live.agent.attach import attach
from interlatent_live.agent.control import ApprovalRule, ControlOptions
from interlatent_live.agent.control_thread import agent_folder
from interlatent_live.control.commands import Operation
from interlatent_live.control.latch import StopLatch
from interlatent_live.control.machine import Fate, Mode
from interlatent_live.control.wire import Beat, Do
from interlatent_live.errors import UserError
from interlatent_live.stream import Controller
from tests.support.control_kit import (
    HOOK,
    KEY,
    METRICS,
    Loop,
    Overseer,
    TwoLayers,
    command,
    controlled,
    steer,
)

torch.set_num_threads(1)


class Rig:
    def __init__(self, folder, overseer, **options):
        self.policy = TwoLayers()
        self.folder, self.overseer = folder, overseer
        self.tap = controlled(self.policy, folder, endpoint=overseer.endpoint, **options)
        self.loop = Loop(self.policy, self.tap)
        overseer.hello = None
        overseer.until(lambda: overseer.hello and overseer.state)

    def step(self, *metrics):
        meant, taken = self.loop.step(*metrics)
        time.sleep(0.001)
        return meant, taken

    def do(self, operation, **fields):
        return self.overseer.do(command(operation, **fields), meanwhile=self.step)

    @property
    def version(self):
        return self.overseer.state.version

    def fresh(self):
        """The version, after everything that happened has been told."""
        self.overseer.until(lambda: self.overseer.state.obeyed, self.step)
        return self.version


@pytest.fixture
def overseer():
    with Overseer() as made:
        yield made


@pytest.fixture
def rig(tmp_path, overseer):
    made = Rig(tmp_path, overseer)
    yield made
    made.tap.close()


def test_an_agent_says_who_it_is_and_what_it_allows(rig, overseer):
    hello = overseer.hello
    assert (hello.agent, hello.run_id, hello.boot_id) == ("walker", rig.tap.run_id, rig.tap.boot_id)
    assert [(one.name, one.features, one.max_norm) for one in hello.hook_points] == [(HOOK, 8, 5.0)]
    assert hello.safe_action


def test_a_hold_takes_the_safe_action_and_says_from_which_row(rig, overseer):
    for _ in range(3):
        rig.step()
    asked = command(Operation.HOLD)
    overseer.do(asked, meanwhile=rig.step)
    event = overseer.until(lambda: overseer.event(asked.command_id, Fate.APPLIED), rig.step)
    meant, taken = rig.step()
    assert (taken == 0).all()
    assert (meant != 0).any()
    overseer.until(lambda: overseer.state.mode is Mode.HELD, rig.step)
    controller = rig.tap.take().steps.controller
    assert set(controller[event.row :]) == {Controller.HOLD}
    assert set(controller[: event.row]) == {Controller.POLICY}


def test_a_stop_latches_on_the_disk_and_outlives_the_process(rig, overseer):
    assert rig.do(Operation.STOP).accepted
    rig.step()
    rig.tap.close()
    latch = StopLatch(agent_folder(rig.folder, "walker") / "stop.latch")
    assert latch.stopped
    latch.close()
    again = Rig(rig.folder, overseer)
    assert (again.step()[1] == 0).all()
    again.overseer.until(lambda: again.overseer.state.mode is Mode.STOPPED, again.step)
    assert again.do(Operation.RESUME, base_version=again.fresh()).accepted
    again.step()
    meant, taken = again.step()
    assert taken is meant
    again.tap.close()
    latch = StopLatch(agent_folder(rig.folder, "walker") / "stop.latch")
    assert not latch.stopped
    latch.close()


def test_a_held_agent_that_dies_comes_back_stopped(rig, overseer):
    assert rig.do(Operation.HOLD, ttl=60).accepted
    rig.step()
    overseer.until(lambda: overseer.state.mode is Mode.HELD and overseer.state.latched, rig.step)
    rig.tap.close()
    again = Rig(rig.folder, overseer)
    assert (again.step()[1] == 0).all()
    again.overseer.until(lambda: again.overseer.state.mode is Mode.STOPPED, again.step)
    assert again.do(Operation.RESUME, base_version=again.fresh()).accepted
    again.tap.close()


def test_a_resume_that_cannot_be_unlatched_is_refused(rig, monkeypatch):
    rig.do(Operation.STOP)
    monkeypatch.setattr(StopLatch, "resume", lambda self: False)
    answer = rig.do(Operation.RESUME, base_version=rig.fresh())
    assert "the agent stays stopped" in answer.reason
    assert (rig.step()[1] == 0).all()


def test_a_held_agent_takes_one_step_for_each_grant(rig):
    rig.do(Operation.HOLD, ttl=60)
    for _ in range(2):
        assert rig.do(Operation.STEP, base_version=rig.fresh()).accepted
        moved = [bool((rig.step()[1] != 0).any()) for _ in range(5)]
        # The step itself may have been taken while its answer was on the way.
        assert sum(moved) <= 1
    rig.fresh()
    controller = list(rig.tap.take().steps.controller)
    held = controller[controller.index(Controller.HOLD) :]
    assert held.count(Controller.POLICY) == 2


def test_an_intervention_is_told_with_its_row_and_ends_with_its_lease(rig, overseer):
    overseer.renew()
    asked = command(
        Operation.INTERVENE, changes=(steer(3, policy=rig.policy),), ttl=30,
        base_version=rig.version,
    )  # fmt: skip
    assert overseer.do(asked, meanwhile=rig.step).accepted
    applied = overseer.until(lambda: overseer.event(asked.command_id, Fate.APPLIED), rig.step)
    began = time.monotonic()
    ended = overseer.until(lambda: overseer.event(asked.command_id, Fate.LEASE_LOST), rig.step)
    assert time.monotonic() - began < 2.5
    for _ in range(3):
        rig.step()
    controller = rig.tap.take().steps.controller
    steered = np.flatnonzero(controller == Controller.INTERVENTION)
    assert steered[0] == applied.row
    assert steered[-1] < ended.row


def test_the_watchdog_ends_what_a_dead_control_thread_left(rig, overseer, monkeypatch):
    overseer.renew()
    asked = command(
        Operation.INTERVENE, changes=(steer(3, policy=rig.policy),), ttl=0.3,
        base_version=rig.version,
    )  # fmt: skip
    assert overseer.do(asked, meanwhile=rig.step).accepted
    rig.step()
    threading.Event().wait(0.01)
    for thread in threading.enumerate():
        if thread.name == "interlatent-control":
            monkeypatch.setattr(time, "monotonic_ns", lambda: 1 / 0)  # it fails on every turn
    deadline = time.monotonic() + 1.0
    while time.monotonic() < deadline:
        rig.step()
    monkeypatch.undo()
    controller = rig.tap.take().steps.controller
    assert Controller.INTERVENTION in controller
    assert (controller[-100:] == Controller.POLICY).all()


def test_commands_of_strangers_are_not_heard(tmp_path):
    with Overseer() as real, Overseer(key=b"another key of thirty-two bytes!") as stranger:
        rig = Rig(tmp_path, real)
        real.socket.send_multipart(
            [real.peer, *stranger.envelope.seal(Do(boot_id="", command=command(Operation.STOP)))]
        )
        real.socket.send_multipart([real.peer, b"noise"])
        deadline = time.monotonic() + 0.5
        while time.monotonic() < deadline:
            meant, taken = rig.step()
            assert taken is meant
        rig.tap.close()


def test_what_adds_energy_is_bound_to_one_life_of_the_agent(rig, overseer):
    rig.do(Operation.HOLD)
    resume = command(Operation.RESUME, base_version=rig.fresh())
    assert "earlier life" in overseer.do(resume, boot_id="old", meanwhile=rig.step).reason
    stop = command(Operation.STOP)
    assert overseer.do(stop, boot_id="old", meanwhile=rig.step).accepted


def test_events_are_told_again_until_they_are_kept(rig, overseer):
    rig.do(Operation.HOLD)
    first = overseer.until(lambda: overseer.events and overseer.events[0], rig.step)
    overseer.events.clear()
    overseer.send(Beat(who=True))
    overseer.until(lambda: first in overseer.events, rig.step)
    overseer.keep(first.number)
    overseer.until(lambda: True)
    time.sleep(0.2)
    overseer.events.clear()
    overseer.send(Beat(who=True))
    overseer.hello = None
    overseer.until(lambda: overseer.hello, rig.step)
    deadline = time.monotonic() + 0.3
    while time.monotonic() < deadline:
        overseer.look()
    assert first not in overseer.events


def test_a_rule_holds_before_the_action_and_asks(tmp_path, overseer):
    rules = (ApprovalRule("near the edge", "tilt > 0.5", timeout_s=30.0),)
    rig = Rig(tmp_path, overseer, approvals=rules)
    rig.step((0.0, 0.9))
    assert (rig.step((0.0, 0.9))[1] == 0).all(), "the very next action is the safe one"
    question = overseer.until(lambda: overseer.state.question, lambda: rig.step((0.0, 0.9)))
    assert question.rule == "near the edge"
    approve = command(
        Operation.APPROVE, targets=(question.question_id,), action=(0.5, -0.5),
        base_version=rig.version,
    )  # fmt: skip
    taken = []
    assert overseer.do(approve, meanwhile=lambda: taken.append(rig.step((0.0, 0.9))[1])).accepted
    taken += [rig.step((0.0, 0.9))[1] for _ in range(3)]
    assert sum(bool((one == [[0.5, -0.5]]).all()) for one in taken) == 1
    controller = list(rig.tap.take().steps.controller)
    assert controller.count(Controller.HUMAN) == 1
    assert controller[-1] == Controller.POLICY, "approved, the rule is quiet until it was false"
    rig.step((0.0, 0.0))
    rig.step((0.0, 0.9))
    assert (rig.step()[1] == 0).all()
    rig.tap.close()


def test_an_agent_that_steps_past_the_gate_says_so(rig, overseer):
    rig.do(Operation.STOP)
    overseer.until(lambda: overseer.state.mode is Mode.STOPPED)
    before = rig.tap.control.ungated
    rig.tap.step((0.0, 0.0))
    assert rig.tap.control.ungated == before + 1
    overseer.until(lambda: "without control.gate" in overseer.state.trouble)


def test_nobody_listening_costs_nothing_and_changes_nothing(tmp_path):
    policy = TwoLayers()
    with controlled(policy, tmp_path, endpoint="tcp://127.0.0.1:9") as tap:
        loop = Loop(policy, tap)
        for _ in range(100):
            meant, taken = loop.step()
            assert taken is meant


def test_an_environment_of_the_tap_passes_the_gate(tmp_path, overseer):
    gymnasium = pytest.importorskip("gymnasium")
    policy = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
    options = ControlOptions(
        endpoint=overseer.endpoint, safe_action=1, state=tmp_path, key=KEY, lease_s=1.0
    )
    env = gymnasium.make("CartPole-v1")
    with attach(policy, ["0"], env=env, endpoint=None, control=options) as tap:
        wrapped = tap.wrap(env)
        wrapped.reset(seed=0)
        overseer.until(lambda: overseer.hello)
        overseer.do(command(Operation.STOP))
        for _ in range(3):
            obs = wrapped.step(0)[0]
        assert obs[1] > 0, "the safe action pushes right; action 0 would push left"
        assert set(tap.take().steps.controller) == {Controller.HOLD}


def test_without_a_safe_action_there_is_no_hold_and_options_are_checked(tmp_path, overseer):
    rig = Rig(tmp_path, overseer, safe_action=None)
    assert "needs a safe action" in rig.do(Operation.HOLD).reason
    rig.tap.close()
    with pytest.raises(UserError, match="need a safe_action"):
        ControlOptions(require_oversight=True)
    with pytest.raises(UserError, match="lease_s"):
        ControlOptions(lease_s=0.0)
    assert len(METRICS) == 2
