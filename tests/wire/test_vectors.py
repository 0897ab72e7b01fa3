from __future__ import annotations

import json

import pytest

from interlatent_live.errors import WireError
from interlatent_live.recordings.framing import split_frames
from interlatent_live.wire.codec import decode, encode
from interlatent_live.wire.messages import KINDS, PLAIN_KINDS
from tests.support.wire_vectors import FOLDER, files, vectors

ALL = vectors()


def test_the_committed_files_are_what_the_code_makes():
    made = files()
    assert {path.name for path in FOLDER.iterdir()} == set(made)
    for name, content in made.items():
        assert (FOLDER / name).read_bytes() == content, name


def test_every_kind_has_a_vector():
    described = json.loads((FOLDER / "wire-v1.json").read_text())
    assert {one["header"]["kind"] for one in described if "header" in one} == KINDS
    assert set(PLAIN_KINDS) < KINDS


@pytest.mark.parametrize("vector", [one for one in ALL if not one.refusal], ids=lambda v: v.name)
def test_a_vector_is_read_and_written_back(vector):
    frames = split_frames((FOLDER / f"{vector.name}.bin").read_bytes())
    message = decode(frames)
    if vector.name != "steps-bfloat16":
        # bfloat16 comes back as float32, so it would be written as that.
        assert encode(message) == vector.frames


@pytest.mark.parametrize("vector", [one for one in ALL if one.refusal], ids=lambda v: v.name)
def test_a_vector_is_refused(vector):
    with pytest.raises(WireError) as caught:
        decode(vector.frames)
    assert caught.value.reason == vector.refusal
