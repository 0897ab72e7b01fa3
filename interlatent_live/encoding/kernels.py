"""Triton kernels: encode and select without passing over the pre-activations again.

What makes encoders slow on a GPU is not the product but the selection: a general top-k or nonzero
reads every pre-activation several times. Here the product's epilogue, which has each pre-activation
in registers anyway, also writes the maximum of every group of neighbouring features. One warp per
row then reads only those maxima, picks the few groups that can hold a selected feature, and reads
nothing but them:

* TopK: the k groups with the largest maxima hold the k largest entries (any entry of another group
  is at most that group's maximum, and the k chosen groups each hold an entry at least as large),
  so the choice among ``k × group`` candidates is exact, whatever the data. No bound is guessed, so
  none can fail.
* Thresholds: a group whose maximum is not above its thresholds is neither written nor read.

Order statistics come from bisection over the bit patterns of positive floats, which order like
integers; compaction from a prefix sum, so that indices leave in ascending order without a sort.
Rows narrow enough are read whole and have no maxima.

Importing this module needs Triton; ``TRITON_INTERPRET=1`` runs it on a CPU.
"""

# ruff: noqa: ANN001, ANN201, ANN202, PLR0917, D417
# mypy: ignore-errors
# Kernels are Triton's language, not Python: parameters are pointers or compile-time constants, and
# annotations other than constexpr would be read by Triton's compiler.

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def project_kernel(
    x_ptr,
    w_ptr,
    b_ptr,
    cut_ptr,
    pre_ptr,
    peak_ptr,
    rows,
    D: tl.constexpr,
    F: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SWIZZLE: tl.constexpr,
    GROUP: tl.constexpr,
    SKIP_COLD: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """``v = p where p = x W + b > cut, else 0``; and the maximum of v over each group.

    Args:
        x_ptr: [≥ rows rounded up to BLOCK_M, D], any float type; cast to W's.
        w_ptr: [D, F].
        b_ptr: float32 [F].
        cut_ptr: float32 [F] ≥ 0; 0 where TopK selects.
        pre_ptr: float32 [rows, F], v; with SKIP_COLD only groups that hold a v > 0 are written.
        peak_ptr: float32 [rows, F // GROUP], unused when GROUP is 0.
        rows: number of rows.
    """
    pid = tl.program_id(0)
    tiles_m = tl.cdiv(rows, BLOCK_M)
    tiles_n: tl.constexpr = F // BLOCK_N
    # Neighbouring programs share columns of W: SWIZZLE row tiles are walked before the next column.
    per_band = SWIZZLE * tiles_n
    band = pid // per_band
    first_m = band * SWIZZLE
    band_m = tl.minimum(tiles_m - first_m, SWIZZLE)
    tile_m = first_m + (pid % per_band) % band_m
    tile_n = (pid % per_band) // band_m

    offs_m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = offs_m < rows
    offs_n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_k = tl.arange(0, BLOCK_K)
    x_at = x_ptr + offs_m[:, None] * D + offs_k[None, :]
    w_at = w_ptr + offs_k[:, None] * F + offs_n[None, :]
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, D, BLOCK_K):
        if D % BLOCK_K == 0:
            x = tl.load(x_at, mask=inside[:, None], other=0.0) if BLOCK_M <= 32 else tl.load(x_at)
            w = tl.load(w_at)
        else:
            in_d = start + offs_k < D
            x = tl.load(x_at, mask=inside[:, None] & in_d[None, :], other=0.0)
            w = tl.load(w_at, mask=in_d[:, None], other=0.0)
        acc = tl.dot(x.to(w.dtype), w, acc, input_precision=PRECISION)
        x_at += BLOCK_K
        w_at += BLOCK_K * F
    acc += tl.load(b_ptr + offs_n)[None, :]
    value = tl.where(acc > tl.load(cut_ptr + offs_n)[None, :], acc, 0.0)

    row_at = offs_m.to(tl.int64) * F
    if GROUP == 0:
        tl.store(pre_ptr + row_at[:, None] + offs_n[None, :], value, mask=inside[:, None])
    else:
        groups: tl.constexpr = BLOCK_N // GROUP
        grouped = tl.reshape(value, (BLOCK_M, groups, GROUP))
        peak = tl.max(grouped, axis=2)
        offs_g = tile_n * groups + tl.arange(0, groups)
        row_peak_at = offs_m.to(tl.int64) * (F // GROUP)
        tl.store(peak_ptr + row_peak_at[:, None] + offs_g[None, :], peak, mask=inside[:, None])
        if SKIP_COLD:
            at = row_at[:, None, None] + tl.reshape(offs_n, (groups, GROUP))[None, :, :]
            warm = inside[:, None] & (peak > 0)
            tl.store(pre_ptr + at, grouped, mask=warm[:, :, None])
        else:
            tl.store(pre_ptr + row_at[:, None] + offs_n[None, :], value, mask=inside[:, None])


@triton.jit
def _kth_key(key, low, K: tl.constexpr):
    """Cut t ≥ 1 with ``count(key ≥ t) ≥ K`` and at most K keys above t; 1 if fewer are positive.

    ``key`` int32 [N] ≥ 0 are bit patterns of floats; ``low`` ≥ 1 must satisfy the first condition
    or be 1. The first probes halve the range of values, which parts typical data in about ten
    steps; then the range of patterns, which ends in 31 whatever the data.
    """
    high = tl.maximum(tl.max(key, axis=0), low)
    count = tl.sum((key >= low).to(tl.int32), axis=0)
    step = 0
    while (low < high) & (count != K):
        low_value = low.to(tl.float32, bitcast=True)
        high_value = high.to(tl.float32, bitcast=True)
        by_value = (low_value + (high_value - low_value) * 0.5).to(tl.int32, bitcast=True)
        by_pattern = low + (high - low) // 2
        middle = tl.where(step < 16, by_value, by_pattern)
        middle = tl.minimum(tl.maximum(middle, low + 1), high)
        reached = tl.sum((key >= middle).to(tl.int32), axis=0)
        if reached >= K:
            low = middle
            count = reached
        else:
            high = middle - 1
        step += 1
    return low


@triton.jit
def _keep(key, cut, room: tl.constexpr):
    """Which keys are above the cut, or at it while there is room; int32 [N] of 0 and 1."""
    keep = (key >= cut).to(tl.int32)
    if tl.sum(keep, axis=0) > room:
        above = (key > cut).to(tl.int32)
        at_cut = keep - above
        left = room - tl.sum(above, axis=0)
        keep = above + at_cut * (tl.cumsum(at_cut, axis=0) <= left).to(tl.int32)
    return keep


@triton.jit
def select_whole_kernel(
    pre_ptr,
    index_ptr,
    value_ptr,
    count_ptr,
    F: tl.constexpr,
    WIDTH: tl.constexpr,
    K: tl.constexpr,
    CAPACITY: tl.constexpr,
):
    """Select from one row read whole, WIDTH ≥ F a power of two; K = 0 takes every v > 0.

    Writes at most CAPACITY entries of index_ptr, value_ptr [rows, CAPACITY] and the full count.
    """
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, WIDTH)
    value = tl.load(pre_ptr + row * F + column, mask=column < F, other=0.0)
    key = value.to(tl.int32, bitcast=True)
    if K == 0:
        keep = (key > 0).to(tl.int32)
    else:
        low = tl.full((), 1, tl.int32)
        keep = _keep(key, _kth_key(key, low, K), K)
    position = tl.cumsum(keep, axis=0) - 1
    write = (keep > 0) & (position < CAPACITY)
    tl.store(index_ptr + row * CAPACITY + position, column, mask=write)
    tl.store(value_ptr + row * CAPACITY + position, value, mask=write)
    tl.store(count_ptr + row, tl.sum(keep, axis=0))


