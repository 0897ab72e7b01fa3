"""Parts of a batch, as views: what is left when some of its rows were here before."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from interlatent_live.stream import (
    Activations,
    FeatureBatch,
    SparseCodes,
    StepBatch,
    Steps,
)
from interlatent_live.wire.messages import FeaturesMessage, StepsMessage


def slice_message(
    message: StepsMessage | FeaturesMessage, offset: int, count: int
) -> StepsMessage | FeaturesMessage:
    """Rows ``offset … offset + count − 1`` of a message, without its declarations."""
    if isinstance(message, StepsMessage):
        return replace(
            message, batch=slice_steps(message.batch, offset, count), drops=(), shape=None
        )
    return replace(message, batch=slice_features(message.batch, offset, count), drops=())


def slice_steps(batch: StepBatch, offset: int, count: int) -> StepBatch:
    """Rows ``offset … offset + count − 1``; arrays are views, except renumbered ``y_rows``."""
    activations = {}
    for name, seen in batch.activations.items():
        low, high = np.searchsorted(seen.y_rows, (offset, offset + count))
        activations[name] = Activations(
            x=seen.x[offset : offset + count],
            y=seen.y[low:high],
            y_rows=seen.y_rows[low:high] - np.uint16(offset),
        )
    return StepBatch(_columns(batch.steps, offset, count), activations)


def slice_features(batch: FeatureBatch, offset: int, count: int) -> FeatureBatch:
    """Rows ``offset … offset + count − 1``; arrays are views, except the renumbered ``indptr``."""
    codes = {}
    for name, sparse in batch.codes.items():
        indptr = sparse.indptr[offset : offset + count + 1]
        low, high = int(indptr[0]), int(indptr[-1])
        codes[name] = SparseCodes(
            n_features=sparse.n_features,
            indptr=indptr - indptr[0],
            index=sparse.index[low:high],
            value=sparse.value[low:high],
            error=sparse.error[offset : offset + count],
            error_affine=sparse.error_affine[offset : offset + count],
        )
    return replace(batch, steps=_columns(batch.steps, offset, count), codes=codes)


def _columns(steps: Steps, offset: int, count: int) -> Steps:
    rows = slice(offset, offset + count)
    return Steps(
        first_seq=steps.first_seq + offset,
        env=steps.env[rows],
        episode=steps.episode[rows],
        t=steps.t[rows],
        time_ns=steps.time_ns[rows],
        controller=steps.controller[rows],
        flags=steps.flags[rows],
        metrics=steps.metrics[rows],
    )
