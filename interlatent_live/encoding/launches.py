"""Issue the kernels of one encode on tensors that lie where a plan says. No streams, no waiting.

Apart from :mod:`interlatent_live.encoding.cuda` so that Triton's interpreter can run the very same
launches on CPU tensors in the tests.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from triton.tools.tensor_descriptor import TensorDescriptor

from interlatent_live.encoding import kernels
from interlatent_live.encoding.launch_plan import LaunchPlan, Precision, Way, power_of_two

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from interlatent_live.encoding.backend import EncoderWeights
    from interlatent_live.encoding.launch_plan import Buffer, Shape


@dataclass(frozen=True, slots=True, eq=False)
class DeviceWeights:
    """Weights as the product wants them, padded to whole tiles."""

    W_enc: Tensor
    """[d_in, padded], float32 or bfloat16."""
    b_enc: Tensor
    """float32 [padded]; −∞ where padded, so that padded features are never on."""
    cut: Tensor
    """float32 [padded] thresholds; 0 for TopK."""

    @classmethod
    def load(cls, weights: EncoderWeights, shape: Shape, device: torch.device) -> DeviceWeights:
        """Copy, round and pad."""
        used = weights.n_features
        dtype = torch.bfloat16 if shape.precision is Precision.BFLOAT16 else torch.float32
        W_enc = torch.zeros(shape.d_in, shape.padded, dtype=dtype, device=device)
        W_enc[:, :used] = torch.tensor(weights.W_enc, device=device)
        b_enc = torch.full((shape.padded,), -torch.inf, device=device)
        b_enc[:used] = torch.tensor(weights.b_enc, device=device)
        cut = torch.zeros(shape.padded, device=device)
        if weights.threshold is not None:
            cut[:used] = torch.tensor(weights.threshold, device=device)
        return cls(W_enc, b_enc, cut)

    @property
    def n_bytes(self) -> int:
        """Bytes of device memory."""
        return sum(t.element_size() * t.numel() for t in (self.W_enc, self.b_enc, self.cut))


@dataclass(frozen=True, slots=True, eq=False)
class Scratch:
    """Device buffers of one launch, as views of an arena."""

    x: Tensor
    """float32 [padded rows, d_in]; rows beyond the batch hold anything."""
    x_cast: Tensor
    """bfloat16 [padded rows, d_in], or empty."""
    pre: Tensor
    """float32 [rows, padded features]."""
    word: Tensor
    """int32 [rows · padded features / 32], a bit per feature."""
    peak: Tensor
    """float32 [rows · groups]."""
    scratch: Tensor
    """int32 scratch of the selection."""
    index: Tensor
    """int32 [rows, capacity], ascending; only the first ``count`` of a row are written."""
    value: Tensor
    """float32 [rows, capacity]."""
    count: Tensor
    """int32 [rows], uncut."""

    @classmethod
    def carve(cls, arena: Tensor, plan: LaunchPlan) -> Scratch:
        """Views of ``arena``, uint8 on the device."""
        view = _views(arena, plan.device)
        width = plan.shape.d_in
        padded_rows = plan.device["x"].elements // width
        cast = view["x_cast"].view(torch.bfloat16)[: padded_rows * width * plan.cast_first]
        capacity = plan.selection.capacity
        return cls(
            x=view["x"].view(padded_rows, width),
            x_cast=cast.view(-1, width),
            pre=view["pre"].view(plan.rows, plan.shape.padded),
            word=view["word"].view(torch.int32),
            peak=view["peak"],
            scratch=view["scratch"].view(torch.int32),
            index=view["index"].view(torch.int32).view(plan.rows, capacity),
            value=view["value"].view(plan.rows, capacity),
            count=view["count"].view(torch.int32),
        )


@dataclass(frozen=True, slots=True, eq=False)
class Staging:
    """Host buffers of one launch, as views of a pinned arena that the device can address."""

    x: Tensor
    """float32 [padded rows, d_in]."""
    count: Tensor
    """int32 [rows], uncut."""
    indptr: Tensor
    """int32 [rows + 1]."""
    index: Tensor
    """int32 [rows · capacity]."""
    value: Tensor
    """float32 [rows · capacity]."""

    @classmethod
    def carve(cls, arena: Tensor, plan: LaunchPlan) -> Staging:
        """Views of ``arena``, uint8 on the host."""
        view = _views(arena, plan.host)
        return cls(
            x=view["x"].view(-1, plan.shape.d_in),
            count=view["count"].view(torch.int32),
            indptr=view["indptr"].view(torch.int32),
            index=view["index"].view(torch.int32),
            value=view["value"],
        )


def encode_rows(
    plan: LaunchPlan,
    weights: DeviceWeights,
    x: Tensor,
    bound: Tensor,
    scratch: Scratch,
    *,
    compiled: bool = True,
) -> None:
    """X [padded rows, d_in] to padded sparse rows in ``scratch``: product, then selection.

    ``bound`` float32 [1] is tried by TopK on the marked way and must be 0 for thresholds.
    ``compiled`` is False under Triton's interpreter, which knows no PTX.
    """
    tile, selection, features = plan.tile, plan.selection, plan.shape.padded
    tiles = -(-plan.rows // tile.rows) * (features // tile.features)
    k = selection.k or 0
    x_tiles: Tensor | TensorDescriptor = x
    w_tiles: Tensor | TensorDescriptor = weights.W_enc
    if plan.bulk:
        x_tiles = TensorDescriptor.from_tensor(x, [tile.rows, tile.inner])
        w_tiles = TensorDescriptor.from_tensor(weights.W_enc, [tile.inner, tile.features])
    product = {
        "D": plan.shape.d_in,
        "F": features,
        "BLOCK_M": tile.rows,
        "BLOCK_N": tile.features,
        "BLOCK_K": tile.inner,
        "BAND": 8,
        "PRECISION": "tf32x3" if plan.shape.precision is Precision.FLOAT32 else "tf32",
        "BULK": plan.bulk,
        "num_warps": tile.warps,
        "num_stages": tile.stages,
    }
    row = {"num_warps": 1}
    outputs = (scratch.index, scratch.value, scratch.count)
    if plan.way is Way.MARKED:
        kernels.mark_kernel[(tiles,)](
            x_tiles,
            w_tiles,
            weights.b_enc,
            weights.cut,
            bound,
            scratch.pre,
            scratch.word,
            plan.rows,
            SCATTER=compiled,
            **product,
        )
        kernels.collect_kernel[(plan.rows,)](
            scratch.pre,
            scratch.word,
            bound,
            scratch.scratch if k else scratch.index,
            *outputs,
            F=features,
            WORDS_WIDTH=power_of_two(features // 32),
            ROOM=selection.room,
            CHUNK=selection.room if k else 256,
            K=k,
            **row,
        )
        return
    kernels.peak_kernel[(tiles,)](
        x_tiles,
        w_tiles,
        weights.b_enc,
        scratch.pre,
        scratch.peak,
        plan.rows,
        GROUP=selection.group,
        **product,
    )
    if not selection.group:
        kernels.select_whole_kernel[(plan.rows,)](
            scratch.pre, *outputs, F=features, WIDTH=power_of_two(features), K=k, **row
        )
        return
    kernels.select_peaked_kernel[(plan.rows,)](
        scratch.pre,
        scratch.peak,
        scratch.scratch,
        *outputs,
        F=features,
        GROUP=selection.group,
        GROUPS_WIDTH=power_of_two(plan.groups),
        K=k,
        K_WIDTH=power_of_two(k),
        **row,
    )


def pack_rows(plan: LaunchPlan, scratch: Scratch, staging: Staging) -> None:
    """Padded sparse rows to compressed sparse rows in the host's memory."""
    block_rows = 1 if plan.rows <= 256 else 8
    kernels.pack_kernel[(-(-plan.rows // block_rows),)](
        scratch.index,
        scratch.value,
        scratch.count,
        staging.count,
        staging.indptr,
        staging.index,
        staging.value,
        plan.rows,
        CAPACITY=plan.selection.capacity,
        ROWS_WIDTH=max(64, power_of_two(plan.rows)),
        BLOCK_ROWS=block_rows,
        BLOCK_ENTRIES=min(max(power_of_two(plan.selection.capacity), 32), 256),
        num_warps=1 if plan.rows <= 1024 else 4,
    )


def _views(arena: Tensor, buffers: Mapping[str, Buffer]) -> dict[str, Tensor]:
    return {
        name: arena[buffer.offset : buffer.offset + 4 * buffer.elements].view(torch.float32)
        for name, buffer in buffers.items()
    }
