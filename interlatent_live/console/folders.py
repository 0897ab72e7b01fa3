"""Which files of a folder the console shows: plain ones of one kind, by name alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def plain_files(folder: Path, suffix: str, most: int) -> list[str]:
    """Names of at most ``most`` plain files of the folder itself, newest first.

    No links: what they lead to was not put there to be shown. None where there is no folder.
    """
    try:
        found = [
            (one.stat().st_mtime_ns, one.name)
            for one in folder.iterdir()
            if one.suffix == suffix and one.is_file() and not one.is_symlink()
        ]
    except OSError:
        return []
    return [name for _, name in sorted(found, reverse=True)][:most]
