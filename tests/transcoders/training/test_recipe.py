from __future__ import annotations

import pytest

from interlatent_live.errors import UserError
from interlatent_live.transcoders.training.recipe import Recipe


def test_the_rate_rises_stays_and_falls():
    recipe = Recipe(steps=100, warmup=0.1, decay=0.5)
    factors = [recipe.schedule(step) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9:50] == [1.0] * 41
    assert factors[-1] == pytest.approx(1 / 50)
    assert factors[50:] == sorted(factors[50:], reverse=True)
    assert Recipe(steps=5, warmup=0.0, decay=0.0).schedule(3) == 1.0


def test_a_given_rate_beats_the_default():
    assert Recipe(learning_rate=0.5).rate() == 0.5
    assert 0 < Recipe().rate() < 0.5


@pytest.mark.parametrize(
    "bad",
    [
        {"steps": 0},
        {"batch": 0},
        {"dead_window": 0},
        {"warmup": 1.5},
        {"decay": -0.1},
        {"aux_weight": -1.0},
        {"head_weight": float("inf")},
        {"learning_rate": 0.0},
        {"bandwidth": 0.0},
    ],
)
def test_impossible_values_are_refused(bad):
    with pytest.raises(UserError, match=next(iter(bad))):
        Recipe(**bad)
