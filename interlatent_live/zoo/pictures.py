"""Frames in which a question's feature fires most, drawn while the policy acts once more.

Rendering is off every measured path: one copy of the environment, made for drawing, on episodes of
its own. Where it cannot be drawn here (no display driver for MuJoCo), the report says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import gymnasium
import numpy as np

from interlatent_live.environments.disturbance import disturbed
from interlatent_live.errors import UserError
from interlatent_live.probes.train import dense_features
from interlatent_live.transcoders.acting import acting_policy
from interlatent_live.transcoders.capture import Capture
from interlatent_live.zoo.evaluate import transcoders_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from interlatent_live.transcoders.transcoder import Transcoder
    from interlatent_live.zoo.entry import ZooEntry

FRAMES: Final = 4
APART: Final = 40
"""Steps between two frames of one strip."""
EPISODES: Final = 4
MOST_STEPS: Final = 1000
SEED_OFFSET: Final = 20_000
LARGEST_SIDE: Final = 240
"""Pixels; larger frames are thinned out."""


@dataclass(slots=True)
class _Best:
    """The frames of one feature: the largest activations, some steps apart."""

    found: list[tuple[float, int, NDArray[np.uint8]]]

    def offer(self, value: float, at: int, frame: Callable[[], NDArray[np.uint8]]) -> None:
        """Keep a step if it is among the best, and better than its neighbours."""
        if value <= 0:
            return
        near = [one for one in self.found if at - one[1] < APART]
        if near and max(near)[0] >= value:
            return
        rest = [one for one in self.found if at - one[1] >= APART]
        if len(rest) == FRAMES and min(one[0] for one in rest) >= value:
            return
        self.found = sorted([*rest, (value, at, frame())], key=lambda one: -one[0])[:FRAMES]


def draw_exemplars(
    entry: ZooEntry,
    work: Path,
    made: Mapping[str, Any],
    out: Path,
    say: Callable[[str], None] = lambda _: None,
) -> list[dict[str, str]]:
    """One strip of frames per answered question; returns captions and file names.

    Raises:
        UserError: when matplotlib is not installed, or there is no transcoder.
    """
    try:
        from matplotlib.image import imsave  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise UserError(
            "pictures need matplotlib: install the extra interlatent-live[plots], or give "
            "--no-pictures"
        ) from error
    wanted = [
        (hook, answer)
        for hook, judged in made["judged"].items()
        for answer in judged["questions"]
        if "feature" in answer
    ]
    if not wanted:
        return []
    policy = acting_policy(entry.policy, environment=entry.environment)
    loaded = transcoders_of(entry, work, policy.policy_hash)
    transcoders = {hook: one.transcoder for hook, one in loaded.items()}
    features = {hook: [a["feature"]["index"] for h, a in wanted if h == hook] for hook in loaded}
    strips = _play(entry, policy, transcoders, features, say)
    pictures = []
    for hook, answer in wanted:
        index = answer["feature"]["index"]
        frames = [frame for _, _, frame in strips[hook, index].found]
        file = f"{entry.name}-{hook.replace('.', '-')}-{index}.png"
        if not frames:
            continue
        imsave(out / file, np.concatenate(frames, axis=1))
        pictures.append(
            {
                "file": file,
                "caption": f"Feature {index} at {hook}, the best for “{answer['name']}”: where it "
                "fires most in episodes drawn for this.",
            }
        )
    return pictures


def _play(
    entry: ZooEntry,
    policy: Any,
    transcoders: Mapping[str, Transcoder],
    features: Mapping[str, list[int]],
    say: Callable[[str], None],
) -> dict[tuple[str, int], _Best]:
    best = {(hook, one): _Best([]) for hook, each in features.items() for one in each}
    env = disturbed(gymnasium.make(entry.environment, render_mode="rgb_array"), entry.disturbance)
    clock = 0
    rng = np.random.default_rng(entry.evaluation.seed + SEED_OFFSET)  # of policies that sample
    try:
        with Capture(policy.module, entry.hook_points) as capture:
            for episode in range(EPISODES):
                say(f"drawing episode {episode + 1} of {EPISODES}")
                obs, _ = env.reset(seed=entry.evaluation.seed + SEED_OFFSET + episode)
                clock += APART
                for _ in range(MOST_STEPS):
                    outputs = policy.outputs(np.asarray(obs)[None])
                    for hook, (x, _) in capture.take().items():
                        values = dense_features(transcoders[hook], x.numpy())[0]
                        for one in features[hook]:
                            best[hook, one].offer(float(values[one]), clock, lambda: _frame(env))
                    clock += 1
                    obs, _, terminated, truncated, _ = env.step(policy.actions(outputs, rng)[0])
                    if terminated or truncated:
                        break
    finally:
        env.close()
    return best


def _frame(env: gymnasium.Env[Any, Any]) -> NDArray[np.uint8]:
    frame: Any = env.render()
    step = -(-max(frame.shape[:2]) // LARGEST_SIDE)
    small: NDArray[np.uint8] = np.ascontiguousarray(frame[::step, ::step], np.uint8)
    return small
