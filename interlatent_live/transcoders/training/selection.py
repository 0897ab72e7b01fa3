"""Which pre-activations stay on during training.

BatchTopK keeps the k·n largest of a batch. Only the k·n-th value is needed, not an order, so on a
CPU NumPy's vectorised quickselect finds it in a fraction of a sort's time.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from torch import Tensor

SAMPLE_ROWS: Final = 256
"""Rows that the cut of a batch is read from on a CPU."""


def batch_cuts(pre: Tensor, keep: int) -> Tensor:
    """The ``keep``-th largest entry of each model's batch, at least the smallest positive float.

    Of a batch above ``SAMPLE_ROWS`` rows, a CPU looks at the first ``SAMPLE_ROWS`` only: rows come
    shuffled, so the share that stays on is the same but for a few per cent, and inference uses
    another, calibrated threshold anyway.

    Args:
        pre: float [m, n, F] pre-activations.
        keep: entries to keep per model, k·n.

    Returns:
        float32 [m, 1, 1]; entries ``>=`` the cut stay on, which keeps them positive.
    """
    models = pre.shape[0]
    flat = pre.reshape(models, -1)
    tiny = torch.finfo(torch.float32).tiny
    size = flat.shape[1]
    if keep >= size:
        return torch.full((models, 1, 1), tiny, device=flat.device)
    if flat.is_cuda:
        cuts = torch.topk(flat, keep, dim=1, sorted=False).values.amin(1).float()
    else:
        sample = pre[:, :SAMPLE_ROWS].reshape(models, -1).float().numpy()
        place = sample.shape[1] - max(1, round(keep * sample.shape[1] / size))
        cuts = torch.from_numpy(np.partition(sample, place, axis=1)[:, place].copy())
    return cuts.clamp_min(tiny).view(models, 1, 1)


def row_cuts(pre: Tensor, k: int) -> Tensor:
    """The k-th largest entry of each row, at least the smallest positive float.

    Args:
        pre: float [m, n, F].
        k: entries to keep per row.

    Returns:
        float32 [m, n, 1]; entries ``>=`` the cut stay on.
    """
    n_features = pre.shape[-1]
    if k >= n_features:
        cuts = torch.zeros((*pre.shape[:-1], 1), device=pre.device)
    elif pre.is_cuda:
        cuts = torch.topk(pre, k, dim=-1, sorted=False).values.amin(-1, keepdim=True).float()
    else:
        host = np.partition(pre.float().numpy(), n_features - k, axis=-1)
        cuts = torch.from_numpy(host[..., n_features - k, None].copy())
    return cuts.clamp_min(torch.finfo(torch.float32).tiny)


def keep_from(pre: Tensor, cuts: Tensor) -> Tensor:
    """``pre`` where it is at least ``cuts`` (broadcast), else 0; cuts must be > 0.

    One cut for all on a CPU takes the vectorised threshold kernel; a boolean mask would cost more
    than the encoder's product.
    """
    if not pre.is_cuda and cuts.numel() == 1:
        # threshold keeps values strictly above, so step just below the cut.
        below = float(np.nextafter(np.float32(cuts.item()), np.float32(0)))
        return torch.threshold(pre, below, 0.0)
    return pre * (pre >= cuts)


def gate(gradient: Tensor, features: Tensor) -> Tensor:
    """``gradient`` where a feature is on, else 0, both [m, n, F]: ReLU's backward."""
    # features ≥ 0, so its sign is the mask; boolean masks and ReLU's own kernel are slower here.
    return torch.sign(features).mul_(gradient)
