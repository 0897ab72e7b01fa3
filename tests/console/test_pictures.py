"""Pictures from the acting thread to a browser: bounded, dropped first, never in a step's way."""

import io
import time

import numpy as np
import pytest
import zmq
from fastapi import FastAPI
from fastapi.testclient import TestClient
from PIL import Image

from interlatent_live.agent.pictures import LARGEST_JPEG, Pictures, encode_jpeg
from interlatent_live.agent.tap import Tap
from interlatent_live.console.pictures import MOST_BOOTS, PictureHub, router
from interlatent_live.demo.camera import OLD_S, Camera
from interlatent_live.errors import UserError
from interlatent_live.wire.codec import encode_picture
from interlatent_live.wire.messages import Picture
from interlatent_live.wire.sockets import bind_router, bound_endpoint, receive_from

JPEG = b"\xff\xd8\xff\xe0 a picture"


class Agent:
    def __init__(self, boot_id, agent):
        self.boot_id, self.agent, self.run_id = boot_id, agent, f"run of {boot_id}"


class Document:
    def __init__(self, *agents):
        self.agents = agents


def frames(boot="boot", jpeg=JPEG, seq=7):
    return encode_picture(Picture(boot, seq, 0, 32, 32, jpeg, 1))


@pytest.fixture
def tap():
    with Tap(["tilt"], agent="walker", endpoint=None) as made:
        yield made


@pytest.fixture
def receiver():
    context = zmq.Context()
    socket = bind_router(context, "tcp://127.0.0.1:*")
    yield socket
    socket.close(0)
    context.term()


@pytest.fixture
def http():
    hub = PictureHub()
    app = FastAPI()
    app.include_router(router(hub))
    with TestClient(app) as client:
        client.hub = hub  # type: ignore[attr-defined]  # carried along
        yield client


def rgb(height=400, width=600, seed=0):
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)


def test_a_picture_arrives_small_and_as_an_image(tap, receiver, http):
    calm = np.full((400, 600, 3), 200, np.uint8)
    with Pictures(tap, endpoint=bound_endpoint(receiver), hz=10) as pictures:
        pictures.offer(calm, env=3)
        assert receiver.poll(10_000)
        received = receive_from(receiver, protected=False)
        until(lambda: pictures.sent == 1)
    http.hub.take(received.frames, "")
    assert http.get("/agents/walker/picture").status_code == 404  # whose boot is it?
    http.hub.describe(Document(Agent(tap.boot_id, "walker")))
    answer = http.get("/agents/walker/picture")
    assert answer.headers["content-type"] == "image/jpeg"
    assert 0 <= int(answer.headers["age-ms"]) < 60_000
    assert answer.headers["env"] == "3"
    assert Image.open(io.BytesIO(answer.content)).size == (320, 213)
    assert http.get("/agents/nobody/picture").status_code == 404


