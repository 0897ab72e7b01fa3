"""Where tensors lie in a body, and which dtypes exist at all.

A body is one buffer: the tensors in the header's order, little-endian, row-major, each starting at
a multiple of eight bytes from the start of the body. One buffer and not one frame per tensor:
fourteen small frames cost a ZeroMQ link about half of its rate (docs/wire.md has the figures).

A dtype that came from a peer selects from a table and is never given to NumPy: ``np.ndarray`` over
foreign bytes with dtype ``O`` reads pointers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from interlatent_live.errors import WireError
from interlatent_live.wire.limits import MAX_HOOK_POINTS, MAX_METRICS, MAX_WIDTH

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

ALIGNMENT: Final = 8

DTYPES: Final[Mapping[str, np.dtype[Any]]] = {
    "u1": np.dtype("<u1"),
    "u2": np.dtype("<u2"),
    "u4": np.dtype("<u4"),
    "u8": np.dtype("<u8"),
    "i8": np.dtype("<i8"),
    "f2": np.dtype("<f2"),
    "f4": np.dtype("<f4"),
    "f8": np.dtype("<f8"),
    "bf2": np.dtype("<u2"),
}
"""Word on the wire → storage. ``bf2`` is bfloat16, which NumPy lacks: the upper half of float32."""

ACTIVATION_DTYPES: Final = frozenset({"f4", "f2", "bf2"})

# Word, dimensions: the columns that every batch of steps has, in this order.
COLUMNS: Final = (
    ("env", "u2", 1),
    ("episode", "u4", 1),
    ("t", "u4", 1),
    ("time", "i8", 1),
    ("controller", "u1", 1),
    ("flags", "u1", 1),
    ("metrics", "f8", 2),
)

Spec = tuple[str, str, tuple[int, ...]]
"""Name, dtype word, shape."""
Place = tuple[np.dtype[Any], int, int, tuple[int, ...] | None, "NDArray[Any] | None"]
"""Dtype, number of elements, byte offset, shape (``None`` for one dimension), and the array itself
where it has no elements."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Resolved places of the tensors of one body."""

    places: tuple[Place, ...]
    size: int
    """Bytes of the body."""
    record: np.dtype[Any] | None = None
    """The body as one record with a field for each place, named by its number, where there are
    bytes: its fields are views at a third of the cost of arrays made one by one. Making it costs
    more than that saves, so only layouts that are remembered have it."""


def _read_only_empty(dtype: np.dtype[Any]) -> NDArray[Any]:
    empty = np.empty(0, dtype)
    empty.flags.writeable = False
    return empty


_EMPTY: Final = {word: _read_only_empty(dtype) for word, dtype in DTYPES.items()}


def step_specs(
    rows: int, n_metrics: int, hooks: Sequence[tuple[str, int, int, int]]
) -> tuple[Spec, ...]:
    """Tensors of a steps message; per hook point (dtype word, d_in, d_out, sampled rows of y)."""
    specs = _column_specs(rows, n_metrics)
    for number, (word, d_in, d_out, sampled) in enumerate(hooks):
        specs += [
            (f"{number}/x", word, (rows, d_in)),
            (f"{number}/y", word, (sampled, d_out)),
            (f"{number}/rows", "u2", (sampled,)),
        ]
    return tuple(specs)


def feature_packing(
    rows: int, n_metrics: int, nnz: Sequence[int]
) -> tuple[tuple[Spec, ...], Packing]:
    """Tensors of a features message, and how its body is put together.

    ``nnz`` has each hook point's number of non-zero activations. Only these differ between batches
    of a size, so the rest is remembered.
    """
    specs, shapes, dtypes, pads = map(list, _feature_columns(rows, n_metrics))
    for number, count in enumerate(nnz):
        specs += _feature_parts(number, rows, count)
        shapes += ((rows + 1,), (count,), (count,), (rows,), (rows,))
        dtypes += _FEATURE_DTYPES
        odd = _PADS[count & 1]
        pads += (_PADS[rows + 1 & 1], odd, odd, _PADS[rows & 1], _PADS[rows & 1])
    pads[-1] = b""
    fixed = tuple(specs)
    return fixed, Packing(fixed, shapes, dtypes, pads)


