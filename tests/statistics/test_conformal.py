from __future__ import annotations

import numpy as np
import pytest

from interlatent_live.errors import UserError
from interlatent_live.statistics.conformal import ConformalAlarm, block_maxima, novelty


@pytest.mark.parametrize("level", [0.01, 0.1])
def test_alarm_rate_is_at_most_the_level(level):
    rng = np.random.default_rng(0)
    rates = []
    for _ in range(200):
        alarm = ConformalAlarm.calibrate(rng.exponential(size=299), level=level)
        verdicts = [alarm.update(x) for x in rng.exponential(size=100)]
        rates.append(np.mean([v.alarm for v in verdicts]))
    assert np.mean(rates) <= level * 1.15


def test_threshold_and_p_value_agree():
    alarm = ConformalAlarm.calibrate(np.arange(99.0), level=0.05)
    assert not alarm.update(alarm.threshold - 0.5).alarm
    assert alarm.update(alarm.threshold + 0.5).alarm
    assert alarm.update(1000.0).p == pytest.approx(0.01)
    assert alarm.update(None).p is None
    assert alarm.update(float("nan")).alarm is False
    assert alarm.units == 3


def test_adaptive_level_keeps_the_rate_under_drift():
    rng = np.random.default_rng(1)
    calibration = rng.normal(size=400)
    fixed = ConformalAlarm.calibrate(calibration, level=0.05)
    adaptive = ConformalAlarm.calibrate(calibration, level=0.05, adapt=0.01)
    for i in range(6000):
        score = rng.normal() + i / 3000
        fixed.update(score)
        adaptive.update(score)
    assert fixed.alarms / fixed.units > 0.2
    assert adaptive.alarms / adaptive.units == pytest.approx(0.05, abs=0.02)


def test_too_few_calibration_units_are_refused():
    with pytest.raises(UserError, match="at least 99"):
        ConformalAlarm.calibrate(np.arange(50.0), level=0.01)


def test_block_maxima_ignore_what_is_unknown():
    scores = np.array([1.0, np.nan, 3.0, 2.0, np.nan])
    got = block_maxima(scores, np.array([0, 0, 1, 1, 2]))
    np.testing.assert_array_equal(got, [1.0, 3.0, np.nan])


def test_novelty_is_about_one_for_rows_like_the_calibration():
    rng = np.random.default_rng(2)
    mean, spread = np.array([1.0, 5.0, 0.0]), np.array([1.0, 2.0, 0.0])
    rows = np.column_stack([rng.normal(1, 1, 1000), rng.normal(5, 2, 1000), np.zeros(1000)])
    usual = novelty(rows, mean, spread)
    assert 0.5 < usual.mean() < 1.1
    rows[:, 2] = 1.0
    assert (novelty(rows, mean, spread) > 5).all()
