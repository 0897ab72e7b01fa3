"""Starts control of a tap: loads what may be steered, opens the latch, starts the thread."""

from __future__ import annotations

from pathlib import Path
from threading import get_ident
from typing import TYPE_CHECKING

from interlatent_live.agent.control import AgentControl, Published
from interlatent_live.agent.control_thread import ControlThread, agent_folder, machine_of
from interlatent_live.agent.dry_run import DryRunActions
from interlatent_live.agent.steering import SteeringHooks
from interlatent_live.audit.journal import Journal
from interlatent_live.control.latch import StopLatch
from interlatent_live.control.wire import AgentHello, HookOffer, control_key
from interlatent_live.transcoders.native import check_binding, load_transcoder
from interlatent_live.wire.sockets import check_endpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import nn

    from interlatent_live.agent.control import ControlOptions
    from interlatent_live.agent.tap import Tap
    from interlatent_live.transcoders.transcoder import Transcoder


def start_control(
    policy: nn.Module, modules: Mapping[str, nn.Module], tap: Tap, policy_hash: str
) -> Callable[[], None]:
    """Start it; returns what ends it. ``tap.control`` is the acting thread's side.

    Raises:
        UserError: when there is no key, the latch cannot be kept, or options contradict each other.
        MismatchError: when a transcoder belongs to another policy or hook point.
    """
    options = tap.options.control
    if options is None:
        raise ValueError("the tap has no control options")
    if options.endpoint is not None:
        check_endpoint(options.endpoint, protected=tap.options.keys is not None, listening=False)
    transcoders = _transcoders(options, policy_hash)
    offers = [
        HookOffer(
            name=name,
            transcoder=transcoder.identity,
            features=transcoder.config.n_features,
            max_norm=float(options.max_norm[name]),
        )
        for name, transcoder in transcoders.items()
    ]
    state, key = _state_and_key(options, protected=tap.options.keys is not None)
    folder = agent_folder(state, tap.options.agent)
    latch = None if options.safe_action is None else StopLatch(folder / "stop.latch")
    stopped = latch is not None and latch.stopped
    control: AgentControl | None = None
    try:
        # Conditions are the acting thread's; only whether a text can be judged is asked from here.
        machine = machine_of(
            options,
            offers,
            lambda text: "" if control is None else control.conditions.check(text),
            stopped=stopped,
        )
        control = AgentControl(
            options,
            Published.of(machine.decision),
            tap.metrics,
            row=lambda: tap.rows,
            strict=tap.options.strict,
        )
        hooks = SteeringHooks(modules, transcoders, tap.gate, control)
        control.dry_runs = dry_runs = _dry_runs(policy, modules, transcoders, tap, control)
        journal = Journal(folder / "journal.jsonl")
    except BaseException:
        if latch is not None:
            latch.close()
        raise
    hello = AgentHello(
        agent=tap.options.agent,
        run_id=tap.run_id,
        boot_id=tap.boot_id,
        policy_hash=policy_hash,
        hook_points=offers,
        safe_action=options.safe_action is not None,
        require_oversight=options.require_oversight,
        lease_ms=int(options.lease_s * 1000),
        max_ttl_ms=int(options.max_ttl_s * 1000),
    )
    streams = tap.options.endpoint is not None
    thread = ControlThread(
        control,
        machine,
        latch=latch,
        journal=journal,
        hello=hello,
        options=options,
        key=key,
        keys=tap.options.keys,
        encoder_up=(lambda: tap.link_state == "open") if streams else None,
    )
    tap.control = control

    def end() -> None:
        hooks.remove()
        dry_runs.remove()
        thread.close()

    return end


def _dry_runs(
    policy: nn.Module,
    modules: Mapping[str, nn.Module],
    transcoders: Mapping[str, Transcoder],
    tap: Tap,
    control: AgentControl,
) -> DryRunActions:
    # A hook point may be streamed under a name of the user's own.
    names = {id(module): name for name, module in policy.named_modules()}
    points = {name: names[id(modules[name])] for name in transcoders if id(modules[name]) in names}
    return DryRunActions(
        policy,
        points,
        watching=lambda: (
            bool(control.published.decision.shadows) and tap.gate.thread in {None, get_ident()}
        ),
        # Spaces of Gymnasium: the discrete ones know how many actions there are.
        discrete=bool(tap.options.actions) or hasattr(getattr(policy, "action_space", None), "n"),
    )


def _transcoders(options: ControlOptions, policy_hash: str) -> dict[str, Transcoder]:
    out = {}
    for name, given in options.transcoders.items():
        loaded = load_transcoder(Path(given)) if isinstance(given, (str, Path)) else given
        check_binding(
            loaded.provenance,
            loaded.transcoder.identity,
            policy_hash=policy_hash,
            hook_point=name,
        )
        out[name] = loaded.transcoder
    return out


def _state_and_key(options: ControlOptions, *, protected: bool) -> tuple[Path, bytes | None]:
    """Where to keep things, and what to seal with: nothing on CURVE connections."""
    if options.state is not None and (protected or options.key or options.endpoint is None):
        return Path(options.state), None if protected else options.key or b"nobody is connected"
    from interlatent_live.config import load_settings  # noqa: PLC0415 - only where it is needed
    from interlatent_live.console.secrets import (  # noqa: PLC0415 - likewise
        load_token,
        state_folder,
    )

    folder = state_folder(load_settings())
    state = folder if options.state is None else Path(options.state)
    if protected:
        return state, None
    return state, options.key or control_key(load_token(folder))
