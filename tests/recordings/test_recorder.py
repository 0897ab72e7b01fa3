from __future__ import annotations

import errno
import fcntl
import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mcap.reader import make_reader

from interlatent_live.errors import UserError
from interlatent_live.recordings import read_recording, recording_info, writer
from interlatent_live.recordings.files import recorded_files
from interlatent_live.recordings.recorder import RETRY_S, Recorder, RecorderOptions, _holes
from interlatent_live.wire.messages import (
    Bye,
    Document,
    Drop,
    DropReason,
    FeaturesMessage,
    Hello,
    Picture,
)
from tests.support.feature_stream import HOOK, START_NS, TRANSCODERS, manifest, message


@pytest.fixture
def rig(tmp_path):
    made = []

    def make(**options):
        made.append(Rig(tmp_path, **options))
        return made[-1]

    yield make
    for one in made:
        one.recorder.close()


class Rig:
    """A recorder whose clock the test turns."""

    def __init__(self, folder, **options):
        self.now = 1000.0
        self.told = []
        self.recorder = Recorder(
            folder,
            RecorderOptions(**options),
            provenance={"from": "a test"},
            wall_ns=lambda: START_NS + int((self.now - 1000.0) * 1e9),
            clock=lambda: self.now,
            told=self.told.append,
        )

    def hello(self, boot="boot-1", first_seq=0):
        self.recorder.hello(manifest(boot=boot), TRANSCODERS, first_seq)

    def rows(self, first_seq, rows=10, boot="boot-1", drops=()):
        self.recorder.rows(message(first_seq, rows, who=manifest(boot=boot), drops=drops))

    def later(self, seconds=1.0):
        self.now += seconds
        return self.recorder.turn()


def files(folder):
    return [one.path for one in recorded_files(folder)]


def recorded_rows(folder):
    found = []
    for file in files(folder):
        for one in read_recording(file):
            if isinstance(one.message, FeaturesMessage):
                first = one.message.batch.steps.first_seq
                found += range(first, first + len(one.message.batch.steps))
    return found


def bye(boot="boot-1"):
    return Bye(
        boot_id=boot, next_seq=10, sent=10, acknowledged=10, lost={}, in_flight=0,
        used_steps=10, used_bytes=1, sent_ns=START_NS,
    )  # fmt: skip


def test_rows_are_done_with_only_once_the_operating_system_has_them(rig, tmp_path):
    recording = rig()
    recording.hello()
    assert recording.recorder.turn() == []
    recording.later()  # the hello's chunk
    recording.rows(0)
    recording.rows(10)
    assert recording.recorder.turn() == []
    assert recorded_rows(tmp_path) == []
    assert recording.later() == ["boot-1", "boot-1"]
    assert recorded_rows(tmp_path) == [*range(20)]
    assert recording.recorder.counts.rows == 20
    assert recording.recorder.unwritten_bytes == 0


def pictures_in(folder):
    return [
        one.message.seq
        for file in files(folder)
        for one in read_recording(file)
        if isinstance(one.message, Picture)
    ]


def test_pictures_take_no_more_than_their_bytes_and_what_is_left_out_is_counted(rig, tmp_path):
    recording = rig(picture_bytes_per_s=3000)
    recording.hello()
    jpeg = b"\xff\xd8\xff" + bytes(997)  # 2,333 bytes with Foxglove's copy
    for number in range(600):
        recording.recorder.picture(Picture("boot-1", number, 0, 8, 8, jpeg, START_NS))
        recording.later(0.1)
    recording.recorder.close()
    kept = pictures_in(tmp_path)
    # A minute's bytes, and what was saved up before it.
    assert 60 * 3000 < len(kept) * 7000 / 3 <= 60 * 3000 + 160_000
    assert kept[-1] > 590, "evenly, not the first ones only"
    assert recording.recorder.counts.pictures_skipped == 600 - len(kept)
    assert recording.recorder.counts.documents_missed == 0


def test_without_bytes_for_pictures_none_is_recorded(rig, tmp_path):
    recording = rig(picture_bytes_per_s=0)
    recording.hello()
    recording.recorder.picture(Picture("boot-1", 1, 0, 8, 8, b"\xff\xd8\xff", START_NS))
    recording.later()
    recording.recorder.close()
    assert pictures_in(tmp_path) == []


def test_a_chunk_does_not_wait_when_it_has_grown(rig, tmp_path, monkeypatch):
    recording = rig()
    monkeypatch.setattr("interlatent_live.recordings.recorder.CHUNK_BYTES", 2000)
    recording.hello()
    recording.rows(0, 200)
    assert recording.recorder.turn() == ["boot-1"]


