"""Recordings that a restarted correlator goes on from: which files, and what is new in them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from interlatent_live.errors import CorruptFileError, UserError
from interlatent_live.logs import get_logger
from interlatent_live.recordings.following import RecordingFollower
from interlatent_live.wire.messages import FeaturesMessage, Hello

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from interlatent_live.wire.limits import Limits
    from interlatent_live.wire.messages import WireMessage


class FollowedRecordings:
    """Files, and folders of ``.mcap`` files, oldest first; new ones are found as they come.

    Args:
        paths: files and folders.
        since_ns: nothing recorded before this moment is needed.
        limits: of the decoder.
        owns: whether a run's messages are wanted, by its id.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        since_ns: int,
        limits: Limits,
        owns: Callable[[str], bool] = lambda _: True,
    ) -> None:
        self._paths = tuple(paths)
        self._since_ns = since_ns
        self._limits = limits
        self._owns = owns
        self._followers: dict[Path, RecordingFollower] = {}
        self._log = get_logger("services.replaying")

    @property
    def complete(self) -> bool:
        """Whether every file was closed by its recorder."""
        return all(one.complete for one in self._followers.values())

    def read(self) -> Iterator[WireMessage]:
        """What was written since the last reading; a damaged file ends where the damage begins."""
        for path in self._files():
            follower = self._followers.get(path)
            try:
                if follower is None:
                    follower = RecordingFollower(path, since_ns=self._since_ns, limits=self._limits)
                    self._followers[path] = follower
                for recorded in follower.messages():
                    run_id = _run_of(recorded.message)
                    if run_id is None or self._owns(run_id):
                        yield recorded.message
            except (CorruptFileError, UserError, OSError) as error:
                if follower is not None:
                    follower.complete = True
                self._log.warning("recording not read on", why=str(error))

    def _files(self) -> list[Path]:
        found: list[tuple[int, Path]] = []
        for path in self._paths:
            for file in sorted(path.glob("*.mcap")) if path.is_dir() else [path]:
                try:
                    changed = file.stat().st_mtime_ns
                except OSError as error:
                    self._log.warning("recording not read", why=str(error))
                    continue
                if changed >= self._since_ns:
                    found.append((changed, file))
        return [file for _, file in sorted(found)]


def _run_of(message: WireMessage) -> str | None:
    """The run that a message names; a goodbye names a boot, and unknown ones mean nothing."""
    if isinstance(message, Hello):
        return message.manifest.run_id
    return message.batch.run_id if isinstance(message, FeaturesMessage) else None
