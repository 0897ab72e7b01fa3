"""One ring for all clients: bounded, resumable, and honest about what is gone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlatent_live.console.broadcast import BATCH, Broadcast
from interlatent_live.errors import UserError
from interlatent_live.feed.documents import Topic
from tests.support.feeds import claims_document, narration_document

ALL = frozenset(Topic)


def publish(ring, count, topic=Topic.NARRATION):
    for number in range(count):
        ring.publish(topic, number, narration_document(f"line {number}"))


def drain(place):
    missed: int | None = 0
    numbers: list[int] = []
    while True:
        batch = place.next()
        if batch.missed is None:
            missed = None
        elif missed is not None:
            missed += batch.missed
        numbers += [event.number for event in batch.events]
        if not batch.events:
            return missed, numbers


def test_a_new_client_begins_with_the_newest_word_on_every_subject():
    ring = Broadcast()
    publish(ring, 5)
    ring.publish(Topic.CLAIMS, 1, claims_document([]))
    ring.publish(Topic.NARRATION, 1, narration_document("another copy", env=1))
    place = ring.join(lambda: None, ALL)
    assert drain(place) == (0, [5, 6, 7])
    publish(ring, 2)
    assert drain(place) == (0, [8, 9])


@given(most=st.integers(1, 50), before=st.integers(0, 60), after=st.integers(0, 60))
def test_delivered_and_missed_add_up(most, before, after):
    ring = Broadcast(most_events=most)
    publish(ring, before)
    place = ring.join(lambda: None, ALL, f"{ring.epoch}-{before}")
    publish(ring, after)
    missed, numbers = drain(place)
    assert missed + len(numbers) == after
    assert numbers == list(range(before + after - len(numbers) + 1, before + after + 1))
    assert len(numbers) == min(most, after)


def test_the_ring_is_bounded_in_bytes():
    ring = Broadcast(most_bytes=2000)
    place = ring.join(lambda: None, ALL)
    publish(ring, 100)
    missed, numbers = drain(place)
    assert missed + len(numbers) == 100
    assert 1 < len(numbers) < 15
    ring.publish(Topic.NARRATION, 1, narration_document("x" * 5000))
    assert drain(place) == (0, [101])


def test_a_client_that_was_here_goes_on_where_it_was():
    ring = Broadcast()
    publish(ring, 3 * BATCH)
    place = ring.join(lambda: None, ALL, f"{ring.epoch}-{BATCH}")
    assert drain(place) == (0, list(range(BATCH + 1, 3 * BATCH + 1)))


def test_an_id_of_a_ring_that_is_gone_means_that_nobody_knows_what_was_missed():
    ring = Broadcast()
    publish(ring, 4)
    assert drain(ring.join(lambda: None, ALL, "0badc0de-17")) == (None, [4])


@pytest.mark.parametrize("last", ["x", "-", "1", "abc-", "abc-1e3", "abc-" + "9" * 30])
def test_what_is_no_id_is_refused(last):
    with pytest.raises(UserError, match="leave Last-Event-ID out"):
        Broadcast().join(lambda: None, ALL, last)


def test_an_event_of_the_future_is_refused():
    ring = Broadcast()
    with pytest.raises(UserError, match="there is no event"):
        ring.join(lambda: None, ALL, f"{ring.epoch}-1")


def test_topics_clients_and_the_end():
    ring, woken = Broadcast(most_clients=1), []
    place = ring.join(lambda: woken.append(1), frozenset({Topic.CLAIMS}))
    with pytest.raises(UserError, match="1 feeds are open already"):
        ring.join(lambda: None, ALL)
    publish(ring, 40)
    ring.publish(Topic.CLAIMS, 1, claims_document([]))
    assert [one.topic for one in place.next().events] == [Topic.CLAIMS]
    assert len(woken) == 41
    assert not place.next().closed
    ring.close()
    assert place.next().closed
    place.leave()
    place.leave()
    assert ring.clients == 0
