"""What a launch looks like for given shapes: tiles, groups, buffers.

Pure, so that it is tested without a GPU. The numbers are choices, not facts: each was picked by
timing alternatives on an H100 (``docs/encoding.md`` has the table); another GPU runs them
correctly, if not at its best.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from interlatent_live.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping

FEATURE_MULTIPLE: Final = 128
"""Features are padded to a multiple of the narrowest wide tile; padded ones are never on."""
WHOLE_ROW_FEATURES: Final = 1024
"""Up to this many features a row is selected from whole, without group maxima."""
MAX_CANDIDATES: Final = 1 << 14
"""Entries one row's selection may hold in registers."""
FIRST_CAPACITY: Final = 256
"""Features per row for which a thresholded selection first makes room; grows when it must."""
MARKED_ROWS: Final = 256
"""Rows from which a bound on TopK pays; below, launches cost more than what they do."""
MARKED_ENTRIES: Final = 2048 * 4096
"""Pre-activations up to which a bound pays for narrower dictionaries; beyond, its scattered writes
reach memory, and the peaked way's dense ones are faster."""
MARKED_FEATURES: Final = 16_384
"""Features from which a bound pays at any number of rows."""
MAX_ENTRIES: Final = 1 << 31
"""Pre-activations of one launch: kernels count them in 32 bits."""
ALIGNMENT: Final = 256


class Precision(StrEnum):
    """Type of the operands of the product; sums, thresholds and values are float32 in both.

    ``bfloat16`` rounds x and W_enc to 8 significant bits. ``float32`` splits each operand in three
    TF32 parts, which keeps nearly all of float32's bits at about a third of TF32's speed.
    """

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"

    def error_bound(self, d_in: int) -> float:
        """Bound on |p̂ − p| / (Σᵢ|xᵢ||wᵢ| + |b|) against exact arithmetic on the given numbers.

        Rounding of operands: 2u + u² with u = 2⁻⁸ in bfloat16; 2⁻²⁰ for the three-part product,
        whose dropped low × low term is below 2⁻²¹. Summation: γ_{d+2} ≤ (d + 2)·2⁻²³, with a whole
        unit in the last place per step because tensor cores truncate (Higham 2002, section 3.1;
        Fasi et al. 2021, "Numerical behavior of NVIDIA tensor cores").
        """
        summation = (d_in + 2) * 2.0**-23
        operands = 2 * 2.0**-8 + 2.0**-16 if self is Precision.BFLOAT16 else 2.0**-20
        return summation + operands

    @property
    def itemsize(self) -> int:
        """Bytes of one operand."""
        return 2 if self is Precision.BFLOAT16 else 4


@dataclass(frozen=True, slots=True)
class Tile:
    """Block of the product that one program makes."""

    rows: int
    features: int
    inner: int
    warps: int
    stages: int


class Way(StrEnum):
    """How the product's epilogue prepares the selection (``kernels`` explains both)."""

    MARKED = "marked"
    PEAKED = "peaked"


@dataclass(frozen=True, slots=True)
class Selection:
    """How one row's features are found; ``k`` is None for thresholds.

    ``group`` neighbouring features share a maximum where TopK goes the peaked way; 0 means that
    rows are read whole. ``room`` marked features of a row can be collected; ``capacity`` features
    per row have room in the output.
    """

    k: int | None
    group: int
    room: int
    capacity: int


@dataclass(frozen=True, slots=True)
class Shape:
    """What stays the same for all launches of an encoder; ``n_features`` as given, unpadded."""

    d_in: int
    n_features: int
    precision: Precision

    @property
    def padded(self) -> int:
        """Features rounded up to whole tiles."""
        return round_up(self.n_features, FEATURE_MULTIPLE)


@dataclass(frozen=True, slots=True)
class Buffer:
    """Bytes ``offset : offset + 4·elements`` of an arena, holding 4-byte elements."""

    offset: int
    elements: int


@dataclass(frozen=True, slots=True)
class LaunchPlan:
    """All that a launch for ``rows`` rows needs to know."""

    shape: Shape
    rows: int
    way: Way
    tile: Tile
    selection: Selection
    cast_first: bool
    """Whether x is cast to the operands' type by a kernel of its own, or inside the product."""
    bulk: bool
    """Whether tiles travel by the copy engine; needs operands of one type and aligned rows."""
    device: Mapping[str, Buffer]
    """Buffers in device memory."""
    host: Mapping[str, Buffer]
    """Buffers in pinned host memory."""
    device_bytes: int
    host_bytes: int

    @property
    def groups(self) -> int:
        """Groups per row; 0 when rows are read whole."""
        return self.shape.padded // self.selection.group if self.selection.group else 0


def choose_selection(shape: Shape, k: int | None, room: int | None = None) -> Selection:
    """Selection for an encoder; ``room`` raises the first guess of a thresholded one.

    TopK on the peaked way reads F/g maxima and then k·g candidates, fewest at g = √(F/k).

    Raises:
        UserError: when k is larger than one row's registers allow.
    """
    padded = shape.padded
    if k is None:
        first = padded if padded <= WHOLE_ROW_FEATURES else FIRST_CAPACITY
        room = min(padded, max(room or 0, first))
        return Selection(None, 0, room, room)
    room = max(8 * power_of_two(k), 128)
    if padded <= WHOLE_ROW_FEATURES:
        return Selection(k, 0, room, k)
    group = min(max(power_of_two(int((padded / k) ** 0.5)), 8), 32)
    if power_of_two(k) * group > MAX_CANDIDATES:
        raise UserError(
            f"k = {k} of {shape.n_features} features is more than the CUDA selection holds "
            f"({MAX_CANDIDATES // group}); encode this transcoder with device cpu"
        )
    return Selection(k, group, room, k)


