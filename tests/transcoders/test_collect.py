from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from importlib import resources

import gymnasium
import numpy as np
import pytest
import torch

from interlatent_live.errors import MismatchError, UserError
from interlatent_live.stream import (
    Activations,
    Controller,
    HookPointSpec,
    Manifest,
    MetricSpec,
    StepBatch,
    StepFlag,
    steps_without_columns,
)
from interlatent_live.transcoders.acting import acting_policy
from interlatent_live.transcoders.collect import RolloutSettings, collect_rollouts, collect_stream
from interlatent_live.transcoders.dataset import (
    ActivationDataset,
    concatenate,
    split_by_episode,
)
from interlatent_live.transcoders.native import load_transcoder


@pytest.fixture(scope="module")
def cartpole():
    return acting_policy("cartpole")


def test_rows_are_what_the_policy_saw_and_did(cartpole, tmp_path):
    settings = RolloutSettings(episodes=3, seed=5, copies=2, max_steps=40)
    manifest = collect_rollouts(cartpole, ["hidden.1", "hidden.0..hidden.1"], tmp_path, settings)
    assert manifest.complete
    assert manifest.episodes == 3
    names = [column.name for column in manifest.header.metrics]
    shards = list(ActivationDataset(tmp_path).shards())
    module = cartpole.module
    env = gymnasium.make("CartPole-v1")
    for episode in range(3):
        obs, _ = env.reset(seed=5 + episode)
        for shard in shards:
            for row in np.flatnonzero(shard.episode == episode):
                x, y = shard.activations["hidden.0..hidden.1"]
                np.testing.assert_array_equal(x[row], obs)
                with torch.no_grad():
                    h0 = module.hidden[0](torch.from_numpy(obs)[None])
                    h1 = module.hidden[1](h0)
                    outputs = module.head(h1)
                np.testing.assert_allclose(y[row], h1[0], atol=1e-6)
                np.testing.assert_allclose(shard.activations["hidden.1"][0][row], h0[0], atol=1e-6)
                action = int(outputs.argmax())
                obs, reward, terminated, truncated, _ = env.step(action)
                assert shard.metrics[row, names.index("reward")] == reward
                ended = bool(shard.flags[row] & (StepFlag.TERMINATED | StepFlag.TRUNCATED))
                assert ended == (terminated or truncated or shard.t[row] == 39)


def test_the_hash_follows_from_the_settings_even_after_an_interruption(cartpole, tmp_path):
    settings = RolloutSettings(episodes=6, copies=2, max_steps=30, epsilon=0.3)
    whole = collect_rollouts(cartpole, ["hidden.1"], tmp_path / "whole", settings)

    class StopError(Exception):
        pass

    def stop_at_two(progress):
        if progress.done == 4:
            raise StopError

    with pytest.raises(StopError):
        collect_rollouts(cartpole, ["hidden.1"], tmp_path / "parts", settings, stop_at_two)
    assert not ActivationDataset(tmp_path / "parts").manifest.complete
    parts = collect_rollouts(cartpole, ["hidden.1"], tmp_path / "parts", settings)
    assert parts.dataset_hash() == whole.dataset_hash()
    other = collect_rollouts(
        cartpole, ["hidden.1"], tmp_path / "o", RolloutSettings(episodes=6, copies=2, max_steps=30)
    )
    assert other.dataset_hash() != whole.dataset_hash()


def test_noise_acts_and_nothing_is_captured_twice(cartpole, tmp_path):
    quiet = RolloutSettings(episodes=10, copies=10, max_steps=200)
    noisy = RolloutSettings(episodes=10, copies=10, max_steps=200, epsilon=1.0)
    assert collect_rollouts(cartpole, ["hidden.0"], tmp_path / "q", quiet).rows == 2000
    assert collect_rollouts(cartpole, ["hidden.0"], tmp_path / "n", noisy).rows < 600


