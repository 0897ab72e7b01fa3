from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mcap.reader import make_reader
from typer.testing import CliRunner

from interlatent_live.cli.main import app
from interlatent_live.errors import CorruptFileError, UserError, WireError
from interlatent_live.recordings import (
    Compression,
    RecordingWriter,
    read_recording,
    recording_info,
)
from interlatent_live.recordings import reader as reader_module
from interlatent_live.recordings.framing import join_frames, split_frames
from interlatent_live.stream import FeatureBatch
from interlatent_live.wire.codec import (
    encode_document,
    encode_features,
    encode_hello,
    encode_steps,
)
from interlatent_live.wire.messages import (
    Document,
    Drop,
    DropReason,
    FeaturesMessage,
    Hello,
    StepsMessage,
)
from tests.support.wire_network import make_batch, make_manifest
from tests.support.wire_strategies import features_messages

# The folder of a test is the same for all examples, and is written anew by each.
SLOW_MACHINES = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
T0 = 1_700_000_000_000_000_000


def steps_frames(first, rows=4, drops=()):
    return encode_steps(make_batch(first, rows), boot_id="boot", drops=drops, sent_ns=T0 + first)


def write_steps(path, messages=30, **options):
    options = {"chunk_bytes": 2000, **options}
    with RecordingWriter(path, **options) as writer:
        writer.write(encode_hello(make_manifest(), sent_ns=T0), time_ns=T0)
        for number in range(messages):
            writer.write(steps_frames(4 * number), time_ns=T0 + number)
    return path


def rows_of(path):
    rows = []
    for recorded in read_recording(path):
        if isinstance(recorded.message, StepsMessage):
            rows += recorded.message.batch.steps.metrics[:, 0].astype(int).tolist()
    return rows


@pytest.mark.parametrize("compression", list(Compression))
def test_what_was_written_is_read(tmp_path, compression):
    path = write_steps(tmp_path / "a.mcap", compression=compression)
    recorded = list(read_recording(path))
    assert isinstance(recorded[0].message, Hello)
    assert recorded[0].message.manifest == make_manifest()
    assert [one.time_ns for one in recorded] == [T0, *(T0 + n for n in range(30))]
    assert [bytes(frame) for frame in recorded[3].frames] == steps_frames(8)
    assert rows_of(path) == list(range(120))


def test_a_recording_says_what_is_in_it(tmp_path):
    path = tmp_path / "a.mcap"
    with RecordingWriter(path, provenance={"why": "a test"}) as writer:
        hello = encode_hello(make_manifest(), transcoders={"h": "sha256:ab"})
        writer.write(hello, time_ns=T0)
        writer.write(steps_frames(0), time_ns=T0 + 5)
        writer.write(
            steps_frames(7, drops=[Drop(4, 3, DropReason.OVERRUN)]), time_ns=T0 + 2_000_000_000
        )
        writer.write(encode_document("claims", {"a": 1}, source="s"), time_ns=T0)
    info = recording_info(path)
    assert info.complete
    assert info.unread_bytes == 0
    assert info.messages == 4
    assert info.topics == {"hello/boot": 1, "steps/boot": 2, "document/claims": 1}
    assert (info.first_ns, info.last_ns) == (T0, T0 + 2_000_000_000)
    assert info.provenance["why"] == "a test"
    assert "interlatent-live" in info.provenance["library"]
    stream = info.streams["boot"]
    assert stream.manifest == make_manifest()
    assert stream.transcoders == {"h": "sha256:ab"}
    assert (stream.rows, stream.declared) == (8, 3)


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(message=features_messages())
def test_features_come_back_through_the_same_decoder(tmp_path, message):
    path = tmp_path / "f.mcap"
    path.unlink(missing_ok=True)
    frames = encode_features(message.batch, drops=message.drops, sent_ns=message.sent_ns)
    with RecordingWriter(path) as writer:
        writer.write(frames, time_ns=1, message=message)
    (recorded,) = read_recording(path)
    assert isinstance(recorded.message, FeaturesMessage)
    assert isinstance(recorded.message.batch, FeatureBatch)
    again = encode_features(
        recorded.message.batch, drops=recorded.message.drops, sent_ns=recorded.message.sent_ns
    )
    assert again == frames


