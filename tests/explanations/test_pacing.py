from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from interlatent_live.explanations.pacing import MOST_OF_THE_TIME, Pacing, Turn
from interlatent_live.explanations.triggers import Trigger, TriggerKind, Urgency

EVERY, GAP = 4000, 1000
TRIGGERS = st.builds(
    lambda kind, subject: Trigger(kind, "something happened", subject),
    st.sampled_from(TriggerKind),
    st.sampled_from("abc"),
)
HAPPENINGS = st.lists(
    st.tuples(st.integers(1, 900), st.none() | TRIGGERS, st.integers(0, 2000), st.booleans()),
    max_size=200,
)


def trigger(kind, subject=""):
    return Trigger(kind, "something happened", subject)


@given(HAPPENINGS)
def test_lines_keep_their_distance_and_the_interval_is_kept_whatever_happens(happenings):
    pacing, now = Pacing(EVERY, GAP), 0
    begun, triggers = [], []
    offered = {}
    for wait, happened, took, said in happenings:
        now += wait
        if happened is not None:
            pacing.offer(happened, now)
            offered.setdefault(happened, []).append(now)
        turn = pacing.turn(now)
        if turn is None:
            last, cost, _ = begun[-1]
            assert now < last + max(EVERY, MOST_OF_THE_TIME * cost), "an interval may not be missed"
            continue
        if begun:
            last, cost, _ = begun[-1]
            assert now - last >= max(GAP, MOST_OF_THE_TIME * cost), "never a flood"
        if turn.trigger is not None:
            assert any(now - EVERY <= at <= now for at in offered[turn.trigger]), "no old news"
            if said:
                triggers.append((now, turn.trigger))
        begun.append((now, took, said))
        pacing.spoke(turn, now, now + took, said=said)
        now += took
    for (first, one), (second, other) in pairwise(triggers):
        if (one.kind, one.subject) == (other.kind, other.subject):
            assert second - first >= EVERY - 1, "nothing is told over and over"


def test_what_matters_most_waits_and_the_newest_of_equal_ones():
    pacing = Pacing(EVERY, GAP)
    pacing.spoke(Turn(), 0, 0)
    for kind in (TriggerKind.TRUNCATED, TriggerKind.TERMINATED, TriggerKind.BEGAN):
        pacing.offer(trigger(kind), 10)
    assert pacing.turn(10) is None
    assert pacing.turn(GAP).trigger.kind is TriggerKind.TERMINATED
    pacing.offer(trigger(TriggerKind.ALERT, "one"), 20)
    pacing.offer(trigger(TriggerKind.INTERVENTION, "two"), 30)
    assert pacing.turn(GAP).trigger.subject == "two"
    assert pacing.unspoken == 4
    assert trigger(TriggerKind.ALERT).urgency is Urgency.MOST


def test_where_nothing_could_be_said_of_a_trigger_the_interval_s_line_still_comes():
    pacing = Pacing(EVERY, GAP)
    pacing.spoke(Turn(), 0, 0)
    pacing.offer(trigger(TriggerKind.TERMINATED), 3000)
    turn = pacing.turn(3000)
    pacing.spoke(turn, 3000, 3000, said=False)
    assert pacing.turn(3999) is None
    assert pacing.turn(4000) == Turn()


def test_the_last_turn_waits_for_the_gap_only():
    pacing = Pacing(EVERY, GAP)
    pacing.spoke(Turn(), 0, 0)
    assert pacing.turn(GAP - 1, last=True) is None
    assert pacing.turn(GAP, last=True) == Turn()