def test_mistakes_are_one_sentence(cartpole, tmp_path):
    settings = RolloutSettings(episodes=1)
    with pytest.raises(UserError, match=r"hidden\.9.*hidden\.0"):
        collect_rollouts(cartpole, ["hidden.9"], tmp_path / "a", settings)
    with pytest.raises(UserError, match="at least one hook point"):
        collect_rollouts(cartpole, [], tmp_path / "b", settings)
    with pytest.raises(UserError, match="NoSuchEnv"):
        collect_rollouts(
            acting_policy("cartpole", environment="NoSuchEnv-v0"), ["hidden.0"], tmp_path, settings
        )
    policy = acting_policy("cartpole")
    policy.module.unused = torch.nn.Linear(2, 2)
    with pytest.raises(UserError, match="did not fire"):
        collect_rollouts(policy, ["unused"], tmp_path / "c", settings)


def test_a_policy_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "def make():\n"
        "    first, last = torch.nn.Linear(4, 8), torch.nn.Linear(8, 2)\n"
        "    net = torch.nn.Sequential(first, torch.nn.Tanh(), last)\n"
        "    net.environment = 'CartPole-v1'\n"
        "    return net\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    policy = acting_policy("mine:make")
    manifest = collect_rollouts(
        policy, ["0..1"], tmp_path / "d", RolloutSettings(episodes=2, copies=2)
    )
    assert manifest.header.policy_hash == policy.policy_hash
    assert manifest.header.hook_points[0].d_out == 8
    with pytest.raises(UserError, match="nothing_here"):
        acting_policy("mine:nothing_here")


@pytest.mark.slow
def test_kill_9_and_run_again(tmp_path):
    command = [
        sys.executable, "-m", "interlatent_live", "collect", "cartpole", "-p", "hidden.1",
        "--episodes", "60", "--copies", "4", "--epsilon", "0.05",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, "--out", tmp_path / "whole"], check=True, env=environment)
    process = subprocess.Popen([*command, "--out", tmp_path / "parts"], env=environment)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if len(list((tmp_path / "parts").glob("shard-*.safetensors"))) >= 3:
            break
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not ActivationDataset(tmp_path / "parts").manifest.complete
    subprocess.run([*command, "--out", tmp_path / "parts"], check=True, env=environment)
    assert ActivationDataset(tmp_path / "parts").hash == ActivationDataset(tmp_path / "whole").hash


def stream_manifest(**changes):
    facts = {
        "agent": "robot",
        "run_id": "r",
        "boot_id": "b0",
        "policy_hash": "sha256:ff",
        "hook_points": (HookPointSpec("h", 3, 2),),
        "metrics": (MetricSpec("speed", "m/s"),),
    }
    return Manifest(**{**facts, **changes})


def stream_batch(first, n=8, every=1):
    random = np.random.default_rng(first)
    steps = steps_without_columns(n, 1, first)
    steps.episode[:] = first // 16
    steps.t[:] = np.arange(n)
    steps.metrics[:, 0] = first + np.arange(n)
    kept = np.arange(0, n, every, dtype=np.uint16)
    x = random.standard_normal((n, 3)).astype(np.float16)
    y = random.standard_normal((len(kept), 2)).astype(np.float16)
    return StepBatch(steps, {"h": Activations(x, y, kept)})


def test_a_stream_keeps_only_what_the_policy_did_and_y_was_sampled(tmp_path):
    batch = stream_batch(0, every=2)
    batch.steps.controller[2] = Controller.INTERVENTION
    batch.steps.flags[4] = StepFlag.NO_ACTIVATION
    manifest = collect_stream([batch], stream_manifest(), ["h"], tmp_path)
    assert manifest.rows == 2
    (rows,) = ActivationDataset(tmp_path).shards()
    assert rows.t.tolist() == [0, 6]
    np.testing.assert_array_equal(rows.activations["h"][0], batch.activations["h"].x[[0, 6]])
    np.testing.assert_array_equal(rows.activations["h"][1], batch.activations["h"].y[[0, 3]])


