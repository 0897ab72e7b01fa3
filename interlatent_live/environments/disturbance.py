"""Disturbed starts and pushes: a solved policy at rest shows one state and explains nothing.

A policy that balances a pole from ±0.05 spends its episode within a few millimetres, and a feature
that means "drifting to the edge" never fires. So the demo and the calibration start episodes
spread over the states the policy can recover from, and push now and then. Both are drawn from a
generator of the wrapper's own, seeded by ``reset(seed=…)``, and a push acts within a step: the
policy sees its effect in the next observation and never a state the environment was not in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, SupportsFloat

import gymnasium
import numpy as np

from interlatent_live.environments.families import fetch
from interlatent_live.environments.families.lunarlander import HALF_HEIGHT, HALF_WIDTH, STEP_SECONDS
from interlatent_live.errors import UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_STREAM = 0x64697374
"""Keeps the wrapper's draws apart from the environment's, which has the same seed."""


@dataclass(frozen=True, slots=True)
class Disturbance:
    """How far starts are spread and how pushes come.

    ``start`` scales the family's box of start states (0: as the environment starts; at 1 a good
    policy already fails now and then). ``push`` scales the family's push, whose strength is drawn
    anew each time; ``push_interval_s`` is their mean distance in simulated seconds (exponential);
    0 means no pushes.
    """

    start: float = 0.0
    push: float = 0.0
    push_interval_s: float = 0.0

    def __post_init__(self) -> None:
        if min(self.start, self.push, self.push_interval_s) < 0:
            raise ValueError(f"a disturbance cannot be negative: {self}")

    def push_probability(self, step_seconds: float) -> float:
        """Probability of a push in one step."""
        if self.push <= 0 or self.push_interval_s <= 0:
            return 0.0
        return float(-np.expm1(-step_seconds / self.push_interval_s))


class _Disturbed(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Shared half: the generator, and when pushes come."""

    step_seconds = STEP_SECONDS

    def __init__(self, env: gymnasium.Env[Any, Any], disturbance: Disturbance) -> None:
        super().__init__(env)
        self.disturbance = disturbance
        self._rng = np.random.default_rng()
        self._push_probability = disturbance.push_probability(self.step_seconds)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Reset, then move to a drawn start state."""
        if seed is not None:
            self._rng = np.random.default_rng([_STREAM, seed])
        obs, info = self.env.reset(seed=seed, options=options)
        if self.disturbance.start > 0:
            obs = self._start(self._rng.uniform(-1.0, 1.0, size=5) * self.disturbance.start)
        return obs, info

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Step, with a push in it when one is due."""
        if self._push_probability and self._rng.random() < self._push_probability:
            self._push(float(self._rng.uniform(-1.0, 1.0)) * self.disturbance.push)
        return self.env.step(action)

    def _start(self, draw: NDArray[np.float64]) -> Any:
        raise NotImplementedError

    def _push(self, strength: float) -> None:
        raise NotImplementedError


class DisturbedCartPole(_Disturbed):
    """Starts in x ± 1.6 m, v ± 1 m/s, θ ± 0.12 rad, θ̇ ± 1 rad/s; pushes on the cart.

    A push of strength 1 changes the cart's velocity by 1 m/s and the pole's rate by the −1.5 rad/s
    that follow from Gymnasium's equations of motion (−1/(l (4/3 − m/(M + m))) per unit, upright).
    """

    WIDTHS = np.array([1.6, 1.0, 0.12, 1.0])
    RATE_PER_VELOCITY = -1.0 / (0.5 * (4 / 3 - 0.1 / 1.1))

    def _start(self, draw: NDArray[np.float64]) -> NDArray[np.float32]:
        base: Any = self.env.unwrapped
        base.state = draw[:4] * self.WIDTHS
        return np.array(base.state, dtype=np.float32)

    def _push(self, strength: float) -> None:
        base: Any = self.env.unwrapped
        change = np.array([0.0, strength, 0.0, strength * self.RATE_PER_VELOCITY])
        base.state = np.asarray(base.state) + change


