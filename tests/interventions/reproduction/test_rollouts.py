import math
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from interlatent_live.interventions.reproduction.arms import (
    UNSTEERED,
    Arm,
    FeatureCondition,
    MetricCondition,
    bias_arms,
    random_arms,
    steering_arms,
)
from interlatent_live.interventions.reproduction.rollouts import Net, episodes, returns, trace
from interlatent_live.policies.mlp import MlpPolicy
from interlatent_live.policies.spec import Activation, Output, PolicySpec
from interlatent_live.transcoders.config import Architecture, TranscoderConfig
from interlatent_live.transcoders.transcoder import Transcoder


@pytest.fixture(scope="module")
def policy():
    """A hand-made policy that balances somewhat: it leans against angle and rate."""
    torch.manual_seed(0)
    made = MlpPolicy(PolicySpec((4, 12, 6, 2), Activation.RELU, Output.SOFTMAX))
    with torch.no_grad():
        weights = dict(made.named_parameters())
        first, second = weights["hidden.0.linear.weight"], weights["hidden.1.linear.weight"]
        first.mul_(0.3)
        second.mul_(0.3)
        first[0] = torch.tensor([0.0, 0.2, 6.0, 2.0])
        first[1] = torch.tensor([0.0, -0.2, -6.0, -2.0])
        second[0, 0] = 3.0
        second[1, 1] = 3.0
        made.head.weight[1, 0] = 2.0
        made.head.weight[0, 1] = 2.0
    return made.eval()


def transcoder(d_in, d_out, width, seed=0):
    g = torch.Generator().manual_seed(seed)
    config = TranscoderConfig(
        architecture=Architecture.RELU, d_in=d_in, d_out=d_out, n_features=width, l1=0.0
    )
    return Transcoder(
        config,
        W_enc=torch.randn(d_in, width, generator=g),
        b_enc=torch.zeros(width),
        W_dec=torch.randn(width, d_out, generator=g),
        b_dec=torch.zeros(d_out),
    )


def by_gymnasium(policy, arm, played, first_seed):
    """One arm, episode by episode, in Gymnasium's own environment."""
    lengths = []
    for index in range(len(played)):
        env: Any = gymnasium.make("CartPole-v1")
        obs, _ = env.reset(seed=first_seed + index)
        for t in range(500):
            position = float(env.unwrapped.state[0])
            gain = 1.0
            if isinstance(arm.condition, MetricCondition):
                gain = float(position > arm.condition.threshold)
            with torch.no_grad():
                h = torch.from_numpy(obs)[None]
                for layer, module in enumerate(policy.hidden):
                    h = module(h)
                    if arm.layer == layer:
                        h = h + gain * torch.from_numpy(arm.delta)
                logits = policy.head(h)[0].numpy()
            margin = logits[1] - logits[0] + np.float32(gain * arm.bias)
            u = float(played.uniforms[index, t])
            obs, _, terminated, truncated, _ = env.step(int(math.log(u / (1 - u)) < margin))
            if terminated or truncated:
                break
        lengths.append(t + 1)
    return lengths


def test_the_engine_plays_what_gymnasium_plays(policy):
    played = episodes(100, 3)
    rng = np.random.default_rng(0)
    arms = [
        UNSTEERED,
        Arm("a", 0, rng.normal(size=12).astype(np.float32)),
        Arm("b", 1, rng.normal(size=6).astype(np.float32) * 0.2),
        Arm("c", bias=0.3),
        Arm("d", bias=1.5, condition=MetricCondition("cart_position", 0.1)),
    ]
    together = returns(Net(policy), arms, played)
    for arm, row in zip(arms, together, strict=True):
        assert by_gymnasium(policy, arm, played, 100) == row.tolist(), arm.name
    assert together[0].mean() > 40


def test_rows_do_not_depend_on_what_else_is_in_the_batch(policy, monkeypatch):
    played = episodes(7, 40)
    arms = [UNSTEERED, *bias_arms((-1.0, -0.2, 0.4, 2.0))]
    together = returns(Net(policy), arms, played)
    for arm, row in zip(arms, together, strict=True):
        assert np.array_equal(returns(Net(policy), [arm], played)[0], row)
    # Fewer slots than rows: ended rows make room for the next ones.
    monkeypatch.setattr("interlatent_live.interventions.reproduction.rollouts.SLOTS", 7)
    assert np.array_equal(returns(Net(policy), arms, played), together)


