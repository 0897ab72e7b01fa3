from __future__ import annotations

import numpy as np
import pytest

from interlatent_live.bench.chaos.steptime import BLOCK, summarise


def blocks(seed, shift=0.0):
    return 100.0 + shift + np.random.default_rng(seed).gamma(2.0, 2.0, size=(200, BLOCK))


def test_what_is_added_lies_below_its_upper_bound_and_the_floor_is_that_of_the_idle_taps():
    found = summarise(blocks(0, shift=20.0), blocks(1), blocks(2))
    assert found.ratio == pytest.approx(1.19, abs=0.03)
    assert 20.0 - 0.5 < found.added_median_upper_us < 21.0
    assert 19.0 < found.added_p99_upper_us < 23.0
    assert -0.5 < found.floor_median_upper_us < 1.0
    assert -1.0 < found.floor_p99_upper_us < 3.0


def test_a_machine_that_interrupts_now_and_then_has_a_floor_of_its_own():
    idle, again = blocks(1), blocks(2)
    for number, one in enumerate((idle, again)):
        interrupted = np.random.default_rng(number).random(one.shape) < 0.01
        one[interrupted] += np.random.default_rng(9).exponential(3000.0, interrupted.sum())
    assert summarise(blocks(0), idle, again).floor_p99_upper_us > 50.0


def test_blocks_that_do_not_belong_together_are_refused():
    with pytest.raises(ValueError, match="are no rounds"):
        summarise(blocks(0), blocks(1)[:10], blocks(2))
    nothing = np.zeros((0, BLOCK))
    with pytest.raises(ValueError, match="are no rounds"):
        summarise(nothing, nothing, nothing)