class DisturbedLunarLander(_Disturbed):
    """Starts x ± 6 m, up to 5 m lower, v ± 3 m/s, tilt ± 0.4 rad, rate ± 0.6 rad/s.

    A push of strength 1 changes the sideways velocity by 1.5 m/s and the rate by 0.5 rad/s.
    """

    WIDTHS = np.array([6.0, 2.5, 3.0, 0.4, 0.6])

    def _start(self, draw: NDArray[np.float64]) -> NDArray[np.float32]:
        base: Any = self.env.unwrapped
        x, down, velocity, tilt, rate = draw * self.WIDTHS
        # The lander and its legs move as one rigid body, so that the joints stay at rest.
        pivot = base.lander.position.copy()
        shift = (x, -abs(down) * 2)
        cos, sin = np.cos(tilt), np.sin(tilt)
        for body in (base.lander, *base.legs):
            dx, dy = body.position.x - pivot.x, body.position.y - pivot.y
            body.position = (
                float(pivot.x + shift[0] + cos * dx - sin * dy),
                float(pivot.y + shift[1] + sin * dx + cos * dy),
            )
            body.angle += float(tilt)
            body.linearVelocity = (
                float(body.linearVelocity.x + velocity - rate * (sin * dx + cos * dy)),
                float(body.linearVelocity.y + rate * (cos * dx - sin * dy)),
            )
            body.angularVelocity += float(rate)
        return self._observe(base)

    def _push(self, strength: float) -> None:
        base: Any = self.env.unwrapped
        for body in (base.lander, *base.legs):
            body.linearVelocity = (
                float(body.linearVelocity.x + 1.5 * strength),
                float(body.linearVelocity.y),
            )
            body.awake = True
        base.lander.angularVelocity += float(0.5 * strength)

    @staticmethod
    def _observe(base: Any) -> NDArray[np.float32]:
        """The observation of the moved lander, and the shaping term its next reward starts from."""
        pos, vel = base.lander.position, base.lander.linearVelocity
        state = [
            (pos.x - HALF_WIDTH) / HALF_WIDTH,
            (pos.y - (base.helipad_y + 18 / 30)) / HALF_HEIGHT,
            vel.x * HALF_WIDTH * STEP_SECONDS,
            vel.y * HALF_HEIGHT * STEP_SECONDS,
            base.lander.angle,
            20.0 * base.lander.angularVelocity * STEP_SECONDS,
            1.0 if base.legs[0].ground_contact else 0.0,
            1.0 if base.legs[1].ground_contact else 0.0,
        ]
        base.prev_shaping = (
            -100 * np.hypot(state[0], state[1])
            - 100 * np.hypot(state[2], state[3])
            - 100 * abs(state[4])
            + 10 * (state[6] + state[7])
        )
        return np.array(state, dtype=np.float32)


class DisturbedWalker(_Disturbed):
    """Starts at a run of up to ± 0.5 m/s; pushes on the whole body.

    For Gymnasium's MuJoCo bodies whose root moves freely in space or in a plane. A push of strength
    1 changes the velocity by 1 m/s: in a drawn direction for a body in space, ahead or back for one
    in a plane. Every part moves along, so no joint is strained.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], disturbance: Disturbance) -> None:
        base: Any = env.unwrapped
        self.step_seconds = float(base.dt)
        super().__init__(env, disturbance)
        # A free joint has 7 numbers, and its first two velocities are along the ground.
        self._ground_axes = 2 if int(base.model.jnt_qposadr[1]) == 7 else 1

    def _start(self, draw: NDArray[np.float64]) -> NDArray[np.float64]:
        base: Any = self.env.unwrapped
        velocity = base.data.qvel.copy()
        velocity[: self._ground_axes] += 0.5 * draw[: self._ground_axes]
        base.set_state(base.data.qpos.copy(), velocity)
        obs: NDArray[np.float64] = base._get_obs()  # noqa: SLF001 - Gymnasium has no public name for it
        return obs

    def _push(self, strength: float) -> None:
        base: Any = self.env.unwrapped
        if self._ground_axes == 1:
            base.data.qvel[0] += strength
            return
        angle = float(self._rng.uniform(0.0, np.pi))
        base.data.qvel[0] += strength * np.cos(angle)
        base.data.qvel[1] += strength * np.sin(angle)


class DisturbedFetchReach(_Disturbed):
    """A push moves the goal: to a place up to 15 cm from the gripper's first one along each axis.

    That is where FetchReach draws its goals from, scaled by the push's strength.
    """

    step_seconds = fetch.STEP_SECONDS

    def _push(self, strength: float) -> None:
        base: Any = self.env.unwrapped
        away = self._rng.uniform(-base.target_range, base.target_range, size=3)
        base.goal = base.initial_gripper_xpos[:3] + strength * away


_WRAPPERS: dict[str, type[_Disturbed]] = {
    "CartPole-v1": DisturbedCartPole,
    "LunarLander-v3": DisturbedLunarLander,
    "HalfCheetah-v5": DisturbedWalker,
    "Walker2d-v5": DisturbedWalker,
    "Humanoid-v5": DisturbedWalker,
    "UnitreeG1-v0": DisturbedWalker,
    "UnitreeG1Legs-v0": DisturbedWalker,
    "FetchReachFlat-v4": DisturbedFetchReach,
}


def disturbed(env: gymnasium.Env[Any, Any], disturbance: Disturbance) -> gymnasium.Env[Any, Any]:
    """Wrap an environment so that its starts are spread and pushes come.

    Raises:
        UserError: when there is no such wrapper for the environment.
    """
    if disturbance == Disturbance():
        return env
    env_id = env.spec.id if env.spec is not None else ""
    if env_id not in _WRAPPERS:
        raise UserError(
            f"there are no disturbed starts for {env_id or 'this environment'}; there are for "
            f"{', '.join(_WRAPPERS)}"
        )
    return _WRAPPERS[env_id](env, disturbance)
