"""Interventions as deltas: y' = y + (f' − f) W_dec, at the site the transcoder was trained at.

Replacing y by a reconstruction would change the policy even where nothing is asked for, by
whatever the transcoder does not explain. A delta leaves that error where it was: with no
intervention, or one whose condition does not hold, y' is y to the bit. It is a pure function of
tensors, used offline in experiments and later in the agent.

The same site means: W_dec was trained to reconstruct exactly the tensor that the delta is added to.
The experiment this project starts from trained on pre-ReLU targets and added after the ReLU; a test
here shows what that costs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from interlatent_live.errors import UserError
from interlatent_live.interventions.values import Kind

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from interlatent_live.interventions.values import Intervention, Plan


def delta(
    interventions: Sequence[Intervention],
    W_dec: Tensor,
    features: Tensor | None,
    *,
    n: int,
    holds: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """Sum of the interventions' deltas, [n, d_out], before any bound.

    Args:
        interventions: what is done; steering adds to whatever the others set.
        W_dec: [F, d_out] decoder of the transcoder of this hook point.
        features: [n, F] activations of these rows; may be None when no intervention needs them.
        n: number of rows.
        holds: per predicate text, bool [n]: where it holds.

    Raises:
        UserError: when a feature does not exist, the activations are missing where they are needed,
            or a predicate was not evaluated.
    """
    total = W_dec.new_zeros((n, W_dec.shape[1]))
    for item in interventions:
        _check_feature(item.feature, W_dec)
        change = _change(item, features, W_dec, n)
        mask = _mask(item, features, W_dec, holds or {})
        if mask is not None:
            change = torch.where(mask, change, 0.0)
        total = total + change[:, None] * W_dec[item.feature]
    return total


def bounded(total: Tensor, max_norm: float) -> Tensor:
    """Deltas [n, d] with every row's norm at most ``max_norm``; a row that is not finite becomes 0.

    Scaling keeps the direction. A delta that is not a number means a broken feature; the policy's
    own activation is the only safe answer.
    """
    finite = torch.isfinite(total).all(dim=1, keepdim=True)
    total = torch.where(finite, total, 0.0)
    norm = torch.linalg.vector_norm(total, dim=1, keepdim=True)
    # The norm may overflow although every entry is finite; scaling by the largest entry first would
    # cost every row for a case that only a broken dictionary brings, so such a row becomes 0 too.
    factor = torch.where(norm > max_norm, max_norm / norm, torch.ones_like(norm))
    return total * torch.where(torch.isfinite(norm), factor, 0.0)


def apply(
    plan: Plan,
    y: Tensor,
    W_dec: Tensor,
    features: Tensor | None,
    *,
    holds: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """Y' [n, d_out] of y [n, d_out] under a plan: y plus the bounded sum of its deltas.

    Rows in which nothing is active come back to the bit.

    Raises:
        UserError: as :func:`delta`, or when y and the decoder do not have the same width.
    """
    if y.shape[1] != W_dec.shape[1]:
        raise UserError(
            f"{plan.hook_point} puts out {y.shape[1]} values, but the decoder writes "
            f"{W_dec.shape[1]}: an intervention acts at the site its transcoder was trained at"
        )
    if not plan.interventions:
        return y
    total = delta(plan.interventions, W_dec, features, n=len(y), holds=holds)
    change = bounded(total, plan.max_norm).to(y.dtype)
    active = (change != 0).any(dim=1, keepdim=True)
    return torch.where(active, y + change, y)


def _change(item: Intervention, features: Tensor | None, W_dec: Tensor, n: int) -> Tensor:
    """F' − f of the intervention's feature, [n]."""
    if item.kind is Kind.STEER:
        return W_dec.new_full((n,), item.value)
    if features is None:
        raise UserError(f"{item.kind} of feature {item.feature} needs the features of the row")
    own = features[:, item.feature].to(W_dec.dtype)
    if item.kind is Kind.CLAMP:
        return item.value - own
    if item.kind is Kind.SCALE:
        return (item.value - 1.0) * own
    return -own


def _mask(
    item: Intervention, features: Tensor | None, W_dec: Tensor, holds: Mapping[str, Tensor]
) -> Tensor | None:
    """Where the intervention's conditions hold, bool [n]; None when it has none."""
    mask: Tensor | None = None
    if item.condition is not None:
        _check_feature(item.condition.feature, W_dec)
        if features is None:
            raise UserError("a condition on a feature needs the features of the row")
        above = features[:, item.condition.feature] > item.condition.threshold
        mask = above if item.condition.above else ~above
    if item.predicate is not None:
        if item.predicate not in holds:
            raise UserError(f"the condition {item.predicate!r} was not evaluated for these rows")
        mask = holds[item.predicate] if mask is None else mask & holds[item.predicate]
    return mask


def _check_feature(feature: int, W_dec: Tensor) -> None:
    if feature >= len(W_dec):
        raise UserError(f"feature {feature} does not exist: the transcoder has {len(W_dec)}")
