"""Looks of an explainer at its evidence: noted as they are taken, and taken again in a replay.

What a claim's score and verdict come to depends on which rows had come when it was looked at, how
much of the null had been searched, and what the time was. A live explainer looks when its clock
says so; so the looks are events like any other, published with the claims, recorded with them, and
a replaying explainer takes its own at exactly those rows (docs/recordings.md).
"""

from __future__ import annotations

from collections import deque
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from interlatent_live.feed.documents import LookRecord, Topic, parse_document
from interlatent_live.recordings import read_recording
from interlatent_live.wire.messages import Document
from interlatent_live.wire.slices import slice_features

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from interlatent_live.feed.documents import ClaimsDocument
    from interlatent_live.stream import FeatureBatch

NEWEST: Final = 64
"""Looks that each document carries: so many documents in a row may be missed at no cost."""
_CLAIMS: Final = f"document/{Topic.CLAIMS.value}"


class LookKind(StrEnum):
    """What a look does."""

    PROPOSE = "propose"
    """Claims are proposed, from a calibration (before the first row) or from the rows so far."""
    SPLIT = "split"
    """An endless run is cut into blocks of ``steps`` from here on."""
    RESCORE = "rescore"
    AGAIN = "again"
    """Claims are proposed anew where some were withdrawn."""
    FINAL = "final"
    """The last rescoring, after the run's end."""


class LookLog:
    """The looks that were taken, numbered; the newest are told."""

    def __init__(self) -> None:
        self._next = 0
        self._newest: deque[LookRecord] = deque(maxlen=NEWEST)

    def note(
        self, kind: LookKind, boot_id: str, seq: int, *, draws: int, at_ns: int, steps: int = 0
    ) -> None:
        """Note a look that took in the rows of ``boot_id`` below ``seq``."""
        self._newest.append(LookRecord(self._next, kind, boot_id, seq, draws, at_ns, steps))
        self._next += 1

    def newest(self) -> list[LookRecord]:
        """The newest looks, in order."""
        return list(self._newest)


class RecordedLooks:
    """The looks of recorded runs, by run, hook point and transcoder.

    A replay can follow them only where all are there, from the first: not where documents are
    missing, nor where the explainer was restarted and so forgot. :attr:`incomplete` says where.
    """

    def __init__(self, documents: Iterable[ClaimsDocument] = ()) -> None:
        self._found: dict[tuple[str, str, str], dict[int, LookRecord]] = {}
        self._restarted: set[tuple[str, str, str]] = set()
        for document in documents:
            key = (document.run_id, document.hook_point, document.transcoder)
            known = self._found.setdefault(key, {})
            for look in document.looks:
                if known.setdefault(look.number, look) != look:
                    self._restarted.add(key)

    @property
    def incomplete(self) -> list[str]:
        """``RUN at HOOK_POINT`` of those whose looks are not all known."""
        return [
            f"{run} at {hook}" for run, hook, transcoder in self._found
            if not self._complete((run, hook, transcoder))
        ]  # fmt: skip

    def _complete(self, key: tuple[str, str, str]) -> bool:
        numbers = self._found[key].keys()
        return key not in self._restarted and len(numbers) == max(numbers, default=-1) + 1 > 0

    def coming(self, run_id: str, hook_point: str, transcoder: str) -> deque[LookRecord] | None:
        """Its looks in order, for the taker to remove; None where they are not all known."""
        key = (run_id, hook_point, transcoder)
        if key not in self._found or not self._complete(key):
            return None
        return deque(look for _, look in sorted(self._found[key].items()))


def load_looks(files: Sequence[Path]) -> RecordedLooks:
    """The looks in recordings.

    Raises:
        UserError: when a file is missing.
        CorruptFileError: when a file is not a recording of ours.
    """
    return RecordedLooks(_claims(files))


def _claims(files: Sequence[Path]) -> Iterator[ClaimsDocument]:
    for file in files:
        for recorded in read_recording(file, wanted=lambda topic: topic == _CLAIMS):
            if isinstance(recorded.message, Document):
                document = parse_document(Topic.CLAIMS, dict(recorded.message.payload))
                yield document  # type: ignore[misc] # the topic's type


def cut_at(batch: FeatureBatch, coming: Iterable[LookRecord]) -> Iterator[FeatureBatch]:
    """The batch in parts that end where looks are to be taken, in order."""
    first, rows = batch.steps.first_seq, len(batch.steps)
    places = {look.seq - first for look in coming if look.boot_id == batch.boot_id}
    at = 0
    for place in sorted(one for one in places if 0 < one < rows):
        yield slice_features(batch, at, place - at)
        at = place
    yield slice_features(batch, at, rows - at) if at else batch
