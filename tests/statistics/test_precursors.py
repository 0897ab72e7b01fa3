from __future__ import annotations

import numpy as np
import pytest

from interlatent_live.errors import UserError
from interlatent_live.statistics.precursors import (
    Episodes,
    choose_threshold,
    compare,
    judge,
    onsets,
)
from tests.statistics.streams import known


def episodes(count=40, length=200, lead=12, seed=0):
    rng = np.random.default_rng(seed)
    part = np.repeat(np.arange(count), length)
    t = np.tile(np.arange(length), count).astype(np.uint32)
    fails = np.arange(count) % 2 == 0
    event = (t == length - 1) & fails[part]
    left = length - 1 - t.astype(int)
    good = rng.normal(size=len(part)) * 0.2 + ((left <= lead) & fails[part]) * 2.0
    noise = rng.normal(size=len(part))
    return Episodes(part, t, event, step_s=0.02), good, noise


def test_a_precursor_is_found_with_its_lead():
    rows, good, _ = episodes()
    report = judge("good", good, rows, threshold=1.0, horizon=50)
    assert report.recall == 1.0
    assert known(report.precision) > 0.95
    assert report.median_lead_s == pytest.approx(12 * 0.02, abs=0.021)
    assert known(report.p_event_after) > 0.95
    assert report.p_fires_before == pytest.approx(12 / 50, abs=0.02)
    assert report.base_rate == pytest.approx(0.5 * 50 / 200, abs=0.01)


def test_thresholds_keep_the_false_alarm_limit():
    rows, _, noise = episodes()
    threshold = choose_threshold(noise, rows, horizon=20, false_alarms_per_hour=6.0)
    if threshold is not None:
        report = judge("noise", noise, rows, threshold=threshold, horizon=20)
        assert report.false_alarms_per_hour <= 6.0


def test_comparison_ranks_the_real_precursor_first_with_either_sign():
    rows, good, noise = episodes()
    reports = compare({"noise": noise, "inverted": -good}, rows, horizon=50)
    assert reports[0].name == "inverted"
    assert reports[0].sign == -1
    assert reports[0].recall == 1.0
    assert reports[0].episodes == 20


def test_onsets_respect_episodes_and_the_refractory_time():
    rows = Episodes(
        np.repeat([0, 1], 5), np.tile(np.arange(5, dtype=np.uint32), 2), np.zeros(10, bool), 1.0
    )
    above = np.array([0, 1, 0, 1, 1, 1, 1, 0, 0, 1], bool)
    assert onsets(above, rows, 0).tolist() == [1, 3, 5, 9]
    assert onsets(above, rows, 2).tolist() == [1, 5, 9]


def test_refusals_and_undefined():
    rows, good, _ = episodes(count=3)
    with pytest.raises(UserError, match="at least 4"):
        compare({"good": good}, rows)
    with pytest.raises(UserError, match="do not fit"):
        judge("x", good[:10], rows, threshold=0.0)
    quiet = judge("x", good, rows, threshold=99.0)
    assert quiet.precision is None
    assert quiet.median_lead_s is None