@lru_cache(maxsize=128)
def _feature_columns(
    rows: int, n_metrics: int
) -> tuple[tuple[Spec, ...], tuple[Any, ...], tuple[Any, ...], tuple[bytes, ...]]:
    specs = _column_prefix(rows, n_metrics)
    columns = packing((*specs, ("", "u1", (0,))))
    return specs, tuple(columns.shapes[:-1]), tuple(columns.dtypes[:-1]), tuple(columns.pads[:-1])


def steps_layout(rows: int, hook_points: int, specs: tuple[Spec, ...]) -> Layout:
    """Check that ``specs`` describe the body of a steps message of ``rows`` rows.

    Raises:
        WireError: reason ``tensor``, ``dtype`` or ``shape``.
    """
    # A hostile header may be different each time: only headers of an ordinary size are remembered.
    return (_steps_layout if len(specs) <= _CACHED else _steps_layout.__wrapped__)(
        rows, hook_points, specs
    )


def features_layout(rows: int, hook_points: int, specs: tuple[Spec, ...]) -> Layout:
    """The same for a features message.

    Raises:
        WireError: reason ``tensor``, ``dtype`` or ``shape``.
    """
    # The number of active features differs in every batch, so there is nothing to remember.
    return _features_layout(rows, hook_points, specs)


def views(layout: Layout, body: bytes | memoryview) -> list[NDArray[Any]]:
    """Read-only arrays over ``body``, none of them a copy.

    ``body`` must be read-only and exactly ``layout.size`` bytes long; the codec has checked both.
    """
    if layout.record is not None:
        whole: NDArray[Any] = np.ndarray((), layout.record, body)
        return [
            whole[name] if place[4] is None else place[4]
            for name, place in zip(_FIELDS, layout.places, strict=False)
        ]
    view = np.frombuffer
    return [
        (
            view(body, dtype, count, offset)
            if shape is None
            else view(body, dtype, count, offset).reshape(shape)
        )
        if empty is None
        else empty
        for dtype, count, offset, shape, empty in layout.places
    ]


@dataclass(frozen=True, slots=True)
class Packing:
    """How a body is put together, worked out once for every batch of one size."""

    specs: tuple[Spec, ...]
    shapes: list[tuple[int, ...]]
    dtypes: list[np.dtype[Any]]
    pads: list[bytes]
    """Zero bytes after each tensor, so that the next one is aligned; none after the last."""


def packing(specs: tuple[Spec, ...]) -> Packing:
    """The packing of tensors with these specs."""
    sizes = [math.prod(shape) * DTYPES[word].itemsize for _, word, shape in specs]
    return Packing(
        specs=specs,
        shapes=[shape for _, _, shape in specs],
        dtypes=[DTYPES[word] for _, word, _ in specs],
        pads=[*(bytes(-size % ALIGNMENT) for size in sizes[:-1]), b""],
    )


def join(packing: Packing, arrays: list[NDArray[Any]]) -> bytes:
    """Copy ``arrays`` into one body, each once.

    Raises:
        WireError: reason ``shape`` when an array is not what the packing needs.
    """
    if [array.shape for array in arrays] != packing.shapes:
        raise _wrong_shape(packing, arrays)
    if [array.dtype for array in arrays] != packing.dtypes:
        arrays = [
            array if array.dtype == dtype else array.astype(dtype)
            for array, dtype in zip(arrays, packing.dtypes, strict=True)
        ]
    parts: list[Any] = [b""] * (2 * len(arrays))
    parts[::2] = arrays
    parts[1::2] = packing.pads
    try:
        return b"".join(parts)
    except (BufferError, ValueError, TypeError):
        # Not contiguous, which is rarer than it is costly to ask beforehand.
        parts[::2] = [np.ascontiguousarray(array) for array in arrays]
        return b"".join(parts)


