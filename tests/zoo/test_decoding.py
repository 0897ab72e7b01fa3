"""Ridge probes on data with known truth."""

import msgspec
import numpy as np
import pytest

from interlatent_live.transcoders.acting import acting_policy
from interlatent_live.zoo.build import TRAINING, collect_for
from interlatent_live.zoo.decoding import decode_metrics, fit_ridge


def test_ridge_finds_a_linear_relation_and_ignores_constant_columns():
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(size=(2000, 3)) * [1, 10, 100], np.ones((2000, 1))], axis=1)
    y = (x[:, :3] @ np.array([[1.0, 0], [0.5, 2], [0, 0.01]])) + 7
    (fit,) = fit_ridge(x, y, [1e-8])
    assert fit(x) == pytest.approx(y, abs=1e-3)
    strong = fit_ridge(x, y, [1e6])[0]
    assert strong(x) == pytest.approx(np.broadcast_to(y.mean(0), y.shape), abs=1e-2)


def test_a_layer_tells_metrics_beside_its_input_and_an_untrained_one(small, tmp_path):
    policy = acting_policy(small.policy)
    episodes = msgspec.structs.replace(small.calibration, episodes=30)
    dataset = collect_for(
        small, policy, episodes, tmp_path / TRAINING, lambda _: None, also=("hidden.0",)
    )
    position, reward = decode_metrics(
        policy, dataset, "hidden.1", ["cart_position", "reward"], first_module="hidden.0"
    )
    assert position["unit"] == "m"
    # The input holds the position itself.
    assert position["input"]["value"] > 0.999
    assert 0.8 < position["layer"]["value"] <= 1
    assert position["layer"]["low"] <= position["layer"]["value"] <= position["layer"]["high"]
    assert reward["metric"] == "reward"
