from __future__ import annotations

import msgspec

from interlatent_live.feed.documents import (
    FeatureProfileDocument,
    MetricAssociation,
    agents_that_fit,
    profiles_that_fit,
)
from tests.support.feeds import agent_status


def test_agents_that_fit_are_all_shown():
    agents = [agent_status(run_id=f"run-{number}") for number in range(5)]
    assert agents_that_fit(agents, 10**6) is agents


def test_of_too_many_agents_those_that_act_are_shown_in_their_order():
    agents = [
        agent_status(run_id=f"run-{number}", last_step_ns=number % 7, ended=number % 5 == 0)
        for number in range(100)
    ]
    limit = 20 * len(msgspec.msgpack.encode(agents[-1]))
    shown = agents_that_fit(agents, limit)
    assert 18 <= len(shown) <= 22
    assert sum(len(msgspec.msgpack.encode(one)) for one in shown) <= limit
    assert not any(one.ended for one in shown)
    assert min(one.last_step_ns for one in shown) >= 5
    assert [agents.index(one) for one in shown] == sorted(agents.index(one) for one in shown)


def profile(index, metrics):
    associations = [
        MetricAssociation(f"metric_{m}", None if m == 0 else m / 100, None, None, 9, 9.0, "all")
        for m in range(metrics)
    ]
    return FeatureProfileDocument(f"a/{index}@b", index, index / 100, 9, 2, 2, associations)


def packed(profiles):
    return len(msgspec.msgpack.encode(profiles))


def test_profiles_that_fit_are_whole():
    profiles = [profile(index, 12) for index in range(8)]
    assert profiles_that_fit(profiles, 10**6) is profiles
    assert profiles_that_fit([], 0) == []


def test_of_too_many_associations_the_strongest_of_each_feature_are_shown():
    profiles = [profile(index, 81) for index in range(50)]
    limit = packed(profiles) // 3
    shown = profiles_that_fit(profiles, limit)
    assert packed(shown) <= limit
    assert [one.index for one in shown] == list(range(50))
    names = [one.name for one in shown[0].metrics]
    assert 20 <= len(names) <= 27
    assert names == [f"metric_{m}" for m in range(81 - len(names), 81)]


def test_of_too_many_features_those_that_are_on_most_are_shown():
    profiles = [profile(index, 3) for index in range(50)]
    limit = packed(profiles_that_fit(profiles, packed(profiles) // 2)) // 5
    shown = profiles_that_fit(profiles, limit)
    assert packed(shown) <= limit
    assert [len(one.metrics) for one in shown] == [1] * len(shown)
    assert [one.index for one in shown] == list(range(50 - len(shown), 50))
