from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlatent_live.explanations.sequential import (
    SLICE_STEPS,
    Events,
    Promise,
    detector,
    events_of,
    joined,
    promise_of,
    start_watch,
    update_watch,
)


def events(success, episode=None, start=0, steps=4.0):
    """Events one after another; four of each episode unless said otherwise."""
    success = np.asarray(success, bool)
    count = len(success)
    episode = np.arange(count) // 4 if episode is None else np.asarray(episode)
    unit = np.zeros((count, 4), np.int64)
    unit[:, 2] = episode + start
    return Events(start + np.arange(1, count + 1), success, np.full(count, float(steps)), unit)


def random_events(random, count, rate, *, episode_sd=0.0, start=0):
    """Success at ``rate``, moved by episode, so that events of an episode go together."""
    episodes = -(-count // 4)
    rates = np.clip(rate + random.normal(0, episode_sd, episodes), 0, 1).repeat(4)[:count]
    return events(random.random(count) < rates, start=start)


def delay(random, before, after):
    past = random_events(random, 400, before)
    watch = start_watch(past, past, 12_000, 400)
    later = random_events(random, 400, after, start=400)
    return watch.presences.after(later).alarm_after or 10**6


@pytest.mark.parametrize(("before", "after"), [(0.98, 0.3), (0.95, 0.1), (0.9, 0.05)])
def test_broken_claims_are_noticed_within_thirty_events(before, after):
    random = np.random.default_rng(1)
    delays = [delay(random, before, after) for _ in range(100)]
    assert np.mean(np.array(delays) <= 30) >= 0.9


@pytest.mark.parametrize("episode_sd", [0.0, 0.1, 0.2])
def test_intact_claims_stay_whether_or_not_events_of_an_episode_go_together(episode_sd):
    random = np.random.default_rng(2)
    false = 0
    for _ in range(100):
        past = random_events(random, 160, 0.85, episode_sd=episode_sd)
        watch = start_watch(past, past, 5000, 160, rate=1.0)
        later = random_events(random, 600, 0.85, episode_sd=episode_sd, start=160)
        false += update_watch(watch, later, later, 760).broken != ""
    assert false <= 5


def test_one_bad_episode_withdraws_nothing_and_three_do():
    past = events([True] * 200)
    watch = start_watch(past, past, 6000, 200)
    one = events([False] * 40, episode=np.zeros(40, int), start=200)
    assert not watch.presences.after(one).alarm
    three = events([False] * 40, episode=np.arange(40) % 3, start=200)
    assert watch.presences.after(three).alarm


def test_a_failure_after_failures_says_less_than_a_first_one():
    # Every third episode fails from start to end: failures come in rows.
    past = events(np.repeat(np.arange(60) % 3 > 0, 4))
    failure = promise_of(past).failure
    assert failure[0] < 0.6
    assert failure[-1] > 0.8


def test_an_alarm_latches_and_tells_when():
    state = detector(Promise((0.1,) * 15, 1.0), 0.03, 0.1)
    state = state.after(events([False] * 60))
    assert state.alarm
    assert state.alarm_ns == state.alarm_after
    assert state.after(events([True] * 10, start=100)) is state


def test_no_past_events_promise_little():
    nothing = events([])
    assert set(start_watch(nothing, nothing, 0, 0).presences.promise.failure) == {0.7}


@given(
    st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=150),
    st.integers(1, 60),
)
def test_events_are_the_rows_of_whole_slices(rows, length):
    inside, matches = (np.array(column, bool) for column in zip(*rows, strict=True))
    n = len(rows)
    unit, t = np.arange(n) // length, np.arange(n) % length
    key = np.zeros((unit[-1] + 1, 4), np.int64)
    key[:, 2] = np.arange(len(key))
    found = events_of(
        inside, matches, SimpleNamespace(unit=unit, t=t, time_ns=np.arange(n), unit_key=key)
    )
    expected = []
    for one in range(len(key)):
        for part in range(-(-length // SLICE_STEPS)):
            mine = np.flatnonzero((unit == one) & (t // SLICE_STEPS == part))
            # What the newest row lies in may still grow.
            if len(mine) == 0 or mine[-1] == n - 1 or not inside[mine].any():
                continue
            share = matches[mine][inside[mine]].mean()
            expected.append((mine[-1] + 1, share >= 0.5, inside[mine].sum(), one))
    got = zip(found.end_ns, found.success, found.steps, found.unit[:, 2], strict=True)
    assert [(int(a), bool(b), int(c), int(d)) for a, b, c, d in got] == [
        (int(a), bool(b), int(c), int(d)) for a, b, c, d in expected
    ]


def test_a_watch_feeds_on_new_events_only_and_each_once():
    good = events([True] * 100)
    watch = start_watch(good, good, 3000, since_ns=100)
    bad = events([False] * 40, start=100)
    both = joined(good, bad)
    watch = update_watch(watch, both, good, until_ns=105)
    assert (watch.presences.events, watch.firings.events) == (5, 0)
    watch = update_watch(watch, both, good, until_ns=140)
    assert watch.presences.alarm
    assert watch.alarm_ns == 100 + watch.presences.alarm_after
    assert "without the predicate" in watch.broken
    silent = update_watch(start_watch(good, good, 3000, 100), good, both, 140)
    assert "without the feature" in silent.broken


def test_joined_stretches_share_no_episode():
    both = joined(events([True] * 8), events([False] * 8))
    assert len(np.unique(both.unit, axis=0)) == 4
