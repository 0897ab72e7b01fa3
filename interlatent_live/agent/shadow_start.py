"""Starts the shadow of a tap, with the way to the explainer where there is one."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from interlatent_live.agent.shadow import begin_shadow
from interlatent_live.agent.shadow_values import ShadowNames
from interlatent_live.environments.metric_packs import metric_pack_for
from interlatent_live.environments.observation_names import ObservedNumber, observed_numbers
from interlatent_live.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn

    from interlatent_live.agent.shadow_link import ShadowLink
    from interlatent_live.agent.tap import Tap

logger = logging.getLogger(__name__)


def start_shadow(
    policy: nn.Module, hook_points: Sequence[str], tap: Tap, policy_hash: str
) -> Callable[[], None]:
    """Start it; returns what ends it. ``tap.shadow`` is the worker.

    Raises:
        UserError: when the policy cannot be copied, or a transcoder is not its own.
    """
    options = tap.options.shadow
    if options is None:
        raise ValueError("the tap has no shadow options")
    link = _link(tap)
    worker = begin_shadow(
        policy,
        hook_points,
        options,
        policy_hash=policy_hash,
        discrete=bool(tap.options.actions),
        place=lambda: tap.place,
        names=_names(tap),
        publish=(lambda _: None) if link is None else link.publish,
        attend=(lambda: None) if link is None else link.attend,
    )
    tap.shadow = worker
    if link is not None:
        link.worker = worker

    def end() -> None:
        worker.close()
        if link is not None:
            link.close()

    return end


def _names(tap: Tap) -> ShadowNames:
    """The user's names, or those that the environment's metrics give."""
    options = tap.options
    own = options.shadow.observation if options.shadow is not None else ()
    observation = tuple(ObservedNumber(name) for name in own)
    try:
        family = metric_pack_for(options.environment).family
    except UserError:
        return ShadowNames(options.actions, observation)
    return ShadowNames(options.actions or family.joints, observation or observed_numbers(family))


def _link(tap: Tap) -> ShadowLink | None:
    options = tap.options.shadow
    if options is None or options.explainer is None:
        return None
    from interlatent_live.agent.shadow_link import ShadowLink  # noqa: PLC0415 - only with one

    key = options.key
    if key is None:
        # Only processes of the same user can sign for the explainer of this machine.
        from interlatent_live.config import load_settings  # noqa: PLC0415 - likewise
        from interlatent_live.console.secrets import (  # noqa: PLC0415 - likewise
            load_token,
            request_key,
            state_folder,
        )

        try:
            key = request_key(load_token(state_folder(load_settings())))
        except UserError as error:
            logger.warning("measured effects stay in this process: %s", error)
            return None
    return ShadowLink(
        options.explainer,
        key,
        agent=tap.options.agent,
        run_id=tap.run_id,
        actions=tap.options.actions,
        keys=tap.options.keys,
    )
