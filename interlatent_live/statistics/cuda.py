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
_BLOCK = 256


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
        self._scratch: dict[int, tuple[torch.Tensor, ...]] = {}

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
        finite = torch.isfinite(metrics)
        self._note_pivot(metrics, finite)
        d = torch.where(finite, metrics - torch.nan_to_num(self.pivot), 0.0)
        n, groups = metrics.shape[0], self.layout.groups
        design = torch.empty(
            (n, groups + metrics.shape[1]), dtype=torch.float64, device=self.device
        )
        design[:, 0] = 1.0
        missing = (~finite).sum()
        if groups > 1:
            known = finite.index_select(1, self._columns)
            design[:, 1:groups] = known.to(torch.float64)
            missing = missing - (~known).sum()
        design[:, groups:] = d
        self.unexpected += missing
        self.sums += design.sum(dim=0)
        self.squares += (d * d).sum(dim=0)
        pivots = self.activation_pivot[index]
        # Any value of a feature's will do as its pivot; of several first ones the device picks one.
        self.activation_pivot[index] = torch.where(
            torch.isnan(pivots), value.to(torch.float64), pivots
        )
        shifted = value.to(torch.float64) - self.activation_pivot[index]
        counts = (indptr[1:] - indptr[:-1]).to(torch.long)
        rows = torch.repeat_interleave(
            torch.arange(n, dtype=torch.int32, device=self.device),
            counts,
            output_size=index.shape[0],
        )
        if self.kernels and groups == 1 and index.shape[0]:
            self._sorted_add(index, rows, shifted, design)
        else:
            self._index_add(index, rows, shifted, design)

    def _note_pivot(self, metrics: torch.Tensor, finite: torch.Tensor) -> None:
        middle = torch.nanmedian(torch.where(finite, metrics, float("nan")), dim=0).values
        self.pivot = torch.where(torch.isnan(self.pivot), middle, self.pivot)

    def _index_add(
        self, index: torch.Tensor, rows: torch.Tensor, value: torch.Tensor, design: torch.Tensor
    ) -> None:
        where = index.to(torch.long)
        taken = design[rows.to(torch.long)]
        self.ones.index_add_(0, where, taken)
        taken = taken * value[:, None]
        self.linear.index_add_(0, where, taken)
        self.square.index_add_(0, where, taken[:, : self.layout.groups] * value[:, None])

    def _sorted_add(
        self, index: torch.Tensor, rows: torch.Tensor, value: torch.Tensor, design: torch.Tensor
    ) -> None:
        nnz = index.shape[0]
        if nnz not in self._scratch:
            self._scratch = {
                nnz: (
                    torch.empty(self.n_features, dtype=torch.int32, device=self.device),
                    torch.empty(nnz, dtype=torch.int32, device=self.device),
                    torch.empty(nnz, dtype=torch.int32, device=self.device),
                    torch.empty(nnz, dtype=torch.int32, device=self.device),
                    torch.empty(nnz, dtype=torch.float64, device=self.device),
                )
            }
        counts, rank, by_row, by_feature, by_value = self._scratch[nnz]
        counts.zero_()
        blocks = (triton.cdiv(nnz, _BLOCK),)
        _rank[blocks](index, counts, rank, nnz, B=_BLOCK)
        ends = torch.cumsum(counts, 0, dtype=torch.int32)
        _place[blocks](
            index, rank, ends, counts, rows, value, by_row, by_value, by_feature, nnz, B=_BLOCK
        )
        width = design.shape[1]
        _add_runs[(triton.cdiv(nnz, _RUN),)](
            by_row, by_value, by_feature, design, self.ones, self.linear, self.square, nnz,
            L=_RUN, W=width, WP=triton.next_power_of_2(width), num_warps=1,
        )  # fmt: skip

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

    @property
    def nbytes(self) -> int:
        """Bytes on the device, scratch included."""
        tables = (self.ones, self.linear, self.square, self.activation_pivot)
        scratch = [t for group in self._scratch.values() for t in group]
        return sum(t.numel() * t.element_size() for t in (*tables, *scratch))


if triton is not None:  # pragma: no cover - runs on the device only

    @triton.jit  # type: ignore[untyped-decorator]  # triton has no types
    def _rank(index, counts, rank, nnz, B: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202 - a kernel
        e = tl.program_id(0) * B + tl.arange(0, B)
        inside = e < nnz
        f = tl.load(index + e, mask=inside, other=0)
        r = tl.atomic_add(counts + f, 1, mask=inside, sem="relaxed")
        tl.store(rank + e, r, mask=inside)

    @triton.jit  # type: ignore[untyped-decorator]  # triton has no types
    def _place(  # type: ignore[no-untyped-def]  # noqa: ANN202, PLR0917 - a kernel
        index, rank, ends, counts, rows, value, by_row, by_value, by_feature, nnz,  # noqa: ANN001
        B: tl.constexpr,
    ):  # fmt: skip
        e = tl.program_id(0) * B + tl.arange(0, B)
        inside = e < nnz
        f = tl.load(index + e, mask=inside, other=0)
        start = tl.load(ends + f, mask=inside, other=0) - tl.load(counts + f, mask=inside, other=0)
        at = start + tl.load(rank + e, mask=inside, other=0)
        tl.store(by_row + at, tl.load(rows + e, mask=inside, other=0), mask=inside)
        tl.store(by_value + at, tl.load(value + e, mask=inside, other=0.0), mask=inside)
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