def test_a_stream_across_restarts_never_joins_episodes(tmp_path):
    batches = [stream_batch(0), stream_batch(0)]
    manifest = collect_stream(batches, stream_manifest(), ["h"], tmp_path, boot_ids=["b0", "b1"])
    assert manifest.episodes == 2
    (rows,) = ActivationDataset(tmp_path).shards()
    assert np.unique(rows.episode).tolist() == [0, 1]


def test_an_interrupted_recording_goes_on(tmp_path):
    batches = [stream_batch(first) for first in range(0, 320, 8)]
    whole = collect_stream(batches, stream_manifest(), ["h"], tmp_path / "w", commit_rows=64)

    def dying():
        yield from batches[:21]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect_stream(dying(), stream_manifest(), ["h"], tmp_path / "p", commit_rows=64)
    parts = collect_stream(batches, stream_manifest(), ["h"], tmp_path / "p", commit_rows=64)
    assert parts.dataset_hash() == whole.dataset_hash()
    assert parts.rows == 320


def test_a_stream_without_the_hook_point(tmp_path):
    with pytest.raises(MismatchError, match=r"robot.*streams h"):
        collect_stream([], stream_manifest(), ["other"], tmp_path)


@pytest.fixture(scope="module")
def earlier():
    with resources.as_file(resources.files("interlatent_live.data")) as data:
        return load_transcoder(data / "transcoders" / "cartpole" / "hidden.1")


def test_a_spliced_transcoder_acts_in_every_other_episode_and_the_policy_teaches(
    cartpole, earlier, tmp_path
):
    settings = RolloutSettings(episodes=6, seed=5, copies=4, max_steps=30)
    manifest = collect_rollouts(
        cartpole, ["hidden.0", "hidden.1"], tmp_path / "d", settings, spliced=[earlier]
    )
    assert manifest.header.settings["spliced"] == [earlier.transcoder.identity]
    rows = concatenate(list(ActivationDataset(tmp_path / "d").shards()))
    second = rows.episode % 2 == 1
    assert (rows.controller[second] == Controller.INTERVENTION).all()
    assert (rows.controller[~second] == Controller.POLICY).all()
    x, y = rows.activations["hidden.1"]
    with torch.no_grad():
        exact = cartpole.module.get_submodule("hidden.1")(torch.from_numpy(x))
        head = cartpole.module.get_submodule("head")
        by_itself = head(exact).argmax(1).numpy()
        through = head(earlier.transcoder.reconstruct(torch.from_numpy(x))).argmax(1).numpy()
    np.testing.assert_allclose(y, exact.numpy(), atol=1e-5)  # what the policy itself would do
    env = gymnasium.make("CartPole-v1")
    for episode in range(6):
        of_it = np.flatnonzero(rows.episode == episode)
        taken = through if episode % 2 else by_itself
        obs, _ = env.reset(seed=5 + episode)
        for row in of_it[np.argsort(rows.t[of_it])]:
            np.testing.assert_array_equal(rows.activations["hidden.0"][0][row], obs)
            obs = env.step(int(taken[row]))[0]
    loaded = ActivationDataset(tmp_path / "d").load("hidden.1")
    np.testing.assert_array_equal(loaded.own, ~second)
    again = collect_rollouts(
        cartpole, ["hidden.0", "hidden.1"], tmp_path / "e", settings, spliced=[earlier]
    )
    assert again.dataset_hash() == manifest.dataset_hash()


def test_only_a_transcoder_of_this_policy_acts_for_it(earlier, tmp_path):
    other = acting_policy("cartpole-sb3-ppo")
    with pytest.raises(MismatchError, match="was trained on policy"):
        collect_rollouts(
            other, ["hidden.1"], tmp_path, RolloutSettings(episodes=2), spliced=[earlier]
        )


def test_held_out_rows_are_the_policy_s_own():
    episode = np.repeat(np.arange(40, dtype=np.uint32), 5)
    whole = split_by_episode(episode)
    own = episode % 2 == 0
    part = whole.among(own)
    np.testing.assert_array_equal(part.test, whole.test & own)
    np.testing.assert_array_equal(part.train, whole.train & own)
    assert whole.among(None) is whole
