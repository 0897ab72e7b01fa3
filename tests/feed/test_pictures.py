"""Pictures that the console passes on reach a viewer, and what is none is counted."""

import time

import zmq

from interlatent_live.feed.pictures import TOPIC, PictureClient
from interlatent_live.wire.codec import encode_picture
from interlatent_live.wire.messages import Picture


def test_a_picture_comes_as_it_was_sent():
    sent = Picture("boot-1", 7, 2, 16, 8, b"\xff\xd8\xff a picture", 5)
    context = zmq.Context()
    publisher = context.socket(zmq.XPUB)
    try:
        port = publisher.bind_to_random_port("tcp://127.0.0.1")
        with PictureClient(f"tcp://127.0.0.1:{port}") as client:
            assert publisher.poll(10_000), "nobody subscribed"
            publisher.send_multipart([f"{TOPIC}boot-1".encode(), b"nothing of ours"])
            publisher.send_multipart([f"{TOPIC}boot-1".encode(), *encode_picture(sent)])
            found: list = []
            deadline = time.monotonic() + 10
            while not found and time.monotonic() < deadline:
                found += client.pictures()
                time.sleep(0.01)
        assert found == [sent]
        assert client.refused == 1
    finally:
        publisher.close(0)
        context.term()
