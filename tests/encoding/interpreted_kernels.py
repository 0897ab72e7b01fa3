"""Run the kernels' launches on the CPU through Triton's interpreter; exit 0 when all agree.

A process of its own: Triton decides between compiler and interpreter when it is imported.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import torch

from interlatent_live.encoding.backend import EncodedRows, EncoderWeights
from interlatent_live.encoding.launch_plan import (
    Precision,
    Selection,
    Shape,
    Way,
    choose_selection,
    plan_launch,
)
from interlatent_live.encoding.launches import (
    DeviceWeights,
    Scratch,
    Staging,
    encode_rows,
    pack_rows,
)
from tests.support.encode_backend import (
    assert_exact,
    random_rows,
    random_weights,
    reference,
)

CPU = torch.device("cpu")


def encode(
    weights: EncoderWeights,
    x: np.ndarray,
    selection: Selection | None = None,
    *,
    bound: float | None = None,
    bulk: bool = False,
) -> tuple[EncodedRows, np.ndarray]:
    shape = Shape(weights.d_in, weights.n_features, Precision.FLOAT32)
    way = None if bound is None else Way.MARKED
    plan = plan_launch(shape, len(x), selection or choose_selection(shape, weights.k), way)
    plan = replace(plan, bulk=bulk)
    # Poisoned: whatever is read without having been written shows.
    scratch = Scratch.carve(torch.full((plan.device_bytes,), 0xFF, dtype=torch.uint8), plan)
    staging = Staging.carve(torch.full((plan.host_bytes,), 0xFF, dtype=torch.uint8), plan)
    staging.x.numpy()[: len(x)] = x
    loaded = DeviceWeights.load(weights, shape, CPU)
    encode_rows(
        plan, loaded, staging.x, torch.full((1,), float(bound or 0.0)), scratch, compiled=False
    )
    pack_rows(plan, scratch, staging)
    indptr = staging.indptr.numpy().view(np.uint32)
    total = int(indptr[-1])
    rows = EncodedRows(
        indptr, staging.index.numpy().view(np.uint32)[:total], staging.value.numpy()[:total]
    )
    return rows, staging.count.numpy()


def check(
    weights: EncoderWeights,
    x: np.ndarray,
    selection: Selection | None = None,
    *,
    bound: float | None = None,
    bulk: bool = False,
) -> None:
    rows, counts = encode(weights, x, selection, bound=bound, bulk=bulk)
    if bound is None:
        np.testing.assert_array_equal(np.diff(rows.indptr), counts)
    else:
        assert (counts >= (weights.k or 0)).all()  # else the bound would have missed
    mass = np.abs(x.astype(float)) @ np.abs(weights.W_enc.astype(float)) + np.abs(weights.b_enc)
    assert_exact(rows, weights, x, Precision.FLOAT32.error_bound(weights.d_in) * mass)


def main() -> None:
    """All cases."""
    for d, n_features, k, n in [(4, 16, 2, 3), (20, 300, 5, 17)]:
        for by_k in (True, False):
            weights = random_weights(d, n_features, k=k if by_k else None)
            check(weights, random_rows(n, d))
    weights = random_weights(20, 512, k=5)
    x = random_rows(3, 20)
    for group in (8, 16):  # grouped, on rows narrow enough for the interpreter
        check(weights, x, Selection(5, group, 128, 5), bulk=group == 16)
    kth = np.sort(reference(weights, x), axis=1)[:, -5]
    for bulk in (False, True):
        check(weights, x, Selection(5, 8, 512, 5), bound=max(0.9 * kth.min(), 0.0), bulk=bulk)
    check(random_weights(12, 2000, k=9), random_rows(2, 12))
    check(random_weights(12, 2000, k=None), random_rows(2, 12), Selection(None, 0, 2000, 2000))

    ties = np.zeros((1, 2048), np.float32)
    ties[0, 100:1900:2] = 1.0
    ties[0, 2000] = 2.0
    rows, _ = encode(
        EncoderWeights(ties, np.zeros(2048, np.float32), k=8), np.ones((2, 1), np.float32)
    )
    np.testing.assert_array_equal(rows.index.reshape(2, 8), [[*range(100, 114, 2), 2000]] * 2)

    x = np.array([[np.nan], [-1.0], [np.inf]], np.float32)
    for selection in ({"k": 2}, {"threshold": np.zeros(1, np.float32)}):
        weights = EncoderWeights(
            np.ones((1, 2), np.float32), np.array([1, -1], np.float32), **selection
        )
        rows, _ = encode(weights, x)
        np.testing.assert_array_equal(np.diff(rows.indptr), [0, 0, 2])

    zero = np.zeros(1, np.float32)
    dense = EncoderWeights(
        np.ones((1, 1500), np.float32),
        np.zeros(1500, np.float32),
        threshold=zero,
    )
    rows, counts = encode(dense, np.ones((2, 1), np.float32))
    np.testing.assert_array_equal(counts, 1500)  # told in full, cut at the room there is
    np.testing.assert_array_equal(np.diff(rows.indptr), 256)
    np.testing.assert_array_equal(rows.index.reshape(2, -1), [range(256)] * 2)


if __name__ == "__main__":
    main()
    sys.exit(0)