@triton.jit
def select_top_kernel(
    pre_ptr,
    peak_ptr,
    group_ptr,
    index_ptr,
    value_ptr,
    count_ptr,
    F: tl.constexpr,
    GROUP: tl.constexpr,
    GROUPS_WIDTH: tl.constexpr,
    K: tl.constexpr,
    K_WIDTH: tl.constexpr,
):
    """The K largest positive entries of one row, from the K groups with the largest maxima.

    GROUPS_WIDTH ≥ F // GROUP and K_WIDTH ≥ K are powers of two; group_ptr is int32 scratch
    [rows, K_WIDTH].
    """
    groups: tl.constexpr = F // GROUP
    row = tl.program_id(0).to(tl.int64)
    group = tl.arange(0, GROUPS_WIDTH)
    peak = tl.load(peak_ptr + row * groups + group, mask=group < groups, other=0.0)
    peak_key = peak.to(tl.int32, bitcast=True)
    bound = _kth_key(peak_key, tl.full((), 1, tl.int32), K)
    keep_group = _keep(peak_key, bound, K_WIDTH)
    position = tl.cumsum(keep_group, axis=0) - 1
    tl.store(group_ptr + row * K_WIDTH + position, group, mask=keep_group > 0)
    kept = tl.sum(keep_group, axis=0)
    tl.debug_barrier()  # other lanes read what this one wrote

    slot = tl.arange(0, K_WIDTH)
    chosen = tl.load(group_ptr + row * K_WIDTH + slot, mask=slot < kept, other=0)
    column = chosen[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    column = tl.reshape(column, (K_WIDTH * GROUP,))
    inside = tl.reshape(
        tl.broadcast_to((slot < kept)[:, None], (K_WIDTH, GROUP)), (K_WIDTH * GROUP,)
    )
    value = tl.load(pre_ptr + row * F + column, mask=inside, other=0.0)
    key = value.to(tl.int32, bitcast=True)
    keep = _keep(key, _kth_key(key, bound, K), K)
    position = tl.cumsum(keep, axis=0) - 1
    tl.store(index_ptr + row * K + position, column, mask=keep > 0)
    tl.store(value_ptr + row * K + position, value, mask=keep > 0)
    tl.store(count_ptr + row, tl.sum(keep, axis=0))


@triton.jit
def select_above_kernel(
    pre_ptr,
    peak_ptr,
    group_ptr,
    index_ptr,
    value_ptr,
    count_ptr,
    F: tl.constexpr,
    GROUP: tl.constexpr,
    GROUPS_WIDTH: tl.constexpr,
    CHUNK: tl.constexpr,
    CAPACITY: tl.constexpr,
):
    """Every v > 0 of one row, reading only groups that hold one, CHUNK groups at a time.

    Writes at most CAPACITY entries and the full count; group_ptr is int32 scratch
    [rows, F // GROUP].
    """
    groups: tl.constexpr = F // GROUP
    row = tl.program_id(0).to(tl.int64)
    group = tl.arange(0, GROUPS_WIDTH)
    peak = tl.load(peak_ptr + row * groups + group, mask=group < groups, other=0.0)
    warm = (peak > 0).to(tl.int32)
    position = tl.cumsum(warm, axis=0) - 1
    tl.store(group_ptr + row * groups + position, group, mask=warm > 0)
    kept = tl.sum(warm, axis=0)
    tl.debug_barrier()  # other lanes read what this one wrote

    written = tl.full((), 0, tl.int32)
    start = tl.full((), 0, tl.int32)
    while start < kept:
        slot = start + tl.arange(0, CHUNK)
        chosen = tl.load(group_ptr + row * groups + slot, mask=slot < kept, other=0)
        column = chosen[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
        column = tl.reshape(column, (CHUNK * GROUP,))
        inside = tl.reshape(
            tl.broadcast_to((slot < kept)[:, None], (CHUNK, GROUP)), (CHUNK * GROUP,)
        )
        value = tl.load(pre_ptr + row * F + column, mask=inside, other=0.0)
        on = (value > 0).to(tl.int32)
        place = written + tl.cumsum(on, axis=0) - 1
        write = (on > 0) & (place < CAPACITY)
        tl.store(index_ptr + row * CAPACITY + place, column, mask=write)
        tl.store(value_ptr + row * CAPACITY + place, value, mask=write)
        written += tl.sum(on, axis=0)
        start += CHUNK
    tl.store(count_ptr + row, written)


@triton.jit
def pack_kernel(
    index_ptr,
    value_ptr,
    count_ptr,
    out_count_ptr,
    out_indptr_ptr,
    out_index_ptr,
    out_value_ptr,
    rows,
    CAPACITY: tl.constexpr,
    ROWS_WIDTH: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_ENTRIES: tl.constexpr,
):
    """Padded rows to compressed sparse rows; a program moves BLOCK_ROWS of ``rows``.

    Each program adds up the counts before its rows itself: reading them again costs less than
    another kernel. The outputs may lie in pinned host memory, so that exactly the entries that
    exist cross the bus. ROWS_WIDTH ≥ all rows is a power of two; counts beyond CAPACITY were cut,
    and the full counts go to out_count_ptr for the host to notice.
    """
    block = tl.program_id(0)
    all_rows = tl.arange(0, ROWS_WIDTH)
    before = tl.load(count_ptr + all_rows, mask=all_rows < block * BLOCK_ROWS, other=0)
    start = tl.sum(tl.minimum(before, CAPACITY), axis=0)
    if block == 0:
        tl.store(out_indptr_ptr, 0)
    entry = tl.arange(0, BLOCK_ENTRIES)
    for within in range(BLOCK_ROWS):
        row = block * BLOCK_ROWS + within
        if row < rows:
            full = tl.load(count_ptr + row)
            count = tl.minimum(full, CAPACITY)
            first = tl.full((), 0, tl.int32)
            while first < count:
                at = first + entry
                inside = at < count
                source = row.to(tl.int64) * CAPACITY + at
                tl.store(out_index_ptr + start + at, tl.load(index_ptr + source, inside), inside)
                tl.store(out_value_ptr + start + at, tl.load(value_ptr + source, inside), inside)
                first += BLOCK_ENTRIES
            start += count
            tl.store(out_indptr_ptr + row + 1, start)
            tl.store(out_count_ptr + row, full)
