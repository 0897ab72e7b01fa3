"""The correlator as a real process, asked over its socket while rows arrive."""

import dataclasses
import time

import msgspec
import numpy as np
import pytest
import zmq

from interlatent_live.errors import UserError
from interlatent_live.pipeline.correlator import CorrelatorCore
from interlatent_live.queries import StatisticsClient
from interlatent_live.queries import messages as m
from interlatent_live.statistics.config import CorrelatorConfig
from interlatent_live.stream import Controller
from interlatent_live.wire.sockets import connect_dealer, receive_message, send_message
from tests.support.correlator_service import CorrelatorProcess, Feeder
from tests.support.planted_stream import HOOK, LEAN, TRANSCODER, episodes, manifest

EPISODES = 60
OPTIONS = {
    "correlator.slices": ("leaning: lean > 0.8", "other: absent_metric > 1"),
    "correlator.pane_steps": 64,
    "correlator.drift_reference_panes": 16,
    "correlator.conformal_rate": 0.2,
    "correlator.conformal_block_steps": 64,
    "correlator.conformal": ("novelty", "metric:speed", "metric:none"),
}


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    folder = tmp_path_factory.mktemp("snapshots")
    with CorrelatorProcess(**OPTIONS, **{"correlator.snapshots": str(folder)}) as one:
        with Feeder(one.settings.endpoints.correlator) as feeder:
            batches = list(episodes(EPISODES))
            for batch in batches[-10:]:
                batch.steps.controller[:60] = Controller.INTERVENTION
            feeder.send(batches)
            feeder.end()
        yield one


@pytest.fixture
def ask(service):
    with StatisticsClient(service.settings.endpoints.correlator_queries) as client:
        yield client


def undisturbed():
    core = CorrelatorCore(CorrelatorConfig(pane_steps=64), clock=lambda: 1)
    core.hello(manifest())
    for batch in episodes(EPISODES):
        if batch.steps.episode[0] >= EPISODES - 10:
            batch.steps.controller[:60] = Controller.INTERVENTION
        core.features(batch)
    return core.find("", "").correlator


def test_runs_and_hook_points(ask):
    (run,) = ask.runs().items
    assert (run.run_id, run.agent, run.hook_points) == ("run", "walker", [HOOK])
    assert [metric.unit for metric in run.metrics] == ["rad", "m/s", ""]
    (hook,) = ask.hook_points().items
    assert hook.source.transcoder == TRANSCODER
    assert hook.source.rows == EPISODES * 120 - 600
    assert hook.episodes == EPISODES


def test_steered_rows_are_left_out_and_counted(ask):
    (hook,) = ask.hook_points().items
    assert hook.source.left_out["steered"] == 10 * 60
    assert ask.features().source.rows == EPISODES * 120 - 600


def test_a_profile_is_the_one_of_the_library(ask):
    ours = undisturbed()
    profile = ask.profile(LEAN)
    theirs = ours.profile(LEAN)
    assert profile.address == f"{HOOK}/{LEAN}@{TRANSCODER}"
    assert profile.n == theirs.n
    assert profile.bouts == theirs.bouts
    assert profile.share_of_episodes == theirs.episodes / theirs.episodes_total
    for one, other in zip(profile.metrics, theirs.metrics, strict=True):
        for name in ("r", "lo", "hi", "n_eff", "auroc", "mean_on", "effect_size"):
            expected = getattr(other, name)
            assert getattr(one, name) == (
                None if expected is None else pytest.approx(expected, rel=1e-9)
            )
    lean = profile.metrics[0]
    assert lean.lo > 0.4
    assert profile.metrics[2].r is None
    assert "did not vary" in profile.metrics[2].reasons["r"]
    assert profile.lags[0].peak == 0
    assert profile.lags[0].lags == list(range(-16, 17))
    assert {one.metric for one in profile.partial.metrics} == {"lean", "speed"}
    assert profile.partial.metrics[0].lo > 0
    assert {one.metric for one in profile.decomposition} == {"lean", "speed", "reward"}
    assert {one.kind for one in profile.exemplars} >= {"top", "random"}
    assert profile.events[0].event == "terminated"
    assert profile.partners[0].feature == 1


