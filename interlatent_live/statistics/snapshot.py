"""A correlator's state on disk: one safetensors file with JSON in its header, written atomically.

A reader sees the old file or the new one, never half of one: the bytes go to a temporary file in
the same folder, reach the disk, and then take the name. After a crash the snapshot says up to
which row it knows each agent copy, and the recording is replayed from there; rows it has already
seen are ignored.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from interlatent_live.errors import CorruptFileError
from interlatent_live.files import replace_file
from interlatent_live.statistics.correlator import CorrelatorState

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


def save_state(state: CorrelatorState, path: Path) -> int:
    """Write a state to ``path``; returns its bytes."""
    arrays = {name: np.array(array, order="C") for name, array in state.arrays.items()}
    data = save(arrays, metadata={"interlatent": json.dumps(state.meta, sort_keys=True)})
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, data)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return len(data)


def load_state(path: Path) -> CorrelatorState:
    """Read a state.

    Raises:
        CorruptFileError: when the file is missing, truncated, altered or of another kind.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            metadata: dict[str, str] = file.metadata() or {}
            arrays: dict[str, NDArray[Any]] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
        meta = json.loads(metadata["interlatent"])
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise CorruptFileError(
            f"{path} is not a readable statistics snapshot ({type(error).__name__}); delete it and "
            "replay the recording"
        ) from error
    return CorrelatorState(meta, arrays)
