import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from interlatent_live.errors import UserError
from interlatent_live.interventions.deltas import apply, bounded, delta
from interlatent_live.interventions.values import FeatureCondition, Intervention, Kind, Plan

F, D, N = 5, 7, 11


def rows(seed=0):
    g = torch.Generator().manual_seed(seed)
    W_dec = torch.randn(F, D, generator=g)
    features = torch.relu(torch.randn(N, F, generator=g))
    return torch.randn(N, D, generator=g), W_dec, features


def plan(*interventions, max_norm=1e9):
    return Plan("hidden.0", "sha256:abc", tuple(interventions), max_norm)


kinds = st.sampled_from(list(Kind))
values = st.floats(0, 5, allow_nan=False)


@given(kinds, values, st.integers(0, F - 1), st.integers(0, 99))
def test_a_delta_is_the_change_of_the_reconstruction(kind, value, feature, seed):
    y, W_dec, features = rows(seed)
    item = Intervention(feature, kind, 0.0 if kind is Kind.ABLATE else value)
    after = features.clone()
    after[:, feature] = {
        Kind.STEER: features[:, feature] + value,
        Kind.CLAMP: torch.full((N,), value),
        Kind.SCALE: features[:, feature] * value,
        Kind.ABLATE: torch.zeros(N),
    }[kind]
    expected = y + after @ W_dec - features @ W_dec
    assert torch.allclose(apply(plan(item), y, W_dec, features), expected, atol=1e-4)


@given(st.integers(0, 99))
def test_what_changes_nothing_changes_no_bit(seed):
    y, W_dec, features = rows(seed)
    y[0] = -0.0
    for item in (
        Intervention(1, Kind.STEER, 0.0),
        Intervention(1, Kind.SCALE, 1.0),
        Intervention(1, Kind.STEER, 3.0, condition=FeatureCondition(2, threshold=1e9)),
        Intervention(1, Kind.STEER, 3.0, predicate="x > 1"),
    ):
        out = apply(
            plan(item), y, W_dec, features, holds={"x > 1": torch.zeros(N, dtype=torch.bool)}
        )
        assert torch.equal(out.view(torch.int32), y.view(torch.int32))
    assert apply(plan(), y, W_dec, None) is y


def test_rows_whose_condition_does_not_hold_are_untouched_and_the_others_are_not():
    y, W_dec, features = rows()
    holds = {"cart_position > 1": torch.arange(N) % 2 == 0}
    item = Intervention(
        3,
        Kind.STEER,
        2.0,
        condition=FeatureCondition(0, threshold=0.2, above=False),
        predicate="cart_position > 1",
    )
    out = apply(plan(item), y, W_dec, features, holds=holds)
    active = holds["cart_position > 1"] & (features[:, 0] <= 0.2)
    assert 0 < int(active.sum()) < N
    assert torch.equal(out[~active], y[~active])
    assert torch.allclose(out[active], y[active] + 2.0 * W_dec[3], atol=1e-5)


@given(st.floats(0.01, 10), st.integers(0, 99))
def test_the_bound_holds_for_the_sum_and_keeps_its_direction(limit, seed):
    y, W_dec, features = rows(seed)
    items = (Intervention(0, Kind.STEER, 2.0), Intervention(1, Kind.CLAMP, 4.0))
    free = delta(items, W_dec, features, n=N)
    out = apply(plan(*items, max_norm=limit), y, W_dec, features) - y
    norm = torch.linalg.vector_norm(out, dim=1)
    assert (norm <= limit * (1 + 1e-4) + 1e-5).all()
    cosine = torch.nn.functional.cosine_similarity(out.double(), free.double(), dim=1)
    assert (cosine > 0.999).all()


def test_a_delta_that_is_not_finite_leaves_the_policy_its_own_activation():
    broken = torch.tensor([[float("nan"), 1.0], [float("inf"), 0.0], [3e38, 3e38], [3.0, 4.0]])
    out = bounded(broken, 2.5)
    assert out[:3].abs().sum() == 0
    assert out[3].tolist() == [1.5, 2.0]


def test_two_settings_of_a_feature_are_refused_and_steering_adds_to_a_setting():
    with pytest.raises(UserError, match="two interventions set feature 2"):
        plan(Intervention(2, Kind.CLAMP, 1.0), Intervention(2, Kind.ABLATE))
    y, W_dec, features = rows()
    out = apply(
        plan(Intervention(2, Kind.CLAMP, 1.0), Intervention(2, Kind.STEER, 0.5)), y, W_dec, features
    )
    expected = y + (1.5 - features[:, 2])[:, None] * W_dec[2]
    assert torch.allclose(out, expected, atol=1e-5)


def test_steering_alone_needs_no_features():
    y, W_dec, _ = rows()
    steer = plan(Intervention(0, Kind.STEER, 1.0))
    assert not steer.needs_features
    assert torch.allclose(apply(steer, y, W_dec, None), y + W_dec[0])
    with pytest.raises(UserError, match="needs the features"):
        apply(plan(Intervention(0, Kind.ABLATE)), y, W_dec, None)


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"feature": -1, "kind": Kind.STEER}, "does not exist"),
        ({"feature": 0, "kind": Kind.STEER, "value": float("nan")}, "finite"),
        ({"feature": 0, "kind": Kind.CLAMP, "value": -1.0}, "never negative"),
        ({"feature": 0, "kind": Kind.ABLATE, "value": 1.0}, "takes no value"),
    ],
)
def test_impossible_interventions_are_refused(fields, match):
    with pytest.raises(UserError, match=match):
        Intervention(**fields)


def test_a_plan_needs_a_bound_an_evaluated_condition_and_the_trained_site():
    y, W_dec, features = rows()
    with pytest.raises(UserError, match="must be positive"):
        plan(max_norm=0.0)
    with pytest.raises(UserError, match="must be positive"):
        plan(max_norm=float("nan"))
    with pytest.raises(UserError, match="was not evaluated"):
        apply(plan(Intervention(0, Kind.STEER, 1.0, predicate="a > 1")), y, W_dec, features)
    with pytest.raises(UserError, match="does not exist: the transcoder has 5"):
        apply(plan(Intervention(9, Kind.STEER, 1.0)), y, W_dec, features)
    with pytest.raises(UserError, match="site its transcoder was trained at"):
        apply(plan(Intervention(0, Kind.STEER, 1.0)), torch.zeros(2, D + 1), W_dec, None)


def test_training_before_the_relu_and_steering_after_it_is_not_the_same_site():
    # y = relu(z). A decoder that reconstructs z perfectly reconstructs y badly: its ŷ has the
    # negative part of z that the ReLU removed, far more than y's variance.
    g = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 4, generator=g)
    z = x @ torch.randn(4, 64, generator=g) - 1.5
    y = torch.relu(z)

    def fvu(reconstruction):
        return float((y - reconstruction).square().sum() / (y - y.mean(0)).square().sum())

    ones = torch.ones(len(x), 1)
    inputs = torch.cat([x, ones], 1)
    before = inputs @ torch.linalg.lstsq(inputs, z).solution
    after = inputs @ torch.linalg.lstsq(inputs, y).solution
    assert fvu(after) < 0.5
    assert fvu(before) > 2.0
