import contextlib
import time

import pytest
import zmq

from interlatent_live.errors import UserError
from interlatent_live.feed.client import FeedClient, FeedEvent
from interlatent_live.feed.documents import Topic
from interlatent_live.services.network import Network
from interlatent_live.services.publishing import FeedPublisher
from interlatent_live.wire.codec import encode_features
from interlatent_live.wire.sockets import bound_endpoint
from tests.support.feeds import agents_document, claim, claims_document, feature_batch


@pytest.fixture
def publisher(tmp_path):
    folder = tmp_path / "sockets"
    with Network(None) as network:
        publisher = FeedPublisher(network, f"ipc://{folder}/feed", "encoder")
        yield publisher
        publisher.close()


def endpoint(publisher):
    return bound_endpoint(publisher.socket)


def wait_for(client, publisher, count, tick=lambda: None, timeout_s=5.0):
    found: list[FeedEvent] = []
    deadline = time.monotonic() + timeout_s
    while len(found) < count and time.monotonic() < deadline:
        publisher.welcome_viewers()
        tick()
        found.extend(client.events(0.02))
    return found


def test_a_late_joiner_gets_the_newest_document_of_each_key(publisher):
    publisher.documents(Topic.AGENTS, agents_document(agent="old"))
    publisher.documents(Topic.AGENTS, agents_document(agent="new"))
    publisher.documents(Topic.CLAIMS, claims_document([claim()]), key="a")
    publisher.documents(Topic.CLAIMS, claims_document([claim(4)]), key="b")
    with FeedClient([endpoint(publisher)]) as client:
        found = wait_for(client, publisher, 3)
        values = [event.value for event in found]
        assert agents_document(agent="new") in values
        assert claims_document([claim()]) in values
        assert claims_document([claim(4)]) in values
        assert len(values) == 3
        assert client.counters.documents_missed == 0


def test_features_and_documents_come_together_and_another_viewers_joining_loses_nothing(publisher):
    publisher.documents(Topic.AGENTS, agents_document())
    with FeedClient([endpoint(publisher)]) as first:
        assert len(wait_for(first, publisher, 1)) == 1
        with FeedClient([endpoint(publisher)], [Topic.AGENTS]) as second:
            assert len(wait_for(second, publisher, 1)) == 1
            publisher.forward(Topic.FEATURES, encode_features(feature_batch()))
            publisher.documents(Topic.AGENTS, agents_document(agent="later"))
            found = wait_for(first, publisher, 3)
            assert [event.topic for event in found][-2:] == [Topic.FEATURES, Topic.AGENTS]
            assert first.counters.documents_missed == 0
            only = wait_for(second, publisher, 1)
            assert [event.topic for event in only] == [Topic.AGENTS]


def test_garbage_on_the_feed_is_counted_not_raised(publisher):
    with FeedClient([endpoint(publisher)]) as client:
        garbage = [b"agents", b"\xc1 not MessagePack"]
        for _ in range(100):
            publisher.welcome_viewers()
            publisher.socket.send_multipart(garbage, zmq.NOBLOCK)
            with contextlib.suppress(StopIteration):
                assert next(client.events(0.02)) is None
            if client.counters.refused:
                break
        assert sum(client.counters.refused.values()) >= 1


def test_a_used_endpoint_is_one_sentence():
    with Network(None) as network:
        taken = FeedPublisher(network, "tcp://127.0.0.1:*", "encoder")
        try:
            with pytest.raises(UserError, match=r"endpoints\.encoder_feed: .* is in use"):
                FeedPublisher(network, endpoint(taken), "encoder")
        finally:
            taken.close()


def test_a_document_that_is_too_large_is_counted_and_ends_nothing(publisher):
    publisher.documents(Topic.AGENTS, agents_document(agent="before"))
    publisher.documents(Topic.AGENTS, agents_document(agent="x" * 2**20))
    assert publisher.refused == 1
    with FeedClient([endpoint(publisher)]) as client:
        found = wait_for(client, publisher, 1)
        assert [event.value for event in found] == [agents_document(agent="before")]
