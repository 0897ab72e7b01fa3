"""A recording is read while it is written, from where the last reading ended."""

import pytest

from interlatent_live.errors import CorruptFileError, UserError
from interlatent_live.recordings import RecordingWriter, read_recording
from interlatent_live.recordings.following import RecordingFollower
from interlatent_live.wire.codec import encode_features, encode_hello
from interlatent_live.wire.messages import Hello
from tests.support.planted_stream import episodes, manifest


@pytest.fixture
def writer(tmp_path):
    with RecordingWriter(tmp_path / "a.mcap") as one:
        one.write(encode_hello(manifest()), time_ns=1)
        yield one


def rows(messages):
    return [one.message.batch.steps.first_seq for one in messages if "features" in one.topic]


def test_what_was_written_since_is_read_and_nothing_twice(writer):
    follower = RecordingFollower(writer.path)
    assert rows(follower.messages()) == []
    batches = list(episodes(6, 10))
    for low in (0, 2, 4):
        for number, batch in enumerate(batches[low : low + 2]):
            writer.write(encode_features(batch), time_ns=100 + low + number)
        assert rows(follower.messages()) == []
        writer.flush()
        assert rows(follower.messages()) == [10 * low, 10 * low + 10]
    assert not follower.complete
    writer.close()
    assert rows(follower.messages()) == []
    assert follower.complete
    assert rows(read_recording(writer.path)) == [0, 10, 20, 30, 40, 50]


def test_a_reading_that_was_left_goes_on(writer):
    for batch in episodes(4, 10):
        writer.write(encode_features(batch), time_ns=5)
        writer.flush()
    follower = RecordingFollower(writer.path)
    reading = follower.messages()
    first = [next(reading), next(reading)]
    assert rows(first) == [0]
    assert rows(follower.messages()) == [10, 20, 30]


def test_what_is_older_is_passed_over_but_not_the_hellos(writer):
    for number, batch in enumerate(episodes(4, 10)):
        writer.write(encode_features(batch), time_ns=100 + number)
    writer.flush()
    found = list(RecordingFollower(writer.path, since_ns=102).messages())
    assert isinstance(found[0].message, Hello)
    assert rows(found) == [20, 30]


def test_a_file_that_begins_is_empty_and_another_is_refused(tmp_path):
    new = tmp_path / "new.mcap"
    new.write_bytes(b"\x89MC")
    assert list(RecordingFollower(new).messages()) == []
    other = tmp_path / "other.mcap"
    other.write_bytes(b"no recording at all")
    with pytest.raises(CorruptFileError, match="does not begin as"):
        list(RecordingFollower(other).messages())
    with pytest.raises(UserError, match="there is no recording"):
        RecordingFollower(tmp_path / "none.mcap")
