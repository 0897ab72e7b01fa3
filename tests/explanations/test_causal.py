from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from interlatent_live.explanations.causal import (
    ActionTarget,
    EffectSamples,
    LayerTrace,
    ablate_strongest,
    attribute,
    measure_effect,
    rank_agreement,
)
from interlatent_live.explanations.causal.shadow import (
    Shadow,
    ShadowSteps,
    SharedRandomError,
    shadow_effect,
)

# ------------------------------------------------------------------------------- attribution


def layer(random, name, x, width, features, *, skip):
    """A hook point with a transcoder that reconstructs its y badly, so that errors matter."""
    d_in = len(x)
    W_enc = random.normal(size=(d_in, features))
    b_enc = random.normal(size=features) - 0.5
    pre = x @ W_enc + b_enc
    index = np.flatnonzero(pre > 0)
    y = np.tanh(x @ random.normal(size=(d_in, width)))
    return LayerTrace(
        hook_point=name,
        x=x,
        y=y,
        index=index,
        value=pre[index].astype(np.float32),
        W_enc=W_enc,
        b_enc=b_enc,
        W_dec=random.normal(size=(features, width)),
        b_dec=random.normal(size=width),
        W_skip=random.normal(size=(d_in, width)) if skip else None,
    )


def stack(seed, depth, *, skip=False, gap=False):
    random = np.random.default_rng(seed)
    layers = [layer(random, "hidden.0", random.normal(size=4), 7, 12, skip=skip)]
    for number in range(1, depth):
        x = layers[-1].y + (random.normal(size=7) if gap else 0)
        layers.append(layer(random, f"hidden.{number}", x, 7, 12, skip=skip))
    gradient = random.normal(size=7)
    value = float(gradient @ layers[-1].y) + float(random.normal())
    return layers, ActionTarget("right over left", value, gradient)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 4), st.booleans(), st.booleans())
def test_every_level_sums_to_the_value(seed, depth, skip, gap):
    layers, target = stack(seed, depth, skip=skip, gap=gap)
    found = attribute(layers, target)
    assert len(found.levels) == depth + 1
    assert np.abs(found.residuals()).max() < 1e-4
    assert 0 <= found.feature_share <= 1
    json.dumps(found.to_json(), allow_nan=False)


@pytest.mark.parametrize("skip", [False, True])
def test_what_flows_into_a_feature_is_what_it_passes_on(skip):
    layers, target = stack(3, 3, skip=skip)
    found = attribute(layers, target)
    for level, below in zip(found.levels, layers[:-1][::-1], strict=False):
        for node in level:
            if node.kind != "feature":
                continue
            arrives = sum(edge.weight for edge in found.edges if edge.target == node.name)
            top = next(t for t in layers if t.hook_point == node.name[8:].rpartition("/")[0])
            at = int(np.flatnonzero(top.index == int(node.name.rpartition("/")[2]))[0])
            passed = node.contribution * (1 - top.b_enc[top.index[at]] / top.value[at])
            assert arrives == pytest.approx(passed, rel=1e-4, abs=1e-5)
        assert below.hook_point.startswith("hidden")


def test_a_linear_network_is_explained_by_its_features_alone():
    random = np.random.default_rng(0)
    x = random.normal(size=5)
    W = random.normal(size=(5, 3))
    encoders = np.concatenate([np.eye(5), -np.eye(5)], axis=1)
    pre = x @ encoders
    index = np.flatnonzero(pre > 0)
    trace = LayerTrace(
        "hidden.0",
        x,
        x @ W,
        index,
        pre[index],
        encoders,
        np.zeros(10),
        np.concatenate([W, -W]),
        np.zeros(3),
    )
    gradient = np.array([1.0, -1.0, 0.0])
    found = attribute([trace], ActionTarget("a over b", float(gradient @ trace.y), gradient))
    assert found.feature_share == pytest.approx(1.0)
    assert "features carry 100%" in found.verdict

    def ablated(name):
        kept = index != int(name.rpartition("/")[2])
        return float(gradient @ (pre[index][kept] @ trace.W_dec[index][kept]))

    checks = ablate_strongest(found, ablated, 10)
    assert [one.measured for one in checks] == pytest.approx([one.contribution for one in checks])
    assert rank_agreement(checks) == pytest.approx(1.0)
    inputs = {n.name: n.contribution for n in found.levels[-1] if n.kind == "input"}
    np.testing.assert_allclose(list(inputs.values()), x * (W @ gradient), atol=1e-9)


