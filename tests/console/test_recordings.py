"""Recordings as the page reads them: bounded answers, moments, and no way out of the folder."""

import json
import os
import signal
import threading
import time
import urllib.error
import urllib.parse
import urllib.request

import numpy as np
import pytest

from interlatent_live.console.live import View
from interlatent_live.console.moments import Query
from interlatent_live.console.recorded import NotThereError, RecordedFolder
from interlatent_live.console.recordings_routes import RecordingReader
from interlatent_live.errors import UserError
from interlatent_live.explanations.predicates import PredicateError
from interlatent_live.recordings.seeking import SeekableRecording
from interlatent_live.wire.codec import encode
from tests.support.console import RunningConsole
from tests.support.feature_stream import HOOK, HZ, START_NS, message
from tests.support.recorded import JPEG, LATE_NS, NAME, ROWS, RUN, write_recording


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("recordings")
    write_recording(path / NAME)
    return path


@pytest.fixture
def recorded(folder):
    return RecordedFolder(folder)


def test_a_listing_says_what_each_recording_is(recorded):
    (one,) = recorded.listing()["items"]
    assert one["name"] == NAME
    assert one["complete"]
    assert one["problem"] == ""
    assert one["agents"] == [{"agent": "lander", "environment": ""}]
    assert one["seconds"] == pytest.approx((ROWS - 1) / HZ, abs=0.01)
    (stream,) = recorded.described(NAME)["streams"]
    assert stream["run_id"] == RUN
    assert stream["pictures"]
    assert stream["hook_points"][0]["name"] == HOOK
    assert next(metric["name"] for metric in stream["metrics"]) == "height"


def columns(block):
    """(time_ms, episode, t, steps, metric 0) of a message of points."""
    head = np.frombuffer(block, "<u4", 8)
    n, m = int(head[1]), int(head[2])
    time_ms = np.frombuffer(block, "<f8", n, 32)
    words = np.frombuffer(block, "<u4", 5 * n, 32 + 8 * n).reshape(5, n)
    metrics = np.frombuffer(block, "<f4", n * m, 32 + 28 * n).reshape(n, m)
    return time_ms, words[0], words[1], words[2], metrics[:, 0]


def test_steps_of_a_time_are_on_the_recorders_clock(recorded):
    head, (block,) = recorded.steps(NAME, View(RUN, HOOK), 2.0, 4.0, 1000)
    time_ms, _, _, steps, height = columns(block)
    assert head["until"] == 4.0
    assert len(height) == 100
    assert (steps == 1).all()
    since_s = (time_ms - head["began_ns"] / 1e6) / 1000
    assert since_s[0] >= 2.0
    assert since_s[-1] < 4.0
    assert height[0] == pytest.approx((2.0 - 0.02) * HZ + 9, abs=9)


def test_a_long_time_is_thinned_and_loses_no_step(recorded):
    _, blocks = recorded.steps(NAME, View(RUN, HOOK), 0.0, 30.0, 50)
    steps = np.concatenate([columns(block)[3] for block in blocks])
    assert steps.sum() == ROWS
    assert len(steps) <= 52


def test_an_answer_that_takes_long_ends_early_and_says_where(folder):
    hasty = RecordedFolder(folder, work_s=0.0)
    at, seen = 0.0, 0
    for _ in range(2 * ROWS):
        head, blocks = hasty.steps(NAME, View(RUN, HOOK), at, 19.97, 10_000)
        seen += sum(len(columns(block)[0]) for block in blocks)
        assert head["until"] > at
        at = head["until"]
        if at >= 19.97:
            break
    assert at == 19.97
    assert seen >= ROWS - 2


def test_words_are_those_of_the_moment_and_of_what_comes(recorded):
    found = recorded.words(NAME, RUN, HOOK, 5.0, 12.0)
    told = [(one["claim"]["address"][6], one["claim"]["verdict"]) for one in found["claims"]]
    assert told == [("3", "pending"), ("4", "weak"), ("3", "verified")]
    assert found["claims"][0]["at"] <= 5.0 < found["claims"][2]["at"]
    narrated = [one["at"] for one in found["narration"]]
    assert narrated == sorted(narrated, reverse=True)
    assert narrated[0] <= 12.0
    assert recorded.words(NAME, "another", HOOK, 5.0, 12.0) == {"claims": [], "narration": []}


