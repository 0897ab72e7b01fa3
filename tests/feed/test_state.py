import numpy as np
import pytest

from interlatent_live.feed.documents import document_payload, parse_document
from interlatent_live.feed.state import NARRATION_KEPT, FeedState
from tests.support.feeds import (
    agents_document,
    claim,
    claims_document,
    costs_document,
    feature_batch,
    narration_document,
)


def test_documents_survive_the_trip():
    for topic, document in [
        ("agents", agents_document()),
        ("claims", claims_document([claim()])),
        ("narration", narration_document()),
        ("costs", costs_document()),
    ]:
        assert parse_document(topic, document_payload(document)) == document


def test_newest_step_of_each_copy_wins():
    state = FeedState()
    state.on_document(agents_document())
    state.on_features(feature_batch(0, envs=(0, 1, 0)), received_ns=2_000_000)
    run = state.runs["run-1", "boot-1"]
    assert set(run.copies) == {0, 1}
    assert run.copies[0].metrics == {"pole angle": 0.05, "cart position": -1.0}
    assert run.copies[0].active == {"hidden.1": [(3, 1.5)]}
    assert run.steps_seen == 3


def test_active_features_come_strongest_first():
    state = FeedState()
    state.on_features(feature_batch(active=((1, 0.5), (2, 3.0), (9, 1.0))), received_ns=1)
    active = state.runs["run-1", "boot-1"].copies[0].active["hidden.1"]
    assert [index for index, _ in active] == [2, 9, 1]


def test_a_hole_in_the_numbering_is_missed_and_a_replay_is_not():
    state = FeedState()
    state.on_features(feature_batch(0), received_ns=1)
    state.on_features(feature_batch(10), received_ns=1)
    state.on_features(feature_batch(0), received_ns=1)
    run = state.runs["run-1", "boot-1"]
    assert run.steps_missed == 8
    assert run.next_seq == 12


def test_latency_is_measured_per_step():
    state = FeedState()
    state.on_features(feature_batch(time_ns=0), received_ns=8_000_000)
    assert state.step_to_feed.n == 2
    assert state.step_to_feed.percentile(50) == pytest.approx(8.0, rel=0.05)


def test_memory_is_bounded_whatever_the_feed_sends():
    state = FeedState(max_runs=2, max_copies=3)
    for number in range(5):
        batch = feature_batch(envs=tuple(range(10)))
        state.on_features(
            type(batch)(f"run-{number}", "b", batch.steps, batch.codes, batch.transcoders),
            received_ns=1,
        )
    assert list(state.runs) == [("run-3", "b"), ("run-4", "b")]
    assert all(len(run.copies) == 3 for run in state.runs.values())
    for number in range(NARRATION_KEPT + 5):
        state.on_document(narration_document(env=number))
    assert len(state.narration) == NARRATION_KEPT


def test_a_foreign_struct_is_refused():
    with pytest.raises(TypeError, match="not a feed document"):
        FeedState().on_document(np.float64(1))
