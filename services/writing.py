"""A thread with an event loop of its own that asks a language model for drafts.

The feed never waits for it: a dead, slow or dear model costs nothing but its own answers. What
waits to be asked is bounded and ordered by importance, the newest profile of a feature replaces an
older one, a profile that was worded before is answered from the cache, and what any of it cost is
told by claim and by the hour.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from interlatent_live.explanations.budget import Budget, Limits
from interlatent_live.explanations.detection import Detection, detect
from interlatent_live.explanations.scheduling import DraftCache, WriterQueue
from interlatent_live.explanations.writers import LlmWriter, Usage, make_writer
from interlatent_live.feed.documents import ClaimCost, CostsDocument
from interlatent_live.logs import get_logger
from interlatent_live.pipeline.tracing import NO_CLAIMS, ClaimTraces

if TYPE_CHECKING:
    from interlatent_live.config import ExplainerSettings
    from interlatent_live.explanations.claims import Claim
    from interlatent_live.explanations.evidence import Evidence
    from interlatent_live.explanations.profile import FeatureProfile
    from interlatent_live.explanations.writers import Draft

    Key = tuple[str, str, int]

AT_ONCE = 2
"""Requests under way; more would only wait at the server."""
STALE_AFTER_S = 600.0
"""A profile that waited longer is not worth paying for."""
HOUR_S = 3600.0
LEAST_RATE_S = 60.0


@dataclass(slots=True)
class _Ledger:
    """What wording has cost; written on the writing thread, read on another."""

    worded: dict[str, Usage] = field(default_factory=dict)
    """By feature address, for its words."""
    judged: dict[str, Usage] = field(default_factory=dict)
    """By feature address, for second opinions on them."""
    refused: Counter[str] = field(default_factory=Counter)
    recent: deque[tuple[float, float]] = field(default_factory=deque)
    """(monotonic time, dollars) of the last hour."""


class WriterThread:
    """Profiles in, drafts out, in the order in which answers come.

    Raises:
        UserError: when the chosen writer lacks its key or model.
    """

    def __init__(self, options: ExplainerSettings, traces: ClaimTraces = NO_CLAIMS) -> None:
        self._traces = traces
        self._log = get_logger("services.writing")
        self._budget = Budget(Limits(dollars=options.money_limit))
        writer = make_writer(
            options.writer,
            model=options.model,
            base_url=options.base_url,
            budget=self._budget,
            timeout_s=options.request_timeout_s,
        )
        if not isinstance(writer, LlmWriter):
            # The choice is wrong, not its type.
            raise ValueError("only a language model needs a thread")  # noqa: TRY004
        self._writer = writer
        self._loop = asyncio.new_event_loop()
        self._queue = WriterQueue()
        self._cache = DraftCache()
        self._keys: dict[str, Key] = {}
        self._under_way = 0
        self._probed = False
        self._done: deque[tuple[Key, Draft]] = deque()
        self._to_judge: deque[tuple[Key, Claim, Evidence]] = deque()
        self._opinions: deque[tuple[Key, int, Detection]] = deque()
        self._judging = 0
        self._ledger = _Ledger()
        self._lock = threading.Lock()
        self._born, self._since_ns = time.monotonic(), time.time_ns()
        self._thread = threading.Thread(target=self._run, name="write", daemon=True)

    @property
    def name(self) -> str:
        """The writer's name."""
        return self._writer.name

    def start(self) -> None:
        """Begin to take profiles."""
        self._thread.start()

    def ask(
        self,
        key: Key,
        profile: FeatureProfile,
        *,
        importance: float = 1.0,
        asked_by_person: bool = False,
    ) -> None:
        """Ask for a draft; the answer comes out of :meth:`finished` under ``key``."""

        def put() -> None:
            self._keys[str(profile.address)] = key
            self._queue.put(
                profile,
                importance=importance,
                deadline_s=time.monotonic() + STALE_AFTER_S,
                asked_by_person=asked_by_person,
            )
            self._next()

        self._loop.call_soon_threadsafe(put)

    def finished(self) -> list[tuple[Key, Draft]]:
        """Answers that came since the last call."""
        found = []
        while self._done:
            found.append(self._done.popleft())
        return found

    @property
    def judging(self) -> int:
        """Claims whose second opinion has not come yet."""
        return self._judging

    def judge(self, key: Key, claim: Claim, held_out: Evidence) -> None:
        """Ask for a second opinion on a claim's words, once no profile waits to be worded."""

        def put() -> None:
            self._to_judge.append((key, claim, held_out))
            self._next()

        self._judging += 1
        self._loop.call_soon_threadsafe(put)

    def opinions(self) -> list[tuple[Key, int, Detection]]:
        """Second opinions that came since the last call, with the version that they are of."""
        found = []
        while self._opinions:
            found.append(self._opinions.popleft())
        self._judging -= len(found)
        return found

    def costs(self) -> CostsDocument:
        """What was spent since the start, by claim and over the last hour."""
        now = time.monotonic()
        with self._lock:
            worded, judged = dict(self._ledger.worded), dict(self._ledger.judged)
            refused = dict(self._ledger.refused)
            recent = sum(dollars for at, dollars in self._ledger.recent if at > now - HOUR_S)
        spent = self._budget.spent
        lived = min(now - self._born, HOUR_S)
        return CostsDocument(
            writer=self.name,
            since_ns=self._since_ns,
            requests=spent.requests,
            input_tokens=spent.input_tokens,
            output_tokens=spent.output_tokens,
            dollars=self._budget.spent_dollars,
            limit_dollars=self._budget.limits.dollars,
            dollars_per_hour=recent * HOUR_S / lived if lived >= LEAST_RATE_S else None,
            refused=refused,
            claims=[
                self._cost(address, worded.get(address, Usage()), judged.get(address, Usage()))
                for address in sorted({*worded, *judged})
            ],
            published_ns=time.time_ns(),
        )

    def cost_of(self, address: str) -> ClaimCost | None:
        """What one claim has cost so far, wording and second opinions; None before any request."""
        with self._lock:
            worded = self._ledger.worded.get(address)
            judged = self._ledger.judged.get(address)
        if worded is None and judged is None:
            return None
        return self._cost(address, worded or Usage(), judged or Usage())

    def _cost(self, address: str, worded: Usage, judged: Usage) -> ClaimCost:
        both, price = worded.plus(judged), self._budget.price
        return ClaimCost(
            address,
            both.requests,
            both.input_tokens,
            both.output_tokens,
            price.of(both),
            opinion_requests=judged.requests,
            opinion_dollars=price.of(judged),
        )

    def stop(self) -> None:
        """Cancel what is under way and close connections."""
        future = asyncio.run_coroutine_threadsafe(self._close(), self._loop)
        future.add_done_callback(lambda _: self._loop.call_soon_threadsafe(self._loop.stop))
        self._thread.join(timeout=5.0)

    # -- on the loop -------------------------------------------------------------------------------

    def _next(self) -> None:
        """Ask for the most important profiles that wait, as many as may be under way."""
        if not self._probed:
            self._probed = True
            self._under_way = AT_ONCE  # until it is known how to ask
            self._loop.create_task(self._probe()).add_done_callback(self._probe_ended)
        while self._under_way < AT_ONCE:
            request = self._queue.take(time.monotonic())
            if request is None:
                if not self._to_judge:
                    return
                self._under_way += 1
                task = self._loop.create_task(self._judge(*self._to_judge.popleft()))
                task.add_done_callback(self._ended)
                continue
            key = self._keys.pop(request.key)
            known = self._cache.get(self.name, request.profile)
            if known is not None:
                self._done.append((key, known))
                continue
            self._under_way += 1
            task = self._loop.create_task(self._write(key, request.profile))
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._under_way -= 1
        if not task.cancelled():
            if (error := task.exception()) is not None:
                self._log.error("a draft failed", why=f"{type(error).__name__}: {error}")
            self._next()

    async def _probe(self) -> None:
        """Find out once, before anything is asked, whether the server honours a schema."""
        found = await self._writer.probe()
        self._log.info("probed", writer=self.name, reachable=found.reachable, what=found.detail)

    def _probe_ended(self, task: asyncio.Task[None]) -> None:
        self._under_way -= AT_ONCE - 1
        self._ended(task)

    async def _write(self, key: Key, profile: FeatureProfile) -> None:
        began_ns = self._traces.now()
        draft = await self._writer.write(profile)
        self._traced(key, "word", began_ns, draft.usage, draft.fallback_reason or "")
        address = str(profile.address)
        self._book(self._ledger.worded, address, draft.usage)
        if draft.fallback_reason and draft.usage.requests == 0:
            self._refused(_word(draft.fallback_reason))
        if draft.fallback_reason:
            self._log.warning("fell back", reason=draft.fallback_reason)
        self._cache.put(self.name, profile, draft)
        self._done.append((key, draft))

    async def _judge(self, key: Key, claim: Claim, held_out: Evidence) -> None:
        began_ns = self._traces.now()
        found = await detect(self._writer, claim, held_out)
        self._traced(key, "judge", began_ns, found.usage)
        if found.usage.requests:
            self._book(self._ledger.judged, str(claim.address), found.usage)
        if found.refused:
            self._refused("limit")
        self._opinions.append((key, claim.version, found))

    def _traced(self, key: Key, what: str, began_ns: int, usage: Usage, failed: str = "") -> None:
        dollars = self._budget.price.of(usage)
        self._traces.requested(
            key, what, began_ns, model=self.name, usage=usage, dollars=dollars, failed=failed
        )

    def _book(self, to: dict[str, Usage], address: str, usage: Usage) -> None:
        with self._lock:
            recent, now = self._ledger.recent, time.monotonic()
            to[address] = to.get(address, Usage()).plus(usage)
            recent.append((now, self._budget.price.of(usage)))
            while recent[0][0] <= now - HOUR_S:
                recent.popleft()

    def _refused(self, word: str) -> None:
        with self._lock:
            self._ledger.refused[word] += 1

    async def _close(self) -> None:
        current = asyncio.current_task()
        tasks = [task for task in asyncio.all_tasks() if task is not current]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._writer.aclose()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            self._loop.close()


def _word(reason: str) -> str:
    """A stable word for counters."""
    for sign, word in (("limit", "limit"), ("failed repeatedly", "breaker")):
        if sign in reason:
            return word
    return "server"
