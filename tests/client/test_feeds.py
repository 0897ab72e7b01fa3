"""Feeds as iterators: the same from each transport, and going on where they broke off."""

from __future__ import annotations

import threading
import time

import pytest

from interlatent_live.client import ConsoleClient, ConsoleError, FeedItem, Missed, zeromq_feed
from interlatent_live.feed.documents import NarrationDocument
from tests.support.console import RunningConsole

TRANSPORTS = ["lines", "sse", "websocket"]


def words(events):
    found = []
    for event in events:
        if isinstance(event, FeedItem):
            assert isinstance(event.value, NarrationDocument)
            found.append(event.value.lines[0].text)
        else:
            found.append(event)
    return found


def take(feed, count):
    return [next(feed) for _ in range(count)]


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_documents_come_typed_and_go_on_behind_an_event(tmp_path, transport):
    with RunningConsole(tmp_path, most_events=4) as console, ConsoleClient(console.url) as client:
        feed = client.feed(("narration",), transport=transport)
        console.say("one")
        (first,) = take(feed, 1)
        assert isinstance(first, FeedItem)
        assert isinstance(first.value, NarrationDocument)
        assert (first.topic, first.time_ns) == ("narration", 9)
        console.say("two", "three")
        assert words(take(feed, 2)) == ["two", "three"]
        feed.close()
        wait(lambda: console.broadcast.clients == 0)
        again = client.feed(last_id=first.id, transport=transport)
        assert words(take(again, 2)) == ["two", "three"]
        again.close()
        console.say(*(str(number) for number in range(10)))
        late = client.feed(last_id=first.id, transport=transport)
        assert words(take(late, 5)) == [Missed(8), "6", "7", "8", "9"]
        late.close()


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_console_that_comes_back_is_heard_again(tmp_path, transport):
    with RunningConsole(tmp_path) as console:
        address = console.address
        with ConsoleClient(console.url) as client:
            feed = client.feed(transport=transport)
            console.say("before")
            assert words(take(feed, 1)) == ["before"]
    second = None

    def come_back():
        nonlocal second
        time.sleep(0.6)
        second = RunningConsole(tmp_path, address=address)
        second.say("after")
        second.__enter__()

    back = threading.Thread(target=come_back)
    back.start()
    try:
        assert words(take(feed, 2)) == [Missed(None), "after"]
        feed.close()
    finally:
        back.join()
        second.__exit__()


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_what_is_refused_and_a_console_that_stays_away_are_errors(tmp_path, transport):
    with RunningConsole(tmp_path) as console, ConsoleClient(console.url) as client:
        with pytest.raises(ConsoleError, match="there is no topic 'steps'"):
            next(client.feed(("steps",), transport=transport))
        with pytest.raises(ConsoleError, match="no id of an event"):
            next(client.feed(last_id="x", transport=transport))
    with ConsoleClient(console.url) as client, pytest.raises(ConsoleError, match="no console"):
        next(client.feed(transport=transport, patience_s=0.3))


def test_a_socket_that_nobody_reads_holds_up_nobody(tmp_path):
    """The slow one is told what it missed; the fast one has everything, at the same time."""
    with RunningConsole(tmp_path) as console, ConsoleClient(console.url) as client:
        slow = client.feed(transport="websocket")
        fast = client.feed(transport="websocket")
        console.say("first")
        assert words(take(slow, 1)) == words(take(fast, 1)) == ["first"]
        large = "x" * 200_000
        began = time.monotonic()
        for number in range(200):
            console.say(f"{number} {large}")
            assert words(take(fast, 1)) == [f"{number} {large}"]
        taken = time.monotonic() - began
        # A publisher that waited for the slow one would wait for ever.
        assert taken < 60
        heard, missed = [], 0
        while not heard or not heard[-1].startswith("199 "):
            event = next(slow)
            if isinstance(event, Missed):
                missed += event.events
            else:
                heard += words([event])
        assert missed > 0
        assert missed + len(heard) == 200
        slow.close()
        fast.close()


def test_a_topic_that_zeromq_has_not_is_an_error():
    with pytest.raises(ConsoleError, match="there is no topic 'features'"):
        next(zeromq_feed(("tcp://127.0.0.1:9",), ("features",)))


def wait(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
