"""One model's gradients on a CPU when few features are on: work on the support, not on [n, F].

With k of F features on, four of a step's five dense products multiply zeros. Here only the
encoder's product is dense. Decoding and both weight gradients are weighted sums of rows, which is
what :func:`torch.nn.functional.embedding_bag` computes, with the support grouped by row or by
feature; the gradient at the features is the product sampled on the support. The results are those
of :mod:`.stack` up to rounding, and its tests compare them.
"""

from __future__ import annotations

import functools
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

SPARSE_SHARE = 1 / 16
"""Share of features on, k / F, up to which the support pays (measured: at 8 of 256 a step takes 0.7
of the dense one's time, at 32 of 1,024 a third, at 16 of 256 as long)."""
SPARSE_FEATURES = 128
"""Fewer features are not worth the calls: a dense product of them costs less."""


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
    W_dec, skip = parameters["W_dec"], parameters.get("W_skip")
    on = np.flatnonzero(pre.numpy() >= cuts.numpy())
    rows, columns = (part.astype(np.int32) for part in np.divmod(on, n_features))
    # A stable sort of integers of at most 16 bits is a radix sort.
    order = np.argsort(columns.astype(np.min_scalar_type(n_features - 1)), kind="stable")
    of_row, of_feature = _starts(rows, n), _starts(columns, n_features)
    feature, row = torch.from_numpy(columns), torch.from_numpy(rows[order])
    by_feature = torch.from_numpy(order)
    value = torch.from_numpy(pre.numpy().reshape(-1)[on])
    error = _weighted_sums(W_dec, feature, of_row, value).add_(parameters["b_dec"]).sub_(y)
    if skip is not None:
        error.addmm_(x, skip)
    gradient = error * (2.0 / n)
    if error_gradient is not None:
        gradient += error_gradient(error)
    _silence_beta()
    support = torch.sparse_csr_tensor(
        of_row, feature, value, size=(n, n_features), check_invariants=False
    )
    d_pre = torch.sparse.sampled_addmm(support, gradient, W_dec.T, beta=0.0).values()
    d_b_enc = np.bincount(columns, weights=d_pre.numpy(), minlength=n_features)
    gradients = {
        "W_dec": _weighted_sums(gradient, row, of_feature, value[by_feature]),
        "W_enc": _weighted_sums(x, row, of_feature, d_pre[by_feature]).T,
        "b_enc": torch.from_numpy(d_b_enc)[None],
        "b_dec": gradient.sum(0, keepdim=True),
    }
    if skip is not None:
        gradients["W_skip"] = x.T @ gradient
    return SparseStep(error, gradients, of_feature.diff() > 0, len(on))


def _starts(group: NDArray[np.int32], groups: int) -> Tensor:
    """Where each group's entries begin once they are in its order: int32 [groups + 1]."""
    starts = np.zeros(groups + 1, np.int32)
    np.cumsum(np.bincount(group, minlength=groups), out=starts[1:])
    return torch.from_numpy(starts)


def _weighted_sums(table: Tensor, index: Tensor, starts: Tensor, weight: Tensor) -> Tensor:
    """Σ weight · table[index] over each group of entries: [groups, width]."""
    return embedding_bag(
        index, table, starts, mode="sum", per_sample_weights=weight, include_last_offset=True
    )


@functools.cache
def _silence_beta() -> None:
    """Torch says once per process that CSR tensors are in beta, which is not the user's concern."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nothing = torch.zeros(0)
        torch.sparse_csr_tensor([0], nothing.int(), nothing, size=(0, 0), check_invariants=False)
