"""From stacked parameters to a finished transcoder: fold the scales in, calibrate the threshold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from torch import Tensor

from interlatent_live.transcoders.config import Architecture
from interlatent_live.transcoders.dataset import some_rows
from interlatent_live.transcoders.transcoder import Transcoder

if TYPE_CHECKING:
    from collections.abc import Mapping

    from interlatent_live.transcoders.config import TranscoderConfig
    from interlatent_live.transcoders.training.job import HookData, Scales

_MAX_ENTRIES: Final = 1 << 26
"""Pre-activations that a threshold is calibrated on, at most: 256 MiB."""


def fold(
    config: TranscoderConfig, parameters: Mapping[str, Tensor], scales: Scales
) -> dict[str, Tensor]:
    """Tensors in the policy's units from one model's parameters in normalised units.

    With x' = (x − x̄)/s, y' = (y − ȳ)/r · T and B = r T⁻¹: ``W_enc = diag(1/s) W'``,
    ``b_enc = b' − x̄ W_enc``, ``W_dec = W_dec' B``, ``b_dec = ȳ + b_dec' B − x̄ W_skip``. Features
    are unchanged, and so are thresholds.
    """
    own = {name: tensor.detach().to("cpu", torch.float64) for name, tensor in parameters.items()}
    x_mean, x_scale = scales.x_mean.double(), scales.x_scale.double()
    back = _from_target(scales, len(scales.y_mean))
    W_enc = own["W_enc"] / x_scale[:, None]
    tensors = {
        "W_enc": W_enc,
        "b_enc": own["b_enc"].reshape(-1) - x_mean @ W_enc,
        "W_dec": own["W_dec"] @ back,
        "b_dec": scales.y_mean.double() + own["b_dec"].reshape(-1) @ back,
    }
    if config.skip:
        W_skip = own["W_skip"] / x_scale[:, None] @ back
        tensors["W_skip"] = W_skip
        tensors["b_dec"] = tensors["b_dec"] - x_mean @ W_skip
    if config.architecture is Architecture.JUMPRELU:
        tensors["threshold"] = own["log_threshold"].reshape(-1).exp()
    return {name: tensor.float() for name, tensor in tensors.items()}


def _from_target(scales: Scales, d_out: int) -> Tensor:
    """What takes a normalised target back to y − ȳ: float64 [d_out, d_out]."""
    if scales.y_mix is None:
        return torch.eye(d_out, dtype=torch.float64) * scales.y_scale
    back: Tensor = torch.linalg.inv(scales.y_mix.double()) * scales.y_scale
    return back


def unfold(transcoder: Transcoder, scales: Scales) -> dict[str, Tensor]:
    """The inverse of :func:`fold`: parameters in the normalised units of ``scales``."""
    own = {
        name: tensor.detach().to("cpu", torch.float64)
        for name, tensor in transcoder.tensors().items()
    }
    x_mean, x_scale = scales.x_mean.double(), scales.x_scale.double()
    forth = torch.linalg.inv(_from_target(scales, len(scales.y_mean)))
    b_dec = own["b_dec"] - scales.y_mean.double()
    parameters = {
        "W_enc": own["W_enc"] * x_scale[:, None],
        "b_enc": (own["b_enc"] + x_mean @ own["W_enc"])[None],
        "W_dec": own["W_dec"] @ forth,
    }
    if transcoder.W_skip is not None:
        parameters["W_skip"] = own["W_skip"] * x_scale[:, None] @ forth
        b_dec = b_dec + x_mean @ own["W_skip"]
    parameters["b_dec"] = (b_dec @ forth)[None]
    if transcoder.config.architecture is Architecture.JUMPRELU:
        parameters["log_threshold"] = own["threshold"].clamp_min(1e-6).log()[None]
    return {name: tensor.float() for name, tensor in parameters.items()}


def finish(
    config: TranscoderConfig, parameters: Mapping[str, Tensor], data: HookData
) -> Transcoder:
    """One finished transcoder with its baselines.

    BatchTopK and Matryoshka get the one threshold at which the rows that are not reported on have k
    features on, on average: a moving average of the training cuts is a mean of order statistics and
    ran at 1.6 k on a value network. Training rows count too: how many features are on differs
    between episodes by more than between rows seen and unseen, so that the validation episodes
    alone gave 9.6 at k = 8 on that network (9.5 on the training rows, 9.6 on the test rows).
    """
    tensors = fold(config, parameters, data.scales)
    if config.thresholded and config.architecture is not Architecture.JUMPRELU:
        x = _calibration_rows(data, config.n_features)
        pre = torch.addmm(tensors["b_enc"], x, tensors["W_enc"]).numpy()
        threshold = calibrated_threshold(pre, config.k or 1)
        tensors["threshold"] = torch.full((config.n_features,), threshold)
    return Transcoder.from_tensors(config, tensors, data.baselines)


def _calibration_rows(data: HookData, n_features: int) -> Tensor:
    """Rows of training and validation episodes, x [n, d_in] as collected, on the CPU."""
    unseen = data.validation[0]
    total = len(data.x) + len(unseen)
    chosen = torch.from_numpy(some_rows(total, max(1, _MAX_ENTRIES // n_features)))
    own = chosen[chosen < len(data.x)]
    seen = data.x[own.to(data.x.device)].cpu() * data.scales.x_scale + data.scales.x_mean
    return torch.cat([seen, unseen[chosen[len(own) :] - len(data.x)]])


def calibrated_threshold(pre: np.typing.NDArray[np.float32], k: int) -> float:
    """The threshold above which pre-activations [n, F] leave at most k per row, on average."""
    n, n_features = pre.shape
    if k >= n_features:
        return 0.0
    keep = n * k
    flat = pre.reshape(-1)
    # The (keep + 1)-th largest: strictly above it lie ``keep`` entries.
    cut = np.partition(flat, flat.size - keep - 1)[flat.size - keep - 1]
    return max(float(cut), 0.0)