def test_a_picture_is_the_newest_until_then(recorded):
    assert recorded.picture(NAME, RUN, 0, 3.9) is None
    at, jpeg = recorded.picture(NAME, RUN, 0, 9.0)
    assert jpeg == JPEG
    assert at == pytest.approx(209 / HZ, abs=0.01)
    assert recorded.picture(NAME, RUN, 1, 9.0) is None


def all_moments(recorded, query, limit):
    at, found = 0.0, []
    for _ in range(500):
        page = recorded.moments(NAME, query, at, limit)
        found += page["items"]
        if page["done"]:
            return found
        assert page["until"] > at
        at = page["until"]
    raise AssertionError("it never ends")


@pytest.mark.parametrize("limit", [500, 7])
@pytest.mark.parametrize("work_s", [2.0, 0.0])
def test_moments_of_a_predicate_are_each_found_once(folder, limit, work_s):
    # Height rises by one a step through 40 episodes of 25 steps; pilot_pulse is twice the height.
    # Of four episodes every step that has two before it.
    query = Query(RUN, predicate="lag(reward, 2) >= 0 and height >= 100 and height < 200")
    found = all_moments(RecordedFolder(folder, work_s), query, limit)
    assert [(one["episode"], one["t"]) for one in found] == [(e, 2) for e in range(4, 8)]
    assert all(one["steps"] == 23 or (one["goes_on"] and work_s == 0.0) for one in found)
    assert found[0]["at"] == pytest.approx((102 - 9) / HZ + 9 / HZ, abs=0.01)


def test_moments_of_a_feature_have_their_peak(recorded):
    found = all_moments(recorded, Query(RUN, HOOK, feature=3), 500)
    # Row s has feature s mod 16 on: 63 rows, none within the gap of another.
    assert len(found) == ROWS // 16 + 1
    assert {one["peak"] for one in found} == {0.5}
    assert all_moments(recorded, Query(RUN, HOOK, feature=3, above=0.5), 500) == []
    both = Query(RUN, HOOK, feature=3, predicate="height < 100")
    assert len(all_moments(recorded, both, 500)) == 7


def test_a_mistake_in_a_predicate_has_a_place(recorded):
    with pytest.raises(PredicateError) as caught:
        recorded.moments(NAME, Query(RUN, predicate="height > 1 and hight < 2"), 0.0, 10)
    assert caught.value.position == 15
    with pytest.raises(UserError, match="say what to look for"):
        Query(RUN)


def test_a_recording_that_grows_is_read_on(tmp_path):
    writer = write_recording(tmp_path / NAME, rows=500, close=False)
    recorded = RecordedFolder(tmp_path)
    before = recorded.listing()["items"][0]
    assert not before["complete"]
    assert before["seconds"] == pytest.approx(499 / HZ, abs=0.01)
    one = message(500)
    writer.write(encode(one), time_ns=START_NS + LATE_NS + 11_000_000_000, message=one)
    writer.close()
    after = recorded.listing()["items"][0]
    assert after["complete"]
    assert after["seconds"] > before["seconds"]


def test_what_is_known_of_chunks_is_what_is_in_them(folder):
    one = SeekableRecording(folder / NAME)
    assert one.index()
    assert len(one.places) == ROWS // 50
    narrated = [m.time_ns for m in one.before(2**62, lambda topic: topic == "document/narration")]
    assert len(narrated) == ROWS // 100
    assert narrated == sorted(narrated, reverse=True)
    cut = folder.parent / "cut.mcap"
    cut.write_bytes((folder / NAME).read_bytes()[: one.places[5].at + 20])
    half = SeekableRecording(cut)
    assert half.index()
    assert not half.complete
    assert len(half.places) == 5


