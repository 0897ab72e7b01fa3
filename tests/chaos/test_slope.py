from __future__ import annotations

import numpy as np
import pytest

from interlatent_live.bench.chaos.slope import slope

SECONDS = np.arange(600.0)


def test_a_line_has_its_slope():
    found = slope(SECONDS, 5.0 + 0.25 * SECONDS)
    assert found.value == pytest.approx(0.25)
    assert found.low == pytest.approx(0.25)
    assert found.high == pytest.approx(0.25)
    assert found.blocks == 39


def test_a_few_bursts_do_not_bend_it():
    values = np.full(600, 100.0)
    values[570:590] += 1e6
    values[30:40] -= 1e6
    found = slope(SECONDS, values)
    assert (found.low, found.value, found.high) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("growth", [0.0, 0.02])
def test_the_interval_holds_the_truth_about_as_often_as_it_says(growth):
    random = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        found = slope(SECONDS, growth * SECONDS + random.normal(size=600))
        held += found.low <= growth <= found.high
    assert held >= 180


def test_a_leak_of_one_descriptor_a_minute_is_seen():
    assert slope(SECONDS, np.floor(SECONDS / 60)).low > 0


def test_too_few_blocks_are_refused():
    with pytest.raises(ValueError, match="3 blocks of 15 s are too few"):
        slope(SECONDS[:60], SECONDS[:60])
    with pytest.raises(ValueError, match="too few"):
        slope(np.zeros(0), np.zeros(0))


def test_what_comes_and_goes_within_a_block_is_no_growth_of_its_least() -> None:
    seconds = np.arange(600.0)
    copies = 5e7 * (seconds % 60 < 20) * (1 + seconds / 600)
    steady = slope(seconds, 1e8 + copies, block_s=60.0, of_block=np.min)
    assert (steady.low, steady.high) == (0.0, 0.0)
    leaking = slope(seconds, 1e8 + copies + 1e4 * seconds, block_s=60.0, of_block=np.min)
    assert leaking.low > 9e3
