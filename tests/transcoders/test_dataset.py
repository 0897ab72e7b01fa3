from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlatent_live.errors import CorruptFileError, UserError
from interlatent_live.transcoders.dataset import (
    MANIFEST_FILE,
    ActivationDataset,
    DatasetWriter,
    Header,
    HookWidths,
    MetricColumn,
    Rows,
    split_by_episode,
)

HEADER = Header(
    policy_hash="sha256:aa",
    environment="Toy-v0",
    hook_points=(HookWidths("h", 3, 2), HookWidths("a..b", 2, 5)),
    metrics=(MetricColumn("x", "m"), MetricColumn("reward")),
    source="rollout",
    settings={"seed": 0, "epsilon": 0.0},
)


def rows(n, start=0, seed=0):
    random = np.random.default_rng([seed, start])

    def normal(width):
        return random.standard_normal((n, width)).astype(np.float32)

    return Rows(
        episode=np.arange(start, start + n, dtype=np.uint32) // 7,
        env=np.zeros(n, np.uint16),
        t=np.arange(n, dtype=np.uint32),
        time_ns=np.zeros(n, np.int64),
        controller=np.zeros(n, np.uint8),
        flags=np.zeros(n, np.uint8),
        metrics=random.standard_normal((n, 2)),
        activations={"h": (normal(3), normal(2)), "a..b": (normal(2), normal(5))},
    )


def write(path, blocks=4, start_block=0, stop_block=None):
    writer = DatasetWriter(path, HEADER)
    for block in range(writer.manifest.progress, blocks):
        if stop_block is not None and block == stop_block:
            return None
        writer.append(rows(30, block * 100))
        writer.append(rows(40, block * 100 + 30))
        writer.commit(episodes=10 * (block + 1), progress=block + 1)
    return writer.finish()


def test_what_was_written_is_read(tmp_path):
    manifest = write(tmp_path / "d")
    dataset = ActivationDataset(tmp_path / "d")
    assert len(dataset) == 280 == manifest.rows
    assert manifest.episodes == 40
    shards = list(dataset.shards())
    assert [len(shard) for shard in shards] == [70] * 4
    expected = rows(40, 130)
    np.testing.assert_array_equal(shards[1].metrics[30:], expected.metrics)
    np.testing.assert_array_equal(
        shards[1].activations["a..b"][1][30:], expected.activations["a..b"][1]
    )
    loaded = dataset.load("h")
    assert loaded.x.shape == (280, 3)
    assert loaded.y.shape == (280, 2)


def test_an_interrupted_writer_goes_on_and_ends_with_the_same_hash(tmp_path):
    whole = write(tmp_path / "whole")
    assert write(tmp_path / "parts", stop_block=2) is None
    # Rows that were on disk but not committed must vanish.
    writer = DatasetWriter(tmp_path / "parts", HEADER)
    writer.append(rows(30, 200))
    writer._write_shard()
    parts = write(tmp_path / "parts")
    assert parts.dataset_hash() == whole.dataset_hash()
    assert len(ActivationDataset(tmp_path / "parts")) == 280


def test_other_settings_are_refused_by_name(tmp_path):
    write(tmp_path / "d")
    other = Header(
        **{
            **{f: getattr(HEADER, f) for f in HEADER.__struct_fields__},
            "settings": {"seed": 1, "epsilon": 0.0},
        }
    )
    with pytest.raises(UserError, match="seed: 0, now 1"):
        DatasetWriter(tmp_path / "d", other)


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "columns"])
def test_a_damaged_shard_is_refused(tmp_path, damage):
    write(tmp_path / "d")
    shard = tmp_path / "d" / "shard-00001.safetensors"
    raw = shard.read_bytes()
    if damage == "truncate":
        shard.write_bytes(raw[:-1])
    elif damage == "flip":
        shard.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    elif damage == "remove":
        shard.unlink()
    else:
        manifest = json.loads((tmp_path / "d" / MANIFEST_FILE).read_text())
        manifest["header"]["hook_points"][0]["d_in"] = 1 << 50
        (tmp_path / "d" / MANIFEST_FILE).write_text(json.dumps(manifest))
    with pytest.raises(CorruptFileError):
        list(ActivationDataset(tmp_path / "d").shards())


def test_a_shard_outside_the_directory_is_refused(tmp_path):
    write(tmp_path / "d")
    manifest = json.loads((tmp_path / "d" / MANIFEST_FILE).read_text())
    (tmp_path / "stolen.safetensors").write_bytes(
        (tmp_path / "d" / "shard-00000.safetensors").read_bytes()
    )
    manifest["shards"][0]["file"] = "../stolen.safetensors"
    (tmp_path / "d" / MANIFEST_FILE).write_text(json.dumps(manifest))
    with pytest.raises(CorruptFileError, match="stolen"):
        list(ActivationDataset(tmp_path / "d").shards())


def test_nothing_or_rubbish_there(tmp_path):
    with pytest.raises(UserError, match="collect"):
        ActivationDataset(tmp_path / "none")
    (tmp_path / MANIFEST_FILE).write_bytes(b"\x80\x04rubbish")
    with pytest.raises(CorruptFileError):
        ActivationDataset(tmp_path)
    (tmp_path / MANIFEST_FILE).write_text('{"schema": 7}')
    with pytest.raises(CorruptFileError, match="schema 7"):
        ActivationDataset(tmp_path)


def test_too_large_for_memory_means_whole_episodes_are_left_out(tmp_path):
    write(tmp_path / "d")
    dataset = ActivationDataset(tmp_path / "d")
    everything = dataset.load("h")
    some = dataset.load("h", max_bytes=280 * 20 // 3)
    assert 0 < len(some) < len(everything)
    for episode in np.unique(some.episode):
        assert (some.episode == episode).sum() == (everything.episode == episode).sum()


def test_as_a_stream(tmp_path):
    write(tmp_path / "d")
    batches = list(ActivationDataset(tmp_path / "d").step_batches(32))
    assert sum(len(batch.steps) for batch in batches) == 280
    assert max(len(batch.steps) for batch in batches) == 32
    seq = 0
    for batch in batches:
        assert batch.steps.first_seq == seq
        seq += len(batch.steps)
        assert batch.activations["h"].x.shape == (len(batch.steps), 3)


@given(n=st.integers(10, 300), length=st.integers(1, 5))
def test_no_episode_falls_into_two_sets(n, length):
    episode = np.repeat(np.arange(n, dtype=np.uint32) * 3, length)
    split = split_by_episode(episode)
    masks = (split.train, split.validation, split.test)
    assert (np.sum(masks, axis=0) == 1).all()
    sets = [set(episode[mask]) for mask in masks]
    assert len(sets[0] | sets[1] | sets[2]) == sum(map(len, sets))
    assert abs(len(sets[1]) - n / 10) <= 1
    assert abs(len(sets[2]) - n / 10) <= 1


def test_too_few_episodes_to_split():
    with pytest.raises(UserError, match="episodes"):
        split_by_episode(np.arange(9, dtype=np.uint32))
