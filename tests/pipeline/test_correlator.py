import dataclasses

import pytest

from interlatent_live.errors import UserError
from interlatent_live.feed.documents import document_payload, parse_document
from interlatent_live.pipeline.correlator import CorrelatorCore
from interlatent_live.statistics.config import CorrelatorConfig
from interlatent_live.statistics.memory import memory_bytes
from interlatent_live.stream import Controller
from interlatent_live.wire.codec import check_payload
from tests.support.planted_stream import HOOK, LEAN, TRANSCODER, episodes, manifest


def core(**options):
    return CorrelatorCore(CorrelatorConfig(), clock=lambda: 7, **options)


def run(correlator, batches, said=None):
    correlator.hello(said or manifest())
    for batch in batches:
        correlator.features(batch)


def test_a_planted_relation_is_in_the_document():
    correlator = core()
    run(correlator, episodes(30))
    (document,) = correlator.documents({})
    assert (document.run_id, document.hook_point, document.transcoder) == ("run", HOOK, TRANSCODER)
    assert document.processed_seq == 30 * 120
    assert document.steps == 30 * 120
    (feature,) = [one for one in document.features if one.index == LEAN]
    assert feature.address == f"{HOOK}/{LEAN}@{TRANSCODER}"
    lean, speed, reward = feature.metrics
    assert lean.r > 0.5
    assert lean.lo > 0.4
    assert lean.n_eff < lean.n / 2
    assert lean.mean_on > 0.8
    assert speed.lo < 0 < speed.hi
    assert reward.r is None
    assert "did not vary" in reward.reason


def test_documents_fit_the_wire():
    correlator = core()
    run(correlator, episodes(10))
    run_id = correlator.runs()[0].manifest.run_id
    lost = {run_id: {"no_credit": 3}, "another": {"age": 5}}
    (document,) = correlator.documents(lost)
    assert document.lost == {"no_credit": 3}
    payload = document_payload(document)
    check_payload(payload)
    assert parse_document("profiles", payload) == document


def test_nothing_is_published_twice_without_a_change():
    correlator = core()
    run(correlator, episodes(3))
    assert len(list(correlator.documents({}))) == 1
    assert list(correlator.documents({})) == []
    assert len(list(correlator.documents({}, everything=True))) == 1
    correlator.goodbye("run")
    assert len(list(correlator.documents({}))) == 1


def test_rows_of_an_unknown_run_are_refused():
    (batch,) = episodes(1)
    with pytest.raises(UserError, match="before its manifest"):
        core().features(batch)


def test_a_restarted_agent_goes_on_in_the_same_statistics():
    correlator = core()
    run(correlator, episodes(5))
    run(correlator, episodes(5, seed=1, boot_id="second"), manifest(boot_id="second"))
    (document,) = correlator.documents({})
    assert document.steps == 10 * 120
    assert document.boot_id == "second"


def test_another_transcoder_starts_anew():
    correlator = core()
    run(correlator, episodes(5))
    for batch in episodes(2, seed=1, boot_id="second"):
        correlator.hello(manifest(boot_id="second"))
        correlator.features(dataclasses.replace(batch, transcoders={HOOK: "sha256:other"}))
    (document,) = correlator.documents({})
    assert document.transcoder == "sha256:other"
    assert document.steps == 2 * 120


def test_steered_rows_stay_out():
    correlator = core()
    correlator.hello(manifest())
    for batch in episodes(4):
        batch.steps.controller[:60] = Controller.INTERVENTION
        correlator.features(batch)
    (document,) = correlator.documents({})
    assert document.steps == 4 * 60


def test_runs_are_bounded_and_ended_ones_go_first():
    correlator = core(max_runs=2)
    for name in ("a", "b"):
        run(correlator, episodes(1, run_id=name), manifest(run_id=name))
    correlator.goodbye("b")
    run(correlator, episodes(1, run_id="c"), manifest(run_id="c"))
    found = {one.run_id for one in correlator.documents({}, everything=True)}
    assert found == {"a", "c"}
    with pytest.raises(UserError, match="no statistics of run 'b'"):
        correlator.correlator("b", HOOK)


def test_an_agent_that_acts_is_not_forgotten_for_those_that_only_said_hello():
    correlator = core(max_runs=4)
    run(correlator, episodes(1, run_id="acts"), manifest(run_id="acts"))
    for number in range(10):
        correlator.hello(manifest(run_id=f"silent-{number}", boot_id=f"silent-{number}"))
    assert len(correlator.runs()) == 4
    assert "acts" in {one.manifest.run_id for one in correlator.runs()}


def test_ended_runs_are_bounded_and_push_out_none_that_goes_on():
    correlator = core(max_ended=2)
    for name in ("a", "b", "c", "d"):
        correlator.hello(manifest(run_id=name, boot_id=name))
    for name in ("b", "a", "c"):
        correlator.goodbye(name)
    assert {one.manifest.run_id for one in correlator.runs()} == {"a", "c", "d"}


def test_tables_are_bounded_ended_runs_give_way_and_a_stream_without_room_is_refused():
    size = memory_bytes(CorrelatorConfig(), 4, 3)
    correlator = core(limit_bytes=2 * size)
    for name in ("a", "b", "c"):
        run(correlator, episodes(1, run_id=name), manifest(run_id=name))
        if name == "a":
            correlator.goodbye("a")
    assert {one.run_id for one in correlator.documents({}, everything=True)} == {"b", "c"}
    with pytest.raises(UserError, match=r"raise limits\.statistics_bytes"):
        run(correlator, episodes(1, run_id="d"), manifest(run_id="d"))
