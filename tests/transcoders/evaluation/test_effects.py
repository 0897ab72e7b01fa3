from __future__ import annotations

import numpy as np
import torch

from interlatent_live.transcoders.evaluation.effects import feature_effects

HOOK = "hidden.0..hidden.1"


def test_the_effect_of_a_linear_head_is_exact(trained, cartpole):
    dataset, (loaded, _) = trained
    rows = dataset.load(HOOK)
    x, y = rows.x[:400], rows.y[:400]
    transcoder = loaded.transcoder
    active = transcoder.encode(torch.from_numpy(x))
    features = np.flatnonzero((active > 0).sum(0).numpy() > 5)[:6]
    effects = feature_effects(transcoder, cartpole, HOOK, x, y, features=features)
    assert effects is not None
    assert [effect.feature for effect in effects] == features.tolist()
    head = cartpole.module.head.weight.detach()
    for effect in effects:
        on = active[:, effect.feature][active[:, effect.feature] > 0]
        direction = transcoder.W_dec[effect.feature] @ head.T
        expected = float(on.mean()) * (direction - direction.mean())
        np.testing.assert_allclose(effect.effect, expected.numpy(), atol=1e-4)
        assert effect.rows == len(on)
        assert effect.changes_action is not None
        assert 0 <= effect.changes_action <= 1
        assert effect.action_change is None
