from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlatent_live.explanations.sequential import (
    Events,
    detector,
    runs,
    start_watch,
    update_watch,
)


def events(success, start=0):
    success = np.asarray(success, bool)
    return Events(start + np.arange(1, len(success) + 1), success)


def delay(random, promised, after, rate=0.1, per_step=0.03):
    state = detector(promised, per_step, rate)
    for count in range(1, 400):
        state = state.after(bool(random.random() < after))
        if state.alarm:
            return count
    return 400


@pytest.mark.parametrize(
    ("promised", "after"), [(0.95, 0.3), (0.9, 0.1), (0.7, 0.05), (0.55, 0.02)]
)
def test_broken_claims_are_noticed_within_thirty_events(promised, after):
    random = np.random.default_rng(1)
    delays = [delay(random, promised, after) for _ in range(200)]
    assert np.mean(np.array(delays) <= 30) >= 0.9


def test_intact_claims_last_the_stated_time():
    """At 1 false withdrawal per 10⁶ steps, 200 claims of 20,000 steps lose at most 5 %."""
    random = np.random.default_rng(2)
    false = 0
    for _ in range(200):
        state = detector(0.9, 0.03, 1.0)
        for _ in range(600):
            state = state.after(bool(random.random() < 0.92))
        false += state.alarm
    assert false <= 10


def test_an_alarm_latches():
    state = detector(0.95, 0.03, 0.1)
    for _ in range(30):
        state = state.after(False)
    assert state.alarm
    assert state.after(True).alarm


@given(st.lists(st.booleans(), max_size=60), st.lists(st.booleans(), max_size=60))
def test_runs_are_maximal_and_succeed_by_majority(inside, matches):
    n = min(len(inside), len(matches))
    inside, matches = np.array(inside[:n], bool), np.array(matches[:n], bool)
    past = np.arange(n) % 17
    found = runs(inside, matches, past, np.arange(n))
    expected, row = [], 0
    while row < n:
        if not inside[row]:
            row += 1
            continue
        end = row
        while end + 1 < n and inside[end + 1] and past[end + 1] > 0:
            end += 1
        expected.append((end, matches[row : end + 1].mean() >= 0.5))
        row = end + 1
    assert [(int(e), bool(s)) for e, s in zip(found.end_ns, found.success, strict=True)] == expected


def test_a_watch_feeds_on_new_events_only():
    good = events([True] * 100)
    watch = start_watch(good, good, 3000, since_ns=100)
    assert watch.bouts.promised == pytest.approx(0.963, abs=1e-3)
    bad = events([False] * 40, start=100)
    both = Events(
        np.concatenate([good.end_ns, bad.end_ns]), np.concatenate([good.success, bad.success])
    )
    watch = update_watch(watch, both, good, until_ns=110)
    assert (watch.bouts.events, watch.firings.events) == (10, 0)
    watch = update_watch(watch, both, good, until_ns=140)
    assert watch.bouts.events == 40
    assert "without the predicate" in watch.broken
    silent = update_watch(start_watch(good, good, 3000, 100), good, both, 140)
    assert "without the feature" in silent.broken


def test_no_past_events_promise_little():
    nothing = events([])
    assert start_watch(nothing, nothing, 0, 0).bouts.promised == 0.3
