"""From arms to verdicts: units, places among controls, and what does not pass."""

import numpy as np
import pytest

from interlatent_live.interventions.experiment.analysis import (
    BAR,
    Difference,
    Place,
    by_unit,
    judge,
    lower_bound,
    paired,
    place,
)

rng = np.random.default_rng(0)


def test_units_are_averaged_before_anything_is_counted():
    values = np.array([1.0, 3.0, 10.0, 20.0])
    units = np.array([0, 0, 1, 1])
    assert by_unit(values, units).tolist() == [2.0, 15.0]
    found = paired(values, np.zeros(4), units)
    assert (found.mean, found.units) == (8.5, 2)


def test_branches_of_one_state_do_not_count_as_independent():
    # Ten states whose effects differ; twenty branches of each that say the same again.
    effects = rng.normal(0.0, 1.0, 10)
    values = np.repeat(effects, 20)
    clustered = paired(values, np.zeros(200), np.repeat(np.arange(10), 20))
    naive = paired(values, np.zeros(200), np.arange(200))
    assert clustered.high - clustered.low > 4 * (naive.high - naive.low)


def test_an_interval_covers_as_often_as_it_says():
    hits = 0
    for _ in range(400):
        a, b = rng.normal(0.5, 2.0, 40), rng.normal(0.0, 2.0, 40)
        found = paired(a, b, np.arange(40))
        hits += found.low <= 0.5 <= found.high
    assert 0.92 <= hits / 400 <= 0.98


def test_p_is_of_the_predicted_direction():
    a, b, units = rng.normal(1.0, 1.0, 100), rng.normal(0.0, 1.0, 100), np.arange(100)
    assert paired(a, b, units, 1).p < 0.001
    assert paired(a, b, units, -1).p > 0.999
    same = paired(a, a, units, 1)
    assert (same.mean, same.p) == (0.0, 1.0)
    assert lower_bound(b, a, units, -1) > 0 > lower_bound(b, a, units, 1)


@pytest.mark.parametrize("direction", [1, -1])
def test_the_place_among_controls_is_in_the_predicted_direction(direction):
    untouched = rng.normal(0.0, 1.0, 50)
    controls = untouched + direction * np.linspace(-1, 1, 101)[:, None]
    found = place(
        untouched + direction * 0.91,
        controls,
        untouched,
        np.arange(50),
        direction=direction,
        seed=1,
    )
    assert found.share == pytest.approx(96 / 101)
    assert found.controls == 101
    assert found.low <= found.share <= found.high
    assert found.bar == pytest.approx(direction * 0.9)
    assert found.effect == pytest.approx(direction * 0.91)


def test_a_random_treatment_is_rarely_above_the_bar():
    passed = 0
    for draw in range(200):
        untouched = rng.normal(0.0, 1.0, 30)
        pushes = rng.normal(0.0, 0.3, (101, 1)) + rng.normal(0.0, 0.1, (101, 30))
        found = place(
            untouched + pushes[0], untouched + pushes[1:], untouched, np.arange(30), direction=1,
            seed=draw,
        )  # fmt: skip
        passed += found.share >= BAR
    assert passed / 200 <= 0.09


def difference(p):
    return Difference(1.0, 0.5, 1.5, p, 100)


def where(share):
    return Place(share, share, share, 102, 0.5, 1.0)


def test_all_three_are_needed_and_holm_runs_over_everything():
    good = judge([difference(0.001)], [difference(0.01)], [where(0.99)])[0]
    assert good.supported
    assert not good.reasons
    low = judge([difference(0.001)], [difference(0.01)], [where(0.9)])[0]
    assert low.reasons == ("not above the 95th percentile of the controls",)
    biased = judge([difference(0.001)], [difference(0.2)], [where(0.99)])[0]
    assert biased.reasons == ("not better than the best constant bias",)
    # Alone .03 would pass; among four tests it does not.
    two = judge([difference(0.03)] * 2, [difference(0.03)] * 2, [where(0.99)] * 2)
    assert [len(one.reasons) for one in two] == [2, 2]
    assert two[0].p_untouched == pytest.approx(0.12)
