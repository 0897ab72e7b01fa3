from __future__ import annotations

import pytest

from interlatent_live.errors import UserError
from interlatent_live.recordings import RecordingWriter
from interlatent_live.recordings.playing import Playing, Selection, recording_files
from interlatent_live.wire.codec import encode, encode_hello
from interlatent_live.wire.messages import FeaturesMessage, Hello
from tests.recordings.test_recordings import steps_frames
from tests.support.feature_stream import START_NS, TRANSCODERS, manifest, message

SECOND = 1_000_000_000


def write(path, firsts, *, who=None, at_s=0.0, hello=True, rows=10):
    """A file with ``rows`` rows from each of ``firsts``, a second apart."""
    who = who or manifest()
    start = START_NS + int(at_s * SECOND)
    with RecordingWriter(path) as writer:
        if hello:
            writer.write(encode_hello(who, transcoders=TRANSCODERS), time_ns=start)
        for number, first in enumerate(firsts):
            one = message(first, rows, who=who)
            writer.write(encode(one), time_ns=start + number * SECOND, message=one)
    return path


def rows(playing):
    return [
        seq
        for one in playing.messages()
        if isinstance(one.message, FeaturesMessage)
        for seq in range(
            one.message.batch.steps.first_seq,
            one.message.batch.steps.first_seq + len(one.message.batch.steps),
        )
    ]


def test_files_come_in_the_order_in_which_they_were_recorded(tmp_path):
    second = write(tmp_path / "a.mcap", [10], at_s=10)
    first = write(tmp_path / "b.mcap", [0])
    assert recording_files([tmp_path]) == [first, second]
    assert rows(Playing(recording_files([second, first]))) == [*range(20)]


def test_a_folder_of_a_recorder_holds_other_files_too(tmp_path):
    ours = write(tmp_path / "interlatent-20260101T000000Z-1.mcap", [0])
    write(tmp_path / "copy.mcap", [0])
    assert recording_files([tmp_path]) == [ours]


def test_what_is_recorded_twice_is_played_once(tmp_path):
    write(tmp_path / "a.mcap", [0, 10])
    write(tmp_path / "b.mcap", [5, 15, 25], at_s=10)
    playing = Playing(recording_files([tmp_path]))
    assert rows(playing) == [*range(35)]
    assert playing.twice == 15


def test_an_agent_and_a_stretch_of_time_are_selected(tmp_path):
    write(tmp_path / "a.mcap", [0, 10, 20, 30])
    other = manifest("rover", "boot-2", "run-2")
    write(tmp_path / "b.mcap", [100], who=other, at_s=20)
    files = recording_files([tmp_path])
    assert rows(Playing(files, Selection(from_s=1, to_s=2.5))) == [*range(10, 30)]
    found = list(Playing(files, Selection(agent="rover")).messages())
    agents = [one.message.manifest.agent for one in found if isinstance(one.message, Hello)]
    assert agents == ["rover"]
    assert rows(Playing(files, Selection(agent="rover"))) == [*range(100, 110)]


def test_a_damaged_file_ends_where_the_damage_begins_and_the_next_goes_on(tmp_path):
    damaged = write(tmp_path / "a.mcap", [0])
    good = write(tmp_path / "b.mcap", [10], at_s=10)
    files = recording_files([damaged, good])
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 0xFF
    damaged.write_bytes(bytes(content))
    told = []
    assert rows(Playing(files, told=told.append))[-10:] == [*range(10, 20)]


def test_rows_without_a_hello_are_said_once_and_left_out(tmp_path):
    write(tmp_path / "a.mcap", [0, 10], hello=False)
    told = []
    assert rows(Playing([tmp_path / "a.mcap"], told=told.append)) == []
    assert len(told) == 1


def test_activations_and_empty_folders_are_refused_with_a_remedy(tmp_path):
    with pytest.raises(UserError, match="no recording with messages"):
        recording_files([tmp_path])
    with RecordingWriter(tmp_path / "a.mcap") as writer:
        writer.write(steps_frames(0), time_ns=1)
    with pytest.raises(UserError, match="activations and no features"):
        list(Playing([tmp_path / "a.mcap"]).messages())
