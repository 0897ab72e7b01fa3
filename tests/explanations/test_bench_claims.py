from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from interlatent_live.bench import claims as bench
from interlatent_live.bench.scenes import CARTPOLE, HOOK, Stage
from interlatent_live.policies.hashing import policy_hash
from interlatent_live.transcoders.acting import ActingPolicy
from interlatent_live.transcoders.capture import Capture


@pytest.fixture(scope="module")
def stage():
    with Stage(replace(CARTPOLE, max_steps=40), copies=3) as made:
        yield made


def test_outputs_lie_beside_their_rows(stage):
    evidence, outputs = stage.evidence_and_outputs(7, 50)
    assert outputs.shape == (len(evidence), stage.transcoder.config.d_out)
    # The policy is feedforward: equal observations have equal outputs, row by row.
    again, other = stage.evidence_and_outputs(7, 50)
    np.testing.assert_array_equal(again.metrics, evidence.metrics)
    np.testing.assert_array_equal(other, outputs)


def test_the_untrained_network_watches_and_the_trained_one_acts(stage):
    trained = stage.policy
    beside = bench._Beside(trained, seed=3)
    obs = torch.randn(5, 4)
    with Capture(beside, (HOOK,)) as capture, torch.no_grad():
        out = beside(obs)
        _, y = capture.take()[HOOK]
    with Capture(trained.module, (HOOK,)) as capture, torch.no_grad():
        np.testing.assert_array_equal(out, trained.module(obs))
        _, ours = capture.take()[HOOK]
    assert y.shape == ours.shape
    assert not torch.allclose(y, ours)
    assert policy_hash(beside) != trained.policy_hash
    policy = ActingPolicy("x", beside, "CartPole-v1", "", trained.output_kind)
    np.testing.assert_array_equal(policy.actions(out), trained.actions(out))
