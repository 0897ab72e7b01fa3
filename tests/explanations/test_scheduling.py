from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlatent_live.explanations.budget import (
    Budget,
    BudgetError,
    CircuitBreaker,
    Limits,
    Price,
)
from interlatent_live.explanations.predicates import parse
from interlatent_live.explanations.profile import FeatureProfile
from interlatent_live.explanations.rules import Fit, Rule
from interlatent_live.explanations.scheduling import (
    DraftCache,
    WriterQueue,
    drift_factor,
    importance,
)
from interlatent_live.explanations.writers import Usage, state_rule
from interlatent_live.stream import FeatureAddress, MetricSpec

SPECS = (MetricSpec("a"),)


def profile(feature, density=0.1, rule="a > 1"):
    address = FeatureAddress("hidden.1", feature, "sha256:t")
    made = Rule(feature, parse(rule, SPECS), Fit(0.9, 0.9, 0.9), Fit(0.9, 0.9, 0.9))
    return FeatureProfile(address, SPECS, density, (), (), made)


def put(queue, feature, weight=1.0, deadline=100.0, *, asked=False):
    queue.put(profile(feature), importance=weight, deadline_s=deadline, asked_by_person=asked)


def order(queue, now=0.0):
    out = []
    while (request := queue.take(now)) is not None:
        out.append(request.profile.address.index)
    return out


def test_people_first_then_importance_then_the_newest():
    queue = WriterQueue()
    for feature, weight in ((0, 0.1), (1, 0.5), (2, 0.5), (3, 0.2)):
        put(queue, feature, weight)
    put(queue, 4, 0.0, asked=True)
    assert order(queue) == [4, 2, 1, 3, 0]


def test_the_newest_profile_replaces_the_older_and_a_wish_stays_a_wish():
    queue = WriterQueue()
    put(queue, 0, 0.1, asked=True)
    put(queue, 1, 0.5)
    queue.put(profile(0, density=0.9), importance=0.1, deadline_s=100)
    assert queue.replaced == 1
    request = queue.take(0)
    assert request.profile.density == 0.9
    assert request.asked_by_person


def test_deadlines_and_capacity_drop_and_count():
    queue = WriterQueue(capacity=3)
    for feature in range(5):
        put(queue, feature, weight=feature, deadline=10 + feature)
    assert (len(queue), queue.dropped_full) == (3, 2)
    assert order(queue, now=12.5) == [4, 3]
    assert queue.dropped_late == 1


@given(st.lists(st.tuples(st.integers(0, 9), st.floats(0, 1), st.booleans()), max_size=60))
def test_the_queue_never_grows_beyond_its_capacity(entries):
    queue = WriterQueue(capacity=4)
    for feature, weight, asked in entries:
        put(queue, feature, weight, asked=asked)
        assert len(queue) <= 4
    assert len(set(order(queue))) <= 4


def test_importance_grows_with_each_factor():
    assert importance(0.2) > importance(0.1)
    assert importance(0.1, effect=-2.0) > importance(0.1, effect=0.5)
    assert importance(0.1, 1.0, 0.9) > importance(0.1, 1.0, 0.1)
    assert importance(0.0, 0.0, 0.0) > 0


def test_equal_profiles_are_answered_from_the_cache_and_fallbacks_are_not():
    cache = DraftCache(capacity=2)
    first = profile(0)
    draft = state_rule(first.rule)
    assert cache.get("w", first) is None
    cache.put("w", first, draft)
    assert cache.get("w", replace(first, density=0.1001)) is draft
    assert cache.get("other", first) is None
    assert cache.get("w", profile(0, rule="a > 2")) is None
    cache.put("w", profile(1), replace(draft, fallback_reason="dead"))
    assert cache.get("w", profile(1)) is None
    cache.put("w", profile(2), draft)
    cache.put("w", profile(3), draft)
    assert cache.get("w", first) is None, "the least recently used went"
    assert (cache.hits, cache.misses) == (1, 5)


amounts = st.lists(
    st.tuples(st.integers(0, 5000), st.integers(0, 2000), st.floats(0, 1), st.booleans()),
    max_size=50,
)


@given(amounts, st.floats(0, 0.3))
def test_neither_spend_nor_promises_pass_the_limit_whatever_is_in_flight(entries, dollars):
    budget = Budget(Limits(dollars, 30, 60_000), Price(10, 40))
    flying = []
    for now, (tokens_in, tokens_out, share, settle) in enumerate(entries):
        with contextlib.suppress(BudgetError):
            flying.append((budget.reserve(tokens_in, tokens_out, now), share))
        if settle and flying:
            reservation, used = flying.pop(0)
            real = Usage(
                int(reservation.usage.input_tokens * used),
                int(reservation.usage.output_tokens * used),
                1,
            )
            budget.settle(reservation, real, now)
        promised = sum(reservation.dollars for reservation, _ in flying)
        assert budget.spent_dollars + promised <= dollars + 1e-9
        assert budget.spent.requests + len(flying) <= 30


def test_hourly_limits_refill_and_money_does_not():
    budget = Budget(Limits(1.0, requests_per_hour=1, tokens_per_hour=10**6), Price(10, 40))
    budget.settle(budget.reserve(100, 100, 0.0), None, 0.0)
    with pytest.raises(BudgetError, match="1 requests an hour"):
        budget.reserve(100, 100, 3599.0)
    budget.reserve(100, 100, 3600.0)
    tight = Budget(Limits(1.0, 100, tokens_per_hour=150))
    with pytest.raises(BudgetError, match="150 tokens an hour"):
        tight.reserve(100, 100, 0.0)


def test_money_is_zero_until_somebody_sets_it_but_free_servers_are_free():
    with pytest.raises(BudgetError, match=r"limit of \$0\.00"):
        Budget(price=Price(1, 1)).reserve(1000, 1000, 0.0)
    Budget().reserve(1000, 1000, 0.0)


def test_the_breaker_waits_longer_each_time_and_closes_on_success():
    breaker = CircuitBreaker(failures=2, wait_s=5, longest_s=12)
    breaker.failed(0.0)
    assert breaker.allows(0.0)
    breaker.failed(0.0)
    for now, wait in ((0.0, 5.0), (5.0, 10.0), (15.0, 12.0)):
        assert not breaker.allows(now + wait - 0.1)
        assert breaker.allows(now + wait)
        assert not breaker.allows(now + wait), "one at a time"
        breaker.failed(now + wait)
    assert breaker.allows(100.0)
    breaker.released()
    assert breaker.allows(100.0)
    breaker.succeeded()
    assert breaker.allows(100.0)
    assert breaker.allows(100.0)


@given(
    st.lists(st.floats(0, 1e6), max_size=5),
    st.none() | st.floats(-1, 1),
    st.floats(0.01, 0.5),
)
def test_drift_makes_a_feature_more_important_and_only_by_so_much(alarms, fall, density):
    factor = drift_factor(alarms, fall)
    assert 1 <= factor <= 10
    assert factor <= drift_factor([*alarms, 2.0], fall), "another alarm never makes it less"
    assert importance(density, 0.3, factor) == pytest.approx(factor * importance(density, 0.3))


def test_drift_is_that_of_the_worst_monitor_or_of_the_claim_s_fall():
    assert drift_factor() == drift_factor([], -0.2) == 1
    assert drift_factor([1.5, 3.0]) == 4
    assert drift_factor([], 0.3) == pytest.approx(3)
    assert drift_factor([1e9]) == 10