def test_trace_and_returns_agree(policy):
    played = episodes(3, 15)
    seen = trace(Net(policy), played)
    assert seen.lengths.tolist() == returns(Net(policy), [UNSTEERED], played)[0].tolist()
    assert np.bincount(seen.episode).tolist() == seen.lengths.tolist()
    for index in range(15):
        assert np.array_equal(seen.t[seen.episode == index], np.arange(seen.lengths[index]))


def test_steering_the_last_hidden_layer_is_a_logit_bias(policy):
    played = episodes(11, 60)
    steered = steering_arms(1, [transcoder(12, 6, 4)], (-2.0, 1.0))
    weight = (policy.head.weight[1] - policy.head.weight[0]).detach().numpy()
    as_bias = [Arm(arm.name, bias=float(weight @ arm.delta)) for arm in steered]
    a, b = returns(Net(policy), steered, played), returns(Net(policy), as_bias, played)
    assert (a == b).mean() > 0.99  # but for the rounding of a sum in another order


def test_a_perfect_transcoder_changes_nothing_and_a_blind_one_does(policy):
    played = episodes(5, 30)
    weights = dict(policy.named_parameters())
    exact = Transcoder(
        TranscoderConfig(architecture=Architecture.RELU, d_in=12, d_out=6, n_features=6, l1=0.0),
        W_enc=weights["hidden.1.linear.weight"].detach().T.contiguous(),
        b_enc=weights["hidden.1.linear.bias"].detach().clone(),
        W_dec=torch.eye(6),
        b_dec=torch.zeros(6),
    )
    plain = returns(Net(policy), [UNSTEERED], played)
    spliced = returns(Net(policy, (None, exact)), [UNSTEERED], played)
    assert (plain == spliced).mean() > 0.95
    blind = transcoder(12, 6, 2)
    assert returns(Net(policy, (None, blind)), [UNSTEERED], played).mean() < plain.mean()


def test_two_sided_and_feature_conditions(policy):
    played = episodes(21, 30)
    widest = transcoder(4, 12, 8, seed=3)
    net = Net(policy, condition_features=widest)
    never = FeatureCondition(0, 1e9)
    always = FeatureCondition(0, -1.0)
    plain, off, on, biased = returns(
        net,
        [
            UNSTEERED,
            Arm("off", bias=1.0, condition=never),
            Arm("on", bias=1.0, condition=always),
            Arm("bias", bias=1.0),
        ],
        played,
    )
    assert np.array_equal(plain, off)
    assert np.array_equal(on, biased)
    metrics = np.zeros((3, 11))
    metrics[:, 0] = [-2.0, 0.1, 2.0]
    assert MetricCondition("cart_position", 1.0, two_sided=True).sign(metrics).tolist() == [
        -1,
        0,
        1,
    ]
    assert MetricCondition("cart_position", 1.0).sign(metrics).tolist() == [0, 0, 1]
    assert MetricCondition("cart_position", -1.0, above=False).sign(metrics).tolist() == [1, 0, 0]
    with pytest.raises(ValueError, match="needs the transcoder"):
        returns(Net(policy), [Arm("x", bias=1.0, condition=always)], played)


def test_random_arms_keep_norms_doses_and_number():
    steered = steering_arms(0, [transcoder(4, 12, 2), transcoder(4, 12, 4)], (-1.5, 0.5, 3.0))
    controls = random_arms(steered, np.random.default_rng(0))
    assert len(controls) == len(steered) == 18
    assert [c.norm for c in controls] == pytest.approx([s.norm for s in steered], rel=1e-5)
    assert max(abs(cosine(c, s)) for c, s in zip(controls, steered, strict=True)) < 0.95
    # The doses of one direction lie on one line, as a feature's do.
    assert cosine(controls[0], controls[1]) == pytest.approx(-1.0, abs=1e-5)


def cosine(a, b):
    return float(np.dot(a.delta, b.delta)) / (a.norm * b.norm)
