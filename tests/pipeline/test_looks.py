from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlatent_live.feed.documents import ClaimsDocument, LookRecord, Topic, document_payload
from interlatent_live.pipeline.looks import LookKind, LookLog, RecordedLooks, cut_at, load_looks
from interlatent_live.recordings import RecordingWriter
from interlatent_live.wire.codec import encode_document
from tests.support.feature_stream import message


def document(looks, run="run"):
    return ClaimsDocument(
        run_id=run, boot_id="boot", hook_point="h", transcoder="t", claims=[], counts={}, null={},
        writer="w", processed_seq=0, final=False, published_ns=0, looks=looks,
    )  # fmt: skip


def noted(count):
    log = LookLog()
    told = []
    for number in range(count):
        log.note(LookKind.RESCORE, "boot", 10 * number, draws=number, at_ns=1000 + number)
        told.append(document(log.newest()))
    return told


@given(st.integers(1, 200), st.sets(st.integers(0, 199)))
def test_missed_documents_cost_nothing_while_the_newest_looks_overlap(count, missed):
    told = [one for number, one in enumerate(noted(count)) if number not in missed]
    looks = RecordedLooks(told)
    last = told[-1].looks[-1].number if told else -1
    gap = max([b - a for a, b in pairwise([-1, *(d.looks[-1].number for d in told)])], default=0)
    found = looks.coming("run", "h", "t")
    if told and gap <= 64:
        assert found is not None
        assert [one.number for one in found] == [*range(last + 1)]
        assert looks.incomplete == []
    else:
        assert found is None


def test_a_restarted_explainer_has_forgotten_so_its_looks_are_not_followed():
    again = [LookRecord(0, "propose", "boot", 0, 0, 99)]
    looks = RecordedLooks([*noted(3), document(again)])
    assert looks.coming("run", "h", "t") is None
    assert looks.incomplete == ["run at h"]


def test_looks_are_read_from_recordings(tmp_path):
    with RecordingWriter(tmp_path / "a.mcap") as writer:
        for one in noted(5):
            frames = encode_document(Topic.CLAIMS, document_payload(one), source="explainer")
            writer.write(frames, time_ns=1)
    found = load_looks([tmp_path / "a.mcap"]).coming("run", "h", "t")
    assert found is not None
    assert [one.seq for one in found] == [0, 10, 20, 30, 40]


@pytest.mark.parametrize("places", [[], [5], [5, 7, 7], [0, 10, 20], [9, 1]])
def test_a_batch_is_cut_where_looks_are_to_be_taken(places):
    batch = message(100, 10).batch
    looks = [LookRecord(i, "rescore", "boot-1", 100 + p, 0, 0) for i, p in enumerate(places)]
    looks.append(LookRecord(99, "rescore", "another", 103, 0, 0))
    parts = list(cut_at(batch, looks))
    ends = [one.steps.first_seq + len(one.steps) - 100 for one in parts]
    assert ends == [*sorted({p for p in places if 0 < p < 10}), 10]
    assert sum(len(one.steps) for one in parts) == 10
