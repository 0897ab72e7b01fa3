"""Which feature is explained next, when explaining costs time and money.

A bounded priority queue over features: importance is density × effect × drift, and what a person
asked for goes first. Asking again replaces the older request, because only the newest profile is
worth paying for. Requests past their deadline are dropped, and a profile that was already explained
(by its quantised hash) is answered from the cache. Pure: time comes in, requests come out.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    from interlatent_live.explanations.profile import FeatureProfile
    from interlatent_live.explanations.writers.port import Draft

_FLOOR: Final = 1e-3
"""An unknown factor must not hide the others."""
_WHOLE_FALL: Final = 0.15
"""Fall in balanced accuracy that counts like an alarm: what the bar leaves to a perfect claim."""
_MOST_DRIFT: Final = 9.0
"""Beyond it more drift says nothing more, and must not hide density and effect."""


@dataclass(frozen=True, slots=True)
class Request:
    """One feature to be explained."""

    profile: FeatureProfile
    importance: float
    asked_by_person: bool
    deadline_s: float
    number: int
    """Order of arrival."""

    @property
    def key(self) -> str:
        """The feature's address."""
        return str(self.profile.address)

    @property
    def rank(self) -> tuple[bool, float, int]:
        """People first, then importance, then the newest."""
        return (self.asked_by_person, self.importance, self.number)


def importance(density: float, effect: float | None = None, drift: float | None = None) -> float:
    """Density × effect × drift, unknown factors counting as 1 and small ones as .001."""
    factors = (density, 1.0 if effect is None else abs(effect), 1.0 if drift is None else drift)
    product = 1.0
    for factor in factors:
        product *= max(factor, _FLOOR)
    return product


def drift_factor(alarms: Iterable[float] = (), fall: float | None = None) -> float:
    """How much more urgent drift makes a feature: 1 where there is none, 10 at most.

    Args:
        alarms: evidence over its bar of every monitor of the feature that raised an alarm, ≥ 1.
        fall: how far its claim's balanced accuracy of late is below that of its ledger.
    """
    worst = max(alarms, default=0.0)
    if fall is not None:
        worst = max(worst, fall / _WHOLE_FALL)
    return 1.0 + min(max(worst, 0.0), _MOST_DRIFT)


@dataclass(slots=True)
class WriterQueue:
    """At most ``capacity`` waiting requests; the least important one makes room."""

    capacity: int = 256
    dropped_full: int = 0
    dropped_late: int = 0
    replaced: int = 0
    _waiting: dict[str, Request] = field(default_factory=dict)
    _count: int = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def put(
        self,
        profile: FeatureProfile,
        *,
        importance: float,
        deadline_s: float,
        asked_by_person: bool = False,
    ) -> None:
        """Ask for an explanation before ``deadline_s``; a person's wish survives replacement."""
        key = str(profile.address)
        old = self._waiting.pop(key, None)
        self.replaced += old is not None
        self._count += 1
        asked = asked_by_person or (old is not None and old.asked_by_person)
        self._waiting[key] = Request(profile, importance, asked, deadline_s, self._count)
        if len(self._waiting) > self.capacity:
            least = min(self._waiting.values(), key=lambda request: request.rank)
            del self._waiting[least.key]
            self.dropped_full += 1

    def take(self, now_s: float) -> Request | None:
        """The next request, or None; what is past its deadline is dropped and counted."""
        late = [key for key, request in self._waiting.items() if request.deadline_s < now_s]
        for key in late:
            del self._waiting[key]
        self.dropped_late += len(late)
        if not self._waiting:
            return None
        best = max(self._waiting.values(), key=lambda request: request.rank)
        return self._waiting.pop(best.key)


@dataclass(slots=True)
class DraftCache:
    """Drafts by writer and quantised profile; the least recently used go first.

    Fallbacks are not kept: the writer that was asked may answer the next time.
    """

    capacity: int = 2048
    hits: int = 0
    misses: int = 0
    _drafts: OrderedDict[tuple[str, str], Draft] = field(default_factory=OrderedDict)

    def get(self, writer: str, profile: FeatureProfile) -> Draft | None:
        """What this writer said of an equal profile."""
        key = (writer, profile.cache_key())
        draft = self._drafts.get(key)
        if draft is None:
            self.misses += 1
            return None
        self.hits += 1
        self._drafts.move_to_end(key)
        return draft

    def put(self, writer: str, profile: FeatureProfile, draft: Draft) -> None:
        """Keep a draft of this writer's own."""
        if draft.fallback_reason:
            return
        key = (writer, profile.cache_key())
        self._drafts[key] = draft
        self._drafts.move_to_end(key)
        if len(self._drafts) > self.capacity:
            self._drafts.popitem(last=False)
