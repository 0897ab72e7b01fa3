"""One thread carries every tap of a process, and none of them notices the others."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np

from interlatent_live import Tap
from interlatent_live.agent import courier
from interlatent_live.stream import HookPointSpec
from interlatent_live.wire.sockets import connect_dealer

from .service import Service, until

HOOKS = (HookPointSpec("h", 3, 2),)


def make(endpoint, **options):
    return Tap(["i"], hook_points=HOOKS, endpoint=endpoint, y_every=1, strict=True, **options)


def publish(tap, count, start=0):
    for i in range(start, start + count):
        tap.publish({"i": i}, {"h": [i, i, i]}, {"h": [i, i]})


def couriers():
    return [one for one in threading.enumerate() if one.name == "interlatent-tap"]


def test_taps_share_a_thread_and_a_connection_and_end_each_for_itself():
    before = len(couriers())
    with Service() as service:
        taps = [make(service.endpoint, agent=f"agent-{i}") for i in range(5)]
        for i in range(40):
            for tap in taps:
                publish(tap, 5, 5 * i)
            time.sleep(0.002)
        assert len(couriers()) == before + 1
        assert service.hub.peers() == 1
        taps[0].close()
        assert until(lambda: taps[0].boot_id in service.goodbyes)
        for tap in taps[1:]:
            publish(tap, 100, 200)
        late = make(service.endpoint, agent="late")
        publish(late, 10)
        for tap in (*taps[1:], late):
            tap.close()
        for tap in (*taps, late):
            link = tap.stats().link
            assert (link.acknowledged, link.lost, link.in_flight) == (tap.stats().steps, {}, 0)
            rows = [m for m in service.delivered if m.boot_id == tap.boot_id]
            seen = np.concatenate([m.batch.steps.metrics[:, 0] for m in rows])
            assert seen.tolist() == list(range(tap.stats().steps))
    assert len(couriers()) == before


def test_after_the_last_tap_another_thread_begins():
    with Service() as service:
        for i in range(3):
            tap = make(service.endpoint, agent=f"agent-{i}")
            publish(tap, 20)
            tap.close()
            assert tap.stats().link.acknowledged == 20
            assert couriers() == []


def test_a_connection_ends_with_the_last_tap_that_uses_it():
    held = Path("/proc/self/fd")
    with Service() as stays, Service() as goes:
        first = make(stays.endpoint, agent="stays")
        publish(first, 5)
        assert until(lambda: first.stats().link.acknowledged == 5)
        before = len(list(held.iterdir()))
        for i in range(3):
            tap = make(goes.endpoint, agent=f"goes-{i}")
            publish(tap, 5)
            tap.close()
            assert tap.stats().link.acknowledged == 5
        assert until(lambda: len(list(held.iterdir())) <= before)
        publish(first, 5, 5)
        first.close()
        assert first.stats().link.acknowledged == 10


def test_a_receiver_that_is_not_there_delays_no_other():
    with Service() as service:
        alone = make("tcp://127.0.0.1:9", agent="alone", max_age_s=0.1)
        heard = make(service.endpoint, agent="heard")
        publish(alone, 50)
        publish(heard, 50)
        assert until(lambda: heard.stats().link.acknowledged == 50)
        assert until(lambda: alone.stats().link.lost.get("no_peer", 0) == 50)
        assert alone.stats().link.state == "connecting"
        alone.close(0.2)
        publish(heard, 50, 50)
        heard.close()
        assert heard.stats().link.acknowledged == 100


def test_a_refused_agent_refuses_no_other():
    with Service() as service:
        first = make(service.endpoint, agent="first")
        publish(first, 5)
        assert until(lambda: first.stats().link.acknowledged == 5)
        service.refuse = "no transcoder"
        second = make(service.endpoint, agent="second")
        publish(second, 5)
        assert until(lambda: second.stats().link.state == "refused")
        publish(first, 5, 5)
        assert until(lambda: first.stats().link.acknowledged == 10)
        assert first.stats().link.state == "open"
        assert first.stats().link.last_error == ""
        assert "no transcoder" in second.stats().link.last_error
        second.close(0.2)
        first.close()


def test_an_error_in_the_metrics_of_one_tap_is_that_tap_s(monkeypatch):
    with Service() as service:
        good, bad = make(service.endpoint, agent="good"), make(service.endpoint, agent="bad")
        publish(good, 1)
        publish(bad, 1)

        def broken(_now):
            raise RuntimeError("broken")

        monkeypatch.setattr(bad._feed, "turn", broken)
        publish(good, 50, 1)
        assert until(lambda: good.stats().link.acknowledged == 51)
        monkeypatch.undo()
        publish(bad, 50, 1)
        bad.close()
        good.close()
        assert bad.stats().link.acknowledged == 51
        assert "broken" in bad.stats().link.last_error
        assert good.stats().link.last_error == ""


def test_a_socket_that_cannot_be_had_is_tried_for_again(monkeypatch):
    made = []

    def failing(*given, **named):
        made.append(given)
        if len(made) == 1:
            raise OSError("too many open files")
        return connect_dealer(*given, **named)

    monkeypatch.setattr(courier, "connect_dealer", failing)
    with Service() as service:
        tap = make(service.endpoint, max_age_s=30.0)
        publish(tap, 20)
        assert until(lambda: tap.stats().link.acknowledged == 20, 15)
        tap.close()
    assert len(made) == 2
    assert tap.stats().link.lost == {}
