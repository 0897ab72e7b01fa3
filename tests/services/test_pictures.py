"""A picture from an agent through the console: to its card, and on to a recorder."""

import time

import numpy as np
import pytest

from interlatent_live.agent.pictures import Pictures
from interlatent_live.agent.tap import Tap
from interlatent_live.config import load_settings, on_free_ports
from interlatent_live.queries.messages import ExemplarsAnswer
from interlatent_live.services.console import _Eye
from interlatent_live.services.network import Network
from interlatent_live.services.recorder import FeedTap
from interlatent_live.wire.messages import Picture
from tests.support.feeds import agents_document


@pytest.fixture
def settings():
    return on_free_ports(load_settings(environment={}))


def until(condition, timeout_s=60.0):
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.01)
    return found


def test_a_picture_goes_through_the_console_to_a_card_and_to_a_recorder(settings):
    with Network(None) as network, Tap(["tilt"], agent="walker", endpoint=None) as tap:
        eye = _Eye(settings, network)
        recorder = FeedTap(network, (), settings.endpoints.pictures_feed, None)
        eye.pictures.describe(agents_document(agent="walker", run_id="run", boot_id=tap.boot_id))
        passed = []
        with Pictures(tap, endpoint=settings.endpoints.pictures, hz=10) as pictures:

            def shown():
                # The recorder's subscription may not have arrived when the first picture does.
                pictures.offer(np.full((40, 60, 3), 128, np.uint8), env=1)
                eye.look()
                passed.extend(recorder.messages())
                return passed

            until(shown)
        (first, *_) = passed
        assert isinstance(first, Picture)
        assert (first.boot_id, first.env, first.width) == (tap.boot_id, 1, 60)
        rows = {"position": [first.seq], "env": [1], "t": [0], "after": [0]}
        eye.moments.choose(
            ExemplarsAnswer(run_id="run", copies=2, boots={tap.boot_id: 0}),
            {name: np.array(column) for name, column in rows.items()},
        )
        found = eye.moments.find("run", first.seq)
        assert found is not None
        assert found[1] == bytes(first.jpeg)
        recorder.close()
        eye.close()


def test_who_listens_to_no_pictures_is_sent_none(settings):
    with Network(None) as network:
        recorder = FeedTap(network, (), None, None)
        assert recorder.messages() == []
        recorder.close()
