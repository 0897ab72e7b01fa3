"""Unitree's G1 in MuJoCo, walking as it is told, in the two forms that there are policies for.

The models are those that the policies were trained or deployed with, without meshes: inertias,
actuators and foot contacts are theirs, thin capsules are there to be seen. A step is 20 ms of 2 ms
physics; joint targets hold over it.

The command (forward and left in m/s, turn to the left in rad/s) is drawn every 4 s, and is to
stand still one time in eight. A fall is a pelvis below half of its height at rest, or tilted by
more than 60°. The reward is the tracking term of Playground's joystick task (and of legged_gym's):
exp(−‖v − v*‖² / 0.25) + ½ exp(−(ω − ω*)² / 0.25), at most 1.5 per step.
"""

from __future__ import annotations

from copy import copy
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import mujoco
import numpy as np
from gymnasium.envs.mujoco import MujocoEnv
from gymnasium.spaces import Box

from interlatent_live.environments.families.unitree import (
    CONTROL_HZ,
    G1_LAYOUT,
    LEGS_LAYOUT,
    Layout,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

MODELS: Final = Path(__file__).parent.parent / "data" / "robots"
PHYSICS_PER_STEP: Final = 10
COMMAND_S: Final = 4
STANDING: Final = 1 / 8
FALLEN_TILT: Final = np.radians(60)
FALLEN_HEIGHT: Final = 0.4
TRACKING: Final = 0.25
OFFSCREEN: Final = 240
"""Pixels: side of a rendered frame."""
_FEET: Final = ("left_ankle_roll_link", "right_ankle_roll_link")


@cache
def _compiled(path: str) -> mujoco.MjModel:
    """The model of a file; compiling takes up to half a second, copying does not."""
    spec = mujoco.MjSpec.from_file(path)
    # MuJoCo's compiler waits for threads of its own; beside a progress bar's it waited for ever.
    spec.compiler.usethread = False
    model = spec.compile()
    model.vis.global_.offwidth = model.vis.global_.offheight = OFFSCREEN
    return model


class WalkingRobot(MujocoEnv):
    """What both forms share: command, fall, reward, and what the simulator knows besides.

    Args:
        model: MJCF file under ``data/robots``.
        layout: of the observation.
        reach: the command is drawn within − back … forward, ± sideways, ± turn.
        bound: of an action.
        render_mode: ``"rgb_array"`` or None.
    """

    ACTION_SCALE: float
    """Radians away from the rest pose that an action of 1 means."""

    metadata: dict[str, Any] = {  # noqa: RUF012 - Gymnasium declares it so
        "render_modes": ["rgb_array", "rgbd_tuple", "depth_array", "human"],
        "render_fps": CONTROL_HZ,
    }

    def __init__(
        self,
        model: str,
        layout: Layout,
        *,
        reach: tuple[float, float, float, float],
        bound: float,
        render_mode: str | None,
    ) -> None:
        self.layout = layout
        n = len(layout.joints)
        super().__init__(
            str(MODELS / model),
            PHYSICS_PER_STEP,
            observation_space=Box(-np.inf, np.inf, (layout.size,), np.float64),
            render_mode=render_mode,
            width=OFFSCREEN,
            height=OFFSCREEN,
            default_camera_config={"distance": 2.2, "trackbodyid": 1, "elevation": -15.0},
        )
        self.action_space = self._actions = Box(-bound, bound, (n,), np.float32)
        self._rest = np.array(layout.rest)
        back, forward, sideways, turn = reach
        self._low = np.array([-back, -sideways, -turn])
        self._high = np.array([forward, sideways, turn])
        self._feet = [self.model.body(name).id for name in _FEET]
        self._last = np.zeros(n)
        self._command = np.zeros(3)
        self._told: NDArray[np.float64] | None = None
        self._t = 0

    def _initialize_simulation(self) -> tuple[mujoco.MjModel, mujoco.MjData]:
        model = copy(_compiled(self.fullpath))
        return model, mujoco.MjData(model)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float64], dict[str, Any]]:
        """Stand at rest and draw a command; ``options={"command": (vx, vy, turn)}`` keeps one."""
        told = None if options is None else options.get("command")
        self._told = None if told is None else np.asarray(told, np.float64)
        obs, info = super().reset(seed=seed)
        return obs, info

    def reset_model(self) -> NDArray[np.float64]:
        """At rest, every joint within ± 0.05 rad of it, turned to any side."""
        qpos, qvel = self._start(), np.zeros(self.model.nv)
        half = self.np_random.uniform(-np.pi, np.pi) / 2
        qpos[3:7] = np.cos(half), 0.0, 0.0, np.sin(half)
        qpos[7:] += self.np_random.uniform(-0.05, 0.05, len(self._rest))
        self._last = np.zeros(len(self._rest))
        self._t = 0
        self._command = self._drawn()
        self.set_state(qpos, qvel)  # type: ignore[no-untyped-call] # Gymnasium has no types there
        return self._get_obs()

    def step(  # type: ignore[override] # Gymnasium means no NumPy scalars
        self, action: NDArray[np.float32]
    ) -> tuple[NDArray[np.float64], float, bool, bool, dict[str, Any]]:
        """20 ms towards the joint targets that the action [n] means."""
        self._last = np.clip(np.asarray(action, np.float64), self._actions.low, self._actions.high)
        self.do_simulation(self._target(self._last), self.frame_skip)
        self._t += 1
        velocity, gyro = self._velocities()
        miss = float(np.square(velocity[:2] - self._command[:2]).sum())
        turn_miss = float(np.square(gyro[2] - self._command[2]))
        reward = float(np.exp(-miss / TRACKING) + 0.5 * np.exp(-turn_miss / TRACKING))
        if self._t % (COMMAND_S * CONTROL_HZ) == 0:
            self._command = self._drawn()
        if self.render_mode == "human":
            self.render()  # type: ignore[no-untyped-call] # likewise
        return self._get_obs(), reward, self._fallen(), False, {}

    def _drawn(self) -> NDArray[np.float64]:
        # Drawn also when one is kept, so that the rest of an episode's draws are the same.
        drawn = self.np_random.uniform(self._low, self._high)
        drawn *= self.np_random.random() >= STANDING
        return drawn if self._told is None else self._told

    def _fallen(self) -> bool:
        upright = -float(self._gravity()[2])
        return bool(upright < np.cos(FALLEN_TILT) or self.data.qpos[2] < FALLEN_HEIGHT)

    def _get_obs(self) -> NDArray[np.float64]:
        data = self.data
        velocity, gyro = self._velocities()
        return np.concatenate(
            [
                self._seen(velocity, gyro),
                velocity,
                data.qpos[2:3],
                np.linalg.norm(data.cfrc_ext[self._feet, 3:], axis=1),
                data.xpos[self._feet, 2],
                data.qfrc_actuator[6:],
                self._extra(),
            ]
        )

    def _extra(self) -> NDArray[np.float64]:
        return np.zeros(0)

    def _start(self) -> NDArray[np.float64]:
        raise NotImplementedError

    def _target(self, action: NDArray[np.float64]) -> NDArray[np.float64]:
        return self._rest + self.ACTION_SCALE * action

    def _gravity(self) -> NDArray[np.float64]:
        raise NotImplementedError

    def _velocities(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Of the base in its own frame: m/s [3], rad/s [3]."""
        raise NotImplementedError

    def _seen(
        self, velocity: NDArray[np.float64], gyro: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        raise NotImplementedError


class UnitreeG1(WalkingRobot):
    """29 joints under position control, as in MuJoCo Playground's G1 joystick task."""

    ACTION_SCALE = 0.5
    PHASE_HZ = 1.5

    def __init__(self, *, render_mode: str | None = None) -> None:
        super().__init__(
            "unitree_g1/scene_nomesh.xml",
            G1_LAYOUT,
            reach=(0.5, 1.0, 0.3, 0.7),
            bound=1.0,
            render_mode=render_mode,
        )
        self._imu = self.model.site("imu_in_pelvis").id
        self._velocity_at = self.model.sensor("local_linvel_pelvis").adr[0]
        self._gyro_at = self.model.sensor("gyro_pelvis").adr[0]

    def _start(self) -> NDArray[np.float64]:
        return np.array(self.model.key("knees_bent").qpos, np.float64)

    def _gravity(self) -> NDArray[np.float64]:
        down: NDArray[np.float64] = -self.data.site_xmat[self._imu].reshape(3, 3)[2]
        return down

    def _velocities(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        sensed = self.data.sensordata
        return (
            sensed[self._velocity_at : self._velocity_at + 3],
            sensed[self._gyro_at : self._gyro_at + 3],
        )

    def _seen(
        self, velocity: NDArray[np.float64], gyro: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        clock = 2 * np.pi * self.PHASE_HZ * self._t / CONTROL_HZ
        phase = np.array([clock, clock + np.pi])
        return np.concatenate(
            [
                velocity,
                gyro,
                self._gravity(),
                self._command,
                self.data.qpos[7:] - self._rest,
                self.data.qvel[6:],
                self._last,
                np.cos(phase),
                np.sin(phase),
            ]
        )


class UnitreeG1Legs(WalkingRobot):
    """12 leg joints under torques kp (target − q) − kd q̇, as in unitree_rl_gym's deployment.

    The policy has a memory and must know which copy of the environment it acts in: the two last
    numbers of an observation are a number drawn at the reset, and the step since then.
    """

    ACTION_SCALE = 0.25
    PHASE_S = 0.8
    STIFFNESS = (100.0, 100.0, 100.0, 150.0, 40.0, 40.0)
    DAMPING = (2.0, 2.0, 2.0, 4.0, 2.0, 2.0)

    def __init__(self, *, render_mode: str | None = None) -> None:
        self._episode = 0.0
        super().__init__(
            "unitree_g1_legs/g1_nomesh.xml",
            LEGS_LAYOUT,
            reach=(0.3, 0.8, 0.3, 0.5),
            bound=100.0,
            render_mode=render_mode,
        )
        # MuJoCo computes the same torques in each of its steps as a loop around it would.
        stiffness, damping = np.array(self.STIFFNESS * 2), np.array(self.DAMPING * 2)
        self.model.actuator_gainprm[:, 0] = stiffness
        self.model.actuator_biastype[:] = mujoco.mjtBias.mjBIAS_AFFINE
        self.model.actuator_biasprm[:, 1] = -stiffness
        self.model.actuator_biasprm[:, 2] = -damping

    def _start(self) -> NDArray[np.float64]:
        self._episode = float(self.np_random.random())
        qpos = np.array(self.init_qpos, np.float64)
        qpos[7:] = self._rest
        return qpos

    def _extra(self) -> NDArray[np.float64]:
        return np.array([self._episode, float(self._t)])

    def _gravity(self) -> NDArray[np.float64]:
        w, x, y, z = self.data.qpos[3:7]
        return np.array([2 * (w * y - z * x), -2 * (z * y + w * x), 1 - 2 * (w * w + z * z)])

    def _velocities(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        rotation = self.data.xmat[1].reshape(3, 3)
        return rotation.T @ self.data.qvel[:3], self.data.qvel[3:6]

    def _seen(
        self, velocity: NDArray[np.float64], gyro: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        del velocity  # no sensor of the legs' policy tells it
        layout = self.layout
        phase = 2 * np.pi * self._t / CONTROL_HZ / self.PHASE_S
        return np.concatenate(
            [
                gyro * layout.gyro_scale,
                self._gravity(),
                self._command * layout.command_scale,
                self.data.qpos[7:] - self._rest,
                self.data.qvel[6:] * layout.velocity_scale,
                self._last,
                [np.sin(phase), np.cos(phase)],
            ]
        )
