from __future__ import annotations

import msgspec

from interlatent_live.feed.documents import agents_that_fit
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
