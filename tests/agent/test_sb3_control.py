"""Stable-Baselines3 under control: all copies are held together, steered ones say so."""

import numpy as np
import pytest

pytest.importorskip("stable_baselines3")

import torch
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env

from interlatent_live import attach
from interlatent_live.agent import dry_run
from interlatent_live.agent.control import ControlOptions, Published
from interlatent_live.agent.metrics import MetricSet
from interlatent_live.agent.sb3 import InterlatentCallback, TappedVecEnv
from interlatent_live.control.machine import NEVER, Decision, Mode
from interlatent_live.errors import UserError
from interlatent_live.interventions.values import Intervention, Kind, Plan
from interlatent_live.stream import Controller
from tests.support.control_kit import KEY, loaded

torch.set_num_threads(1)

HOOK = "mlp_extractor.policy_net.0"


@pytest.fixture(params=[1, 3])
def copies(request):
    return request.param


@pytest.fixture
def running(tmp_path, copies):
    env = make_vec_env("CartPole-v1", n_envs=copies, seed=0)
    model = PPO(
        "MlpPolicy",
        env,
        n_steps=8,
        batch_size=8,
        policy_kwargs={"net_arch": [8]},
        seed=0,
        device="cpu",
    )
    options = ControlOptions(
        endpoint=None, safe_action=1, transcoders={HOOK: loaded(model.policy, HOOK)},
        max_norm={HOOK: 1e3}, state=tmp_path, key=KEY,
    )  # fmt: skip
    with attach(
        model.policy, [HOOK], MetricSet.from_env(env), env=env, endpoint=None, strict=True,
        control=options,
    ) as tap:  # fmt: skip
        yield Running(model, TappedVecEnv(env, tap), tap)


class Running:
    def __init__(self, model, env, tap):
        self.model, self.env, self.tap = model, env, tap
        self.obs = env.reset()

    def decide(self, mode=Mode.RUNNING, plans=(), shadows=()):
        decision = Decision(1, mode, plans, shadows, NEVER, NEVER, NEVER)
        self.tap.control.published = Published.of(decision)

    def steps(self, count):
        """What the policy meant, [count, n]."""
        meant = []
        for _ in range(count):
            actions, _ = self.model.predict(self.obs, deterministic=True)
            meant.append(actions)
            self.obs, *_ = self.env.step(actions)
        return np.array(meant)


def test_a_hold_holds_every_copy_by_the_safe_action(running, copies):
    running.decide(Mode.HELD)
    meant = running.steps(20)
    batch = running.tap.take().steps
    assert set(batch.controller) == {Controller.HOLD}
    names = [spec.name for spec in running.tap.metrics.specs]
    assert (batch.metrics[:, names.index("action")] == 1).all(), "the rows show what was done"
    assert batch.metrics.shape[0] == 20 * copies
    assert meant.shape == (20, copies)
    # Pushed to the right all the time, every pole falls and every cart begins anew.
    assert len(set(zip(batch.env, batch.episode, strict=True))) > copies


def test_running_it_is_the_policys_action(running):
    meant = running.steps(10)
    batch = running.tap.take().steps
    names = [spec.name for spec in running.tap.metrics.specs]
    assert (batch.metrics[:, names.index("action")] == meant.reshape(-1)).all()
    assert set(batch.controller) == {Controller.POLICY}


def plan(running, value):
    steer = Intervention(3, Kind.STEER, value)
    identity = loaded(running.model.policy, HOOK).transcoder.identity
    return Plan(HOOK, identity, (steer,), 1e3)


def test_steered_predictions_say_so(running):
    before = running.model.policy.mlp_extractor.policy_net
    running.decide(plans=(plan(running, 5.0),))
    running.steps(10)
    assert set(running.tap.take().steps.controller) == {Controller.INTERVENTION}
    assert running.tap.control.faults == 0
    assert before is running.model.policy.mlp_extractor.policy_net


def test_a_dry_run_of_an_actor_critic_goes_on_to_the_action(running, copies, monkeypatch):
    monkeypatch.setattr(dry_run, "PER_SECOND", 10**9)
    running.decide(shadows=(("c", plan(running, 30.0)),))
    meant = running.steps(30)
    would = running.tap.control.dry_runs.by_command["c"]
    assert not would.unknown
    assert would.discrete
    assert would.looked == 29 * copies
    assert would.meant == (meant[-1][0],)
    assert would.otherwise > 0, "so large a push changes some actions"


def test_a_learning_model_is_refused_and_told_why():
    with pytest.raises(UserError, match="would learn from held or steered steps"):
        InterlatentCallback([HOOK], control=ControlOptions(endpoint=None))
