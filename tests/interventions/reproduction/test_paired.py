import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlatent_live.interventions.reproduction.paired import (
    Estimate,
    estimate,
    holm,
    over_policies,
    p_greater,
    paired,
)


def test_the_interval_covers_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(1000):
        item = estimate(rng.exponential(260, size=400))
        covered += item.low <= 260 <= item.high
    assert 925 <= covered <= 972


def test_common_luck_sharpens_a_difference():
    rng = np.random.default_rng(1)
    luck = rng.normal(260, 100, size=500)
    a, b = luck + 10 + rng.normal(0, 5, 500), luck + rng.normal(0, 5, 500)
    assert paired(a, b).mean == pytest.approx(10, abs=1.5)
    assert paired(a, b).standard_error < 0.1 * estimate(a).standard_error


def test_holm_on_a_worked_example():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_lies_between_p_and_bonferroni_and_keeps_the_order(ps):
    adjusted = holm(ps)
    for p, q in zip(ps, adjusted, strict=True):
        assert p <= q <= min(1.0, len(ps) * p) + 1e-12
    for a, b in zip(
        np.argsort(ps, kind="stable")[:-1], np.argsort(ps, kind="stable")[1:], strict=True
    ):
        assert adjusted[a] <= adjusted[b]


def test_one_sided_p():
    assert p_greater(Estimate(1.96, 0.0, 3.92, 100)) == pytest.approx(0.025, abs=1e-3)
    assert p_greater(Estimate(0.0, 0.0, 0.0, 10)) == 1.0
    assert p_greater(Estimate(1.0, 1.0, 1.0, 10)) == 0.0


def test_pooling_averages_and_narrows():
    one = Estimate(10.0, 8.0, 12.0, 100)
    pooled = over_policies([one, one, one, one])
    assert pooled.mean == 10.0
    assert pooled.high - pooled.low == pytest.approx(2.0)
    assert pooled.n == 400
