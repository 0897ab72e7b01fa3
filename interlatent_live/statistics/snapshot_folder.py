"""Snapshots of every stream in one folder: which there are, the newest valid one, how many stay.

One file per stream and moment, each whole in itself and written atomically, under a folder that a
hash of run and hook point names (both are other people's text). The newest ``keep`` stay, and the
last one of each of as many days, so that there is a yesterday to compare with.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from interlatent_live.errors import CorruptFileError, UserError
from interlatent_live.queries.messages import SnapshotItem
from interlatent_live.statistics.snapshot import load_state, save_state

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from interlatent_live.statistics.correlator import CorrelatorState

YESTERDAY: Final = "yesterday"
SUFFIX: Final = ".safetensors"
_DAY_NS: Final = 86_400 * 10**9
_LARGEST_HEADER: Final = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class SnapshotFolder:
    """The folder ``correlator.snapshots``."""

    path: Path
    keep: int = 8
    clock: Callable[[], int] = time.time_ns

    def save(self, state: CorrelatorState) -> int:
        """Write a state and let go of what is older than what stays; returns its bytes."""
        about = state.meta["stream"]
        folder = self.path / _key(about["manifest"]["run_id"], about["hook_point"])
        size = save_state(state, folder / f"{int(about['saved_ns']):020d}{SUFFIX}")
        self._thin(folder)
        return size

    def _thin(self, folder: Path) -> None:
        files = sorted(folder.glob(f"*{SUFFIX}"), reverse=True)
        days: dict[int, Path] = {}
        for file in files:
            days.setdefault(_saved_ns(file) // _DAY_NS, file)
        stays = {*files[: self.keep], *list(days.values())[: self.keep]}
        for file in files:
            if file not in stays:
                file.unlink(missing_ok=True)

    def newest(self, refuse: Callable[[str], None]) -> list[CorrelatorState]:
        """The newest readable state of every stream, oldest stream first.

        ``refuse`` is told one sentence for each file that is passed over.
        """
        found = []
        for folder in self.path.glob("*"):
            for file in sorted(folder.glob(f"*{SUFFIX}"), reverse=True):
                try:
                    state = load_state(file)
                except CorruptFileError as error:
                    refuse(f"passed over a snapshot: {error}")
                    continue
                found.append(state)
                break
        return sorted(found, key=lambda state: int(state.meta["stream"]["saved_ns"]))

    def items(self) -> list[SnapshotItem]:
        """What there is, newest first, from the files' headers alone."""
        found = [
            item for file in self.path.glob(f"*/*{SUFFIX}") if (item := _item(file)) is not None
        ]
        return sorted(found, key=lambda item: -item.saved_ns)

    def find(self, name: str, transcoder: str, hook_point: str) -> SnapshotItem:
        """A snapshot by its id; ``yesterday`` is the newest that is at least a day old.

        Raises:
            UserError: when there is none with the features of this transcoder.
        """
        items = [item for item in self.items() if item.transcoder == transcoder]
        items = [item for item in items if item.hook_point == hook_point]
        if name == YESTERDAY:
            items = [item for item in items if self.clock() - item.saved_ns >= _DAY_NS]
        else:
            items = [item for item in items if item.id == name]
        if not items:
            what = "at least a day old" if name == YESTERDAY else f"called {name!r}"
            raise UserError(
                f"there is no snapshot {what} with the features of {transcoder}; "
                "`interlatent-live query snapshots` lists what there is"
            )
        return items[0]

    def load(self, snapshot_id: str) -> CorrelatorState:
        """The state of a snapshot.

        Raises:
            UserError: when there is no such snapshot.
            CorruptFileError: when it cannot be read.
        """
        for file in self.path.glob(f"*/*{SUFFIX}"):
            if _id(file) == snapshot_id:
                return load_state(file)
        raise UserError(f"there is no snapshot {snapshot_id!r}")


def _key(run_id: str, hook_point: str) -> str:
    return hashlib.sha256(json.dumps([run_id, hook_point]).encode()).hexdigest()[:16]


def _saved_ns(file: Path) -> int:
    name = file.name.removesuffix(SUFFIX)
    return int(name) if name.isdecimal() else 0


def _id(file: Path) -> str:
    return f"{file.parent.name}-{_saved_ns(file)}"


def _item(file: Path) -> SnapshotItem | None:
    """What a file's header says; ``None`` for one that is no snapshot of ours."""
    try:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if not 0 < length < _LARGEST_HEADER:
                return None
            header: dict[str, Any] = json.loads(opened.read(length))
        meta = json.loads(header["__metadata__"]["interlatent"])
        about = meta["stream"]
        return SnapshotItem(
            id=_id(file),
            run_id=str(about["manifest"]["run_id"]),
            agent=str(about["manifest"]["agent"]),
            hook_point=str(about["hook_point"]),
            transcoder=str(about["transcoder"]),
            rows=int(meta["rows"]),
            saved_ns=int(about["saved_ns"]),
            bytes=file.stat().st_size,
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