def may_mark(shape: Shape, rows: int, selection: Selection) -> bool:
    """Whether a launch of TopK goes the marked way when there is a bound to try."""
    return (
        selection.k is not None
        and selection.group > 0
        and rows >= MARKED_ROWS
        and selection.room <= MAX_CANDIDATES
        and (rows * shape.padded <= MARKED_ENTRIES or shape.padded >= MARKED_FEATURES)
    )


def choose_tile(shape: Shape, rows: int) -> Tile:
    """Tile of the product: large where there are enough of them to fill the device."""
    inner = min(max(power_of_two(shape.d_in), 16), 64)
    if rows <= 16:
        return Tile(16, 32 if shape.padded <= 4096 else 64, inner, warps=4, stages=4)
    if rows <= 32:
        return Tile(32, 64, inner, warps=4, stages=4)
    if rows * shape.padded <= 8192 * 512:
        return Tile(64, 64, inner, warps=4, stages=2)
    if shape.precision is Precision.FLOAT32:
        return Tile(128, 128, min(inner, 32), warps=8, stages=3)
    if shape.d_in >= 512 and shape.padded % 256 == 0:
        return Tile(128, 256, inner, warps=8, stages=3)
    return Tile(128, 128, inner, warps=4, stages=3)


def plan_launch(
    shape: Shape, rows: int, selection: Selection, way: Way | None = None
) -> LaunchPlan:
    """Lay out a launch of ``rows`` rows; without ``way``, the one that needs no bound."""
    way = way or (Way.MARKED if selection.k is None else Way.PEAKED)
    tile = choose_tile(shape, rows)
    padded_rows = round_up(rows, tile.rows)
    cast_first = shape.precision is Precision.BFLOAT16 and rows >= 256
    groups = shape.padded // selection.group if selection.group else 0
    entries = rows * selection.capacity
    scratch = 0 if selection.k is None else max(selection.room, power_of_two(selection.k))
    device, device_bytes = _lay_out(
        {
            "x": padded_rows * shape.d_in,
            "x_cast": (padded_rows * shape.d_in + 1) // 2 if cast_first else 0,
            "pre": rows * shape.padded,
            "word": rows * shape.padded // 32,
            "peak": rows * groups,
            "scratch": rows * scratch,
            "index": entries,
            "value": entries,
            "count": rows,
        }
    )
    host, host_bytes = _lay_out(
        {
            "x": padded_rows * shape.d_in,
            "count": rows,
            "indptr": rows + 1,
            "index": entries,
            "value": entries,
        }
    )
    return LaunchPlan(
        shape=shape,
        rows=rows,
        way=way,
        tile=tile,
        selection=selection,
        cast_first=cast_first,
        bulk=cast_first and tile.rows == 128 and shape.d_in % 8 == 0 and shape.d_in < 512,
        device=device,
        host=host,
        device_bytes=device_bytes,
        host_bytes=host_bytes,
    )


def buckets(max_rows: int) -> tuple[int, ...]:
    """Row counts that have a launch of their own, ascending; others are rounded up to one.

    Sparse below 64, where a launch costs the same whatever it holds.
    """
    sizes = [size for size in (1, 4, 16) if size < max_rows]
    size = 64
    while size < max_rows:
        sizes.append(size)
        size *= 2
    return (*sizes, max_rows)


def largest_bucket(
    shape: Shape, selection: Selection, *, max_rows: int, device_bytes: int, host_bytes: int
) -> int:
    """The largest bucket whose buffers fit.

    Raises:
        UserError: when not even one row fits.
    """
    for rows in reversed(buckets(max_rows)):
        plan = plan_launch(shape, rows, selection)
        fits = plan.device_bytes <= device_bytes and plan.host_bytes <= host_bytes
        if fits and plan.device["pre"].elements < MAX_ENTRIES:
            return rows
    plan = plan_launch(shape, 1, selection)
    raise UserError(
        f"one row of a transcoder of width {shape.d_in} and {shape.n_features} features needs "
        f"{plan.device_bytes} bytes of workspace and {plan.host_bytes} of staging, more than the "
        f"{device_bytes} and {host_bytes} configured; raise workspace_bytes"
    )


def power_of_two(number: int) -> int:
    """The least power of two ≥ ``number``."""
    return 1 << max(number - 1, 0).bit_length()


def round_up(number: int, multiple: int) -> int:
    """The least multiple ≥ ``number``."""
    return -(-number // multiple) * multiple


def _lay_out(elements: Mapping[str, int]) -> tuple[dict[str, Buffer], int]:
    buffers = {}
    offset = 0
    for name, count in elements.items():
        buffers[name] = Buffer(offset, count)
        offset += round_up(4 * count, ALIGNMENT)
    return buffers, offset