def test_each_file_begins_with_the_hellos_of_open_streams(rig, tmp_path):
    recording = rig(file_seconds=10.0)
    recording.hello("boot-1")
    recording.hello("boot-2")
    recording.rows(0)
    recording.rows(0, boot="boot-2")
    recording.later()
    recording.recorder.ended(bye("boot-2"))
    recording.later(10.0)
    recording.rows(10)
    recording.later()
    recording.recorder.close()
    first, second = files(tmp_path)
    assert recording_info(first).complete
    begun = [one.message for one in read_recording(second)]
    assert isinstance(begun[0], Hello)
    assert (begun[0].manifest.boot_id, begun[0].first_seq) == ("boot-1", 10)
    assert recording_info(second).streams.keys() == {"boot-1"}
    assert recorded_rows(tmp_path).count(5) == 2, "one of each stream"


def test_files_are_rotated_by_size_and_the_oldest_go(rig, tmp_path):
    other = tmp_path / "holiday.mcap"
    other.write_bytes(b"x" * 100_000)
    near = tmp_path / "interlatent-notes.mcap"
    near.write_bytes(b"x")
    recording = rig(file_bytes=20_000, keep_bytes=70_000, compression=writer.Compression.NONE)
    recording.hello()
    for number in range(30):
        recording.rows(50 * number, 50)
        recording.later()
    assert recording.recorder.counts.removed > 0
    kept = files(tmp_path)
    assert near not in kept
    assert sum(one.stat().st_size for one in kept) <= 70_000
    assert recording.recorder.path in kept
    assert other.exists()
    assert near.exists()
    rows = recorded_rows_of(kept)
    assert rows == [*range(rows[0], 1500)], "what is kept has no hole"


def recorded_rows_of(paths):
    found = []
    for file in paths:
        for one in read_recording(file):
            if isinstance(one.message, FeaturesMessage):
                first = one.message.batch.steps.first_seq
                found += range(first, first + len(one.message.batch.steps))
    return sorted(found)


def test_old_files_go_but_never_one_that_is_being_written(rig, tmp_path):
    old = tmp_path / "interlatent-20200101T000000Z-1.mcap"
    written = tmp_path / "interlatent-20200101T000000Z-2.mcap"
    for one in (old, written):
        one.write_bytes(b"x")
        os.utime(one, (0, 0))
    with written.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        recording = rig(keep_s=3600.0)
        recording.hello()
        recording.later()
        assert not old.exists()
        assert written.exists()
    recording.later(100.0)
    assert not written.exists()


def test_a_full_disk_is_an_error_state_and_costs_no_row(rig, tmp_path, monkeypatch):
    recording = rig()
    recording.hello()
    recording.rows(0)
    assert recording.later() == ["boot-1"]
    recording.rows(10)
    full = True

    real = writer._Unbuffered.write

    def write(self, data):
        if full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(self, data)

    monkeypatch.setattr(writer._Unbuffered, "write", write)
    assert recording.later() == []
    assert "No space left" in recording.recorder.error
    recording.rows(20)
    recording.recorder.document(Document("claims", "explainer", {"a": 1}))
    assert recording.later(RETRY_S) == []
    assert len(files(tmp_path)) == 1, "no empty files are left behind by trying"
    assert len(recording.told) == 1
    full = False
    assert recording.later(RETRY_S) == []  # begun again; the chunk is not yet due
    assert recording.recorder.error == ""
    recording.rows(30)
    assert recording.later() == ["boot-1"] * 3
    assert recorded_rows(tmp_path) == [*range(40)]
    assert recording.recorder.counts.documents_missed == 1
    assert recording.recorder.counts.failures >= 1


def test_redacted_metrics_are_nowhere_in_the_file(rig, tmp_path):
    recording = rig(redact=("pilot_pulse",), compression=writer.Compression.NONE)
    recording.hello()
    recording.rows(0)
    claims = [{"label": "high", "predicate": "height > 2"}, {"predicate": "pilot_pulse > 100"}]
    recording.recorder.document(
        Document("claims", "explainer", {"claims": claims, "run_id": "run-1"})
    )
    recording.recorder.document(
        Document("alerts", "correlator", {"summary": "pilot_pulse is high"})
    )
    recording.later()
    recording.recorder.close()
    (file,) = files(tmp_path)
    info = recording_info(file)
    assert json.loads(info.provenance["redacted_metrics"]) == ["pilot_pulse"]
    stream = info.streams["boot-1"]
    assert stream.manifest.metric_names() == ("height", "thrust", "reward")
    messages = [one.message for one in read_recording(file)]
    (rows,) = [one for one in messages if isinstance(one, FeaturesMessage)]
    assert rows.batch.steps.metrics[3].tolist() == [3.0, -3.0, 0.0]
    (document,) = [one for one in messages if isinstance(one, Document)]
    assert document.payload["claims"] == claims[:1]
    assert file.read_bytes().count(b"pilot_pulse") == info.provenance.__str__().count("pilot_pulse")


