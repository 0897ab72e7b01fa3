"""Two branches from one moment: the one without repeats the original, the other shows the rest."""

import json
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from interlatent_live import data
from interlatent_live.cli.main import app
from interlatent_live.errors import UserError
from interlatent_live.interventions.branches.branching import branch
from interlatent_live.interventions.branches.plot import most_different
from interlatent_live.interventions.values import FeatureCondition, Intervention, Kind, Plan
from interlatent_live.transcoders.acting import acting_policy
from interlatent_live.transcoders.native import load_transcoder

FOLDER = Path(data.__file__).parent / "transcoders" / "cartpole" / "hidden.1"


@pytest.fixture(scope="module")
def policy():
    return acting_policy("cartpole")


@pytest.fixture(scope="module")
def transcoder():
    return load_transcoder(FOLDER).transcoder


@pytest.fixture
def env():
    made = gymnasium.make("CartPole-v1", disable_env_checker=True)
    yield made
    made.close()


def plan(transcoder, *items):
    return Plan("hidden.1", transcoder.identity, items, 1e3)


def strongest(transcoder):
    return int(transcoder.W_dec.norm(dim=1).argmax())


def test_without_anything_in_force_both_are_the_original(env, policy, transcoder):
    never = Intervention(0, Kind.STEER, 5.0, FeatureCondition(0, threshold=1e9))
    made = branch(env, policy, transcoder, plan(transcoder, never), seed=4, at=20, steps=50)
    assert made.first_other_action is None
    assert made.intervened.same(made.without)


def test_the_intervention_is_what_differs(env, policy, transcoder):
    steer = Intervention(strongest(transcoder), Kind.STEER, 40.0)
    made = branch(env, policy, transcoder, plan(transcoder, steer), seed=4, at=20, steps=100)
    first = made.first_other_action
    assert first is not None
    np.testing.assert_array_equal(made.without.obs[: first + 1], made.intervened.obs[: first + 1])
    assert not np.array_equal(made.without.obs[first + 1], made.intervened.obs[first + 1])
    # The agent's own future is what an episode that nobody branched shows.
    obs, _ = env.reset(seed=4)
    seen = []
    for _ in range(120):
        seen.append(np.asarray(obs, np.float64))
        obs, *_ = env.step(policy.act(obs[None])[0])
    np.testing.assert_array_equal(made.without.obs[:100], np.stack(seen[20:120]))


def test_it_lasts_as_long_as_it_was_to(env, policy, transcoder):
    steer = plan(transcoder, Intervention(strongest(transcoder), Kind.STEER, 40.0))
    brief = branch(env, policy, transcoder, steer, seed=4, at=20, steps=60, lasts=3)
    twin = acting_policy("cartpole")
    for step in range(3, len(brief.intervened.actions)):
        own = twin.act(brief.intervened.obs[step][None].astype(np.float32))[0]
        assert brief.intervened.actions[step] == own
    assert not policy.module.get_submodule("hidden.1")._forward_hooks


def test_a_clone_that_does_not_repeat_is_refused(env, policy, transcoder):
    class Noisy(gymnasium.Wrapper):
        random = np.random.default_rng(0)

        def step(self, action):
            obs, *rest = self.env.step(action)
            return (obs + Noisy.random.normal(size=obs.shape).astype(np.float32) * 1e-6, *rest)

    ablate = plan(transcoder, Intervention(0, Kind.ABLATE))
    with pytest.raises(UserError, match="does not repeat its own future"):
        branch(Noisy(env), policy, transcoder, ablate, seed=4, at=5, steps=10)


def test_what_cannot_be_is_said(env, policy, transcoder):
    push = Intervention(strongest(transcoder), Kind.STEER, 1.0, predicate="cart_position > 0")
    with pytest.raises(UserError, match="no conditions on metrics"):
        branch(env, policy, transcoder, plan(transcoder, push), seed=0, at=1, steps=1)
    late = plan(transcoder, Intervention(0, Kind.ABLATE))
    with pytest.raises(UserError, match="is over after"):
        branch(env, policy, transcoder, late, seed=0, at=5000, steps=1)


def test_the_metrics_that_differ_most_are_drawn():
    without = np.zeros((10, 6))
    other = without.copy()
    other[5:, [1, 4]] = 3.0
    assert {1, 4} <= set(most_different(without, other))


def test_the_command_writes_result_and_plot(tmp_path, transcoder):
    pytest.importorskip("matplotlib")
    torch.set_num_threads(1)
    out = tmp_path / "b.json"
    words = [
        "branch", "cartpole", "-t", str(FOLDER), "-f", str(strongest(transcoder)), "--steer", "40",
        "--seed", "4", "--at", "20", "--steps", "30", "--out", str(out),
    ]  # fmt: skip
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "the first other action comes" in done.output
    said = json.loads(out.read_text())
    assert said["repeats_to_the_bit"]
    assert set(said["branches"]) == {"without", "with"}
    assert len(said["branches"]["without"]["rewards"]) == said["branches"]["without"]["steps"]
    assert out.with_suffix(".svg").read_bytes().startswith(b"<?xml")
    with pytest.raises(UserError, match="say what to do"):
        CliRunner().invoke(app, [*words, "--ablate"], catch_exceptions=False)
