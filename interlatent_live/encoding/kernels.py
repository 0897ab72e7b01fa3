"""Triton kernels: encode and select without passing over the pre-activations again.

What makes encoders slow on a GPU is not the product but the selection: a general top-k or nonzero
reads every pre-activation several times. Here the product's epilogue, which has each pre-activation
in registers anyway, does the first and larger part of the selecting, in one of two ways:

* *marked*: one bit per feature says whether it is above a cut, and only what is above is written.
  A warp per row then reads the bits and the few values they name. For thresholds the cut is the
  threshold. For TopK it is a lower bound on the k-th largest entry, learned from earlier rows: a
  row with at least k bits holds its k largest, and a row with fewer is noticed and encoded the
  other way.
* *peaked*: every pre-activation is written, with the maximum of every group of neighbours. The k
  groups with the largest maxima hold the k largest entries (any other entry is at most its own
  group's maximum, and each of the k groups holds an entry at least as large), so a warp per row
  reads the maxima and k groups, whatever the data. Narrow rows are read whole.

Order statistics come from bisection over the bit patterns of positive floats, which order like
integers; compaction from prefix sums, so that indices leave in ascending order without a sort.

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
def _tile_of(pid, tiles_m, tiles_n: tl.constexpr, BAND: tl.constexpr):
    """Which tile a program makes: BAND row tiles are walked before the next column tile.

    Neighbouring programs then share columns of W in cache.
    """
    per_band = BAND * tiles_n
    first = (pid // per_band) * BAND
    band = tl.minimum(tiles_m - first, BAND)
    return first + (pid % per_band) % band, (pid % per_band) // band


@triton.jit
def _product(
    x_ptr,
    w_ptr,
    tile_m,
    tile_n,
    rows,
    D: tl.constexpr,
    F: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    BULK: tl.constexpr,
):
    """float32 [BLOCK_M, BLOCK_N] of x W.

    With BULK x_ptr and w_ptr are tensor descriptors for the copy engine, which fills in zeros
    beyond the edges; otherwise pointers, with masks only where a tile may reach beyond an edge.
    """
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    if BULK:
        for start in range(0, D, BLOCK_K):
            x = x_ptr.load([tile_m * BLOCK_M, start])
            w = w_ptr.load([start, tile_n * BLOCK_N])
            acc = tl.dot(x, w, acc, input_precision=PRECISION)
    else:
        offs_m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
        offs_n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
        offs_k = tl.arange(0, BLOCK_K)
        inside = offs_m < rows
        x_at = x_ptr + offs_m[:, None] * D + offs_k[None, :]
        w_at = w_ptr + offs_k[:, None] * F + offs_n[None, :]
        for start in range(0, D, BLOCK_K):
            if D % BLOCK_K != 0:
                in_d = start + offs_k < D
                x = tl.load(x_at, mask=inside[:, None] & in_d[None, :], other=0.0)
                w = tl.load(w_at, mask=in_d[:, None], other=0.0)
            elif BLOCK_M <= 32:
                x = tl.load(x_at, mask=inside[:, None], other=0.0)
                w = tl.load(w_at)
            else:  # x is allocated in whole tiles; rows beyond the batch hold anything
                x = tl.load(x_at)
                w = tl.load(w_at)
            acc = tl.dot(x.to(w.dtype), w, acc, input_precision=PRECISION)
            x_at += BLOCK_K
            w_at += BLOCK_K * F
    return acc


@triton.jit
def mark_kernel(
    x_ptr,
    w_ptr,
    b_ptr,
    cut_ptr,
    bound_ptr,
    pre_ptr,
    word_ptr,
    rows,
    D: tl.constexpr,
    F: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BAND: tl.constexpr,
    PRECISION: tl.constexpr,
    BULK: tl.constexpr,
    SCATTER: tl.constexpr,
):
    """Mark and write every pre-activation ``p = x W + b`` above its feature's cut and the bound.

    Args:
        x_ptr: [≥ rows rounded up to BLOCK_M, D], any float type; cast to W's. With BULK a
            descriptor of W's type.
        w_ptr: [D, F], or its descriptor; F is a multiple of BLOCK_N.
        b_ptr: float32 [F].
        cut_ptr: float32 [F] ≥ 0; 0 where TopK selects.
        bound_ptr: float32 [1] ≥ 0, for all rows.
        pre_ptr: float32 [rows, F] of fewer than 2³¹ entries; only what is above is written.
        word_ptr: int32 [rows, F // 32]: bit j of word i speaks of feature 32 i + j.
        rows: number of rows.
        SCATTER: write from the registers that hold the product, in PTX; plain Triton, which the
            interpreter knows, would carry the whole tile through shared memory first.
    """
    tile_m, tile_n = _tile_of(tl.program_id(0), tl.cdiv(rows, BLOCK_M), F // BLOCK_N, BAND)
    bound = tl.load(bound_ptr)
    acc = _product(
        x_ptr, w_ptr, tile_m, tile_n, rows, D, F, BLOCK_M, BLOCK_N, BLOCK_K, PRECISION, BULK
    )
    offs_m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    acc += tl.load(b_ptr + offs_n)[None, :]
    cut = tl.maximum(tl.load(cut_ptr + offs_n), bound)
    inside = (offs_m < rows)[:, None]
    above = (acc > cut[None, :]) & inside
    words: tl.constexpr = BLOCK_N // 32
    bit = tl.full((BLOCK_N,), 1, tl.int32) << (offs_n % 32)
    bits = tl.where(above, tl.broadcast_to(bit[None, :], (BLOCK_M, BLOCK_N)), 0)
    word = tl.sum(tl.reshape(bits, (BLOCK_M, words, 32)), axis=2)
    offs_w = tile_n * words + tl.arange(0, words)
    tl.store(word_ptr + offs_m[:, None] * (F // 32) + offs_w[None, :], word, mask=inside)
    at = offs_m[:, None] * F + offs_n[None, :]
    if SCATTER:
        tl.inline_asm_elementwise(
            """{
            .reg .pred above;
            .reg .b64 to;
            setp.gt.s32 above, $1, 0;
            mad.wide.u32 to, $2, 4, $3;
            @above st.global.b32 [to], $1;
            mov.b32 $0, 0;
            }""",
            "=r,r,r,l",
            [
                tl.where(above, acc, 0.0).to(tl.int32, bitcast=True),
                at,
                tl.broadcast_to(pre_ptr.to(tl.int64), (BLOCK_M, BLOCK_N)),
            ],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )
    else:
        tl.store(pre_ptr + at, acc, mask=above)


@triton.jit
def _population(word):
    """Number of bits set in each int32, by the classic parallel sum."""
    word = word - ((word >> 1) & 0x55555555)
    word = (word & 0x33333333) + ((word >> 2) & 0x33333333)
    word = (word + (word >> 4)) & 0x0F0F0F0F
    return ((word * 0x01010101) >> 24) & 0x3F


@triton.jit
def _kth_key(key, low, K: tl.constexpr):
    """Cut t ≥ 1 with ``count(key ≥ t) ≥ K`` and at most K keys above t; 1 if fewer are positive.

    ``key`` int32 [N] ≥ 0 are bit patterns of floats; ``low`` ≥ 1 must satisfy the first condition
    or be 1. The first probes halve the range of values, which parts typical data in about eight
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
def collect_kernel(
    pre_ptr,
    word_ptr,
    bound_ptr,
    column_ptr,
    index_ptr,
    value_ptr,
    count_ptr,
    F: tl.constexpr,
    WORDS_WIDTH: tl.constexpr,
    ROOM: tl.constexpr,
    CHUNK: tl.constexpr,
    K: tl.constexpr,
):
    """Collect one marked row: the K largest, or with K = 0 all of it, ascending by feature.

    WORDS_WIDTH ≥ F // 32 and CHUNK are powers of two. With K > 0, column_ptr is int32 scratch
    [rows, ROOM], CHUNK is ROOM, and index_ptr, value_ptr are [rows, K]; a row is right when
    K ≤ count ≤ ROOM, or when count ≤ ROOM and the bound was 0. With K = 0 column_ptr is index_ptr,
    it and value_ptr are [rows, ROOM], and what exceeds ROOM is not written. ``count`` is how many
    were marked.
    """
    words: tl.constexpr = F // 32
    row = tl.program_id(0)
    lane = tl.arange(0, WORDS_WIDTH)
    word = tl.load(word_ptr + row * words + lane, mask=lane < words, other=0)
    marked = _population(word)
    place = row * ROOM + tl.cumsum(marked, axis=0) - marked
    end = row * ROOM + ROOM
    found = tl.sum(marked, axis=0)
    tl.store(count_ptr + row, found)
    while tl.max((word != 0).to(tl.int32), axis=0) > 0:
        lowest = word & -word
        # The exponent of a power of two is the number of its bit; the sign bit's is the same.
        bit = ((lowest.to(tl.float32).to(tl.int32, bitcast=True) >> 23) & 0xFF) - 127
        tl.store(column_ptr + place, lane * 32 + bit, mask=(word != 0) & (place < end))
        word = word & (word - 1)
        place += 1
    tl.debug_barrier()  # other lanes read what this one wrote

    at = row.to(tl.int64) * F
    slot = tl.arange(0, CHUNK)
    if K == 0:
        written = tl.minimum(found, ROOM)
        start = tl.full((), 0, tl.int32)
        while start < written:
            there = start + slot < written
            entry = row * ROOM + start + slot
            column = tl.load(column_ptr + entry, mask=there, other=0)
            tl.store(value_ptr + entry, tl.load(pre_ptr + at + column, mask=there), mask=there)
            start += CHUNK
    else:
        there = slot < found
        column = tl.load(column_ptr + row * ROOM + slot, mask=there, other=0)
        value = tl.load(pre_ptr + at + column, mask=there, other=0.0)
        key = value.to(tl.int32, bitcast=True)
        low = tl.maximum(tl.load(bound_ptr).to(tl.int32, bitcast=True), 1)
        keep = _keep(key, _kth_key(key, low, K), K)
        position = tl.cumsum(keep, axis=0) - 1
        tl.store(index_ptr + row * K + position, column, mask=keep > 0)
        tl.store(value_ptr + row * K + position, value, mask=keep > 0)


@triton.jit
def peak_kernel(
    x_ptr,
    w_ptr,
    b_ptr,
    pre_ptr,
    peak_ptr,
    rows,
    D: tl.constexpr,
    F: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BAND: tl.constexpr,
    GROUP: tl.constexpr,
    PRECISION: tl.constexpr,
    BULK: tl.constexpr,
):
    """``v = max(x W + b, 0)`` and, unless GROUP is 0, the maximum of v over each group.

    Args:
        x_ptr, w_ptr, b_ptr: as for :func:`mark_kernel`.
        pre_ptr: float32 [rows, F], v.
        peak_ptr: float32 [rows, F // GROUP].
        rows: number of rows.
    """
    tile_m, tile_n = _tile_of(tl.program_id(0), tl.cdiv(rows, BLOCK_M), F // BLOCK_N, BAND)
    acc = _product(
        x_ptr, w_ptr, tile_m, tile_n, rows, D, F, BLOCK_M, BLOCK_N, BLOCK_K, PRECISION, BULK
    )
    offs_m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    acc += tl.load(b_ptr + offs_n)[None, :]
    value = tl.where(acc > 0, acc, 0.0)
    inside = (offs_m < rows)[:, None]
    row = offs_m[:, None].to(tl.int64)
    if GROUP > 0:
        groups: tl.constexpr = BLOCK_N // GROUP
        peak = tl.max(tl.reshape(value, (BLOCK_M, groups, GROUP)), axis=2)
        offs_g = tile_n * groups + tl.arange(0, groups)
        tl.store(peak_ptr + row * (F // GROUP) + offs_g[None, :], peak, mask=inside)
    tl.store(pre_ptr + row * F + offs_n[None, :], value, mask=inside)


@triton.jit
def select_whole_kernel(
    pre_ptr,
    index_ptr,
    value_ptr,
    count_ptr,
    F: tl.constexpr,
    WIDTH: tl.constexpr,
    K: tl.constexpr,
):
    """The K largest positive entries of one row read whole, WIDTH ≥ F a power of two.

    index_ptr and value_ptr are [rows, K], ascending by feature.
    """
    row = tl.program_id(0)
    column = tl.arange(0, WIDTH)
    value = tl.load(pre_ptr + row.to(tl.int64) * F + column, mask=column < F, other=0.0)
    key = value.to(tl.int32, bitcast=True)
    keep = _keep(key, _kth_key(key, tl.full((), 1, tl.int32), K), K)
    position = tl.cumsum(keep, axis=0) - 1
    tl.store(index_ptr + row * K + position, column, mask=keep > 0)
    tl.store(value_ptr + row * K + position, value, mask=keep > 0)
    tl.store(count_ptr + row, tl.sum(keep, axis=0))


@triton.jit
def select_peaked_kernel(
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
    [rows, K_WIDTH]; index_ptr and value_ptr are [rows, K], ascending by feature.
    """
    groups: tl.constexpr = F // GROUP
    row = tl.program_id(0)
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
    there = tl.broadcast_to((slot < kept)[:, None], (K_WIDTH, GROUP))
    there = tl.reshape(there, (K_WIDTH * GROUP,))
    value = tl.load(pre_ptr + row.to(tl.int64) * F + column, mask=there, other=0.0)
    key = value.to(tl.int32, bitcast=True)
    keep = _keep(key, _kth_key(key, bound, K), K)
    position = tl.cumsum(keep, axis=0) - 1
    tl.store(index_ptr + row * K + position, column, mask=keep > 0)
    tl.store(value_ptr + row * K + position, value, mask=keep > 0)
    tl.store(count_ptr + row, tl.sum(keep, axis=0))


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
