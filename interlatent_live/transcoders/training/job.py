"""What one training run is asked for: hook points × configurations × seeds, and what they see."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from interlatent_live.errors import UserError
from interlatent_live.transcoders.config import Target
from interlatent_live.transcoders.dataset import some_rows
from interlatent_live.transcoders.training.head import CurvedTail, LinearHead
from interlatent_live.transcoders.training.recipe import Normalise
from interlatent_live.transcoders.transcoder import Baselines

if TYPE_CHECKING:
    from interlatent_live.transcoders.config import TranscoderConfig
    from interlatent_live.transcoders.dataset import HookRows, Split
    from interlatent_live.transcoders.training.head import HeadMetric

_FLOOR = 1e-3
"""A dimension's scale is at least this share of the largest: a constant one must not blow up."""
_MIX_ROWS = 2048
"""Rows over which a curved tail's metric is averaged."""


@dataclass(frozen=True, eq=False)
class Scales:
    """x' = (x − x_mean) / x_scale, y' = (y − y_mean) / y_scale · y_mix."""

    x_mean: Tensor
    x_scale: Tensor
    """[d_in]."""
    y_mean: Tensor
    y_scale: float
    """√E‖y − ȳ‖²."""
    y_mix: Tensor | None = None
    """float64 [d_out, d_out], symmetric; what makes a linear head's weighted loss a plain one."""


@dataclass(frozen=True, eq=False)
class HookData:
    """Training rows of one hook point on the device, normalised, with what undoes it.

    ``validation`` and ``test`` are as collected, on the CPU.
    """

    hook_point: str
    x: Tensor
    y: Tensor
    scales: Scales
    baselines: Baselines
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    head: HeadMetric | None = None
    """The head-weighted term, where it is not already in the scales."""

    @property
    def widths(self) -> tuple[int, int]:
        """(d_in, d_out)."""
        return self.x.shape[1], self.y.shape[1]


@dataclass(frozen=True, slots=True)
class Job:
    """One transcoder to train."""

    hook_point: str
    config: TranscoderConfig
    seed: int

    @property
    def name(self) -> str:
        """Folder of the result: hook point, architecture, size and seed."""
        config = self.config
        parts = [str(config.architecture), f"F{config.n_features}"]
        if config.k is not None:
            parts.append(f"k{config.k}")
        if config.l1 is not None:
            parts.append(f"l1-{config.l1:g}")
        if config.skip:
            parts.append("skip")
        if config.target is Target.INPUT:
            parts.append("sae")
        return f"{self.hook_point}/{'-'.join(parts)}-seed{self.seed}"


def hook_data(
    rows: HookRows,
    split: Split,
    *,
    target: Target,
    normalise: Normalise,
    device: torch.device,
    head: HeadMetric | None = None,
    head_weight: float = 0.0,
) -> HookData:
    """Normalise the rows of one hook point and fit its baselines.

    Raises:
        UserError: when y is constant, so that nothing is left to explain.
    """
    x_all = rows.x
    y_all = rows.x if target is Target.INPUT else rows.y
    if not (np.isfinite(x_all).all() and np.isfinite(y_all).all()):
        raise UserError(
            f"the dataset's rows at {rows.hook_point!r} hold values that are not finite"
        )
    x, y = (torch.from_numpy(np.ascontiguousarray(v[split.train])) for v in (x_all, y_all))
    baselines = fit_baselines(x, y)
    if baselines.y_variance <= 0:
        raise UserError(
            f"the output of {rows.hook_point!r} never changes in this dataset; there is nothing to "
            "explain"
        )
    x_mean = x.double().mean(0).float()
    deviation = x.double().std(0, correction=0).float()
    if normalise is Normalise.SCALE:
        x_scale = deviation.square().mean().sqrt().expand(x.shape[1]).clone()
    else:
        x_scale = deviation.clamp_min(_FLOOR * float(deviation.max()))
    x_scale = torch.where(x_scale > 0, x_scale, torch.ones(()))
    y_scale, y_mix = baselines.y_variance**0.5, None
    if head_weight > 0 and isinstance(head, LinearHead):
        y_mix, head = head.mix(head_weight, y_scale).cpu(), None
    elif head_weight > 0 and isinstance(head, CurvedTail):
        # As coordinates only: the loss itself takes each row's own Jacobian.
        sample = y[torch.from_numpy(some_rows(len(y), _MIX_ROWS))].to(device)
        y_mix = head.averaged(sample).mix(head_weight, y_scale).cpu()
    scales = Scales(x_mean, x_scale, baselines.y_mean, y_scale, y_mix)
    held = {
        name: (torch.from_numpy(x_all[mask]), torch.from_numpy(y_all[mask]))
        for name, mask in (("validation", split.validation), ("test", split.test))
    }
    return HookData(
        rows.hook_point,
        ((x - x_mean) / x_scale).to(device),
        _normalised_target(y, scales).to(device),
        scales,
        baselines,
        held["validation"],
        held["test"],
        head,
    )


def _normalised_target(y: Tensor, scales: Scales) -> Tensor:
    target = (y - scales.y_mean) / scales.y_scale
    return target if scales.y_mix is None else target @ scales.y_mix.float()


def fit_baselines(x: Tensor, y: Tensor) -> Baselines:
    """Least-squares affine map from x to y, mean and total variance of y, in float64."""
    x64, y64 = x.double(), y.double()
    x_mean, y_mean = x64.mean(0), y64.mean(0)
    centred_x, centred_y = x64 - x_mean, y64 - y_mean
    # Normal equations with a pseudo-inverse: constant and collinear inputs are common (contacts).
    gram = centred_x.T @ centred_x
    weight = torch.linalg.pinv(gram, hermitian=True, rtol=1e-12) @ (centred_x.T @ centred_y)
    return Baselines(
        affine_weight=weight.float(),
        affine_bias=(y_mean - x_mean @ weight).float(),
        y_mean=y_mean.float(),
        y_variance=float(centred_y.square().sum(1).mean()),
    )
