import numpy as np
import pytest

from interlatent_live.environments.families import mujoco


def by_its_formulas(obs):
    """The humanoid's metrics, written down as the text books have them."""
    w, x, y, z = obs[:, 1:5].T
    roll = np.arctan2(2 * (w * x + y * z), 1 - 2 * (x * x + y * y))
    pitch = np.arcsin(np.clip(2 * (w * y - z * x), -1, 1))
    yaw = np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))
    tilt = np.arccos(np.clip(1 - 2 * (x * x + y * y), -1, 1))
    forces = obs[:, 270:].reshape(len(obs), 13, 6)[:, :, 3:]
    feet = np.linalg.norm(forces[:, [5, 8]], axis=2)
    head = np.stack([obs[:, 0], tilt, roll, pitch, yaw], axis=1)
    stride = (obs[:, 10] - obs[:, 14])[:, None]
    return np.concatenate([head, obs[:, 5:45], feet, stride], axis=1)


@pytest.mark.parametrize("rows", [1, 2, 7, 14, 64, 512])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_the_humanoid_is_measured_to_the_bit_as_its_formulas_say(rows, scale):
    random = np.random.default_rng(rows)
    obs = scale * random.normal(size=(rows, 348))
    if scale == 1.0:
        obs[:, 1:5] /= np.linalg.norm(obs[:, 1:5], axis=1, keepdims=True)
    obs[-1, [3, 300]] = np.nan
    measured = mujoco.HUMANOID.measure(obs)
    assert measured.shape == (rows, len(mujoco.HUMANOID.specs))
    assert np.array_equal(measured, by_its_formulas(obs), equal_nan=True)