def test_offering_never_waits_and_what_has_no_room_is_counted(tap):
    # Nobody is there: the queue holds two, the rest is dropped.
    with Pictures(tap, endpoint="tcp://127.0.0.1:1", hz=10) as pictures:
        took = []
        for number in range(30):
            pictures._due = 0.0
            seen = rgb(seed=number)
            began, worked = time.perf_counter(), time.thread_time()
            pictures.offer(seen)
            took.append((time.thread_time() - worked, time.perf_counter() - began))
            time.sleep(0.001)
        # The copy of 720 kB and nothing else; what a busy machine adds is not ours.
        work, wall = (sorted(column)[len(took) // 2] for column in zip(*took, strict=True))
        assert work < 0.005
        assert wall < 0.2
        until(lambda: pictures.sent + pictures.dropped == 30)
        assert pictures.dropped >= 28 - 1
        assert not pictures.due
        before = pictures.dropped
        pictures.offer(rgb())
        assert pictures.dropped == before  # it was not due


def until(condition, timeout_s=20.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.01)


@pytest.mark.parametrize("bad", [None, np.zeros((4, 4)), np.zeros((0, 4, 3)), "x", [[1], [1, 2]]])
def test_what_is_no_picture_is_counted_and_never_raised(tap, bad):
    with Pictures(tap, endpoint="tcp://127.0.0.1:1") as pictures:
        pictures.offer(bad)
        assert pictures.failed == 1


def test_a_noisy_picture_is_made_again_with_less_quality():
    data, width, height = encode_jpeg(rgb(1000, 1000), 320)
    assert (width, height) == (320, 320)
    assert len(data) <= LARGEST_JPEG
    data, width, height = encode_jpeg(rgb(10, 20), 320)
    assert (width, height) == (20, 10)


@pytest.mark.parametrize(
    "options", [{"hz": 0}, {"hz": 100}, {"longest_side": 5000}, {"endpoint": "tcp://10.0.0.1:5"}]
)
def test_what_cannot_be_is_one_sentence(tap, options):
    with pytest.raises(UserError):
        Pictures(tap, **options)


def test_the_console_keeps_one_picture_of_so_many_boots_and_refuses_the_rest(http):
    hub = http.hub
    for number in range(MOST_BOOTS + 10):
        hub.take(frames(f"boot{number}"), "")
    assert len(hub._held) == MOST_BOOTS
    for wrong in (
        frames(jpeg=b"<svg onload=alert(1)>"),
        frames(jpeg=JPEG + b"x" * 70_000),
        [b"garbage"],
        [b"\xc1", b"x"],
        [],
    ):
        before = hub.refused
        hub.take(wrong, "")
        assert hub.refused == before + 1


def test_a_key_shows_pictures_of_its_own_agent_only(http):
    http.hub.describe(Document(Agent("boot", "walker")))
    http.hub.take(frames(), "agent/eve/1")
    assert http.get("/agents/walker/picture").status_code == 404
    time.sleep(0.06)
    http.hub.take(frames(), "agent/walker/1")
    assert http.get("/agents/walker/picture").status_code == 200


def test_only_what_others_may_have_is_passed_on():
    hub = PictureHub()
    assert hub.take(frames(), "") is None, "whose boot is it?"
    hub.describe(Document(*(Agent(boot, "walker") for boot in ("boot", "two", "three"))))
    assert hub.take(frames("two"), "agent/eve/1") is None
    shown = hub.take(frames("three"), "agent/walker/1")
    assert shown is not None
    assert (shown.run_id, shown.picture.seq) == ("run of three", 7)
    assert hub.take(frames("three"), "agent/walker/1") is None, "too soon after the last one"


class Sink:
    due = True

    def __init__(self):
        self.offered = 0

    def offer(self, _):
        self.offered += 1


def test_the_camera_looks_only_when_there_is_time_to_spare():
    def render():
        until_s = time.thread_time() + 0.01
        while time.thread_time() < until_s:
            pass
        return np.zeros((2, 2, 3), np.uint8)

    sink = Sink()
    camera = Camera(render, sink)
    camera.look(0.005)
    assert camera.looks == 0
    camera.look(10.0)
    assert camera.looks == 1
    sink.due = False
    camera.look(10.0)
    assert camera.looks == 1


def test_a_look_that_stood_still_ends_no_pictures():
    waits = [0.0] * 4 + [0.05] * 8

    def render():
        time.sleep(waits.pop(0))  # others have the processor
        return np.zeros((2, 2, 3), np.uint8)

    camera = Camera(render, Sink())
    for _ in range(8):
        camera.look(0.04)
    assert camera.looks == 8


def test_an_old_picture_is_replaced_where_the_next_one_just_fits(monkeypatch):
    camera = Camera(lambda: None, Sink())
    monkeypatch.setattr(camera, "_took_s", [0.01])
    camera.look(0.015)
    assert camera.looks == 0
    camera._seen_at -= OLD_S
    camera.look(0.009)
    assert camera.looks == 0, "it would make the next step late"
    camera.look(0.015)
    assert camera.looks == 1
