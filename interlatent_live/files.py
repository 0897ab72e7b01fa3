"""Files that are there whole or not at all, whenever the writer dies."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def replace_file(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Put a file in place whole, and never, not for a moment, more open than ``mode``.

    Raises:
        OSError: when it cannot be written; what was there before stays.
    """
    # mkstemp makes the file 0600 and with a name nobody else has.
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(mode)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