def test_holes_that_no_message_declares_are_declared_in_the_file(rig, tmp_path):
    recording = rig()
    recording.hello()
    recording.rows(0)
    recording.rows(40, drops=[Drop(20, 10, DropReason.PEER_LOST)])
    recording.later()
    recording.recorder.close()
    info = recording_info(*files(tmp_path))
    assert info.streams["boot-1"].rows == 20
    assert info.streams["boot-1"].declared == 30


@given(
    st.integers(0, 50),
    st.integers(0, 50),
    st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20)), max_size=5),
)
def test_holes_are_exactly_what_is_not_declared(next_seq, length, declared):
    drops = [Drop(first, count, DropReason.AGE) for first, count in declared]
    first_seq = next_seq + length
    known = {row for first, count in declared for row in range(first, first + count)}
    found = [
        row
        for one in _holes(next_seq, first_seq, drops)
        for row in range(one.first_seq, one.first_seq + one.count)
    ]
    assert found == [row for row in range(next_seq, first_seq) if row not in known]


def test_a_folder_that_cannot_be_is_refused_in_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot record to"):
        Rig(tmp_path / "file" / "folder")


def test_foxglove_channels_are_read_by_the_mcap_package_and_passed_over_by_ours(rig, tmp_path):
    recording = rig()
    recording.hello()
    recording.rows(0, 100)
    lines = [{"text": "It falls.", "references": []}]
    recording.recorder.document(
        Document("narration", "explainer",
                 {"agent": "lander", "env": 0, "lines": lines, "published_ns": START_NS})
    )  # fmt: skip
    recording.recorder.picture(Picture("boot-1", 3, 0, 8, 8, b"\xff\xd8jpeg", START_NS + 5))
    recording.later()
    recording.recorder.close()
    (file,) = files(tmp_path)
    found: dict[str, list] = {}
    schemas = {}
    with file.open("rb") as stream:
        for schema, channel, one in make_reader(stream, validate_crcs=True).iter_messages():
            if channel.message_encoding == "json":
                assert schema is not None
                assert schema.encoding == "jsonschema"
                schemas[channel.topic] = (schema.name, json.loads(schema.data))
                found.setdefault(channel.topic, []).append(json.loads(one.data))
    assert found.keys() == {
        "/lander/metrics", "/lander/action", "/lander/reward", f"/lander/features/{HOOK}",
        "/lander/narration", "/lander/picture/0",
    }  # fmt: skip
    assert len(found["/lander/metrics"]) == 20, "100 rows at 50 Hz are 2 s: 10 Hz"
    assert found["/lander/metrics"][1]["height"] == 5.0
    assert found["/lander/metrics"][1]["timestamp"] == {"sec": 1_700_000_000, "nsec": 100_000_000}
    assert found[f"/lander/features/{HOOK}"][1]["features"] == [{"index": 5, "value": 0.5}]
    assert schemas["/lander/narration"][0] == "foxglove.Log"
    assert found["/lander/narration"][0]["message"] == "It falls."
    assert schemas["/lander/picture/0"][0] == "foxglove.CompressedImage"
    for topic, values in found.items():
        described = schemas[topic][1]["properties"].keys()
        assert all(value.keys() <= described for value in values)
    kinds = [type(one.message).__name__ for one in read_recording(file)]
    assert kinds == ["Hello", "FeaturesMessage", "Document", "Picture"]


def test_without_foxglove_there_is_nothing_but_our_own(rig, tmp_path):
    recording = rig(foxglove=False)
    recording.hello()
    recording.rows(0, 100)
    recording.later()
    recording.recorder.close()
    with next(iter(files(tmp_path))).open("rb") as stream:
        summary = make_reader(stream).get_summary()
    assert summary is not None
    assert {one.message_encoding for one in summary.channels.values()} == {"interlatent-wire-1"}
