"""The decoder against bytes that nobody should send; tests/fuzz/README.md has the longer runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import msgpack  # type: ignore[import-untyped] # the package ships no types
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interlatent_live.errors import WireError
from interlatent_live.recordings.framing import split_frames
from interlatent_live.wire.codec import decode, encode, kind_of
from interlatent_live.wire.messages import KINDS
from tests.fuzz.write_corpus import FOLDER
from tests.support.wire_mutations import ODD, Mutator, seeds

REASONS = {
    "frames",
    "header",
    "version",
    "kind",
    "schema",
    "limit",
    "length",
    "tensor",
    "dtype",
    "shape",
    "value",
    "document",
}


def outcome(frames):
    """What a reader makes of frames: ``accepted`` or the reason of its refusal."""
    refusal = None
    try:
        encode(decode(frames))
    except WireError as error:
        refusal = error
    if refusal is None:
        return "accepted"
    assert refusal.reason in REASONS
    assert str(refusal)
    return refusal.reason


@given(st.lists(st.binary(max_size=200), max_size=4))
def test_any_bytes(frames):
    outcome(frames)
    assert kind_of(frames) in {*KINDS, ""}


JSONISH = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)


@given(
    st.sampled_from(seeds()),
    st.dictionaries(
        st.sampled_from(["v", "kind", "boot", "n", "hooks", "t", "seq", "sent", "drops", "size"]),
        JSONISH | st.sampled_from(ODD),
        max_size=3,
    ),
    st.sampled_from(sorted(KINDS)),
)
def test_any_fields(frames, changes, kind):
    fields = {"v": 1, "kind": kind, "boot": "b", "seq": 0, "sent": 0, **changes}
    outcome([msgpack.packb(fields), *frames[1:]])


@given(st.data())
def test_any_change_of_some_bytes(data):
    frames = [bytearray(frame) for frame in data.draw(st.sampled_from(seeds()))]
    for _ in range(data.draw(st.integers(1, 4))):
        frame = data.draw(st.sampled_from(frames))
        if frame:
            frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    outcome(frames)


@settings(max_examples=30)
@given(st.integers(0, 2**32))
def test_the_mutator(seed):
    mutator = Mutator(seed)
    for _ in range(100):
        outcome(mutator.message())


@pytest.mark.parametrize("path", sorted(FOLDER.iterdir()), ids=lambda path: path.name)
def test_the_corpus(path):
    try:
        frames = split_frames(path.read_bytes())
    except WireError:
        frames = [memoryview(path.read_bytes())]
    outcome(frames)


def run_million(messages, seed=1):
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.fuzz.million",
            "--messages",
            str(messages),
            "--seed",
            str(seed),
        ],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def check_report(report, messages):
    outcomes = report["outcomes"]
    assert sum(outcomes.values()) == messages
    # Every rule was put to the test, and every refusal has its reason and was counted.
    assert set(outcomes) == {*REASONS, "accepted"}
    refused = messages - outcomes["accepted"]
    assert refused > 0.5 * messages
    assert report["refusals_counted_by_the_hub"] >= refused
    growth = report["rss_at_the_end_kib"] - report["rss_after_a_tenth_kib"]
    assert growth < 20_000


def test_some_thousand_in_a_process_of_their_own():
    check_report(run_million(20_000), 20_000)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_million_in_a_process_of_their_own():
    check_report(run_million(1_000_000), 1_000_000)
