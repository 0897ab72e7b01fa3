"""Reading recordings once more as the stream that they were: whose turn it is, and what is twice.

Files of one recorder follow each other, each beginning with the hellos of open streams; a recorder
that was killed may have left rows in two files. What comes out here is one stream of hellos, rows
and goodbyes in which each row comes once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from interlatent_live.errors import CorruptFileError, UserError
from interlatent_live.recordings.files import recorded_files
from interlatent_live.recordings.reader import read_recording
from interlatent_live.wire.messages import Bye, FeaturesMessage, Hello, StepsMessage
from interlatent_live.wire.slices import slice_features

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from interlatent_live.stream import FeatureBatch

SECOND_NS: Final = 1_000_000_000
_KINDS: Final = frozenset({"hello", "features", "bye", "steps"})


@dataclass(frozen=True, slots=True)
class Selection:
    """What of a recording is wanted: an agent, and seconds from its first message."""

    agent: str | None = None
    from_s: float = 0.0
    to_s: float | None = None

    @property
    def everything(self) -> bool:
        """Whether nothing is left out."""
        return self == Selection()


@dataclass(frozen=True, slots=True, eq=False)
class Played:
    """A hello, rows or a goodbye, and when it was recorded."""

    time_ns: int
    message: Hello | FeaturesMessage | Bye


def recording_files(paths: Sequence[Path]) -> list[Path]:
    """The files among ``paths`` and in the folders among them, by the time of their first message.

    Raises:
        UserError: when a path is missing, or there is no recording.
        CorruptFileError: when a file is no recording.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            ours = [one.path for one in recorded_files(path)]
            found += ours or sorted(path.glob("*.mcap"))
        else:
            found.append(path)
    begun = []
    for order, path in enumerate(dict.fromkeys(found)):
        first = next(read_recording(path), None)
        if first is not None:
            begun.append((first.time_ns, order, path))
    if not begun:
        names = ", ".join(str(path) for path in paths)
        raise UserError(f"there is no recording with messages in {names}")
    return [path for _, _, path in sorted(begun)]


class Playing:
    """One pass through recordings.

    Args:
        files: as :func:`recording_files` orders them.
        selection: what is wanted.
        told: hears one sentence about a file that ends in damage, or rows that cannot be used.
    """

    def __init__(
        self,
        files: Sequence[Path],
        selection: Selection = Selection(),
        told: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.twice = 0
        """Rows that an earlier file had already."""
        self._files = tuple(files)
        self._selection = selection
        self._told = told
        self._next: dict[str, int] = {}
        self._wanted: dict[str, bool] = {}
        self._features = False

    def messages(self) -> Iterator[Played]:
        """Hellos, rows and goodbyes in order.

        Raises:
            UserError: when there are steps with activations and no features.
        """
        began_ns: int | None = None
        steps = False
        for file in self._files:
            try:
                for one in read_recording(file, wanted=_speaks_of_rows):
                    began_ns = one.time_ns if began_ns is None else began_ns
                    steps = steps or isinstance(one.message, StepsMessage)
                    since_s = (one.time_ns - began_ns) / SECOND_NS
                    to_s = self._selection.to_s
                    if to_s is not None and since_s > to_s:
                        return
                    if isinstance(one.message, Hello | FeaturesMessage | Bye):
                        played = self._select(one.time_ns, one.message, since_s)
                        if played is not None:
                            yield played
            except CorruptFileError as error:
                self._told(str(error))
        if steps and not self._features:
            raise UserError(
                "these recordings hold activations and no features: they are an agent's spool or "
                "dataset; replay what `interlatent-live record` wrote"
            )

    def _select(
        self, time_ns: int, message: Hello | FeaturesMessage | Bye, since_s: float
    ) -> Played | None:
        if isinstance(message, Hello):
            boot_id, agent = message.manifest.boot_id, message.manifest.agent
            wanted = self._selection.agent in (None, agent)
            if self._wanted.setdefault(boot_id, wanted) != wanted:
                self._told(f"boot {boot_id} goes by two names of agents")
            return Played(time_ns, message) if wanted else None
        boot_id = message.boot_id if isinstance(message, Bye) else message.batch.boot_id
        if boot_id not in self._wanted:
            self._wanted[boot_id] = False
            self._told(f"recorded rows not used: nothing says what boot {boot_id} is")
        if not self._wanted[boot_id]:
            return None
        if isinstance(message, Bye):
            return Played(time_ns, message)
        if since_s < self._selection.from_s:
            return None
        self._features = True
        return self._fresh(time_ns, message)

    def _fresh(self, time_ns: int, message: FeaturesMessage) -> Played | None:
        batch: FeatureBatch | None = message.batch
        steps = message.batch.steps
        rows, known = len(steps), self._next.get(message.batch.boot_id, 0) - steps.first_seq
        if known > 0:
            self.twice += min(known, rows)
            batch = None if known >= rows else slice_features(message.batch, known, rows - known)
        self._next[message.batch.boot_id] = steps.first_seq + max(rows, known)
        return None if batch is None else Played(time_ns, replace(message, batch=batch))


def _speaks_of_rows(topic: str) -> bool:
    return topic.partition("/")[0] in _KINDS
