"""Alarms on made-up episodes whose failures, leads and false alarms are known."""

import numpy as np
import pytest

from interlatent_live.zoo.precursors import (
    alarm_report,
    announced,
    compare_alarms,
    course_of,
    dense_columns,
    near_misses,
    threshold_of,
)

STEP = 0.1
LONG = 600
"""Steps of an episode: one minute."""


def rows(failed, length=LONG):
    """Episodes of one length, those in ``failed`` ended by a failure."""
    episode = np.repeat(np.arange(len(failed)), length)
    t = np.tile(np.arange(length), len(failed))
    terminated = (t == length - 1) & np.array(failed)[episode]
    return course_of(episode, t, terminated, STEP)


def test_seconds_to_the_failure_are_counted_within_the_episode():
    course = rows([True, False], length=5)
    assert course.to_failure_s[:5] == pytest.approx([0.5, 0.4, 0.3, 0.2, 0.1])
    assert np.isinf(course.to_failure_s[5:]).all()
    assert course.failed.tolist() == [True, False]
    part, mask = course.take(np.array([False, True]))
    assert mask.tolist() == [False] * 5 + [True] * 5
    assert part.episode.tolist() == [0] * 5
    assert part.failed.tolist() == [False]


def test_the_threshold_allows_one_false_alarm_in_ten_minutes():
    course = rows([False] * 20)  # twenty minutes
    score = np.zeros(len(course.episode))
    score[[100, 700, 1900, 3000]] = [4.0, 3.0, 2.0, 1.0]
    threshold = threshold_of(course, score)
    assert threshold == 2.0  # two blocks pass it
    report = alarm_report(
        course, score, threshold, horizon_s=1.0, near_miss=np.zeros(len(score), bool)
    )
    assert report["false_alarms_per_10_min"] == pytest.approx(1.0)
    assert report["failures"] == 0
    assert report["recall"] is None


def test_what_happens_before_a_failure_sets_no_threshold_and_gives_a_lead():
    course = rows([True] * 12)
    score = np.where(course.to_failure_s <= 0.95, 5.0, 0.0)
    threshold = threshold_of(course, score)
    assert threshold == 0.0
    report = alarm_report(
        course, score, threshold, horizon_s=1.0, near_miss=np.zeros(len(score), bool)
    )
    assert report["announced"] == report["failures"] == 12
    assert report["median_lead_s"] == pytest.approx(0.9)
    assert report["false_alarms_per_10_min"] == 0
    assert report["failure_given_alarm"] == 1.0
    late = np.where(course.to_failure_s > 2, 0.0, np.where(course.to_failure_s > 1, 5.0, 0.0))
    assert not announced(course, late, 1.0, 1.0).any()


def test_near_misses_are_peaks_that_end_well():
    course = rows([False, True])
    danger = np.zeros(len(course.episode))
    danger[[200, 205, 400]] = [3.0, 2.5, 2.0]
    danger[LONG + 599] = 9.0  # in the failure itself
    peaks = np.flatnonzero(near_misses(course, danger))
    assert peaks.tolist() == [200, 400]
    alarmed = danger > 2.2
    report = alarm_report(
        course, alarmed, 0.5, horizon_s=1.0, near_miss=near_misses(course, danger)
    )
    assert report["near_misses"] == 2
    assert report["near_misses_alarmed"] == 0.5


def test_a_good_score_is_found_among_bad_ones_and_beats_them_on_other_episodes():
    rng = np.random.default_rng(1)
    course = rows([True, False] * 30)
    soon = course.to_failure_s <= 1.0
    good = soon * 3.0 + rng.normal(size=len(soon)) * 0.2
    noise = rng.normal(size=(len(soon), 5))
    scores = {
        "feature": {"2": good, **dense_columns(noise, ["a", "b"], signed=True)},
        "metric": dense_columns(noise, ["c", "d", "e"], signed=True),
    }
    probes = {"input": np.concatenate([noise, good[:, None]], axis=1), "nothing": noise}
    found = compare_alarms(course, scores, probes, good, horizon_s=1.0)
    alarms = {one["kind"] + " " + one["name"]: one for one in found["alarms"]}
    best = alarms["feature 2"]
    assert best["recall"]["value"] == 1.0
    assert best["false_alarms_per_10_min"] < 3
    assert alarms["probe input"]["recall"]["value"] > 0.9
    assert alarms["probe nothing"]["recall"]["value"] < 0.4
    (metric,) = (one for one in found["alarms"] if one["kind"] == "metric")
    assert metric["recall"]["value"] < 0.4
    assert found["failures"] == 30
    assert found["chosen_on"] == 30
