"""The agent in JavaScript, which was written from docs/wire.md, against the real receiver."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import zmq

from interlatent_live.wire.keys import KeyDirectory, KeyRole, ServerKeys
from interlatent_live.wire.messages import DropReason
from interlatent_live.wire.receiver_link import ReceiverConfig
from interlatent_live.wire.security import Authenticator
from tests.support.wire_service import Service

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "agent_node"
REQUIRED = "INTERLATENT_REQUIRE_NODE"

pytestmark = pytest.mark.skipif(
    not (shutil.which("node") and (FOLDER / "node_modules" / "zeromq").is_dir())
    and REQUIRED not in os.environ,
    reason="needs node 20 and `npm ci --ignore-scripts` in examples/agent_node",
)


@pytest.fixture
def context():
    made: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    yield made
    made.destroy(linger=0)


@pytest.fixture
def start():
    running = []

    def run(service, *options):
        process = subprocess.Popen(
            ["node", "agent.mjs", "--endpoint", service.endpoint, *map(str, options)],
            cwd=FOLDER,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        return process

    yield run
    for process in running:
        process.kill()
        process.communicate()


def result(process):
    out, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    return json.loads(out)


def rows_of(service, name):
    return np.concatenate([getattr(batch.steps, name) for batch in service.batches])


def test_every_step_arrives_as_it_was(context, start):
    service = Service(context)
    process = start(service, "--steps", 1500)
    service.serve(lambda: service.ended)
    ledger = result(process)
    assert (ledger["sent"], ledger["acknowledged"], ledger["lost"]) == (1500, 1500, {})
    counts = service.hub.counts(ledger["boot"])
    assert (counts.received, counts.undeclared, counts.duplicate) == (1500, 0, 0)
    manifest = service.manifests[ledger["boot"]]
    assert manifest.metric_names() == ("angle", "angular_velocity", "torque", "reward")
    metrics = rows_of(service, "metrics")
    assert metrics.shape == (1500, 4)
    x = np.concatenate([batch.activations["body.0"].x for batch in service.batches])
    # x is what the policy saw: the cosine and sine of the angle in the same row, at float32.
    assert np.array_equal(x[:, 0], np.cos(metrics[:, 0]).astype(np.float32))
    assert np.array_equal(x[:, 2], metrics[:, 1].astype(np.float32))
    # An outcome belongs to the step that brought it about: the next row's state explains it.
    same = rows_of(service, "episode")[1:] == rows_of(service, "episode")[:-1]
    reward = -(metrics[1:, 0] ** 2) - 0.1 * metrics[1:, 1] ** 2
    assert np.allclose(metrics[:-1, 3][same], reward[same])
    batch = service.batches[0]
    seen = batch.activations["body.0"]
    assert [int(batch.steps.t[row]) % 8 for row in seen.y_rows] == [0] * len(seen.y_rows)
    assert len(seen.y_rows) > 1
    service.close()


def test_its_losses_are_declared_when_the_receiver_is_restarted(context, start):
    service = Service(context, config=ReceiverConfig(window_steps=512))
    process = start(service, "--steps", 4000, "--hz", 1000)
    service.serve(lambda: len(service.batches) >= 5)
    endpoint = service.endpoint
    service.close()
    again = Service(context, endpoint)
    again.serve(lambda: again.ended)
    ledger = result(process)
    lost = sum(ledger["lost"].values())
    assert lost > 0
    assert ledger["sent"] == ledger["acknowledged"] + lost == 4000
    counts = again.hub.counts(ledger["boot"])
    assert counts.undeclared == 0
    assert set(counts.declared) <= {
        DropReason.PEER_LOST,
        DropReason.NO_PEER,
        DropReason.NO_CREDIT,
    }
    assert again.batches[-1].steps.first_seq + len(again.batches[-1].steps) == 4000
    again.close()


def test_it_comes_in_with_its_key_and_not_under_another_name(context, start, tmp_path):
    keys = KeyDirectory(tmp_path / "keys")
    keys.create("service", KeyRole.SERVICE)
    keys.create("pendulum", KeyRole.AGENT)
    options = ("--key", keys.path / "pendulum.key", "--server", keys.path / "service.pub")
    with Authenticator(context, keys.path):
        service = Service(context, keys=ServerKeys.load(keys.path))
        process = start(service, "--steps", 200, *options)
        service.serve(lambda: service.ended)
        assert result(process)["acknowledged"] == 200
        liar = start(service, "--steps", 10, "--agent", "lander", "--patience", 1, *options)
        service.serve(lambda: liar.poll() is not None)
        out, _ = liar.communicate()
        assert liar.returncode == 1
        assert "may not speak for the agent 'lander'" in json.loads(out)["refusal"]
        service.close()
