"""What a page is shown of the steps: thinned, with every spike, and honest about what is gone."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlatent_live.console.live import LiveHub, View
from interlatent_live.console.point_messages import VERSION, encode_points
from interlatent_live.stream import FeatureBatch, SparseCodes, steps_without_columns

HOOK = "net.0"
VIEW = View("run", HOOK, env=1)
FEATURES = 5


def batch(first, dense, envs, *, run="run", boot="boot", transcoder="sha256:a", metrics=2):
    n = len(dense)
    steps = steps_without_columns(n, metrics, first)
    steps.env[:] = envs
    steps.t[:] = np.arange(first, first + n)
    steps.time_ns[:] = (np.arange(first, first + n) + 1) * 1_000_000
    steps.metrics[:] = np.arange(first, first + n)[:, None] + np.arange(metrics)
    on = dense > 0
    codes = SparseCodes(
        n_features=FEATURES,
        indptr=np.concatenate([[0], np.cumsum(on.sum(1))]).astype(np.uint32),
        index=np.nonzero(on)[1].astype(np.uint32),
        value=dense[on].astype(np.float32),
        error=np.zeros(n, np.float32),
        error_affine=np.zeros(n, np.float32),
    )
    return FeatureBatch(run, boot, steps, {HOOK: codes}, {HOOK: transcoder})


def dense_of(points):
    out = np.zeros((len(points), FEATURES), np.float32)
    rows = np.repeat(np.arange(len(points)), np.diff(points.indptr.astype(int)))
    out[rows, points.index] = points.value
    return out


@st.composite
def streams(draw):
    sizes = draw(st.lists(st.integers(1, 12), min_size=1, max_size=6))
    seed = draw(st.integers(0, 2**32 - 1))
    random = np.random.default_rng(seed)
    out, first = [], 0
    for n in sizes:
        dense = random.exponential(size=(n, FEATURES)) * (random.random((n, FEATURES)) < 0.4)
        out.append((first, dense, random.integers(0, 3, n)))
        first += n
    return out


@given(streams(), st.integers(1, 40))
def test_points_keep_every_features_largest_activation(stream, most):
    hub = LiveHub()
    place = hub.join(VIEW)
    for first, dense, envs in stream:
        hub.take(batch(first, dense, envs))
    found = place.next(most)
    own = np.concatenate([dense[envs == VIEW.env] for _, dense, envs in stream])
    if len(own) == 0:
        assert found == []
        return
    (points,) = found
    assert len(points) == min(most, len(own))
    assert points.steps.sum() == len(own)
    bounds = np.concatenate([[0], np.cumsum(points.steps)]).astype(int)
    expected = [own[a:b].max(0) for a, b in pairwise(bounds)]
    np.testing.assert_allclose(dense_of(points), expected, rtol=1e-6)
    last = np.concatenate(
        [np.arange(first, first + len(dense))[envs == VIEW.env] for first, dense, envs in stream]
    )[bounds[1:] - 1]
    np.testing.assert_array_equal(points.t, last)
    np.testing.assert_array_equal(points.metrics[:, 1], last + 1)
    np.testing.assert_allclose(points.time_ms, last + 1)
    assert place.missed == 0


def test_a_place_gets_each_step_once_and_another_run_never():
    hub = LiveHub()
    place = hub.join(VIEW)
    ones = np.ones((4, FEATURES))
    hub.take(batch(0, ones, 1))
    hub.take(batch(0, ones, 1, run="another"))
    assert [one.t.tolist() for one in place.next(100)] == [[0, 1, 2, 3]]
    assert place.next(100) == []
    hub.take(batch(4, ones, 1))
    assert [one.t.tolist() for one in place.next(100)] == [[4, 5, 6, 7]]


def test_boots_transcoders_and_numbers_of_metrics_are_never_put_together():
    hub = LiveHub()
    place = hub.join(VIEW)
    ones = np.ones((2, FEATURES))
    hub.take(batch(0, ones, 1))
    hub.take(batch(0, ones, 1, boot="later"))
    hub.take(batch(2, ones, 1, boot="later", transcoder="sha256:b"))
    hub.take(batch(4, ones, 1, boot="later", transcoder="sha256:b", metrics=3))
    kinds = [(one.boot_id, one.transcoder, one.metrics.shape[1]) for one in place.next(4)]
    assert kinds == [
        ("boot", "sha256:a", 2),
        ("later", "sha256:a", 2),
        ("later", "sha256:b", 2),
        ("later", "sha256:b", 3),
    ]


def test_the_ring_is_bounded_and_the_slow_page_is_told():
    one = batch(0, np.ones((10, FEATURES)), 1)
    hub = LiveHub(most_bytes=2500)
    slow = hub.join(VIEW)
    hub.take(one)
    assert len(slow.next(100)[0]) == 10
    for first in range(10, 110, 10):
        hub.take(batch(first, np.ones((10, FEATURES)), 1))
    rest = sum(len(points) for points in slow.next(1000))
    assert 0 < rest < 100
    assert slow.missed == 100 - rest


def test_who_comes_back_goes_on_and_is_told_of_what_is_gone():
    hub = LiveHub(most_bytes=2500)
    place = hub.join(VIEW)
    hub.take(batch(0, np.ones((10, FEATURES)), 1))
    place.next(100)
    name = place.name
    place.leave()
    hub.take(batch(10, np.ones((10, FEATURES)), 1))
    back = hub.join(VIEW, name)
    assert back.next(100)[0].t.tolist() == list(range(10, 20))
    assert back.missed == 0
    for first in range(20, 220, 10):
        hub.take(batch(first, np.ones((10, FEATURES)), 1))
    late = hub.join(VIEW, name)
    rest = sum(len(points) for points in late.next(1000))
    assert late.missed == 210 - rest


@pytest.mark.parametrize("name", ["", "nonsense", "00000000-3-4", "-1", "x" * 64])
def test_a_place_of_another_console_begins_anew(name):
    hub = LiveHub()
    hub.take(batch(0, np.ones((3, FEATURES)), 1))
    assert hub.join(VIEW, name).next(10)[0].t.tolist() == [0, 1, 2]


def test_a_hub_is_watched_while_a_page_looks():
    hub = LiveHub()
    assert not hub.watched
    one, two = hub.join(VIEW), hub.join(VIEW)
    one.leave()
    assert hub.watched
    two.leave()
    assert not hub.watched


def test_a_message_is_laid_out_as_the_page_reads_it():
    hub = LiveHub()
    place = hub.join(VIEW)
    hub.take(batch(7, np.array([[0, 2, 0, 0, 1], [0, 0, 0, 0, 0.5]]), 1))
    (points,) = place.next(10)
    data = encode_points(points, missed=9)
    head = np.frombuffer(data, "<u4", 8)
    assert head.tolist() == [VERSION, 2, 2, 3, 9, 0, 0, 0]
    assert np.frombuffer(data, "<f8", 2, 32).tolist() == [8.0, 9.0]
    t = np.frombuffer(data, "<u4", 2, 32 + 16 + 8)
    assert t.tolist() == [7, 8]
    metrics = np.frombuffer(data, "<f4", 4, 32 + 16 + 5 * 8)
    assert metrics.tolist() == [7, 8, 8, 9]
    tail = 32 + 16 + 5 * 8 + 16
    assert np.frombuffer(data, "<u4", 3, tail).tolist() == [0, 2, 3]
    assert np.frombuffer(data, "<u4", 3, tail + 12).tolist() == [1, 4, 4]
    assert np.frombuffer(data, "<f4", 3, tail + 24).tolist() == [2, 1, 0.5]
    assert len(data) == tail + 36
