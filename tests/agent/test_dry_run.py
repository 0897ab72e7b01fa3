"""A dry run says what the action would have been, and the agent does not notice."""

import numpy as np
import pytest
import torch
from torch import nn

from interlatent_live.agent import dry_run as module
from interlatent_live.agent.attach import attach
from interlatent_live.agent.control import ControlOptions, Published
from interlatent_live.agent.dry_run import WouldHave
from interlatent_live.control.machine import NEVER, Decision, Mode
from interlatent_live.interventions.values import Intervention, Kind, Plan
from tests.support.control_kit import HOOK, KEY, METRICS, Loop, TwoLayers, controlled, loaded

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def every_step(monkeypatch):
    monkeypatch.setattr(module, "PER_SECOND", 10**9)


def dry(tap, hook=HOOK, value=2.0, feature=3, command_id="c"):
    plan = Plan(hook, "t", (Intervention(feature, Kind.STEER, value),), 1e6)
    decision = Decision(1, Mode.RUNNING, (), ((command_id, plan),), NEVER, NEVER, NEVER)
    tap.control.published = Published.of(decision)


def test_the_action_that_would_have_been(tmp_path):
    policy, twin = TwoLayers(), TwoLayers()
    with controlled(policy, tmp_path) as tap:
        loop = Loop(policy, tap)
        dry(tap)
        for _ in range(5):
            meant, _ = loop.step()
        would = tap.control.dry_runs.by_command["c"]
        with torch.no_grad():
            x = torch.from_numpy(loop.obs)
            W_dec = loaded(policy).transcoder.W_dec
            changed = twin.second(torch.tanh(twin.first(x) + 2.0 * W_dec[3])).numpy()
            assert (meant == twin(x).numpy()).all()
    # The first forward under it is not looked at: only then is it known what is called.
    assert (would.looked, would.otherwise) == (4, 4)
    np.testing.assert_allclose(would.meant, meant[0], atol=1e-6)
    np.testing.assert_allclose(would.would, changed[0], atol=1e-5)
    assert "would have acted otherwise in 4 of 4" in str(would)


def test_a_feature_that_moves_nothing_changes_no_action(tmp_path):
    policy = TwoLayers()
    with controlled(policy, tmp_path) as tap:
        loop = Loop(policy, tap)
        dry(tap, value=0.0)
        for _ in range(4):
            loop.step()
        would = tap.control.dry_runs.by_command["c"]
    assert (would.looked, would.otherwise, would.largest) == (3, 0, 0.0)


class Sampling(nn.Module):
    """Draws from the generator of the process, and counts in a buffer."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(2, 4)
        self.norm = nn.BatchNorm1d(4)
        self.second = nn.Linear(4, 2)

    def forward(self, obs):
        out = self.second(self.norm(self.first(obs)))
        return out + torch.randn_like(out)


def actions(folder, *, watched):
    policy = Sampling()
    with controlled(policy, folder, env_count=3) as tap:
        loop = Loop(policy, tap, 3)
        torch.manual_seed(7)
        if watched:
            dry(tap)
        out = [loop.step()[0] for _ in range(20)]
        if watched:
            assert tap.control.dry_runs.by_command["c"].looked == 3 * 19
    return np.array(out)


def test_a_seeded_agent_acts_the_same_to_the_bit(tmp_path):
    without = actions(tmp_path / "without", watched=False)
    assert (actions(tmp_path / "with", watched=True) == without).all()


def test_it_looks_at_a_bounded_share_of_steps(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PER_SECOND", 1)
    policy = TwoLayers()
    with controlled(policy, tmp_path) as tap:
        loop = Loop(policy, tap)
        dry(tap)
        for _ in range(50):
            loop.step()
        assert tap.control.dry_runs.by_command["c"].looked == 1


def test_nothing_is_hooked_or_copied_before_the_first_dry_run(tmp_path):
    policy = TwoLayers()
    with controlled(policy, tmp_path) as tap:
        loop = Loop(policy, tap)
        loop.step()
        assert not policy._forward_pre_hooks
        dry(tap)
        loop.step()
        assert policy._forward_pre_hooks
    assert not policy._forward_pre_hooks


class PartsOnly(nn.Module):
    """Never called itself, as CleanRL's agents are not: only its parts are."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.actor = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 3))
        self.critic = nn.Linear(2, 1)

    def act(self, obs):
        self.critic(obs)
        return self.actor(obs)


def test_the_outermost_part_that_was_called_counts_and_scores_become_actions(tmp_path):
    policy = PartsOnly()
    options = ControlOptions(
        endpoint=None, safe_action=0, transcoders={"actor.0": loaded(policy, "actor.0")},
        max_norm={"actor.0": 100.0}, state=tmp_path, key=KEY,
    )  # fmt: skip
    with attach(
        policy, ["actor.0"], METRICS, endpoint=None, env_count=1, autoreset="disabled",
        control=options, strict=True, actions=["left", "stay", "right"],
    ) as tap:  # fmt: skip
        loop = Loop(policy, tap)
        loop.forward = policy.act
        dry(tap, "actor.0", value=-4.0)
        for _ in range(30):
            loop.step()
        would = tap.control.dry_runs.by_command["c"]
    assert would.discrete
    assert would.looked == 29
    assert 0 < would.otherwise <= 29
    assert {*would.meant, *would.would} <= {0.0, 1.0, 2.0}
    assert " by up to " not in str(would)


def test_a_policy_that_cannot_be_run_again_says_so(tmp_path, monkeypatch):
    policy = TwoLayers()
    with controlled(policy, tmp_path) as tap:
        loop = Loop(policy, tap)
        dry(tap)
        loop.step()
        monkeypatch.setattr(policy, "forward", lambda obs: {"mean": TwoLayers.forward(policy, obs)})
        loop.forward = lambda obs: policy(obs)["mean"]
        meant, taken = loop.step()
        assert taken is meant
        would = tap.control.dry_runs.by_command["c"]
    assert "is not known: TypeError" in str(would)
    assert str(WouldHave()) == "no step was looked at yet"
