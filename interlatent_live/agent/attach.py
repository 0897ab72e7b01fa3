"""``interlatent_live.attach``: a tap on a torch policy, in one call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch

from interlatent_live.agent.acting import Point
from interlatent_live.agent.hooks import (
    HookSet,
    beginnings,
    known_widths,
    resolve,
    weights_watch,
)
from interlatent_live.agent.metrics import MetricSet
from interlatent_live.agent.options import DEFAULT_ENDPOINT, TapOptions
from interlatent_live.agent.tap import Tap
from interlatent_live.environments.metric_packs import metric_pack_of
from interlatent_live.errors import UserError
from interlatent_live.policies.hashing import policy_hash

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from interlatent_live.agent.metrics import MetricPack
    from interlatent_live.agent.options import Autoreset
    from interlatent_live.stream import MetricSpec


LEARNING: Final = "learning-from:"
"""Stands before the hash a policy had when it began to learn, so that it matches no transcoder."""


def attach(
    policy: torch.nn.Module,
    hook_points: Sequence[str] | Mapping[str, torch.nn.Module],
    metrics: MetricSet | MetricPack | Sequence[str | MetricSpec] | None = None,
    *,
    endpoint: str | None = DEFAULT_ENDPOINT,
    agent: str = "agent",
    env: Any = None,
    env_count: int | None = None,
    autoreset: Autoreset | str | None = None,
    **options: Any,
) -> Tap:
    """Put forward hooks on a policy and stream each acting step's x and y of the named modules.

    Nothing global is touched and nothing the policy computes changes. Close the tap (or use it as a
    context manager) to take the hooks off.

    Args:
        policy: any torch module; a Stable-Baselines3 model has it as ``model.policy``.
        hook_points: dotted module names (``"net.0"``; ``"lstm:hidden"`` for a hidden state), spans
            (``"net.0..net.1"``: from the input of the first to the output of the last), or modules
            by the name they shall be streamed under.
        metrics: names, specs, a metric pack or a :class:`MetricSet`; with ``env`` and no metrics,
            all that the environment shows, by the names and units of its metric pack where there is
            one.
        endpoint: the encoder's address; None streams nowhere (take steps with ``tap.take()``).
        agent: the agent's name, as operators know it.
        env: the (vector) environment the policy acts in, to learn the number of copies, the way of
            autoreset and, without ``metrics``, the metrics; wrap it with ``tap.wrap(env)``.
        env_count: number of agent copies, where there is no ``env``.
        autoreset: how a vectorised environment begins episodes, where there is no ``env``.
        options: see :class:`TapOptions`.

    Returns:
        The tap.

    Raises:
        UserError: for an unknown hook point (the closest names are listed), a module that cannot be
            hooked, or options that contradict each other.
    """
    if not isinstance(policy, torch.nn.Module):
        raise UserError(
            f"the policy is a {type(policy).__name__}, not a torch.nn.Module; for a model of "
            "Stable-Baselines3 give model.policy, for anything else use Tap(...).publish(...)"
        )
    modules = resolve(policy, hook_points)
    if metrics is None and env is not None:
        metrics = MetricSet.from_env(env, metric_pack_of(env))
    chosen = TapOptions(agent=agent, endpoint=endpoint, **options)
    identity = policy_hash(policy)
    tap = Tap(
        metrics,
        chosen,
        policy_hash=f"{LEARNING}{identity}" if chosen.learning else identity,
        env=env,
        env_count=env_count,
        autoreset=autoreset,
    )
    shapes = dict(tap.options.shapes or {})
    for name in shapes:
        if name not in modules:
            raise UserError(f"shapes names {name!r}, which is not among the hook points")
    for name, module in modules.items():
        d_in, d_out = shapes.get(name) or known_widths(policy, name, module)
        tap.points[name] = Point(name, d_in, d_out)
    tap.check()
    lane = None
    device = next((p.device for p in policy.parameters() if p.is_cuda), None)
    if device is not None:
        from interlatent_live.agent.cuda import CudaLane  # noqa: PLC0415  only where there is CUDA

        lane = CudaLane(device)
        tap.use_lane(lane)
    if not chosen.learning:
        tap.watch(weights_watch(policy))
    if chosen.shadow is not None:
        from interlatent_live.agent.shadow_start import start_shadow  # noqa: PLC0415  where asked

        tap.on_close(start_shadow(policy, tuple(modules), tap, identity))
    hooks = HookSet(modules, tap.points, tap.gate, lane, begins=beginnings(policy, modules))
    tap.on_close(hooks.remove)
    if chosen.control is not None:
        from interlatent_live.agent.control_start import start_control  # noqa: PLC0415  where asked

        # After the tap's own hooks: frames show what the policy made, not what was made of it.
        tap.on_close(start_control(policy, modules, tap, identity))
    return tap