def _wrong_shape(packing: Packing, arrays: list[NDArray[Any]]) -> WireError:
    for (name, _, shape), array in zip(packing.specs, arrays, strict=True):
        if array.shape != shape:
            found, needed = list(array.shape), list(shape)
            return WireError(
                "shape", f"tensor {name!r} has shape {found}, the message needs {needed}"
            )
    raise AssertionError("unreachable: the shapes were found to differ")


def widen_bfloat16(raw: NDArray[np.uint16]) -> NDArray[np.float32]:
    """bfloat16 bits as float32, exactly: the bits become the upper half of the word."""
    wide = (raw.astype(np.uint32) << np.uint32(16)).view(np.float32)
    wide.flags.writeable = False
    return wide


def narrow_bfloat16(values: NDArray[np.floating]) -> NDArray[np.uint16]:
    """Round float32 to bfloat16, ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = bits + (((bits >> np.uint32(16)) & np.uint32(1)) + np.uint32(0x7FFF))
    # Rounding would carry a NaN with a full mantissa into infinity or zero: keep its upper half.
    nan = np.isnan(values)
    if nan.any():
        rounded = np.where(nan, bits | np.uint32(0x00400000), rounded)
    return (rounded >> np.uint32(16)).astype(np.uint16)


_CACHED: Final = 7 + 3 * 16
_FIELDS: Final = tuple(map(str, range(_CACHED)))
_LARGEST_RECORD: Final = 2**30
"""Bytes: the size of a record is a C int."""
_PADS: Final = (b"", bytes(4))
"""After an even and after an odd number of elements of four bytes."""
_FEATURE_DTYPES: Final = tuple(DTYPES[word] for word in ("u4", "u4", "f4", "f4", "f4"))
_FEATURE_NAMES: Final = tuple(
    tuple(f"{number}/{part}" for part in ("indptr", "index", "value", "error", "affine"))
    for number in range(MAX_HOOK_POINTS)
)


@lru_cache(maxsize=128)
def _column_prefix(rows: int, n_metrics: int) -> tuple[Spec, ...]:
    return tuple(
        (name, word, (rows,) if dimensions == 1 else (rows, n_metrics))
        for name, word, dimensions in COLUMNS
    )


def _column_specs(rows: int, n_metrics: int) -> list[Spec]:
    return list(_column_prefix(rows, n_metrics))


@lru_cache(maxsize=128)
def _steps_layout(rows: int, hook_points: int, specs: tuple[Spec, ...]) -> Layout:
    _check_count(len(specs), 7 + 3 * hook_points)
    _check_columns(rows, specs)
    for number in range(hook_points):
        x, y, sampled = specs[7 + 3 * number : 10 + 3 * number]
        for spec, name in ((x, f"{number}/x"), (y, f"{number}/y")):
            _check_name(spec, name)
            if spec[1] not in ACTIVATION_DTYPES:
                raise _bad_dtype(spec, "f4, f2 or bf2")
            if len(spec[2]) != 2 or not 1 <= spec[2][1] <= MAX_WIDTH:
                raise _bad_shape(spec, f"[rows, width] with a width of 1 to {MAX_WIDTH}")
        _check(sampled, f"{number}/rows", "u2", 1)
        if x[2][0] != rows:
            raise _bad_shape(x, f"[{rows}, d_in]")
        if y[2][0] > rows or y[2][0] != sampled[2][0]:
            raise _bad_shape(y, f"[m, d_out] with m = {sampled[2][0]} ≤ {rows}")
        if x[1] != y[1]:
            raise _bad_dtype(y, f"{x[1]}, as its input is")
    layout = _place(specs)
    return replace(layout, record=_record(layout))


def _features_layout(rows: int, hook_points: int, specs: tuple[Spec, ...]) -> Layout:
    _check_count(len(specs), 7 + 5 * hook_points)
    columns, offset = _column_places(rows, specs[:7])
    places = list(columns)
    size = offset
    for number in range(hook_points):
        found = specs[7 + 5 * number : 12 + 5 * number]
        nnz = found[1][2][0]
        parts = _feature_parts(number, rows, nnz)
        if found != parts:
            raise _differing(found, parts)
        for _, word, shape in parts:
            size = offset + 4 * shape[0]
            empty = None if shape[0] else _EMPTY[word]
            places.append((DTYPES[word], shape[0], offset, None, empty))
            offset = size + -size % ALIGNMENT
    return Layout(tuple(places), size)


def _feature_parts(number: int, rows: int, nnz: int) -> tuple[Spec, ...]:
    indptr, index, value, error, affine = _FEATURE_NAMES[number]
    return (
        (indptr, "u4", (rows + 1,)),
        (index, "u4", (nnz,)),
        (value, "f4", (nnz,)),
        (error, "f4", (rows,)),
        (affine, "f4", (rows,)),
    )


def _differing(found: tuple[Spec, ...], expected: tuple[Spec, ...]) -> WireError:
    spec, needed = next((f, e) for f, e in zip(found, expected, strict=True) if f != e)
    if spec[0] != needed[0]:
        return _bad_name(spec, needed[0])
    if spec[1] != needed[1]:
        return _bad_dtype(spec, needed[1])
    return _bad_shape(spec, str(list(needed[2])))


@lru_cache(maxsize=128)
def _column_places(rows: int, specs: tuple[Spec, ...]) -> tuple[tuple[Place, ...], int]:
    """Places of the seven columns, and where the next tensor starts."""
    _check_columns(rows, specs)
    layout = _place(specs)
    return layout.places, layout.size + -layout.size % ALIGNMENT


def _place(specs: tuple[Spec, ...]) -> Layout:
    places = []
    offset = end = 0
    for _, word, shape in specs:
        count = shape[0] if len(shape) == 1 else shape[0] * shape[1]
        dtype = DTYPES[word]
        empty = None if count else _EMPTY[word].reshape(shape)
        places.append((dtype, count, offset, None if len(shape) == 1 else shape, empty))
        end = offset + count * dtype.itemsize
        offset = end + -end % ALIGNMENT
    return Layout(tuple(places), end)


def _record(layout: Layout) -> np.dtype[Any] | None:
    if not 0 < layout.size <= _LARGEST_RECORD or len(layout.places) > len(_FIELDS):
        return None
    named = [
        (name, (dtype, shape or (count,)), offset)
        for name, (dtype, count, offset, shape, empty) in zip(_FIELDS, layout.places, strict=False)
        if empty is None
    ]
    names, formats, offsets = zip(*named, strict=True)
    return np.dtype(
        {
            "names": list(names),
            "formats": list(formats),
            "offsets": list(offsets),
            "itemsize": layout.size,
        }
    )


def _check_count(found: int, needed: int) -> None:
    if found != needed:
        raise WireError("tensor", f"the message describes {found} tensors and needs {needed}")


def _check_columns(rows: int, specs: tuple[Spec, ...]) -> None:
    for spec, (name, word, dimensions) in zip(specs, COLUMNS, strict=False):
        _check(spec, name, word, dimensions)
        if spec[2][0] != rows:
            raise _bad_shape(spec, f"{rows} rows")
    if specs[6][2][1] > MAX_METRICS:
        raise _bad_shape(specs[6], f"at most {MAX_METRICS} metrics")


def _check(spec: Spec, name: str, word: str, dimensions: int) -> None:
    _check_name(spec, name)
    if spec[1] != word:
        raise _bad_dtype(spec, word)
    if len(spec[2]) != dimensions:
        raise _bad_shape(spec, f"{dimensions} dimensions")


def _check_name(spec: Spec, name: str) -> None:
    if spec[0] != name:
        raise _bad_name(spec, name)


def _bad_name(spec: Spec, name: str) -> WireError:
    return WireError("tensor", f"the message has tensor {spec[0]!r} where {name!r} belongs")


def _bad_dtype(spec: Spec, needed: str) -> WireError:
    return WireError("dtype", f"tensor {spec[0]!r} has dtype {spec[1]!r} and needs {needed}")


def _bad_shape(spec: Spec, needed: str) -> WireError:
    return WireError("shape", f"tensor {spec[0]!r} has shape {list(spec[2])} and needs {needed}")
