"""What the feed says is in a Rerun file, as Rerun's own reader finds it."""

import sys

import numpy as np
import pytest

from interlatent_live.errors import UserError
from interlatent_live.feed.client import FeedEvent
from interlatent_live.feed.documents import AlertsDocument, AlertStatus, Topic
from interlatent_live.feed.rerun_sink import RerunSink, activations, open_stream
from interlatent_live.wire.messages import Picture
from tests.support.feeds import (
    agents_document,
    claim,
    claims_document,
    feature_batch,
    narration_document,
)

JPEG = b"\xff\xd8\xff\xe0 a picture"


def event(value):
    return FeedEvent(Topic.FEATURES, value, 1)


def alerts(phase):
    status = AlertStatus("tilted", "hidden.1", phase, "page", "the pole tilts", 1, {})
    return AlertsDocument("run-1", "cartpole-demo", 1, [status], [], [], {}, 7)


def columns(file):
    """{entity: {column: [values]}} of a recording, by Rerun's own reader."""
    chunk = pytest.importorskip("rerun.chunk")
    found: dict = {}
    for one in chunk.RrdReader(file).stream():
        batch = one.to_record_batch()
        entity = found.setdefault(str(one.entity_path), {})
        for field, column in zip(batch.schema, batch.columns, strict=True):
            entity.setdefault(field.name, []).extend(column.to_pylist())
    return found


def flat(values):
    return [inner for outer in values for inner in outer]


@pytest.mark.operations
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_file_holds_metrics_features_narration_claims_alerts_and_pictures(tmp_path):
    pytest.importorskip("rerun")
    file = tmp_path / "seen.rrd"
    with RerunSink(open_stream(str(file)), features=2) as sink:
        sink.take(event(agents_document()))
        sink.take(event(claims_document([claim(3), claim(9, "weak", balanced_accuracy=None)])))
        sink.take(event(feature_batch(10, envs=(0, 1, 0), time_ns=5_000)))
        holed = feature_batch(20, active=((9, 1.0),), time_ns=6_000)
        holed.steps.metrics[:, 1] = np.nan
        sink.take(event(holed))
        sink.take(event(narration_document()))
        for phase in ("firing", "firing", "inactive"):
            sink.take(event(alerts(phase)))
        sink.picture(Picture("boot-1", 11, 0, 4, 4, JPEG, 5_500))
        sink.picture(Picture("somebody else's", 11, 0, 4, 4, JPEG, 5_500))
    found = columns(file)
    angle = found["/run-1/env-0/metrics/pole\\ angle"]
    assert angle["step"] == [10, 12, 20]
    assert [int(one.value) for one in angle["time"]] == [5_000, 5_000, 6_000]
    assert flat(angle["Scalars:scalars"]) == [0.05, 0.05, 0.05]
    assert found["/run-1/env-0/metrics/cart\\ position"]["step"] == [10, 12], "absent stays absent"
    assert found["/run-1/env-1/metrics/pole\\ angle"]["step"] == [11, 21]
    feature = found["/run-1/env-0/features/hidden.1/3"]
    assert feature["step"] == [10, 12, 20]
    assert flat(feature["Scalars:scalars"]) == [1.5, 1.5, 0.0], "off is 0"
    assert "/run-1/env-0/features/hidden.1/9" not in found, "its claim does not hold"
    assert flat(found["/run-1/env-0/narration"]["TextLog:text"]) == ["The pole leans right."]
    assert flat(found["/run-1/claims/hidden.1"]["TextLog:text"]) == [
        "verified: hidden.1/3 — pole leans right (balanced accuracy 0.93)",
        "weak: hidden.1/9 — pole leans right",
    ]
    assert flat(found["/run-1/alerts"]["TextLog:text"]) == [
        "firing: tilted at hidden.1 — the pole tilts",
        "ended: tilted at hidden.1",
    ]
    assert flat(found["/run-1/fvu/hidden.1"]["Scalars:scalars"]) == [0.0007]
    picture = found["/run-1/env-0/picture"]
    assert picture["step"] == [11]
    assert bytes(flat(picture["EncodedImage:blob"])[0]) == JPEG


def test_a_feature_s_activations_are_nought_where_it_is_off():
    (codes,) = feature_batch(envs=(0, 1, 0), active=((3, 1.5), (7, 2.0))).codes.values()
    assert activations(codes, 7).tolist() == [2.0, 2.0, 2.0]
    assert activations(codes, 4).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.operations
def test_what_is_no_place_to_write_to_is_refused(tmp_path):
    pytest.importorskip("rerun")
    there = tmp_path / "there.rrd"
    there.touch()
    for target, why in (
        (str(there), "is there already"),
        (str(tmp_path / "no" / "where.rrd"), "there is no folder"),
        ("http://127.0.0.1:9876", "a viewer's address"),
    ):
        with pytest.raises(UserError, match=why):
            open_stream(target)


def test_without_the_extra_a_sentence_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "rerun", None)
    with pytest.raises(UserError, match=r"interlatent-live\[rerun\]"):
        open_stream(str(tmp_path / "seen.rrd"))
