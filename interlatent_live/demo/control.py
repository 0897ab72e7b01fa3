"""What people may do to the demo's agent: hold, stop and steer it like any other.

Safe actions are chosen for these simulations, where nothing can be hurt: a cart that is pushed left
and right in turn feels no force on average, and a lander with its engines off does what a lander
without a pilot does. A real machine needs a real answer here. In other environments we know none
(no torque makes a humanoid fall), and then the agent can be steered, and not be held or stopped.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from interlatent_live.agent.control import ApprovalRule, ControlOptions
from interlatent_live.agent.control_thread import agent_folder
from interlatent_live.console.secrets import state_folder
from interlatent_live.control.latch import StopLatch
from interlatent_live.pipeline.library import BUILT_IN
from interlatent_live.transcoders.native import find_transcoders
from interlatent_live.zoo.entry import find_entry

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from interlatent_live.config import Settings
    from interlatent_live.transcoders.native import LoadedTranscoder

ASK_WITHIN_S = 30.0
LEFT, RIGHT = 0, 1
ENGINES_OFF = 0


def agent_name(env: str) -> str:
    """What operators call the agent of an entry, or of the environment that the demo shows."""
    return f"{find_entry(env).name}-demo"


def demo_control(
    env_id: str,
    policy_hash: str,
    hook_points: Sequence[str],
    *,
    endpoint: str,
    ask: str | None = None,
) -> ControlOptions:
    """Control of the demo's agent, steered through the transcoders that the package carries.

    A policy that they were not trained on can be held and stopped, not steered; an agent in an
    environment without a known safe action (a walker falls under no torque) can be steered, not
    held. The bound on an
    intervention is √E‖y − ȳ‖²: it moves an output no further than the output moves by itself.

    Args:
        env_id: Gymnasium id.
        policy_hash: of the policy that acts.
        hook_points: that are streamed.
        endpoint: of the control service, for agents.
        ask: predicate over metrics; when it holds, the agent asks a person before it goes on.

    Raises:
        UserError: when the agent is to ask and the environment has no safe action.
    """
    loaded = demo_transcoders(policy_hash, hook_points)
    bounds = {point: _usual_move(one) for point, one in loaded.items()}
    return ControlOptions(
        endpoint=endpoint,
        safe_action=_safe_action(env_id),
        transcoders={point: one for point, one in loaded.items() if bounds[point] is not None},
        max_norm={point: bound for point, bound in bounds.items() if bound is not None},
        approvals=() if ask is None else (ApprovalRule(ask, ask, timeout_s=ASK_WITHIN_S),),
    )


def demo_transcoders(policy_hash: str, hook_points: Sequence[str]) -> dict[str, LoadedTranscoder]:
    """Those that the package carries for a policy, by hook point."""
    known = find_transcoders(BUILT_IN)
    return {
        point: known[policy_hash, point][0].load()
        for point in hook_points
        if (policy_hash, point) in known
    }


def was_stopped(settings: Settings, env: str) -> bool:
    """Whether somebody stopped the agent that :func:`agent_name` names and nobody resumed it."""
    latch = agent_folder(state_folder(settings), agent_name(env)) / "stop.latch"
    if not latch.exists():
        return False
    opened = StopLatch(latch)
    try:
        return opened.stopped
    finally:
        opened.close()


def _usual_move(loaded: LoadedTranscoder) -> float | None:
    baselines = loaded.transcoder.baselines
    return None if baselines is None else math.sqrt(baselines.y_variance)


def _safe_action(env_id: str) -> Callable[[Any], Any] | None:
    safe: Mapping[str, Callable[[], Callable[[Any], Any]]] = {
        "CartPole-v1": _pushes_in_turn,
        "LunarLander-v3": _engines_off,
    }
    return safe[env_id]() if env_id in safe else None


def _pushes_in_turn() -> Callable[[Any], Any]:
    turn = itertools.cycle((LEFT, RIGHT))
    return lambda actions: np.full_like(actions, next(turn))


def _engines_off() -> Callable[[Any], Any]:
    return lambda actions: np.full_like(actions, ENGINES_OFF)
