"""Questions on their way to a shadow and back, without sockets."""

from __future__ import annotations

import pytest

from interlatent_live.explanations.requests import (
    EffectMeasured,
    RequestDesk,
    open_answer,
    open_request,
    seal,
)
from interlatent_live.explanations.why_relay import (
    MOST_UNDER_WAY,
    SILENT_NS,
    WITHIN_NS,
    AskWhy,
    ShadowHere,
    WhyAnswered,
)

KEY = b"k" * 32
NOW = 10**18
AGENT, CONSOLE, OTHER = b"agent", b"console", b"other"


def here(run_id="run", agent="cart", cannot="", at=NOW):
    return ShadowHere("h", at, agent, run_id, cannot)


def ask(name="q", agent="cart", at=NOW, **more):
    return AskWhy(name, at, agent, **more)


class Desk:
    """A desk, and what it sends."""

    def __init__(self):
        self.desk = RequestDesk(KEY)

    def take(self, peer, message, now=NOW, user_id=""):
        reply = self.desk.receive(peer, seal(KEY, message), now, user_id)
        if reply is None:
            return None
        to_agent = isinstance(message, AskWhy) and reply.peer != peer
        opened = (open_request if to_agent else open_answer)(KEY, reply.frames)
        return reply.peer, opened


@pytest.fixture
def desk():
    return Desk()


def test_a_question_goes_to_the_shadow_and_the_answer_to_who_asked(desk):
    assert desk.take(AGENT, here()) is None
    assert desk.take(CONSOLE, ask(env=3)) == (AGENT, ask(env=3))
    answer = WhyAnswered("q", NOW, {"value": 1.5})
    assert desk.take(OTHER, answer) is None  # nobody asked them
    assert desk.take(AGENT, answer) == (CONSOLE, answer)
    assert desk.take(AGENT, answer) is None  # once
    assert desk.desk.overdue(NOW + 2 * WITHIN_NS) == []


def test_the_newest_run_of_an_agent_is_meant_unless_one_is_named(desk):
    desk.take(AGENT, here("old"))
    desk.take(OTHER, here("new"), NOW + 1)
    assert desk.take(CONSOLE, ask())[0] == OTHER
    assert desk.take(CONSOLE, ask("r", run_id="old"))[0] == AGENT
    assert desk.take(CONSOLE, ask("s", run_id="never"))[1].why == "unknown"


def test_whoever_cannot_be_asked_is_told_of_in_a_sentence(desk):
    _, nobody = desk.take(CONSOLE, ask(agent="nobody"))
    assert (nobody.why, nobody.found) == ("unknown", None)
    assert "no shadow of 'nobody'" in nobody.message
    assert "ShadowOptions" in nobody.message
    desk.take(AGENT, here(cannot="it runs on a thread"))
    _, refused = desk.take(CONSOLE, ask())
    assert (refused.why, refused.message) == ("cannot", "it runs on a thread")
    desk.take(AGENT, here())
    later = NOW + SILENT_NS + 10**9
    _, silent = desk.take(CONSOLE, ask(at=later), later)
    assert silent.why == "silent"
    assert "silent for 9 s" in silent.message


def test_a_question_that_nobody_answers_is_answered_in_time(desk):
    desk.take(AGENT, here())
    desk.take(CONSOLE, ask())
    assert desk.desk.overdue(NOW + WITHIN_NS - 1) == []
    (late,) = desk.desk.overdue(NOW + WITHIN_NS)
    assert late.peer == CONSOLE
    told = open_answer(KEY, late.frames)
    assert told.why == "silent"
    assert "did not answer within 6 s" in told.message
    assert desk.take(AGENT, WhyAnswered("q", NOW, {})) is None  # too late


def test_only_so_many_are_under_way(desk):
    desk.take(AGENT, here())
    for number in range(MOST_UNDER_WAY):
        assert desk.take(CONSOLE, ask(f"q{number}"))[0] == AGENT
    assert desk.take(CONSOLE, ask("more"))[1].why == "busy"


def test_an_old_question_and_an_old_answer_are_not_passed_on(desk):
    desk.take(AGENT, here())
    assert desk.take(CONSOLE, ask(at=NOW - 2 * 60 * 10**9))[1].why == "stale"
    desk.take(CONSOLE, ask())
    assert desk.take(AGENT, WhyAnswered("q", NOW - 2 * 60 * 10**9, {})) is None


def test_an_agents_key_speaks_for_its_own_shadow_and_asks_for_nothing(desk):
    mine, wrong = "agent/cart/aa", "agent/walker/bb"
    effect = EffectMeasured("e", NOW, "run", "h", "t", 1, 8, 3, [])
    assert desk.take(AGENT, effect, user_id=mine) is None  # of a run it has not spoken for
    desk.take(OTHER, here(), user_id=wrong)  # not its name
    assert desk.take(CONSOLE, ask())[1].why == "unknown"
    desk.take(AGENT, here(), user_id=mine)
    assert desk.desk.receive(AGENT, seal(KEY, effect), NOW, mine) == effect
    assert desk.take(AGENT, ask("p"), user_id=mine) is None
    assert desk.take(CONSOLE, ask("q"), user_id="service/console/cc")[0] == AGENT
    assert desk.desk.refused == {"role": 2}


def test_without_the_key_nobody_is_a_shadow(desk):
    assert desk.desk.receive(AGENT, seal(b"x" * 32, here()), NOW) is None
    assert desk.take(CONSOLE, ask())[1].why == "unknown"