def test_an_unexplained_decision_says_so():
    layers, target = stack(1, 1)
    blind = LayerTrace(
        **{
            **{f: getattr(layers[0], f) for f in layers[0].__dataclass_fields__},
            "index": np.zeros(0, int),
            "value": np.zeros(0),
        }
    )
    found = attribute([blind], target)
    assert found.feature_share == 0
    assert found.verdict.startswith("not explained by features")
    assert rank_agreement(ablate_strongest(found, lambda _: 0.0)) is None
    assert np.abs(found.residuals()).max() < 1e-9


def test_what_does_not_fit_is_refused():
    layers, target = stack(0, 2)
    with pytest.raises(ValueError, match="at least one hook point"):
        attribute([], target)
    with pytest.raises(ValueError, match="the gradient is"):
        attribute(layers, ActionTarget("x", 0.0, np.zeros(3)))
    with pytest.raises(ValueError, match="not neighbours"):
        attribute([layers[0], layers[0]], target)


# ----------------------------------------------------------------------------------- effects


def samples(random, effect, *, controls=120, n=300, episodes=20, scale=1.0):
    cluster = random.integers(0, episodes, n)
    wobble = random.normal(0, 0.2, episodes)[cluster]
    delta = effect + wobble + random.normal(0, 0.3, n)
    kinds = {
        kind: scale * random.normal(0, 0.3, (controls, 1)) + random.normal(0, 0.3, (controls, n))
        for kind in ("isotropic", "other features")
    }
    return EffectSamples(delta, cluster, kinds)


def test_a_strong_effect_stands_out_and_its_sign_is_judged():
    report = measure_effect(samples(np.random.default_rng(0), 2.0), expected_sign=1)
    assert report.effect.low > 1.5
    assert report.stands_out
    assert report.sign_agrees is True
    assert report.controls == 120
    against = measure_effect(samples(np.random.default_rng(0), -2.0), expected_sign=1)
    assert against.sign_agrees is False


def test_an_effect_like_any_push_does_not_stand_out():
    report = measure_effect(samples(np.random.default_rng(1), 0.3, scale=2.0))
    assert not report.stands_out
    assert report.percentile["isotropic"].value < 90
    assert report.sign_agrees is None


def test_few_controls_never_are_enough():
    report = measure_effect(samples(np.random.default_rng(0), 2.0, controls=20))
    assert report.controls == 20
    assert not report.stands_out


def test_one_episode_gives_no_interval():
    given_ = samples(np.random.default_rng(0), 2.0, episodes=1)
    report = measure_effect(given_)
    assert report.effect.low is None
    assert not report.stands_out


def test_intervals_are_clustered():
    random = np.random.default_rng(2)
    covered = 0
    for seed in range(60):
        found = measure_effect(samples(random, 1.0, controls=1), seed=seed, draws=200).effect
        covered += found.low <= 1.0 <= found.high
    assert covered >= 51


def test_no_samples_are_refused():
    with pytest.raises(ValueError, match="needs samples"):
        measure_effect(EffectSamples(np.zeros(0), np.zeros(0, int), {}))


# ------------------------------------------------------------------------------------ shadow


class Policy(nn.Module):
    """Two actions; unit 0 of the hidden layer pushes to action 1, and nothing else does."""

    def __init__(self):
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Dropout(0.5))
        self.head = nn.Linear(8, 2)
        with torch.no_grad():
            self.head.weight.mul_(0.05)
            self.head.weight[1, 0] = 2.0
            self.head.weight[0, 0] = -2.0

    def forward(self, observation):
        return self.head(self.hidden(observation))