def test_pages_neither_repeat_nor_skip(ask):
    whole = ask.pairs(limit=100)
    pages = list(ask.pages(m.Pairs(limit=2)))
    assert len(pages) == whole.matched == 4 * 3
    assert [(one.feature, one.association.name) for one in pages] == [
        (one.feature, one.association.name) for one in whole.items
    ]
    features = list(ask.pages(m.Features(limit=1, sort="abs_r", metric="lean")))
    assert len(features) == 4
    assert features[0].feature == LEAN
    first = ask.features(limit=1)
    with pytest.raises(UserError, match="another question"):
        ask.features(limit=1, sort="feature", cursor=first.next_cursor)
    with pytest.raises(UserError, match="not one this service gave out"):
        ask.features(cursor="nonsense")


def test_filters(ask):
    assert [one.feature for one in ask.features(min_density=0.15).items] == [LEAN]
    assert {one.feature for one in ask.features(live=True).items} == {0, 1}
    assert [one.association.name for one in ask.pairs(excludes_zero=True, metric="lean").items] == [
        "lean"
    ]
    silent = ask.features(sort="feature", descending=False).items[2]
    assert silent.strongest is None
    assert silent.reason == "the feature never fired in this window"


def test_a_metric_and_its_features(ask):
    view = ask.metric("lean")
    assert view.metric.unit == "rad"
    assert view.sd == pytest.approx(1 / np.sqrt(1 - 0.81), rel=0.1)
    assert view.items[0].feature == LEAN
    with pytest.raises(UserError, match="no metric 'height'"):
        ask.metric("height")


def test_screening_and_discoveries_are_different_lists(ask):
    screening = ask.screening()
    assert screening.title == "screening"
    assert "no error rate" in screening.note
    found = ask.discoveries()
    assert found.title == "discoveries"
    assert [(one.feature, one.metric) for one in found.items] == [(LEAN, "lean")]
    looks = ask.discoveries(procedure="by")
    assert [look.episodes for look in looks.looks] == [32]
    assert looks.items[0].look == 1
    assert looks.next_look == 64


def test_slices_by_outcome_and_by_predicate(ask):
    items = {one.name: one for one in ask.slices().items}
    assert items["slice:terminated"].kind == "outcome"
    assert items["slice:terminated"].rows == EPISODES * 120 - 600
    assert items["slice:leaning"].predicate == "lean > 0.8"
    assert 0 < items["slice:leaning"].rows < items["all"].rows
    assert "absent_metric" in items["slice:other"].reason
    inside = ask.profile(LEAN, window="slice:leaning")
    assert inside.density == 1.0


def test_windows_are_compared(ask):
    answer = ask.compare(before=m.NOW, window="all", after_window="slice:leaning")
    assert answer.rows_after < answer.rows_before
    assert answer.matched == 12
    assert all(item.reason or item.lo is not None for item in answer.items)


def test_drift_and_conformal_alarms_are_in_the_answer(ask):
    alerts = ask.alerts().alerts
    conformal = {one.score: one for one in alerts.conformal}
    assert conformal["novelty"].phase in ("quiet", "alarm")
    assert conformal["novelty"].blocks > 50
    assert conformal["novelty"].threshold is not None
    assert "no metric 'none'" in conformal["metric:none"].reason
    assert alerts.run_id == "run"


def test_export_is_the_table(ask, tmp_path):
    columns = ask.columns()
    reference = undisturbed().table()
    np.testing.assert_allclose(columns["r"], reference.r.ravel(), rtol=1e-9)
    assert columns["metric"] == ["lean", "speed", "reward"] * 4
    assert columns["reason"][2] == "the metric did not vary in this window"
    parquet = pytest.importorskip("pyarrow.parquet")
    assert ask.to_parquet(tmp_path / "out.parquet") == 12
    read = parquet.read_table(tmp_path / "out.parquet").to_pydict()
    assert read["r"][2] is None
    assert read["r"][0] == columns["r"][0]
    assert len(ask.to_pandas()) == len(ask.to_polars()) == 12


def test_what_is_not_there_is_one_sentence(ask):
    for question, words in (
        (m.Features(run="nobody"), "no run 'nobody'"),
        (m.Features(hook_point="elsewhere"), "no statistics of run 'run' at 'elsewhere'"),
        (m.Features(window="half:3"), "no window 'half:3'"),
        (m.Profile(feature=4), "features must lie in 0 … 3"),
        (m.Compare(before="yesterday"), "no snapshot at least a day old"),
    ):
        with pytest.raises(UserError, match=words):
            ask.ask(question)


