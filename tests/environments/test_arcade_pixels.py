"""Frames are those the policy was trained on, and the RAM behind them is of the same moment."""

import itertools
from typing import Any

import gymnasium
import numpy as np
import pytest

from interlatent_live.environments.arcade import (
    FRAME_BYTES,
    FRAMES,
    MSPACMAN_PIXELS,
    MSPACMAN_RAM,
    RAM_BYTES,
)
from interlatent_live.environments.metric_packs import metric_pack_for


@pytest.fixture(scope="module")
def played():
    """Observations and raw screens of 90 steps up and left."""
    pytest.importorskip("ale_py")
    pytest.importorskip("cv2")
    env: Any = gymnasium.make(MSPACMAN_PIXELS, render_mode="rgb_array")
    obs, _ = env.reset(seed=3)
    seen, screens, rewards = [obs], [env.render()], [0.0]
    for step in range(90):
        obs, reward, *_ = env.step(1 if step % 20 < 10 else 3)
        seen.append(obs)
        screens.append(env.render())
        rewards.append(reward)
    again, _ = env.reset(seed=3)
    env.close()
    return np.stack(seen), screens, np.array(rewards), again


def stack(obs):
    return obs[:FRAME_BYTES].reshape(FRAMES)


def test_an_episode_starts_from_zeros_and_the_first_frame_and_is_repeatable(played):
    seen, _, _, again = played
    first = stack(seen[0])
    assert not first[:3].any()
    assert first[3].any()
    assert np.array_equal(again, seen[0])


def test_frames_move_up_the_stack(played):
    seen = played[0]
    assert seen.dtype == np.uint8
    assert seen.shape[1] == FRAME_BYTES + RAM_BYTES
    for before, after in itertools.pairwise(seen):
        assert np.array_equal(stack(before)[1:], stack(after)[:3])


def test_the_newest_frame_is_the_screen_in_grey_and_84_by_84(played):
    seen, screens, _, _ = played
    for obs, screen in zip(seen[5::20], screens[5::20], strict=True):
        # ITU-R BT.601 luma, as OpenCV's; what flickers is as bright as in the brighter frame.
        grey = screen.astype(np.float64) @ (0.299, 0.587, 0.114)
        rows = (np.arange(210) * 84 // 210, np.arange(160) * 84 // 160)
        sums = np.zeros((84, 84))
        counts = np.zeros((84, 84))
        np.add.at(sums, np.ix_(*rows), grey)
        np.add.at(counts, np.ix_(*rows), 1)
        away = np.abs(stack(obs)[3] - sums / counts)
        assert np.median(away) < 3
        assert np.corrcoef(stack(obs)[3].ravel(), (sums / counts).ravel())[0, 1] > 0.9


def test_the_metrics_are_those_of_the_ram_behind_the_frames(played):
    seen, _, rewards, _ = played
    pixels, ram = metric_pack_for(MSPACMAN_PIXELS), metric_pack_for(MSPACMAN_RAM)
    assert [spec.name for spec in pixels.specs] == [spec.name for spec in ram.specs]
    rows = pixels.extract_batch(seen)
    expected = ram.extract_batch(seen[:, FRAME_BYTES:])
    assert np.array_equal(rows, expected, equal_nan=True)
    score = rows[:, [spec.name for spec in pixels.specs].index("score")]
    assert score.tolist() == np.cumsum(rewards).tolist()
    assert score[-1] > 0