@pytest.mark.parametrize(
    "name",
    [
        "../secret.mcap", "..", ".", "/etc/passwd", "secret.mcap\0", "sub/inner.mcap",
        "link.mcap", "notes.txt", "", "%2e%2e/secret.mcap", "..\\secret.mcap",
    ],
)  # fmt: skip
def test_only_plain_files_of_the_folder_are_read(tmp_path, name):
    inside = tmp_path / "recordings"
    (inside / "sub").mkdir(parents=True)
    for path in (tmp_path / "secret.mcap", inside / "sub" / "inner.mcap"):
        path.write_bytes(b"secret")
    (inside / "link.mcap").symlink_to(tmp_path / "secret.mcap")
    (inside / "notes.txt").write_bytes(b"secret")
    recorded = RecordedFolder(inside)
    assert recorded.names() == []
    with pytest.raises(NotThereError, match="there is no recording"):
        recorded.steps(name, View(RUN, HOOK), 0.0, 1.0, 10)


def test_damage_is_said_and_what_comes_before_is_shown(tmp_path):
    write_recording(tmp_path / NAME)
    data = bytearray((tmp_path / NAME).read_bytes())
    one = SeekableRecording(tmp_path / NAME)
    one.index()
    data[one.places[10].at + 60] ^= 0xFF
    (tmp_path / NAME).write_bytes(data)
    (tmp_path / "none.mcap").write_bytes(b"no recording at all")
    recorded = RecordedFolder(tmp_path)
    problems = {one["name"]: one["problem"] for one in recorded.listing()["items"]}
    assert "does not begin as an MCAP file" in problems["none.mcap"]
    head, _ = recorded.steps(NAME, View(RUN, HOOK), 0.0, 5.0, 100)
    assert head["until"] == 5.0
    with pytest.raises(UserError, match="damaged"):
        recorded.steps(NAME, View(RUN, HOOK), 0.0, 19.0, 100)


@pytest.fixture(scope="module")
def console(tmp_path_factory, folder):
    reader = RecordingReader(folder, within_s=20.0)
    with RunningConsole(tmp_path_factory.mktemp("console"), recordings=reader) as one:
        yield one, reader
    reader.close()


def get(url, **query):
    text = urllib.parse.urlencode(query)
    try:
        with urllib.request.urlopen(f"{url}?{text}", timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_whoever_may_look_reads_recordings_over_http(console):
    one, _ = console
    url = f"{one.url}/api/v1/recordings"
    assert [item["name"] for item in json.loads(get(url)[1])["items"]] == [NAME]
    status, body = get(f"{url}/{NAME}/steps", run_id=RUN, hook_point=HOOK, to_s=2.0)
    said = int.from_bytes(body[:4], "little")
    head = json.loads(body[4 : 4 + said])
    assert status == 200
    assert len(body) == 4 + said + sum(b["bytes"] for b in head["blocks"])
    status, body = get(f"{url}/{NAME}/moments", run_id=RUN, predicate="height <")
    assert status == 422
    assert json.loads(body)["position"] == 8
    status, body = get(f"{url}/{NAME}/picture", run_id=RUN, at_s=9)
    assert (status, body) == (200, JPEG)
    assert get(f"{url}/{NAME}/picture", run_id=RUN, at_s=1)[0] == 204
    assert get(f"{url}/another.mcap")[0] == 404
    for way_out in ("..%2F..%2Fetc%2Fpasswd", "%2e%2e", "..%5c..%5cx.mcap", "%00.mcap"):
        assert get(f"{url}/{way_out}/steps", run_id=RUN, hook_point=HOOK)[0] in {404, 422}


def test_a_reader_that_hangs_holds_up_nobody_else(console):
    one, reader = console
    reader.ask({"ask": "listing"})
    os.kill(reader._process.pid, signal.SIGSTOP)
    reader._within_s = 1.5
    answers = []
    asking = threading.Thread(target=lambda: answers.append(get(f"{one.url}/api/v1/recordings")))
    asking.start()
    try:
        while asking.is_alive():
            began = time.monotonic()
            assert get(f"{one.url}/api/v1/health")[0] == 200
            assert time.monotonic() - began < 1.0
            time.sleep(0.05)
    finally:
        asking.join()
        reader._within_s = 20.0
    ((status, body),) = answers
    assert status == 504
    assert "could not be read within" in json.loads(body)["detail"]
    assert get(f"{one.url}/api/v1/recordings")[0] == 200, "the next one begins it anew"
