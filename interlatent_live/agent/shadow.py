"""What a feature does to the action, measured beside the running policy and never in its way.

Every so many forwards the policy's inputs are copied into a bounded buffer; that is all that
happens on the policy's thread. A process beside the agent runs a copy of the policy on them
(:mod:`interlatent_live.agent.shadow_process`), takes one feature after another out of a hook
point's output, and holds the change of the action against controls of equal norm
(:mod:`interlatent_live.explanations.causal`). Where the policy cannot be rebuilt in a process, a
thread does the same at a low duty (:mod:`interlatent_live.agent.shadow_thread`), and says why. The
copy has its own weights, buffers and random state, so the action sequence of a seeded agent is the
same to the bit.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from interlatent_live.agent.shadow_process import ProcessShadow
from interlatent_live.agent.shadow_recipe import RecipeError
from interlatent_live.agent.shadow_thread import ThreadShadow
from interlatent_live.agent.shadow_values import (
    MeasuredFeature,
    ShadowNames,
    ShadowOptions,
    ShadowWorker,
)
from interlatent_live.errors import UserError
from interlatent_live.transcoders.native import check_binding, load_transcoder

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn

    from interlatent_live.agent.shadow_sampling import Place
    from interlatent_live.transcoders.transcoder import Transcoder

__all__ = ["MeasuredFeature", "ShadowOptions", "ShadowWorker", "begin_shadow"]

logger = logging.getLogger(__name__)


def begin_shadow(
    policy: nn.Module,
    hook_points: Sequence[str],
    options: ShadowOptions,
    *,
    policy_hash: str,
    discrete: bool,
    place: Callable[[], Place],
    names: ShadowNames | None = None,
    publish: Callable[[MeasuredFeature], None] = lambda _: None,
    attend: Callable[[], None] = lambda: None,
) -> ShadowWorker:
    """Measure a policy's features from now on; stop it with ``close()``.

    Args:
        policy: the acting policy; a copy is made now.
        hook_points: dotted module names; those with a transcoder are measured.
        options: see :class:`ShadowOptions`.
        policy_hash: the transcoders must have been trained on it.
        discrete: whether the policy's outputs are scores of discrete actions.
        place: episode and step within it of the next row, per copy, as of a tap.
        names: what people call observations and actions.
        publish: told of every measured feature, on a thread of the shadow's.
        attend: called several times a second on that thread; it may ask :meth:`explain` there.

    Raises:
        UserError: when the policy cannot be copied or a hook point is not a module's output.
        MismatchError: when a transcoder belongs to another policy or hook point.
    """
    transcoders: dict[str, Transcoder] = {}
    modules = dict(policy.named_modules())
    for name, given in options.transcoders.items():
        if name not in hook_points or name not in modules:
            raise UserError(f"shadow: {name!r} is not among the hook points {hook_points}")
        loaded = load_transcoder(Path(given)) if isinstance(given, (str, Path)) else given
        identity = loaded.transcoder.identity
        check_binding(loaded.provenance, identity, policy_hash=policy_hash, hook_point=name)
        transcoders[name] = loaded.transcoder
    because = "it was asked for"
    if options.process:
        try:
            return ProcessShadow(
                policy,
                transcoders,
                options,
                policy_hash=policy_hash,
                discrete=discrete,
                place=place,
                names=names or ShadowNames(),
                publish=publish,
                attend=attend,
            )
        except RecipeError as error:
            because = str(error)
            logger.warning(
                "shadow interventions run on a thread of the agent, for a hundredth of its time: "
                "no other process can rebuild the policy, because %s",
                because,
            )
    return ThreadShadow(
        policy,
        transcoders,
        options,
        discrete=discrete,
        place=place,
        publish=publish,
        attend=attend,
        because=because,
    )
