"""The map of Ms. Pac-Man's RAM held against what is on the screen."""

from typing import Any

import gymnasium
import numpy as np
import pytest

from interlatent_live.environments.arcade import MSPACMAN_RAM
from interlatent_live.environments.families import mspacman
from interlatent_live.environments.metric_packs import metric_pack_for
from interlatent_live.policies.files import load_policy

PLAYER = (210, 164, 74)
FRIGHTENED = (66, 114, 194)
GHOST_COLOURS = {
    "sue": (180, 122, 48),
    "inky": (84, 184, 153),
    "pinky": (198, 89, 179),
    "blinky": (200, 72, 72),
}
MAZE = 171
"""Rows of the screen that show the maze; below are lives and score."""
STEPS = 700


@pytest.fixture(scope="module")
def played():
    """What the policy saw and the screen showed in 700 steps: metrics, frames, RAM, rewards."""
    pytest.importorskip("ale_py")
    policy = load_policy("mspacman-ram").module
    env: Any = gymnasium.make(MSPACMAN_RAM, render_mode="rgb_array")
    obs, _ = env.reset(seed=0)
    seen, frames, rewards = [], [], []
    for _ in range(STEPS):
        obs, reward, terminated, truncated, _ = env.step(policy.act(obs[None])[0])
        seen.append(obs)
        frames.append(env.render()[:MAZE])
        rewards.append(reward)
        assert not terminated
        assert not truncated
    env.close()
    pack = metric_pack_for(MSPACMAN_RAM)
    rows = pack.extract_batch(np.stack(seen))
    columns = {spec.name: rows[:, i] for i, spec in enumerate(pack.specs)}
    return columns, frames, np.stack(seen), np.array(rewards)


def coloured(frame, colour):
    return np.argwhere(np.all(frame == np.array(colour), axis=-1))[:, ::-1]


def test_the_player_is_where_the_ram_says(played):
    columns, frames, _, _ = played
    offsets = []
    for x, y, frame in zip(columns["player_x"], columns["player_y"], frames, strict=True):
        pixels = coloured(frame, PLAYER)
        near = np.abs(pixels - (x, y)).max(1) <= 12
        if near.any():
            offsets.append(pixels[near].mean(0) - (x, y))
    assert len(offsets) > 0.95 * STEPS
    # The byte is the sprite's corner; its middle is 4 to 5 pixels from it, always.
    assert np.mean(offsets, axis=0) == pytest.approx([4.5, 4.5], abs=0.6)
    assert np.std(offsets, axis=0).max() < 1.0


@pytest.mark.parametrize("ghost", GHOST_COLOURS)
def test_each_ghost_is_drawn_in_its_colour_where_the_ram_says(played, ghost):
    columns, frames, ram, _ = played
    index = mspacman.GHOSTS.index(ghost)
    seen = away = 0
    for row, frame in enumerate(frames):
        if columns[f"{ghost}_edible"][row]:
            continue
        pixels = coloured(frame, GHOST_COLOURS[ghost])
        if not len(pixels):
            continue  # sprites take turns: a ghost is drawn in every second or third frame
        x, y = int(ram[row, 6 + index]) - 13, int(ram[row, 12 + index]) + 1
        seen += 1
        away += bool(np.abs(pixels.mean(0) - (x + 4.5, y + 6)).max() > 6)
    assert seen > 40
    assert away <= 0.05 * seen


def test_frightened_ghosts_are_blue_and_no_others(played):
    columns, frames, _, _ = played
    blue = np.array([len(coloured(frame, FRIGHTENED)) for frame in frames])
    frightened = columns["frightened"] > 0
    assert 50 < frightened.sum() < STEPS - 50
    assert not blue[~frightened].any()
    # Towards the end they blink between blue and white.
    assert (blue[frightened & (columns["frightened_time"] > 8)] > 0).mean() > 0.6
    assert ((columns["edible_ghosts"] > 0) <= frightened).all()


def test_the_frightened_timer_is_in_seconds(played):
    time = played[0]["frightened_time"]
    change = np.diff(time)
    # It is cleared at once when the last ghost is eaten, and set by the next pill.
    falling = change[(time[:-1] > 5) & (np.abs(change) < 1)]
    assert len(falling) > 100
    assert -falling.mean() == pytest.approx(mspacman.STEP_SECONDS, rel=0.1)


def test_a_power_pill_disappears_when_the_player_is_at_it(played):
    columns, frames, _, rewards = played
    left = columns["pills_left"]
    eaten = np.flatnonzero(np.diff(left) == -1)
    assert len(eaten) >= 2
    for step in eaten:
        assert columns["pill_distance"][step] < 16
        assert rewards[step + 1] >= 50
    pill = mspacman.PILLS[0]
    colour = (228, 111, 111)
    there = [frame[pill[1] - 2 : pill[1] + 12, pill[0] - 4 : pill[0] + 8] for frame in frames[:60]]
    assert np.all(np.stack(there) == np.array(colour), axis=-1).any()  # pills blink


def test_the_score_is_what_was_earned(played):
    columns, _, _, rewards = played
    assert columns["score"].tolist() == np.cumsum(rewards).tolist()


def test_what_is_not_there_is_missing_and_not_far():
    ram = np.zeros((2, 128), np.uint8)
    ram[1, 1:5] = 128  # every ghost is edible
    ram[1, 117] = 0b111100
    ram[1, [10, 16]] = 8 + 13, 15 - 1
    pack = metric_pack_for(MSPACMAN_RAM)
    rows = pack.extract_batch(ram)
    names = [spec.name for spec in pack.specs]
    assert np.isnan(rows[0, names.index("pill_distance")])
    assert np.isnan(rows[0, names.index("prey_distance")])
    assert np.isnan(rows[1, names.index("threat_distance")])
    assert rows[1, names.index("pill_distance")] == 0
    assert rows[1, names.index("pills_left")] == 4
    assert rows[1, names.index("edible_ghosts")] == 4


def test_the_bare_id_of_a_registered_environment_finds_its_pack():
    bare = MSPACMAN_RAM.rpartition(":")[2]
    assert metric_pack_for(bare).family is metric_pack_for(MSPACMAN_RAM).family
