from __future__ import annotations

import json
import pickle
import struct

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from interlatent_live.errors import CorruptFileError, MismatchError, UserError
from interlatent_live.transcoders.native import (
    JSON_FILE,
    TENSORS_FILE,
    Provenance,
    find_transcoders,
    load_transcoder,
    save_transcoder,
)

PROVENANCE = Provenance(
    policy_hash="sha256:" + "a" * 64,
    hook_point="hidden.1",
    dataset_hash="sha256:" + "b" * 64,
    seed=3,
    command="interlatent-live train",
    evaluation={"fvu": 0.002},
)


@pytest.fixture
def saved(tmp_path, build_transcoder):
    return save_transcoder(tmp_path / "one", build_transcoder(), PROVENANCE)


def test_round_trip(tmp_path, any_transcoder):
    path = save_transcoder(tmp_path / "t", any_transcoder, PROVENANCE)
    loaded = load_transcoder(path)
    assert loaded.provenance == PROVENANCE
    assert loaded.transcoder.identity == any_transcoder.identity
    assert loaded.transcoder.config == any_transcoder.config
    for name, tensor in any_transcoder.tensors().items():
        assert torch.equal(loaded.transcoder.tensors()[name], tensor)
    assert loaded.transcoder.baselines is not None
    assert loaded.transcoder.baselines.y_variance == any_transcoder.baselines.y_variance
    assert torch.equal(
        loaded.transcoder.baselines.affine_weight, any_transcoder.baselines.affine_weight
    )


def test_without_baselines(tmp_path, build_transcoder):
    path = save_transcoder(tmp_path / "t", build_transcoder(baselines=False), PROVENANCE)
    assert load_transcoder(path).transcoder.baselines is None


def test_another_policy_or_hook_point_is_refused_by_name(saved):
    other = "sha256:" + "c" * 64
    with pytest.raises(MismatchError) as caught:
        load_transcoder(saved, policy_hash=other)
    assert other in str(caught.value)
    assert PROVENANCE.policy_hash in str(caught.value)
    with pytest.raises(MismatchError, match=r"hidden\.1.*hidden\.0"):
        load_transcoder(saved, hook_point="hidden.0")
    load_transcoder(saved, policy_hash=PROVENANCE.policy_hash, hook_point="hidden.1")


def test_truncated_tensors_are_refused(saved):
    file = saved / TENSORS_FILE
    raw = file.read_bytes()
    for length in (0, 4, 9, 100, len(raw) - 1):
        file.write_bytes(raw[:length])
        with pytest.raises(CorruptFileError):
            load_transcoder(saved)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 10**6), flip=st.integers(1, 255), json_file=st.booleans())
def test_any_altered_byte_is_refused_or_harmless(saved, position, flip, json_file):
    file = saved / (JSON_FILE if json_file else TENSORS_FILE)
    raw = file.read_bytes()
    position %= len(raw)
    altered = raw[:position] + bytes([raw[position] ^ flip]) + raw[position + 1 :]
    before = load_transcoder(saved).transcoder.identity
    try:
        file.write_bytes(altered)
        loaded = load_transcoder(saved)
    except CorruptFileError:
        pass
    else:
        # Free text of the provenance and white space may change; what is computed may not.
        assert json_file
        assert loaded.transcoder.identity == before
    finally:
        file.write_bytes(raw)


def test_a_pickle_is_refused_and_not_run(saved, tmp_path):
    marker = tmp_path / "executed"

    class Hostile:
        def __reduce__(self):
            return (open, (str(marker), "w"))

    (saved / TENSORS_FILE).write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(CorruptFileError, match="safetensors"):
        load_transcoder(saved)
    torch.save({"W_enc": torch.zeros(1)}, saved / TENSORS_FILE)
    with pytest.raises(CorruptFileError, match="safetensors"):
        load_transcoder(saved)
    assert not marker.exists()


def write_header(path, header, body=b""):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + body)


@pytest.mark.parametrize(
    "header",
    [
        {"W_enc": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}},
        {"W_enc": {"dtype": "F32", "shape": [-1], "data_offsets": [0, -4]}},
        {"W_enc": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}},
        {"W_enc": {"dtype": "O", "shape": [1], "data_offsets": [0, 4]}},
        {"W_enc": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}},
        {"W_enc": {"dtype": "F32", "shape": "x", "data_offsets": [0, 4]}},
        {"W_enc": None},
        [],
        b"[" * 100_000,
        b"\xff\xfe",
    ],
)
def test_hostile_headers_are_refused(saved, header):
    write_header(saved / TENSORS_FILE, header, b"\0" * 4)
    with pytest.raises(CorruptFileError):
        load_transcoder(saved)


def test_huge_sizes_in_the_description_allocate_nothing(saved):
    file = saved / JSON_FILE
    document = json.loads(file.read_text())
    document["config"]["n_features"] = 1 << 22
    document["config"]["d_in"] = 1 << 17
    file.write_text(json.dumps(document))
    with pytest.raises(CorruptFileError, match="W_enc"):
        load_transcoder(saved)
    document["config"]["d_in"] = 1 << 60
    file.write_text(json.dumps(document))
    with pytest.raises(CorruptFileError, match="d_in"):
        load_transcoder(saved)


def test_not_a_number_is_refused(tmp_path, build_transcoder):
    # Written around the class, as a stranger would, with every checksum right.
    transcoder = build_transcoder()
    transcoder.b_enc[0] = float("nan")
    path = save_transcoder(tmp_path / "nan", transcoder, PROVENANCE)
    with pytest.raises(CorruptFileError, match="b_enc"):
        load_transcoder(path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema": 99}, "schema 99"),
        ({"y_variance": 0.0}, "y_variance"),
        ({"content_hash": "sha256:" + "0" * 64}, "content"),
        ({"surprise": 1}, "surprise"),
        ({"config": {"architecture": "gated"}}, "gated"),
    ],
)
def test_a_changed_description_is_refused(saved, change, said):
    file = saved / JSON_FILE
    document = json.loads(file.read_text())
    document.update(change)
    file.write_text(json.dumps(document))
    with pytest.raises(CorruptFileError, match=said):
        load_transcoder(saved)


def test_nothing_there(tmp_path, build_transcoder):
    with pytest.raises(UserError, match="nowhere"):
        load_transcoder(tmp_path / "nowhere")
    with pytest.raises(UserError, match="nowhere"):
        find_transcoders(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file"):
        save_transcoder(tmp_path / "file", build_transcoder(), PROVENANCE)


def test_the_index_prefers_the_newest_then_the_most_faithful(tmp_path, build_transcoder):
    def save(name, seed, **changes):
        fields = {name: getattr(PROVENANCE, name) for name in PROVENANCE.__struct_fields__}
        transcoder = build_transcoder(seed=seed)
        save_transcoder(tmp_path / name, transcoder, Provenance(**{**fields, **changes}))
        return transcoder.identity

    worse = save("worse", 1, evaluation={"fvu": 0.1})
    better = save("sub/better", 2, evaluation={"fvu": 0.01})
    unknown = save("unknown", 3, evaluation={})
    newest = save("newest", 4, evaluation={"fvu": 0.5}, version=2)
    other = save("other", 5, hook_point="hidden.0")
    found = find_transcoders(tmp_path)
    assert [entry.identity for entry in found[PROVENANCE.policy_hash, "hidden.1"]] == [
        newest,
        better,
        worse,
        unknown,
    ]
    (entry,) = found[PROVENANCE.policy_hash, "hidden.0"]
    assert entry.load().transcoder.identity == other
    assert np.isfinite(entry.n_features)
