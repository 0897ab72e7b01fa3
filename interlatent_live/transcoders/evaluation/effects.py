"""What each feature does to the action: the exact effect of its decoder direction, one step ahead.

The rest of the policy is at hand, so nothing has to be estimated: where a feature is on, its
contribution ``f_j · W_dec[j]`` is taken out of y and the tail is evaluated again. This is a direct
effect on the action, not on what follows from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from interlatent_live.environments.metric_packs import OutputKind
from interlatent_live.transcoders.tails import tail_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from interlatent_live.transcoders.acting import ActingPolicy
    from interlatent_live.transcoders.transcoder import Transcoder

MAX_ROWS = 512
"""On-steps per feature that the effect is averaged over."""


@dataclass(frozen=True, slots=True)
class FeatureEffect:
    """One feature's direct effect while on."""

    feature: int
    effect: tuple[float, ...]
    """Mean change of each output that its presence makes: centred logits or values, or raw outputs
    of a continuous head."""
    changes_action: float | None
    """Share of on-steps whose action would differ without it; None for continuous actions."""
    action_change: float | None
    """Continuous: root mean square change of the action, in its units; None for discrete ones."""
    rows: int


def feature_effects(
    transcoder: Transcoder,
    policy: ActingPolicy,
    hook_point: str,
    x: NDArray[np.float32],
    y: NDArray[np.float32],
    *,
    features: NDArray[np.intp],
) -> list[FeatureEffect] | None:
    """Effects of the given features on rows x [n, d_in], y [n, d_out].

    None when what follows the hook point is not known as a function of y alone.
    """
    tail = tail_of(policy, hook_point)
    if tail is None:
        return None
    discrete = policy.output_kind is not OutputKind.CONTINUOUS
    active = transcoder.encode(torch.from_numpy(x))
    y_all = torch.from_numpy(y)
    out = []
    with torch.no_grad():
        for feature in features.tolist():
            (rows,) = torch.nonzero(active[:, feature], as_tuple=True)
            if len(rows) > MAX_ROWS:
                rows = rows[torch.linspace(0, len(rows) - 1, MAX_ROWS).long()]
            if len(rows) == 0:
                continue
            with_it = tail(y_all[rows])
            contribution = active[rows, feature, None] * transcoder.W_dec[feature]
            without = tail(y_all[rows] - contribution)
            difference = with_it - without
            before, after = policy.actions(without), policy.actions(with_it)
            if discrete:
                difference = difference - difference.mean(1, keepdim=True)
                changed, moved = float(np.mean(before != after)), None
            else:
                changed, moved = None, float(np.sqrt(np.mean(np.square(after - before))))
            out.append(
                FeatureEffect(
                    feature, tuple(difference.mean(0).tolist()), changed, moved, len(rows)
                )
            )
    return out