def test_garbage_and_floods_are_refused_and_the_service_goes_on(service, ask):
    context = zmq.Context()
    socket = connect_dealer(context, service.settings.endpoints.correlator_queries)
    good = msgspec.msgpack.encode({"v": 1, "id": 7, "question": {"ask": "runs"}})
    try:
        for frames in (
            [b"\xff" * 100],
            [b""],
            [b"a", b"b", b"c"],
            [msgspec.msgpack.encode({"v": 9, "id": 3, "question": {"ask": "runs"}})],
            [msgspec.msgpack.encode({"v": 1, "id": 3, "question": {"ask": "nothing"}})],
            [b"\x91" * 5000],
        ):
            assert send_message(socket, frames)
            assert socket.poll(5000)
            frame = (receive_message(socket) or [b""])[0]
            answer = msgspec.msgpack.decode(frame)
            assert answer["error"]
        for _ in range(100):
            send_message(socket, [good])
        words = []
        while len(words) < 100 and socket.poll(5000):
            frame = (receive_message(socket) or [b""])[0]
            words.append(msgspec.msgpack.decode(frame).get("refused"))
        assert len(words) == 100
        assert words.count(None) >= 8
        assert set(words) <= {None, "busy"}
    finally:
        socket.close()
        context.term()
    assert ask.runs().matched == 1


def test_questions_come_back_while_rows_arrive():
    flags = {"correlator.publish_every_s": 0.2}
    with CorrelatorProcess(**flags) as one:
        endpoints = one.settings.endpoints
        with (
            Feeder(endpoints.correlator) as feeder,
            StatisticsClient(endpoints.correlator_queries) as client,
        ):
            batches = list(episodes(200))
            for batch in batches:
                feeder.offer(batch)
                feeder.turn()
            taken = []
            while feeder.pending():
                feeder.turn()
                began = time.perf_counter()
                client.runs()
                taken.append(time.perf_counter() - began)
            assert feeder.sender.lost() == {}
            client.pairs(limit=12)
            assert client.runs().items[0].rows == 200 * 120
    assert taken


def test_nobody_there_is_said():
    with (
        StatisticsClient("tcp://127.0.0.1:9", timeout_s=0.2) as client,
        pytest.raises(
            UserError, match=r"no correlator answered at tcp://127\.0\.0\.1:9 within 0\.2 s"
        ),
    ):
        client.runs()


def test_a_killed_correlator_goes_on_from_its_snapshot_and_says_what_is_missing(tmp_path):
    flags = {"correlator.snapshots": str(tmp_path), "correlator.snapshot_every_s": 0.2}
    batches = list(episodes(80))
    with CorrelatorProcess(**flags) as one:
        endpoints = one.settings.endpoints
        with Feeder(endpoints.correlator) as feeder:
            feeder.send(batches[:40])
            with StatisticsClient(endpoints.correlator_queries) as client:
                deadline = time.monotonic() + 20
                while not any(item.rows == 40 * 120 for item in client.ask(m.Snapshots()).items):
                    assert time.monotonic() < deadline
                    time.sleep(0.1)
        one.kill()
        newest = max(tmp_path.glob("*/*.safetensors"))
        (newest.parent / f"{10**19}.safetensors").write_bytes(newest.read_bytes()[:5000])
        one.start()
        with Feeder(endpoints.correlator) as feeder:
            feeder.send([dataclasses.replace(batch) for batch in batches[45:]])
            with StatisticsClient(endpoints.correlator_queries) as client:
                (hook,) = client.hook_points().items
                assert hook.source.rows == 75 * 120
                assert hook.source.missing == 5 * 120
                columns = client.columns()
        assert "passed over a snapshot" in one.stop()
    core = CorrelatorCore(CorrelatorConfig(), clock=lambda: 1)
    core.hello(manifest())
    for batch in batches[:40] + batches[45:]:
        core.features(batch)
    table = core.find("", "").correlator.table()
    np.testing.assert_allclose(columns["r"], table.r.ravel(), rtol=1e-9)
    np.testing.assert_array_equal(columns["density"][::3], table.density)
