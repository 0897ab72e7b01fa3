"""A replaying explainer comes to the verdicts of the live one, whatever the batches and pace."""

from __future__ import annotations

import numpy as np
import pytest

from interlatent_live.explanations import ExplainerConfig
from interlatent_live.feed.documents import ClaimsDocument, document_payload
from interlatent_live.pipeline.explainer import ExplainerCore, Pace, calibrations_from
from interlatent_live.pipeline.gathering import joined
from interlatent_live.pipeline.looks import RecordedLooks
from interlatent_live.wire.slices import slice_features
from tests.pipeline.test_explainer import SECOND, Clock, calibration, core, drive, finish
from tests.support.planted_stream import HOOK, TRANSCODER, episodes, manifest


def cut_anew(batches, random):
    """The same rows in batches of other sizes."""
    whole = joined(batches)
    at, total = 0, len(whole.steps)
    while at < total:
        rows = min(int(random.integers(1, 700)), total - at)
        yield slice_features(whole, at, rows)
        at += rows


def replaying(documents, *, calibrated):
    return ExplainerCore(
        ExplainerConfig(null_draws=29),
        calibrations=calibrations_from([calibration()] if calibrated else []),
        pace=Pace(rescore_s=1.0, narrate_s=1.0),
        writer="built-in (no LLM)",
        words=False,
        clock=lambda: 0,
        looks=RecordedLooks(documents),
    )


def claims_of(document):
    plain = document_payload(document)
    return {name: plain[name] for name in ("claims", "counts", "null", "processed_seq", "looks")}


@pytest.mark.parametrize("calibrated", [True, False])
@pytest.mark.parametrize("seed", [0, 1])
def test_verdicts_scores_and_look_times_are_those_of_the_live_run(calibrated, seed):
    random = np.random.default_rng(seed)
    clock, documents = Clock(), []
    live = core(clock, calibrated=calibrated)
    live.prepare()
    live.hello(manifest(), {HOOK: TRANSCODER})
    batches = list(episodes(60, seed=1 + seed, start_ns=10 * SECOND))
    drive(live, clock, cut_anew(batches, random), documents)
    told = finish(live, documents)
    assert told[-1].counts["verified"] >= 1
    assert len(told[-1].looks) > 5

    again = replaying(told, calibrated=calibrated)
    assert again.prepare() == 0
    again.hello(manifest(), {HOOK: TRANSCODER})
    found = []
    for batch in cut_anew(batches, random):
        again.features(batch)
        for _ in range(random.integers(0, 3)):
            found += again.work()
    last = finish(again, found)[-1]
    assert last.final
    assert claims_of(last) == claims_of(told[-1])


def test_without_recorded_looks_claims_are_scored_in_the_time_of_the_rows():
    again = replaying([], calibrated=False)
    again.hello(manifest(), {HOOK: TRANSCODER})
    found = []
    for batch in episodes(80, seed=2, start_ns=SECOND):
        again.features(batch)
        for _ in range(6):
            found += again.work()
    last = finish(again, found)[-1]
    assert last.counts["verified"] >= 1
    assert last.published_ns < 3600 * SECOND, "the recording's time, not now"


def test_a_recording_that_ends_before_the_last_look_gets_one():
    clock, documents = Clock(), []
    live = core(clock)
    live.prepare()
    live.hello(manifest(), {HOOK: TRANSCODER})
    drive(live, clock, episodes(30, seed=3, start_ns=10 * SECOND), documents)
    told = [one for one in documents if isinstance(one, ClaimsDocument)]
    again = replaying(told, calibrated=True)
    again.hello(manifest(), {HOOK: TRANSCODER})
    for batch in episodes(30, seed=3, start_ns=10 * SECOND):
        again.features(batch)
    assert finish(again, [])[-1].final
