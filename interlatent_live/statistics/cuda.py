"""The core update on a device: the same sums as :class:`PaneSums`, where the features already are.

An encoder on a GPU need not send features to the host to have them counted. The tables live on the
device in float64; a batch is sorted by feature with one counting pass, then each block of entries
sums its runs in registers and adds them once, so a feature that fires in every row costs no more
contention than a rare one. On other devices (or without Triton) ``index_add_`` does the same sums.
When a pane closes, :meth:`moments` hands them to the host, and from there on everything is as on
the CPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from interlatent_live.errors import UserError
from interlatent_live.statistics.moments import Layout, Moments, PaneSums

if TYPE_CHECKING:
    from interlatent_live.statistics.moments import Floats, Ints

try:  # Triton comes with CUDA builds of torch only.
    import triton
    import triton.language as tl
except ImportError:  # pragma: no cover - depends on the machine
    triton = None

_RUN = 32
"""Entries a program sums before it adds: measured best of 8 … 64 on an H100."""
_BLOCK = 64
_ROWS = 32


class DeviceSums:
    """Pane sums on a torch device.

    ``partial`` names the metric columns that may be absent (NaN); an absent value in any other
    column is refused when the moments are read, since it cannot be noticed earlier without a stall.
    """

    def __init__(
        self,
        n_features: int,
        n_metrics: int,
        *,
        device: str | torch.device = "cuda",
        partial: tuple[int, ...] = (),
    ) -> None:
        self.device = torch.device(device)
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise UserError("no CUDA device is available; use device='cpu'")
        self.n_features = n_features
        self.layout = Layout(n_metrics, tuple(sorted(partial)))
        width = self.layout.groups + n_metrics
        options: dict[str, Any] = {"dtype": torch.float64, "device": self.device}
        self.ones = torch.zeros((n_features, width), **options)
        self.linear = torch.zeros((n_features, width), **options)
        self.square = torch.zeros((n_features, self.layout.groups), **options)
        self.sums = torch.zeros(width, **options)
        self.squares = torch.zeros(n_metrics, **options)
        self.pivot = torch.full((n_metrics,), float("nan"), **options)
        self.activation_pivot = torch.full((n_features,), float("nan"), **options)
        self.unexpected = torch.zeros((), dtype=torch.int64, device=self.device)
        self._columns = torch.tensor(self.layout.partial, dtype=torch.long, device=self.device)
        self._pivot_known = False
        self._shape = (0, 0)
        self._scratch: tuple[torch.Tensor, ...] | None = None

    @property
    def kernels(self) -> bool:
        """Whether the device kernels are used rather than ``index_add_``."""
        return self.device.type == "cuda" and triton is not None

    def update(
        self,
        indptr: torch.Tensor,
        index: torch.Tensor,
        value: torch.Tensor,
        metrics: torch.Tensor,
    ) -> None:
        """Add n rows; nothing waits for the device.

        Args:
            indptr: int32 [n + 1] on the device.
            index: int32 [nnz] features, ascending within a row.
            value: float [nnz] activations > 0.
            metrics: float64 [n, M].
        """
        if not self._pivot_known:
            self._note_pivot(metrics)
        if self.kernels and self.layout.groups == 1 and index.shape[0]:
            self._fused(indptr, index, value, metrics)
        else:
            self._plain(indptr, index, value, metrics)

    def _plain(
        self,
        indptr: torch.Tensor,
        index: torch.Tensor,
        value: torch.Tensor,
        metrics: torch.Tensor,
    ) -> None:
        """Any device, any layout: whole-tensor operations and ``index_add_``."""
        finite = torch.isfinite(metrics)
        d = torch.where(finite, metrics - torch.nan_to_num(self.pivot), 0.0)
        n, groups = metrics.shape[0], self.layout.groups
        width = groups + metrics.shape[1]
        design = torch.ones((n, width), dtype=torch.float64, device=self.device)
        missing = (~finite).sum()
        if groups > 1:
            known = finite.index_select(1, self._columns)
            design[:, 1:groups] = known.to(torch.float64)
            missing = missing - (~known).sum()
        design[:, groups:] = d
        self.unexpected += missing
        self.sums += design.sum(dim=0)
        self.squares += (d * d).sum(dim=0)
        wide = value.to(torch.float64)
        pivots = self.activation_pivot[index]
        # Any value of a feature's will do as its pivot; of several first ones the device picks one.
        self.activation_pivot[index] = torch.where(torch.isnan(pivots), wide, pivots)
        rows = torch.repeat_interleave(
            torch.arange(n, device=self.device),
            (indptr[1:] - indptr[:-1]).to(torch.long),
            output_size=index.shape[0],
        )
        self.add_entries(index, rows, wide - self.activation_pivot[index], design)

    def add_entries(
        self, index: torch.Tensor, rows: torch.Tensor, value: torch.Tensor, design: torch.Tensor
    ) -> None:
        """Add entries of known rows with ``index_add_``; ``value`` less the feature's pivot."""
        where = index.to(torch.long)
        taken = design[rows]
        self.ones.index_add_(0, where, taken)
        taken = taken * value[:, None]
        self.linear.index_add_(0, where, taken)
        self.square.index_add_(0, where, taken[:, : self.layout.groups] * value[:, None])

    def _fused(
        self,
        indptr: torch.Tensor,
        index: torch.Tensor,
        value: torch.Tensor,
        metrics: torch.Tensor,
    ) -> None:
        """Four kernels: design and row sums, ranks and pivots, sort by feature, sums of runs."""
        n, m = metrics.shape
        nnz = index.shape[0]
        width = 1 + m
        padded = triton.next_power_of_2(width)
        counts, rank, by_row, by_feature, by_value, design = self._buffers(n, nnz, width)
        counts.zero_()
        _design[(triton.cdiv(n, _ROWS),)](
            metrics, self.pivot, design, self.sums, self.squares, self.unexpected, n,
            M=m, WP=padded, R=_ROWS,
        )  # fmt: skip
        _rank[(n,)](indptr, index, value, counts, rank, self.activation_pivot, B=_BLOCK)
        ends = torch.cumsum(counts, 0, dtype=torch.int32)
        _place[(n,)](
            indptr, index, value, rank, ends, counts, self.activation_pivot,
            by_row, by_value, by_feature, B=_BLOCK,
        )  # fmt: skip
        _add_runs[(triton.cdiv(nnz, _RUN),)](
            by_row, by_value, by_feature, design, self.ones, self.linear, self.square, nnz,
            L=_RUN, W=width, WP=padded, num_warps=1,
        )  # fmt: skip

    def _buffers(self, n: int, nnz: int, width: int) -> tuple[torch.Tensor, ...]:
        """Scratch for a batch of this shape, kept for the next one."""
        if self._scratch is None or self._shape != (n, nnz):
            whole: dict[str, Any] = {"dtype": torch.int32, "device": self.device}
            real: dict[str, Any] = {"dtype": torch.float64, "device": self.device}
            self._shape = (n, nnz)
            self._scratch = (
                torch.empty(self.n_features, **whole),
                torch.empty(nnz, **whole),
                torch.empty(nnz, **whole),
                torch.empty(nnz, **whole),
                torch.empty(nnz, **real),
                torch.empty((n, width), **real),
            )
        return self._scratch

    def _note_pivot(self, metrics: torch.Tensor) -> None:
        """The middle of the pane's first values; columns still unknown are tried again."""
        finite = torch.where(torch.isfinite(metrics), metrics, float("nan"))
        middle = torch.nanmedian(finite, dim=0).values
        self.pivot = torch.where(torch.isnan(self.pivot), middle, self.pivot)
        self._pivot_known = not self.layout.partial

    def moments(self, reference: Floats, features: Ints | None = None) -> Moments:
        """Central moments of the features that fired, on the host (see :class:`PaneSums`).

        Raises:
            UserError: when a metric that was not declared partial was absent.
        """
        return self.pane().moments(features, reference, self._host_pivot())

    def pane(self) -> PaneSums:
        """The sums as a host pane.

        Raises:
            UserError: when a metric that was not declared partial was absent.
        """
        unexpected = int(self.unexpected.item())
        if unexpected:
            raise UserError(
                f"{unexpected} metric values were absent in columns not declared partial; name the "
                "columns in `partial`"
            )
        pane = PaneSums(self.n_features, self.layout, self.pivot.cpu().numpy().copy())
        pane.ones = self.ones.cpu().numpy().copy()
        pane.linear = self.linear.cpu().numpy().copy()
        pane.square = self.square.cpu().numpy().copy()
        pane.sums = self.sums.cpu().numpy().copy()
        pane.squares = self.squares.cpu().numpy().copy()
        return pane

    def _host_pivot(self) -> Floats:
        return np.asarray(torch.nan_to_num(self.activation_pivot).cpu().numpy(), np.float64)

    def clear(self) -> None:
        """Start the next pane; the activation pivots stay, the metric pivots are chosen anew."""
        for table in (self.ones, self.linear, self.square, self.sums, self.squares):
            table.zero_()
        self.pivot = torch.full_like(self.pivot, float("nan"))
        self._pivot_known = False

    @property
    def nbytes(self) -> int:
        """Bytes on the device, scratch included."""
        tables = (self.ones, self.linear, self.square, self.activation_pivot)
        return sum(t.numel() * t.element_size() for t in (*tables, *(self._scratch or ())))


