"""A recorder as a process beside the others: what it writes, and what a kill costs."""

import json
import os
import signal
import time
import urllib.request

import pytest

from interlatent_live.config import Settings
from interlatent_live.errors import UserError
from interlatent_live.recordings import read_recording, recording_info
from interlatent_live.recordings.files import recorded_files
from interlatent_live.recordings.playing import Playing, recording_files
from interlatent_live.services.recorder import serve
from interlatent_live.wire.messages import Document, FeaturesMessage
from tests.support.system import System, Walker, save, transcoder


def within(seconds, condition):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.1)


def messages(folder):
    return [one.message for file in recorded_files(folder) for one in read_recording(file.path)]


def rows_and_declared(folder):
    """Rows in the files, and why others are not, as the files declare it."""
    rows, declared = [], {}
    for one in messages(folder):
        if isinstance(one, FeaturesMessage):
            first = one.batch.steps.first_seq
            rows += range(first, first + len(one.batch.steps))
            for drop in one.drops:
                lost = range(drop.first_seq, drop.first_seq + drop.count)
                declared.update(dict.fromkeys(lost, drop.reason.value))
    return rows, declared


@pytest.fixture
def flags(tmp_path):
    save(tmp_path / "transcoders", transcoder())
    return {
        "encoder.transcoders": [str(tmp_path / "transcoders")],
        "recorder.folder": str(tmp_path / "recordings"),
        "recorder.chunk_seconds": 0.3,
    }


def test_without_a_folder_there_is_no_recorder():
    assert "recorder" not in Settings().services()
    assert len(Settings().consumers()) == 2
    with pytest.raises(UserError, match="no folder to record to"):
        serve(Settings())


def test_a_killed_recorder_costs_nothing_that_the_next_one_is_not_sent_again(tmp_path, flags):
    folder = tmp_path / "recordings"
    with System(**flags) as system:
        assert "recorder" in system.settings.services()
        with system.tap() as tap:
            walker = Walker(tap)
            walker.walk(1500)
            within(10, lambda: recorded_files(folder))
            before = rows_and_declared(folder)[0]
            system.kill("recorder")
            walker.walk(1500)
        within(30, lambda: max(rows_and_declared(folder)[0], default=0) == 2999)
        base = f"http://{system.settings.endpoints.recorder_health}"
        health = json.load(urllib.request.urlopen(f"{base}/healthz"))
        assert health["ready"]
        metrics = urllib.request.urlopen(f"{base}/metrics").read().decode()
        assert "interlatent_recorded_rows_total" in metrics
        within(10, lambda: any(isinstance(one, Document) for one in messages(folder)))
    rows, declared = rows_and_declared(folder)
    assert set(before) <= set(rows)
    assert set(rows) | declared.keys() == {*range(3000)}
    # What an agent on a busy machine lost before it reached the encoder is no fault of a recorder.
    assert set(declared.values()) <= {"upstream"}
    playing = Playing(recording_files([folder]))
    played = [one.message for one in playing.messages()]
    batches = [one.batch.steps for one in played if isinstance(one, FeaturesMessage)]
    assert sum(len(one) for one in batches) == len(set(rows)), "what two files have comes once"
    first, *_, last = recorded_files(folder)
    assert not recording_info(first.path).complete
    assert recording_info(last.path).complete
    topics = {one.topic for one in messages(folder) if isinstance(one, Document)}
    assert topics >= {"agents"}


def test_a_stopped_recorder_has_everything(tmp_path, flags):
    folder = tmp_path / "recordings"
    with System(**flags) as system:
        with system.tap() as tap:
            Walker(tap).walk(1000)
        within(20, lambda: len(rows_and_declared(folder)[0]) == 1000)
        os.kill(system.pid("recorder"), signal.SIGTERM)
    (file,) = recorded_files(folder)
    info = recording_info(file.path)
    assert info.complete
    (stream,) = info.streams.values()
    assert (stream.rows, stream.declared) == (1000, 0)
    assert stream.manifest.agent == "walker"
