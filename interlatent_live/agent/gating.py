"""Environments whose every action passes the agent's gate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gymnasium
from gymnasium.vector import VectorEnv, VectorWrapper

if TYPE_CHECKING:
    from interlatent_live.agent.control import AgentControl


class GatedEnv(gymnasium.Wrapper[Any, Any, Any, Any]):
    """One environment that a held agent moves by its safe action only."""

    def __init__(self, env: gymnasium.Env[Any, Any], control: AgentControl) -> None:
        super().__init__(env)
        self._control = control

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """As the environment's, with the action that the gate lets through."""
        return self.env.step(self._control.gate(action))


class GatedVectorEnv(VectorWrapper):
    """n environments that a held agent moves by its safe action only."""

    def __init__(self, env: VectorEnv[Any, Any, Any], control: AgentControl) -> None:
        super().__init__(env)
        self._control = control

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """As the environment's, with the actions that the gate lets through."""
        return self.env.step(self._control.gate(actions))


def gated(env: Any, control: AgentControl) -> GatedEnv | GatedVectorEnv:
    """The environment behind the gate."""
    if isinstance(env, VectorEnv):
        return GatedVectorEnv(env, control)
    return GatedEnv(env, control)
