"""Collecting from running agents: real processes, a real wire."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from interlatent_live.errors import UserError
from interlatent_live.services.collecting import LiveAgents
from interlatent_live.stream import HookPointSpec, Manifest
from interlatent_live.transcoders.acting import acting_policy
from interlatent_live.transcoders.dataset import MANIFEST_FILE, ActivationDataset
from interlatent_live.wire.messages import Hello
from interlatent_live.wire.receiver_link import Asked

STEPS = 400
AGENT = """
import sys
import gymnasium
import torch
from interlatent_live import attach
from interlatent_live.transcoders.acting import acting_policy

endpoint, seed = sys.argv[1], int(sys.argv[2])
policy = acting_policy("cartpole")
env = gymnasium.make("CartPole-v1", max_episode_steps=100)
with attach(
    policy.module, ["hidden.0", "hidden.1"], env=env, agent="robot", endpoint=endpoint, y_every=1
) as tap:
    env = tap.wrap(env)
    obs, _ = env.reset(seed=seed)
    for _ in range(STEPS):
        action = policy.actions(policy.outputs(obs[None]))[0]
        obs, _, terminated, truncated, _ = env.step(int(action))
        if terminated or truncated:
            obs, _ = env.reset()
    tap.close(20.0)
""".replace("STEPS", str(STEPS))
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
WITHIN_S = 120


@pytest.fixture
def endpoint(tmp_path):
    return f"ipc://{tmp_path}/agents"


@contextmanager
def collector(endpoint, out, *options):
    """A collecting process that listens, and does not outlive the test."""
    command = [
        sys.executable, "-m", "interlatent_live", "collect", "--live", endpoint, "--out", str(out),
        *options,
    ]  # fmt: skip
    process = subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    socket_file = Path(endpoint.removeprefix("ipc://"))
    deadline = time.monotonic() + WITHIN_S
    while not socket_file.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    with process:
        try:
            yield process
        finally:
            process.kill()


def act(endpoint, seed):
    done = subprocess.run(
        [sys.executable, "-c", AGENT, endpoint, str(seed)],
        env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=WITHIN_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def ended(process):
    out, error = process.communicate(timeout=WITHIN_S)
    assert process.returncode == 0, error
    return out


def test_a_running_agent_s_operation_becomes_a_dataset_and_goes_on_after_ctrl_c(endpoint, tmp_path):
    data = tmp_path / "data"
    with collector(endpoint, data) as first:
        act(endpoint, 0)
        first.send_signal(signal.SIGINT)
        said = ended(first)
    assert f"{STEPS:,} rows with every activation of {STEPS:,} steps" in said
    assert "0 steps lost" in said
    dataset = ActivationDataset(data)
    policy = acting_policy("cartpole")
    assert dataset.manifest.complete
    assert dataset.header.policy_hash == policy.policy_hash
    rows = dataset.load("hidden.1")
    with torch.no_grad():
        expected = policy.module.get_submodule("hidden.1")(torch.from_numpy(rows.x)).numpy()
    np.testing.assert_allclose(rows.y, expected, atol=1e-6)
    # A second run of the same agent: rows are added, its episodes are others.
    endpoint += "-again"  # the file of a socket may stay
    with collector(endpoint, data, "--max-rows", str(2 * STEPS)) as second:
        act(endpoint, 1)
        ended(second)
    again = ActivationDataset(data)
    assert len(again) == 2 * STEPS
    assert again.manifest.episodes >= 2 * (STEPS // 100)
    assert len(np.unique(again.load("hidden.0").episode)) == again.manifest.episodes


@pytest.mark.slow
def test_ctrl_c_before_any_agent_came_writes_nothing(endpoint, tmp_path):
    with collector(endpoint, tmp_path / "data") as process:
        process.send_signal(signal.SIGINT)
        assert "no agent came" in ended(process)
    assert not (tmp_path / "data" / MANIFEST_FILE).exists()


def asked(**changes):
    facts = {
        "agent": "robot",
        "run_id": "r",
        "boot_id": "b",
        "policy_hash": "sha256:ff",
        "hook_points": (HookPointSpec("h", 3, 2),),
        "metrics": (),
    }
    transcoders = changes.pop("transcoders", None)
    return Asked(b"peer", Hello(Manifest(**{**facts, **changes}), transcoders=transcoders))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"policy_hash": "sha256:00"}, "sha256:00 is not sha256:ff"),
        ({"hook_points": (HookPointSpec("h", 3, 3),)}, "not those that are being collected"),
        ({"transcoders": {"h": "sha256:11"}}, "sends features"),
    ],
)
def test_another_policy_and_other_columns_are_refused(endpoint, changes, said):
    with LiveAgents(endpoint, None, lambda: True) as agents:
        assert agents._refusal(asked()) is None
        agents._first = asked().hello.manifest
        assert agents._refusal(asked(boot_id="b2")) is None
        assert said in agents._refusal(asked(**changes))


def test_a_taken_endpoint_is_one_sentence():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        endpoint = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(UserError, match="--live"), LiveAgents(endpoint, None, lambda: True):
            pass
