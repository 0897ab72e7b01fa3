"""Encoding beside the policy: the same features as at the encoder, and only they travel."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch

from interlatent_live import attach
from interlatent_live.errors import MismatchError, UserError
from interlatent_live.policies.files import load_policy
from interlatent_live.policies.hashing import policy_hash
from interlatent_live.stream import Activations
from interlatent_live.transcoders.config import Architecture, TranscoderConfig
from interlatent_live.transcoders.encoding import encode_activations
from interlatent_live.transcoders.native import LoadedTranscoder, Provenance, save_transcoder
from interlatent_live.transcoders.transcoder import Transcoder

from .service import Service, until

HOOK = "hidden.0"


def transcoder(d_in=4, d_out=64, features=32):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    config = TranscoderConfig(
        architecture=Architecture.TOPK, d_in=d_in, d_out=d_out, n_features=features, k=4
    )
    return Transcoder(
        config, draw(d_in, features), draw(features), draw(features, d_out), draw(d_out)
    )


def loaded(policy, path, hook=HOOK, **shape):
    one = transcoder(**shape)
    provenance = Provenance(policy_hash=policy_hash(policy), hook_point=hook)
    save_transcoder(path, one, provenance)
    return LoadedTranscoder(one, provenance, path)


@pytest.mark.parametrize("by_path", [False, True])
def test_features_are_the_encoders_and_random_actions_have_none(tmp_path, by_path):
    policy = load_policy("cartpole").module
    given = loaded(policy, tmp_path / "t")
    env = gym.make("CartPole-v1")
    seen = []
    with Service() as service:
        with attach(
            policy,
            [HOOK],
            env=env,
            endpoint=service.endpoint,
            encode_at="agent",
            transcoders={HOOK: str(given.path) if by_path else given},
            y_every=1,
            strict=True,
        ) as tap:
            env = tap.wrap(env)
            obs, _ = env.reset(seed=0)
            for i in range(60):
                if i % 5:
                    with torch.no_grad():
                        policy(torch.as_tensor(obs)[None])
                    seen.append(obs.copy())
                else:
                    seen.append(None)
                obs, _, terminated, truncated, _ = env.step(i % 2)
                if terminated or truncated:
                    obs, _ = env.reset()
        assert until(lambda: len(service.column("seq")) == 60)
        assert until(lambda: tap.boot_id in service.goodbyes)
    assert service.hellos[0].transcoders == {HOOK: given.transcoder.identity}
    row = 0
    for message in service.delivered:
        batch = message.batch
        dense = batch.codes[HOOK].dense()
        for i in range(len(batch.steps)):
            observation = seen[row]
            if observation is None:
                assert not dense[i].any()
                assert np.isnan(batch.codes[HOOK].error[i])
            else:
                x = np.asarray(observation, np.float32)[None]
                empty = Activations(x, np.zeros((0, 64), np.float32), np.zeros(0, np.uint16))
                expected = encode_activations(given.transcoder, empty).dense()[0]
                np.testing.assert_allclose(dense[i], expected, rtol=1e-5, atol=1e-6)
            row += 1
    assert row == 60


def test_a_transcoder_of_another_policy_is_refused_with_both_hashes(tmp_path):
    policy = load_policy("cartpole").module
    other = load_policy("cartpole-sb3-ppo").module
    given = loaded(other, tmp_path / "t")
    with pytest.raises(MismatchError) as refusal:
        attach(policy, [HOOK], encode_at="agent", transcoders={HOOK: given})
    assert policy_hash(policy) in str(refusal.value)
    assert policy_hash(other) in str(refusal.value)


def test_a_transcoder_of_another_width_or_hook_point_is_refused(tmp_path):
    policy = load_policy("cartpole").module
    with pytest.raises(MismatchError, match="widths"):
        attach(
            policy,
            [HOOK],
            encode_at="agent",
            transcoders={HOOK: loaded(policy, tmp_path / "t", d_in=5)},
        )
    with pytest.raises(MismatchError, match=r"hidden\.1"):
        attach(
            policy,
            [HOOK],
            encode_at="agent",
            transcoders={HOOK: loaded(policy, tmp_path / "u", hook="hidden.1")},
        )
    with pytest.raises(UserError, match="needs transcoders"):
        attach(policy, [HOOK], encode_at="agent")