if triton is not None:  # pragma: no cover - runs on the device only

    @triton.jit  # type: ignore[untyped-decorator]  # triton has no types
    def _design(  # type: ignore[no-untyped-def]  # noqa: ANN202, PLR0917 - a kernel
        metrics, pivot, design, sums, squares, unexpected, n,  # noqa: ANN001
        M: tl.constexpr, WP: tl.constexpr, R: tl.constexpr,
    ):  # fmt: skip
        rows = tl.program_id(0) * R + tl.arange(0, R)
        columns = tl.arange(0, WP)
        there = (rows < n)[:, None]
        inside = there & (columns < M)[None, :]
        at = rows[:, None].to(tl.int64)
        x = tl.load(metrics + at * M + columns[None, :], mask=inside, other=0.0)
        p = tl.load(pivot + columns, mask=columns < M, other=0.0)
        p = tl.where(p == p, p, 0.0)  # noqa: PLR0124 - NaN differs from itself
        finite = (x == x) & (tl.abs(x) < float("inf"))  # noqa: PLR0124 - likewise
        d = tl.where(finite & inside, x - p[None, :], 0.0)
        tl.store(design + at * (M + 1) + columns[None, :] + 1, d, mask=inside)
        first = rows.to(tl.int64) * (M + 1)
        one = tl.where(rows < n, 1.0, 0.0).to(tl.float64)
        tl.store(design + first, one, mask=rows < n)
        tl.atomic_add(sums, tl.sum(one, axis=0), sem="relaxed")
        known = columns < M
        tl.atomic_add(sums + 1 + columns, tl.sum(d, axis=0), mask=known, sem="relaxed")
        tl.atomic_add(squares + columns, tl.sum(d * d, axis=0), mask=known, sem="relaxed")
        missing = tl.sum(tl.sum(((~finite) & inside).to(tl.int64), axis=0), axis=0)
        if missing > 0:
            tl.atomic_add(unexpected, missing, sem="relaxed")

    @triton.jit  # type: ignore[untyped-decorator]  # triton has no types
    def _rank(indptr, index, value, counts, rank, pivot, B: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202, PLR0917 - a kernel
        row = tl.program_id(0)
        start = tl.load(indptr + row)
        end = tl.load(indptr + row + 1)
        for low in range(start, end, B):
            e = low + tl.arange(0, B)
            inside = e < end
            f = tl.load(index + e, mask=inside, other=0)
            r = tl.atomic_add(counts + f, 1, mask=inside, sem="relaxed")
            tl.store(rank + e, r, mask=inside)
            p = tl.load(pivot + f, mask=inside, other=0.0)
            v = tl.load(value + e, mask=inside, other=0.0).to(tl.float64)
            # Any value of a feature's will do as its pivot; of several first ones one is kept.
            tl.store(pivot + f, v, mask=inside & (p != p))  # noqa: PLR0124 - NaN differs from itself

    @triton.jit  # type: ignore[untyped-decorator]  # triton has no types
    def _place(  # type: ignore[no-untyped-def]  # noqa: ANN202, PLR0917 - a kernel
        indptr, index, value, rank, ends, counts, pivot, by_row, by_value, by_feature,  # noqa: ANN001
        B: tl.constexpr,
    ):  # fmt: skip
        row = tl.program_id(0)
        start = tl.load(indptr + row)
        end = tl.load(indptr + row + 1)
        for low in range(start, end, B):
            e = low + tl.arange(0, B)
            inside = e < end
            f = tl.load(index + e, mask=inside, other=0)
            before = tl.load(ends + f, mask=inside, other=0)
            before -= tl.load(counts + f, mask=inside, other=0)
            at = before + tl.load(rank + e, mask=inside, other=0)
            p = tl.load(pivot + f, mask=inside, other=0.0)
            v = tl.load(value + e, mask=inside, other=0.0).to(tl.float64) - p
            tl.store(by_row + at, tl.zeros((B,), tl.int32) + row, mask=inside)
            tl.store(by_value + at, v, mask=inside)
            tl.store(by_feature + at, f, mask=inside)

    @triton.jit  # type: ignore[untyped-decorator]  # triton has no types
    def _add_runs(  # type: ignore[no-untyped-def]  # noqa: ANN202, PLR0917 - a kernel
        by_row, by_value, by_feature, design, ones, linear, square, nnz,  # noqa: ANN001
        L: tl.constexpr, W: tl.constexpr, WP: tl.constexpr,
    ):  # fmt: skip
        start = tl.program_id(0) * L
        columns = tl.arange(0, WP)
        inside = columns < W
        end = tl.minimum(start + L, nnz)
        current = tl.load(by_feature + start).to(tl.int64)
        on = tl.zeros((WP,), tl.float64)
        weighted = tl.zeros((WP,), tl.float64)
        power = tl.load(by_value + start) * 0.0
        for e in range(start, end):
            f = tl.load(by_feature + e).to(tl.int64)
            if f != current:
                tl.atomic_add(ones + current * W + columns, on, mask=inside, sem="relaxed")
                tl.atomic_add(linear + current * W + columns, weighted, mask=inside, sem="relaxed")
                tl.atomic_add(square + current, power, sem="relaxed")
                on = tl.zeros((WP,), tl.float64)
                weighted = tl.zeros((WP,), tl.float64)
                power = power * 0.0
                current = f
            row = tl.load(by_row + e)
            v = tl.load(by_value + e)
            x = tl.load(design + row * W + columns, mask=inside, other=0.0)
            on += x
            weighted += v * x
            power += v * v
        tl.atomic_add(ones + current * W + columns, on, mask=inside, sem="relaxed")
        tl.atomic_add(linear + current * W + columns, weighted, mask=inside, sem="relaxed")
        tl.atomic_add(square + current, power, sem="relaxed")
