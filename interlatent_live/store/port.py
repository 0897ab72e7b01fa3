"""The store's port: what any database of ours must do, whatever is behind it.

Everything that comes from the feed may come twice, because publishers repeat their newest documents
to whoever joins; so taking a document is idempotent, and a restart neither loses what is still
shown nor counts it double.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol

from interlatent_live.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import msgspec


class StoreError(UserError):
    """The database is full, locked, away or not ours; the sentence says which and what to do."""


class CorrectionKind(StrEnum):
    """What a person says of a claim."""

    ACCEPT = "accept"
    REJECT = "reject"
    RELABEL = "relabel"


@dataclass(frozen=True, slots=True)
class Correction:
    """A person's word on one version of a claim; ``id`` makes saying it twice harmless.

    ``label`` is the new name for ``relabel`` and empty otherwise. ``verdict`` is the claim's at
    that moment, filled in by the store.
    """

    id: str
    claim_id: str
    kind: CorrectionKind
    person: str
    at_ns: int
    note: str = ""
    label: str = ""
    version: int = 0
    verdict: str = ""


@dataclass(frozen=True, slots=True)
class ClaimRow:
    """The newest version of a claim as it was last published.

    ``document`` is the claim as the feed shows it.
    """

    id: str
    run_id: str
    hook_point: str
    feature: int
    address: str
    version: int
    verdict: str
    updated_ns: int
    document: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ClaimFilter:
    """Which claims are wanted; an empty field means any."""

    run_id: str = ""
    hook_point: str = ""
    verdict: str = ""
    address: str = ""


class ClaimStore(Protocol):
    """Documents in, rows out. Safe to use from several threads.

    Every method raises :class:`StoreError` when the database cannot do it now.
    """

    def take(self, document: msgspec.Struct) -> None:
        """Keep what a feed document says; documents that are not kept are ignored."""

    def recollect(
        self, run_id: str, hook_point: str, verdicts: Mapping[str, Sequence[Mapping[str, Any]]]
    ) -> None:
        """Fill in verdicts by address that were passed while nobody was writing."""

    def correct(self, correction: Correction) -> Correction:
        """Keep a person's word; the same id again returns what was kept the first time.

        Raises:
            UserError: when there is no such claim, or its id was used for something else.
        """

    def runs(self, *, after: str = "", limit: int = 100) -> list[dict[str, Any]]:
        """Runs by id, later than ``after``."""

    def run(self, run_id: str) -> dict[str, Any] | None:
        """One run."""

    def claims(self, wanted: ClaimFilter, *, after: str = "", limit: int = 100) -> list[ClaimRow]:
        """Claims by id, later than ``after``."""

    def claim(self, claim_id: str) -> ClaimRow | None:
        """One claim."""

    def history(self, claim_id: str) -> dict[str, list[dict[str, Any]]]:
        """Its ``versions``, ``verdicts`` and ``corrections``, oldest first."""

    def narration(
        self, *, run_id: str = "", before: int | None = None, limit: int = 100
    ) -> list[dict[str, Any]]:
        """Narrated intervals, newest first, with a ``number`` smaller than ``before``."""

    def costs(self, *, limit: int = 100) -> list[dict[str, Any]]:
        """What each explainer process has spent, newest first."""

    def close(self) -> None:
        """Give connections back."""
