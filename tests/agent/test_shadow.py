from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from torch import nn

from interlatent_live import attach
from interlatent_live.agent.shadow import ShadowOptions
from interlatent_live.agent.shadow_link import report_of
from interlatent_live.errors import MismatchError, UserError
from interlatent_live.policies.hashing import policy_hash
from interlatent_live.transcoders.config import Architecture, TranscoderConfig
from interlatent_live.transcoders.native import LoadedTranscoder, Provenance
from interlatent_live.transcoders.transcoder import Transcoder

WIDTH, FEATURES = 8, 6


class Stochastic(nn.Module):
    """Draws its action in the forward."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(4, WIDTH)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, observation):
        logits = self.head(torch.tanh(self.body(observation)))
        self.action = torch.distributions.Categorical(logits=logits).sample()
        return logits


class Recurrent(nn.Module):
    """Hands its hidden state on."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(4, WIDTH)
        self.memory = nn.GRUCell(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, 3)
        self.hidden = torch.zeros(2, WIDTH)

    def forward(self, observation):
        self.hidden = self.memory(torch.tanh(self.body(observation)), self.hidden)
        logits = self.head(self.hidden)
        self.action = logits.argmax(-1)
        return logits


class Normalised(nn.Module):
    """Its running statistics change while it acts, as they do in training mode."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(4, WIDTH)
        self.norm = nn.BatchNorm1d(WIDTH)
        self.head = nn.Linear(WIDTH, 3)
        self.train()

    def forward(self, observation):
        logits = self.head(torch.relu(self.norm(self.body(observation))))
        self.action = logits.argmax(-1)
        return logits


def made(kind):
    torch.manual_seed(11)
    return kind()


def transcoder(policy, name="body"):
    random = torch.Generator().manual_seed(0)
    tensors = {
        "W_enc": torch.randn(4, FEATURES, generator=random),
        "b_enc": torch.zeros(FEATURES),
        "W_dec": torch.randn(FEATURES, WIDTH, generator=random),
        "b_dec": torch.zeros(WIDTH),
    }
    config = TranscoderConfig(
        architecture=Architecture.RELU, d_in=4, d_out=WIDTH, n_features=FEATURES, l1=1.0
    )
    return LoadedTranscoder(
        Transcoder.from_tensors(config, tensors),
        Provenance(policy_hash=policy_hash(policy), hook_point=name),
        None,
    )


def act(policy, steps, tap=None):
    """Actions of a seeded run, and the shared generators' states afterwards."""
    torch.manual_seed(3)
    random = np.random.default_rng(5)
    actions = []
    with torch.no_grad():
        for step in range(steps):
            policy(torch.from_numpy(random.normal(size=(2, 4)).astype(np.float32)))
            actions.append(policy.action.clone())
            if tap is not None:
                ended = np.array([step % 10 == 9] * 2)
                tap.step(np.zeros((2, 1)), terminated=ended, truncated=np.zeros(2, bool))
    return torch.stack(actions), torch.get_rng_state()


def watched(policy, **options):
    shadow = ShadowOptions(
        transcoders={"body": transcoder(policy)},
        sample_every=2,
        period_s=0.001,
        controls=10,
        steps=16,
        **options,
    )
    return attach(
        policy,
        ["body"],
        metrics=["m"],
        endpoint=None,
        env_count=2,
        autoreset="next_step",
        actions=("left", "stay", "right"),
        shadow=shadow,
        strict=True,
    )


@pytest.mark.parametrize("kind", [Stochastic, Recurrent, Normalised])
def test_the_action_sequence_is_the_same_to_the_bit_while_the_shadow_measures(kind):
    expected, state = act(made(kind), 600)
    policy = made(kind)
    with watched(policy) as tap:
        got, after = act(policy, 600, tap)
        for _ in range(3):
            tap.shadow.measure_next()
        assert tap.shadow.reports()
        assert (tap.shadow.off, tap.shadow.faults) == ("", 0)
    assert torch.equal(got, expected)
    assert torch.equal(after, state)
    assert not any(t.name == "interlatent-shadow" for t in threading.enumerate())


def test_the_effect_of_a_feature_is_the_one_that_was_planted():
    policy = made(Normalised).eval()
    found = transcoder(policy)
    with torch.no_grad():
        # Feature 0 writes to unit 0 alone, which pushes to the right and nowhere else.
        policy.norm.weight[0] = 1.0
        policy.norm.bias.fill_(5.0)
        policy.head.weight[:, 0] = torch.tensor([0.0, 0.0, 6.0])
        found = transcoder(policy)
        found.transcoder.W_dec[0] = 0.0
        found.transcoder.W_dec[0, 0] = 1.0
    shadow = ShadowOptions(transcoders={"body": found}, sample_every=1, period_s=60.0)
    tap = attach(
        policy,
        ["body"],
        metrics=["m"],
        endpoint=None,
        env_count=2,
        autoreset="next_step",
        actions=("left", "stay", "right"),
        shadow=shadow,
    )
    with tap:
        act(policy, 200, tap)
        reports = {}
        for _ in range(FEATURES):
            measured = tap.shadow.measure_next()
            reports[measured.feature] = measured
    left, _, right = reports[0].effects
    assert right.effect.low > 0 > left.effect.high
    assert right.controls == 100
    assert set(right.percentile) == {
        "isotropic",
        "activation covariance",
        "other features",
        "same feature when off",
        "constant bias",
    }
    assert right.percentile["isotropic"].value >= 95
    assert reports[0].episodes >= 3
    sent = report_of(reports[0], tap.run_id, ("left", "stay", "right"))
    assert [one.action for one in sent.effects] == ["left", "stay", "right"]


class NumpyNoise(Stochastic):
    def forward(self, observation):
        return super().forward(observation) + np.random.normal()  # noqa: NPY002 - on purpose


def test_a_policy_that_draws_from_numpys_shared_generator_has_no_shadow():
    policy = made(NumpyNoise)
    np.random.seed(1)  # noqa: NPY002 - likewise
    expected, _ = act(policy, 40)
    policy = made(NumpyNoise)
    np.random.seed(1)  # noqa: NPY002 - likewise
    with watched(policy) as tap:
        got, _ = act(policy, 40, tap)
        assert "NumPy" in tap.shadow.off
        assert tap.shadow.reports() == ()
    assert torch.equal(got, expected)


def test_what_cannot_be_measured_is_refused_at_once():
    policy, other = made(Stochastic), made(Recurrent)
    with pytest.raises(MismatchError):
        attach(
            policy,
            ["body"],
            metrics=["m"],
            endpoint=None,
            shadow=ShadowOptions(transcoders={"body": transcoder(other)}),
        )
    with pytest.raises(UserError, match="not among the hook points"):
        attach(
            policy,
            ["body"],
            metrics=["m"],
            endpoint=None,
            shadow=ShadowOptions(transcoders={"head": transcoder(policy, "head")}),
        )
    with pytest.raises(UserError, match="sample_every is 0"):
        ShadowOptions(transcoders={}, sample_every=0)
