"""One model's gradients on a CPU when few features are on: work on the support, not on [n, F].

With k of F features on, four of a step's five dense products multiply zeros. Here only the
encoder's product is dense; decoding, both weight gradients and the gradient at the features touch
the k·n entries that are on. The results are those of :mod:`.stack` up to rounding, and its tests
compare them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

SPARSE_SHARE = 1 / 128
"""Share of features on, k / F, up to which the support pays (measured: at 8 of 1,024 a step takes
two thirds of the dense one's time, at 8 of 256 as long)."""


@dataclass(frozen=True, eq=False)
class SparseStep:
    """What one model's batch came to."""

    error: Tensor
    """[n, d_out] ŷ − y."""
    gradients: dict[str, Tensor]
    fired: Tensor
    """bool [F]."""
    active: int
    """Features on, over all rows."""


def sparse_step(
    parameters: dict[str, Tensor],
    x: Tensor,
    y: Tensor,
    pre: Tensor,
    cuts: Tensor,
    *,
    error_gradient: Callable[[Tensor], Tensor] | None = None,
) -> SparseStep:
    """Gradients of the mean squared error (plus a further term on the error).

    Args:
        parameters: ``W_enc [d_in, F]``, ``W_dec [F, d_out]``, ``b_dec [1, d_out]`` and, with a skip
            path, ``W_skip``; of one model.
        x: float32 [n, d_in].
        y: float32 [n, d_out].
        pre: float32 [n, F] pre-activations.
        cuts: [1, 1] or [n, 1], > 0; features at or above are on.
        error_gradient: gradient of a further loss with respect to the error [n, d_out].
    """
    n, n_features = pre.shape
    W_dec = parameters["W_dec"]
    flat = pre.numpy().reshape(-1)
    on = np.flatnonzero(pre.numpy() >= cuts.numpy())
    rows, columns = np.divmod(on, n_features)
    indptr = np.zeros(n + 1, np.int32)
    np.cumsum(np.bincount(rows, minlength=n), out=indptr[1:])
    columns = columns.astype(np.int32)
    features = _matrix(flat[on], columns, indptr, n_features)
    error = torch.from_numpy(features @ W_dec.numpy()).add_(parameters["b_dec"]).sub_(y)
    skip = parameters.get("W_skip")
    if skip is not None:
        error.addmm_(x, skip)
    gradient = error * (2.0 / n)
    if error_gradient is not None:
        gradient += error_gradient(error)
    at_rows = gradient.index_select(0, torch.from_numpy(rows))
    at_columns = W_dec.index_select(0, torch.from_numpy(columns))
    d_values = torch.linalg.vecdot(at_rows, at_columns).numpy()
    d_pre = _matrix(d_values, columns, indptr, n_features)
    gradients = {
        "W_dec": torch.from_numpy(features.T @ gradient.numpy()),
        "W_enc": torch.from_numpy(d_pre.T @ x.numpy()).T,
        "b_enc": torch.from_numpy(
            np.bincount(columns, weights=d_values, minlength=n_features).astype(np.float32)
        )[None],
        "b_dec": gradient.sum(0, keepdim=True),
    }
    if skip is not None:
        gradients["W_skip"] = x.T @ gradient
    fired = np.bincount(columns, minlength=n_features) > 0
    return SparseStep(error, gradients, torch.from_numpy(fired), len(on))


def _matrix(
    values: NDArray[np.float32],
    columns: NDArray[np.int32],
    indptr: NDArray[np.int32],
    n_features: int,
) -> csr_array:
    return csr_array((values, columns, indptr), shape=(len(indptr) - 1, n_features))
