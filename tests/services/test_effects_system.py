"""Shadow interventions through every service: measured beside the agent, shown on its claims."""

from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import interlatent_live
from interlatent_live import attach
from interlatent_live.agent.shadow import ShadowOptions
from interlatent_live.console.secrets import load_token, request_key, state_folder
from interlatent_live.environments.metric_packs import StepMetrics, metric_pack_for
from interlatent_live.transcoders.acting import acting_policy
from tests.support.system import System

DATA = Path(interlatent_live.__file__).parent / "data"
HOOK = "hidden.1"
COPIES = 4


@pytest.fixture
def system():
    recording = DATA / "recordings" / "cartpole.mcap"
    with System(**{"explainer.calibration": str(recording)}) as running:
        yield running


def act(policy, tap, envs, measure, steps):
    obs, _ = envs.reset(seed=5)
    t = np.zeros(COPIES, np.int64)
    for _ in range(steps):
        with torch.no_grad():
            outputs = policy.module(torch.from_numpy(obs.copy()))
        actions = policy.actions(outputs)
        following, rewards, terminated, truncated, _ = envs.step(actions)
        tap.complete(measure.rows(obs, t, actions, rewards, outputs.numpy()), terminated, truncated)
        t = np.where(terminated | truncated, 0, t + 1)
        obs = following


def test_measured_effects_reach_the_claims(system):
    policy = acting_policy("cartpole")
    measure = StepMetrics(metric_pack_for("CartPole-v1"), policy.output_kind)
    envs = SyncVectorEnv(
        [lambda: gymnasium.make("CartPole-v1", max_episode_steps=60)] * COPIES,
        autoreset_mode=AutoresetMode.SAME_STEP,
    )
    settings = system.settings
    shadow = ShadowOptions(
        transcoders={HOOK: DATA / "transcoders" / "cartpole" / HOOK},
        sample_every=2,
        period_s=0.05,
        steps=12,
        nice=1,  # the lowest priority starves where many tests run
        explainer=settings.endpoints.explainer_requests,
        key=request_key(load_token(state_folder(settings))),
    )
    with attach(
        policy.module,
        [HOOK],
        metrics=measure.specs,
        endpoint=settings.endpoints.agents,
        env=envs,
        environment="CartPole-v1",
        actions=("push left", "push right"),
        shadow=shadow,
    ) as tap:
        run_id = tap.run_id
        act(policy, tap, envs, measure, 500)
        # Known to the explainer before the first effect is sent again.
        system.wait(lambda state: (run_id, HOOK) in state.claims or None)

        def shown(state):
            act(policy, tap, envs, measure, 20)
            document = state.claims.get((run_id, HOOK))
            found = [] if document is None else [c for c in document.claims if c["effects"]]
            return found or None

        # The process imports torch first, which takes its time where many tests run.
        claims = system.wait(shown, timeout_s=200.0)
        assert (tap.shadow.off, tap.shadow.faults) == ("", 0)
    for claim in claims:
        left, right = claim["effects"]
        assert (left["action"], right["action"]) == ("push left", "push right")
        # Two centred logits: what one gains the other loses.
        assert left["value"] == pytest.approx(-right["value"], abs=1e-5)
        assert left["lo"] <= left["value"] <= left["hi"]
        assert left["controls"] == 100
        assert set(left["percentiles"]) >= {"isotropic", "activation covariance", "constant bias"}
        assert left["episodes"] >= 3
        assert claim["effect_agrees"] is None, "the built-in writer expects no effect"