def test_other_programs_can_read_it(tmp_path):
    path = write_steps(tmp_path / "a.mcap")
    with path.open("rb") as file:
        reader = make_reader(file)
        summary = reader.get_summary()
        assert summary is not None
        assert summary.statistics is not None
        assert summary.statistics.message_count == 31
        assert {schema.name for schema in summary.schemas.values()} == {
            "interlatent_live.hello.v1",
            "interlatent_live.steps.v1",
        }
        assert all(json.loads(schema.data) for schema in summary.schemas.values())
        messages = list(reader.iter_messages(topics=["steps/boot"]))
    assert [message.publish_time for _, _, message in messages] == [
        T0 + 4 * number for number in range(30)
    ]
    assert split_frames(messages[2][2].data) == steps_frames(8)


def test_a_file_cut_at_any_byte_yields_every_complete_chunk(tmp_path):
    whole = write_steps(tmp_path / "whole.mcap", messages=12, chunk_bytes=700).read_bytes()
    expected = rows_of(tmp_path / "whole.mcap")
    cut = tmp_path / "cut.mcap"
    counts = []
    # The index at the end holds no rows: there a byte in twenty will do.
    data_end = whole.rindex(b"interlatent_live.hello.v1") - 40
    for length in (*range(8, data_end, 3), *range(data_end, len(whole), 20)):
        cut.write_bytes(whole[:length])
        rows = rows_of(cut)
        assert rows == expected[: len(rows)]
        counts.append(len(rows))
    # With every longer piece there are as many rows or more, a chunk's worth at a time.
    assert counts == sorted(counts)
    assert len(set(counts)) > 5
    assert counts[-1] == len(expected)
    info = recording_info(cut)
    assert info.messages == 13
    assert not info.complete
    cut.write_bytes(whole[: len(whole) // 2])
    info = recording_info(cut)
    assert not info.complete
    assert info.unread_bytes >= 0
    for length in range(8):
        cut.write_bytes(whole[:length])
        with pytest.raises(CorruptFileError):
            rows_of(cut)


WRITER = """
import sys, time
from pathlib import Path
from interlatent_live.recordings import RecordingWriter
from interlatent_live.wire.codec import encode_hello, encode_steps
from tests.support.wire_network import make_batch, make_manifest
writer = RecordingWriter(Path(sys.argv[1]), chunk_bytes=4000)
writer.write(encode_hello(make_manifest()), time_ns=1)
number = 0
while True:
    writer.write(encode_steps(make_batch(4 * number, 4), boot_id="boot"), time_ns=number + 1)
    number += 1
    print(4 * number, flush=True)
    time.sleep(0.001)
"""


def test_a_killed_writer_loses_only_the_chunk_in_the_making(tmp_path):
    path = tmp_path / "killed.mcap"
    root = os.fspath(pytest_root())
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, os.fspath(path)],
        cwd=root,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": root},
    )
    assert process.stdout is not None
    written = 0
    for line in process.stdout:
        written = int(line)
        if written >= 800:
            break
    process.send_signal(signal.SIGKILL)
    rest = process.stdout.read().split()
    process.wait(10)
    process.stdout.close()
    written = max([written, *map(int, rest)])
    rows = rows_of(path)
    assert rows == list(range(len(rows)))
    # 4,000 bytes hold about twelve messages of four rows.
    assert written - len(rows) <= 100
    assert not recording_info(path).complete


def pytest_root():
    from pathlib import Path  # noqa: PLC0415 - only here

    return Path(__file__).resolve().parents[2]


def test_a_quiet_stream_reaches_the_disk_by_the_clock(tmp_path):
    path = tmp_path / "quiet.mcap"
    writer = RecordingWriter(path, chunk_seconds=0.05)
    writer.write(steps_frames(0), time_ns=1)
    assert rows_of(path) == []
    time.sleep(0.06)
    writer.write(steps_frames(4), time_ns=2)
    assert rows_of(path) == list(range(8))
    writer.write(steps_frames(8), time_ns=3)
    writer.flush()
    assert rows_of(path) == list(range(12))
    assert not recording_info(path).complete
    writer.close()
    writer.close()
    assert recording_info(path).complete


def test_an_altered_byte_is_noticed(tmp_path):
    path = write_steps(tmp_path / "a.mcap", compression=Compression.NONE)
    data = bytearray(path.read_bytes())
    middle = data.index(b"steps", len(data) // 2)
    data[middle + 200] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptFileError, match="damaged"):
        list(read_recording(path))


@settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data(), compression=st.sampled_from(list(Compression)))
def test_a_hostile_file_is_refused_in_one_way(tmp_path, data, compression):
    original = tmp_path / f"{compression}.mcap"
    if not original.exists():
        write_steps(original, messages=6, chunk_bytes=800, compression=compression)
    content = bytearray(original.read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(8, len(content) - 1))
        patch = data.draw(st.binary(min_size=1, max_size=9) | st.just(b"\xff" * 8))
        content[at : at + len(patch)] = patch
    path = tmp_path / "hostile.mcap"
    path.write_bytes(content)
    try:
        recording_info(path)
    except CorruptFileError as error:
        assert str(path) in str(error)  # noqa: PT017 - no error is right too


def test_a_chunk_that_unpacks_to_more_than_it_says_is_refused(tmp_path, monkeypatch):
    for compression in Compression:
        path = write_steps(tmp_path / f"{compression}.mcap", compression=compression)
        with monkeypatch.context() as patch:
            patch.setattr(reader_module, "LARGEST_RECORD", 300)
            with pytest.raises(CorruptFileError):
                list(read_recording(path))


def test_foreign_channels_are_passed_over(tmp_path):
    from mcap.writer import Writer  # noqa: PLC0415 - only here

    path = tmp_path / "foreign.mcap"
    with path.open("wb") as file:
        writer = Writer(file)
        writer.start()
        channel = writer.register_channel("camera", "json", 0)
        writer.add_message(channel, 1, b"{}", 1)
        writer.finish()
    assert list(read_recording(path)) == []
    assert recording_info(path).complete


def test_sentences_for_what_is_wrong(tmp_path):
    with pytest.raises(UserError, match="no recording"):
        recording_info(tmp_path / "none.mcap")
    (tmp_path / "text.mcap").write_text("hello, this is not MCAP")
    with pytest.raises(CorruptFileError, match="not an MCAP"):
        recording_info(tmp_path / "text.mcap")
    path = write_steps(tmp_path / "a.mcap")
    with pytest.raises(UserError, match="exists"):
        RecordingWriter(path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        RecordingWriter(tmp_path / "file" / "a.mcap")
    with RecordingWriter(tmp_path / "b.mcap") as writer, pytest.raises(WireError):
        writer.write([b"\xc1"], time_ns=0)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")  # noqa: PTH110
def test_a_full_disk_is_one_sentence(tmp_path):
    path = tmp_path / "full.mcap"
    writer = RecordingWriter(path)
    with open("/dev/full", "wb", buffering=0) as full:  # noqa: PTH123 - the raw device
        os.dup2(full.fileno(), writer._file.fileno())
    writer.write(steps_frames(0), time_ns=0)
    with pytest.raises(UserError, match="ends here: No space left"):
        writer.flush()
    writer.close()


def test_frames_must_add_up():
    frames = [b"head", b"body"]
    assert split_frames(join_frames(frames)) == frames
    for bad in (b"\x01", b"\x05\0\0\0abc", join_frames([b"a"] * 3)):
        with pytest.raises(WireError):
            split_frames(bad)


def test_inspect_shows_it(tmp_path):
    path = write_steps(tmp_path / "a.mcap", provenance={"note": "[red]not markup[/red]"})
    shown = CliRunner().invoke(app, ["inspect", str(path)])
    assert shown.exit_code == 0
    assert "120" in shown.output
    assert "[red]" in shown.output
    plain = CliRunner().invoke(app, ["inspect", str(path), "--json"])
    info = json.loads(plain.output)
    assert info["streams"]["boot"]["rows"] == 120
    assert info["streams"]["boot"]["metrics"] == ["m"]
    shutil.copy(path, tmp_path / "b.mcap")
    os.truncate(tmp_path / "b.mcap", path.stat().st_size - 9)
    assert "cut off" in CliRunner().invoke(app, ["inspect", str(tmp_path / "b.mcap")]).output


def test_documents_are_recorded(tmp_path):
    path = tmp_path / "d.mcap"
    with RecordingWriter(path, durable=True) as writer:
        writer.write(encode_document("claims", {"x": [1, None]}, source="s"), time_ns=7)
    (recorded,) = read_recording(path)
    assert recorded.message == Document("claims", "s", {"x": [1, None]})
    assert recorded.topic == "document/claims"
