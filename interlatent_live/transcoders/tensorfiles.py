"""Reading safetensors files from strangers, and replacing files without a torn state.

The library checks its own invariants; what it cannot know is what *should* be in the file. So the
header is read first, within a bound, and compared with the expected names, dtypes and shapes before
any tensor is allocated: a file cannot make us allocate more than its own length.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from typing import TYPE_CHECKING, Any, Final

from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors

from interlatent_live.errors import CorruptFileError, UserError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import torch

_MAX_HEADER_BYTES: Final = 1 << 20

_ITEM_BYTES: Final = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "U16": 2,
    "U32": 4,
    "U64": 8,
    "BOOL": 1,
}


def read_checked_tensors(
    path: Path,
    expected: Mapping[str, tuple[str, tuple[int, ...]]],
    *,
    sha256: str | None = None,
) -> dict[str, torch.Tensor]:
    """Read a safetensors file that must hold exactly the expected tensors.

    Args:
        path: the file.
        expected: name → (dtype as safetensors spells it, shape).
        sha256: the file's hash, when known.

    Raises:
        CorruptFileError: when header, names, dtypes, shapes, byte lengths or the hash differ.
    """
    header = read_safetensors_header(path)
    if set(header) != set(expected):
        extra, missing = sorted(set(header) - set(expected)), sorted(set(expected) - set(header))
        raise CorruptFileError(
            f"{path} should hold {sorted(expected)}; missing {missing}, superfluous {extra}"
        )
    for name, wanted in expected.items():
        if header[name] != wanted:
            raise CorruptFileError(f"tensor {name} in {path} is {header[name]}, not {wanted}")
    payload = path.read_bytes()
    if sha256 is not None and hashlib.sha256(payload).hexdigest() != sha256:
        raise CorruptFileError(f"{path} was altered: its SHA-256 is not the recorded one")
    try:
        return load_safetensors(payload)
    except (SafetensorError, ValueError, RuntimeError) as error:
        raise CorruptFileError(f"{path} is not a valid safetensors file: {error}") from error


def read_safetensors_header(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Names, dtypes and shapes in a safetensors file, checked against its length.

    Raises:
        UserError: when the file does not exist.
        CorruptFileError: when it is no safetensors file (a pickle, say), or its parts do not tile
            its length exactly.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist; name a safetensors file")
    size = path.stat().st_size
    with path.open("rb") as stream:
        prefix = stream.read(8)
        if len(prefix) < 8:
            raise CorruptFileError(f"{path} is truncated: {size} bytes are no safetensors file")
        (length,) = struct.unpack("<Q", prefix)
        if length > min(_MAX_HEADER_BYTES, size - 8):
            raise CorruptFileError(
                f"{path} is no safetensors file, or truncated: it claims a header of {length} bytes"
            )
        raw = stream.read(length)
    header = {}
    spans = []
    try:
        parsed = json.loads(raw)
        parsed.pop("__metadata__", None)
        for name, entry in parsed.items():
            dtype, shape, span = _tensor_entry(entry)
            header[str(name)] = (dtype, shape)
            spans.append(span)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CorruptFileError(f"{path} has no valid safetensors header: {error}") from error
    position = 0
    for begin, end in sorted(spans):
        if begin != position:
            raise CorruptFileError(f"{path} has overlapping or missing tensor data")
        position = end
    if position != size - 8 - length:
        raise CorruptFileError(
            f"{path} holds {size - 8 - length} bytes of tensors where its header states {position}"
        )
    return header


def replace_file(path: Path, payload: bytes) -> None:
    """Write ``path`` so that a crash leaves either the old content or the new, never a part."""
    temporary = path.with_name(path.name + ".part")
    with temporary.open("wb") as stream:
        stream.write(payload)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)


def _tensor_entry(entry: dict[str, Any]) -> tuple[str, tuple[int, ...], tuple[int, int]]:
    dtype = str(entry["dtype"])
    shape = tuple(entry["shape"])
    begin, end = entry["data_offsets"]
    if not all(type(extent) is int and extent >= 0 for extent in (*shape, begin, end)):
        raise TypeError("extents must be whole and not negative")
    if end - begin != math.prod(shape) * _ITEM_BYTES[dtype]:
        raise ValueError(f"{end - begin} bytes are stated for shape {shape} of {dtype}")
    return dtype, shape, (begin, end)
