from __future__ import annotations

import numpy as np
import pytest

from interlatent_live.errors import UserError
from interlatent_live.recordings.writer import RecordingWriter
from interlatent_live.stream import HookPointSpec, Manifest
from interlatent_live.transcoders.acting import acting_policy
from interlatent_live.transcoders.collect import RolloutSettings, collect_rollouts
from interlatent_live.transcoders.dataset import ActivationDataset
from interlatent_live.transcoders.recorded import collect_recording
from interlatent_live.wire.codec import encode_hello, encode_steps


def record(path, dataset, *, boots=("b0",), policy_hash=None, from_row=0):
    header = dataset.header
    hooks = tuple(HookPointSpec(h.name, h.d_in, h.d_out) for h in header.hook_points)
    with RecordingWriter(path) as writer:
        for boot in boots:
            manifest = Manifest(
                agent="robot",
                run_id="run",
                boot_id=boot,
                policy_hash=policy_hash or header.policy_hash,
                hook_points=hooks,
                metrics=tuple(column.spec() for column in header.metrics),
                env_count=64,
                environment=header.environment,
            )
            writer.write(encode_hello(manifest), time_ns=1)
            for batch in dataset.step_batches(50):
                writer.write(encode_steps(batch, boot_id=boot), time_ns=2)
    return path


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    path = tmp_path_factory.mktemp("recorded") / "data"
    settings = RolloutSettings(episodes=12, copies=6, max_steps=40)
    collect_rollouts(acting_policy("cartpole"), ["hidden.0", "hidden.1"], path, settings)
    return ActivationDataset(path)


def test_a_recording_becomes_the_dataset_that_the_agent_lived(dataset, tmp_path):
    recording = record(tmp_path / "r.mcap", dataset)
    done = collect_recording(recording, (), tmp_path / "d")
    assert done.rows == len(dataset)
    assert done.episodes == 12
    assert done.header.policy_hash == dataset.header.policy_hash
    mine, theirs = (ActivationDataset(p).load("hidden.1") for p in (tmp_path / "d", dataset.path))
    np.testing.assert_array_equal(mine.x, theirs.x)
    np.testing.assert_array_equal(mine.y, theirs.y)
    assert len(np.unique(mine.episode)) == len(np.unique(theirs.episode))
    again = collect_recording(recording, (), tmp_path / "d")
    assert again.dataset_hash() == done.dataset_hash()


def test_restarts_are_kept_apart(dataset, tmp_path):
    recording = record(tmp_path / "r.mcap", dataset, boots=("b0", "b1"))
    done = collect_recording(recording, ("hidden.0",), tmp_path / "d")
    assert done.rows == 2 * len(dataset)
    assert done.episodes == 24


def test_what_cannot_be_used_is_refused(dataset, tmp_path):
    with RecordingWriter(tmp_path / "empty.mcap"):
        pass
    with pytest.raises(UserError, match="no steps"):
        collect_recording(tmp_path / "empty.mcap", (), tmp_path / "d")
    with pytest.raises(UserError, match="nowhere"):
        collect_recording(tmp_path / "nowhere.mcap", (), tmp_path / "d")