@pytest.fixture
def shadow_case():
    torch.manual_seed(0)
    policy = Policy()
    random = np.random.default_rng(0)
    decoders = random.normal(size=(6, 8))
    decoders[0] = 0
    decoders[0, 0] = 1.0
    features = np.maximum(random.normal(size=(64, 6)), 0).astype(np.float32)
    steps = ShadowSteps(torch.randn(64, 3), features, np.repeat(np.arange(8), 8))
    return policy, decoders, steps


def test_the_direct_effect_is_what_the_head_says(shadow_case):
    policy, decoders, steps = shadow_case
    shadow = Shadow(policy, "hidden")
    found = shadow_effect(shadow, steps, decoders, 0, action=1, controls=110)
    on = steps.features[:, 0] > 0
    np.testing.assert_allclose(found.delta, 2.0 * steps.features[on, 0], rtol=1e-4, atol=1e-5)
    assert set(found.controls) == {
        "isotropic",
        "activation covariance",
        "other features",
        "same feature when off",
        "constant bias",
    }
    report = measure_effect(found, expected_sign=1)
    assert report.sign_agrees is True
    assert report.percentile["isotropic"].value >= 95


def test_the_acting_policy_notices_nothing(shadow_case):
    policy, decoders, steps = shadow_case
    policy.train()

    class Holder:
        """Stands in for a tap: must never be copied."""

        def __deepcopy__(self, memo):
            raise AssertionError("the shadow copied the tap")

        def __call__(self, *_):
            self.fired = True

    holder = Holder()
    policy.hidden.register_forward_hook(holder)
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    state = torch.get_rng_state()
    assert any(isinstance(module, nn.Dropout) for module in policy.modules())
    shadow = Shadow(policy, "hidden")
    shadow_effect(shadow, steps, decoders, 1, action=0, controls=5)
    assert torch.equal(torch.get_rng_state(), state)
    assert not hasattr(holder, "fired")
    assert policy.training
    assert all(torch.equal(before[name], value) for name, value in policy.state_dict().items())
    assert all(parameter.requires_grad for parameter in policy.parameters())


def test_a_feature_that_is_off_or_a_module_that_is_not_there_is_refused(shadow_case):
    policy, decoders, steps = shadow_case
    steps.features[:, 2] = 0
    with pytest.raises(ValueError, match="feature 2 is off"):
        shadow_effect(Shadow(policy, "hidden"), steps, decoders, 2, action=0)
    with pytest.raises(ValueError, match="no module 'body'"):
        Shadow(policy, "body")


class Drawing(nn.Module):
    """Draws its noise in the forward, as stochastic policies do."""

    def __init__(self, draw):
        super().__init__()
        self.hidden = nn.Linear(3, 8)
        self.head = nn.Linear(8, 2)
        self.draw = draw

    def forward(self, observation):
        out = self.head(self.hidden(observation))
        return out + self.draw(out)


@pytest.mark.parametrize(
    "draw",
    [
        torch.randn_like,
        lambda out: nn.functional.dropout(out, training=True),
        torch.rand_like,
        lambda out: torch.randn(out.shape),
        lambda out: torch.normal(torch.zeros_like(out), 1.0),
        lambda out: torch.multinomial(out.softmax(-1), 1).float(),
        lambda out: torch.distributions.Normal(out, 1.0).rsample(),
    ],
)
def test_draws_of_the_copy_leave_the_shared_generator_alone(draw):
    shadow = Shadow(Drawing(draw), "hidden")
    state = torch.get_rng_state()
    first, second = (shadow.outputs(torch.ones(4, 3)) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(first, second), "they are draws all the same"


def test_what_cannot_draw_on_its_own_is_refused():
    shadow = Shadow(Drawing(lambda out: torch.randint_like(out, 3)), "hidden")
    state = torch.get_rng_state()
    with pytest.raises(SharedRandomError, match="no generator of its own"):
        shadow.outputs(torch.ones(4, 3))
    assert torch.equal(torch.get_rng_state(), state)
