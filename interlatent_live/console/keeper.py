"""From the feed into the store, whatever state the store is in.

A store that is full or locked must not stop the feed: what could not be kept is counted, said once
in a sentence, and the next snapshot brings it again. After a start or a hole in the feed the
explainer is asked once per (run, hook point) which verdicts passed meanwhile.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from interlatent_live.explanations.requests import Recollect, Recollection, Refused
from interlatent_live.feed.documents import ClaimsDocument
from interlatent_live.store.port import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable

    import msgspec

    from interlatent_live.explanations.requests import Answer
    from interlatent_live.store.port import ClaimStore

ASK_AGAIN_NS = 10 * 10**9
MOST_UNANSWERED = 1000


class Keeper:
    """Documents and answers in, rows in the store; requests out.

    Args:
        store: where it goes.
        warn: called with a sentence when the store begins to fail, not again until it has worked.
    """

    def __init__(self, store: ClaimStore, warn: Callable[[str], None]) -> None:
        self._store = store
        self._warn = warn
        self._failing = False
        self._missed = 0
        self._known: set[tuple[str, str]] = set()
        self._asked: dict[tuple[str, str], int] = {}
        self._ids: dict[str, tuple[str, str]] = {}
        self.kept = 0
        self.not_kept = 0
        """Documents that the store refused."""

    def take(self, document: msgspec.Struct, missed: int = 0) -> None:
        """Keep a document; ``missed`` is the feed's count of lost documents so far."""
        if missed > self._missed:
            self._missed = missed
            self._known.clear()
        self._guarded(lambda: self._store.take(document))
        if isinstance(document, ClaimsDocument):
            key = (document.run_id, document.hook_point)
            if key not in self._known:
                self._asked.setdefault(key, 0)

    def requests(self, now_ns: int) -> list[Recollect]:
        """What to ask the explainer now; again after a while where no answer came."""
        # Of requests that nobody answered only the newest are remembered.
        while len(self._ids) > MOST_UNANSWERED:
            self._ids.pop(next(iter(self._ids)))
        due = [key for key, asked in self._asked.items() if now_ns - asked >= ASK_AGAIN_NS]
        for key in due:
            self._asked[key] = now_ns
        made = {secrets.token_hex(8): key for key in due}
        self._ids |= made
        return [Recollect(one, now_ns, *key) for one, key in made.items()]

    def answered(self, answer: Answer) -> None:
        """Take what the explainer remembers; one that is busy is asked again later."""
        key = self._ids.pop(answer.id, None)
        if key is None:
            return
        if isinstance(answer, Refused) and answer.why == "refused":
            self._asked.pop(key, None)  # it knows no such run, and never will
        if not isinstance(answer, Recollection):
            return
        if self._guarded(lambda: self._store.recollect(*key, answer.verdicts)):
            self._asked.pop(key, None)
            self._known.add(key)

    def _guarded(self, do: Callable[[], None]) -> bool:
        try:
            do()
        except StoreError as error:
            self.not_kept += 1
            if not self._failing:
                self._warn(str(error))
            self._failing = True
            return False
        self.kept += 1
        self._failing = False
        return True
