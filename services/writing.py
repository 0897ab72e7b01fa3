"""A thread with an event loop of its own that asks a language model for drafts.

The feed never waits for it: a dead, slow or dear model costs nothing but its own answers.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from typing import TYPE_CHECKING

from interlatent_live.explanations.budget import Budget, Limits
from interlatent_live.explanations.writers import make_writer
from interlatent_live.logs import get_logger

if TYPE_CHECKING:
    from interlatent_live.config import ExplainerSettings
    from interlatent_live.explanations.profile import FeatureProfile
    from interlatent_live.explanations.writers import Draft

    Key = tuple[str, str, int]


class WriterThread:
    """Profiles in, drafts out, in the order in which answers come.

    Raises:
        UserError: when the chosen writer lacks its key or model.
    """

    def __init__(self, options: ExplainerSettings) -> None:
        self._log = get_logger("services.writing")
        self._writer = make_writer(
            options.writer,
            model=options.model,
            base_url=options.base_url,
            budget=Budget(Limits(dollars=options.money_limit)),
            timeout_s=options.request_timeout_s,
        )
        self._loop = asyncio.new_event_loop()
        self._done: deque[tuple[Key, Draft]] = deque()
        self._waiting = 0
        self._thread = threading.Thread(target=self._run, name="write", daemon=True)

    @property
    def name(self) -> str:
        """The writer's name."""
        return self._writer.name

    @property
    def idle(self) -> bool:
        """Whether it takes more profiles."""
        return self._waiting == 0

    def start(self) -> None:
        """Begin to take profiles."""
        self._thread.start()

    def ask(self, key: Key, profile: FeatureProfile) -> None:
        """Ask for a draft; the answer comes out of :meth:`finished` under ``key``."""
        self._waiting += 1
        asyncio.run_coroutine_threadsafe(self._write(key, profile), self._loop)

    def finished(self) -> list[tuple[Key, Draft]]:
        """Answers that came since the last call."""
        found = []
        while self._done:
            found.append(self._done.popleft())
            self._waiting -= 1
        return found

    def stop(self) -> None:
        """Cancel what is under way and close connections."""
        future = asyncio.run_coroutine_threadsafe(self._close(), self._loop)
        future.add_done_callback(lambda _: self._loop.call_soon_threadsafe(self._loop.stop))
        self._thread.join(timeout=5.0)

    async def _write(self, key: Key, profile: FeatureProfile) -> None:
        draft = await self._writer.write(profile)
        if draft.fallback_reason:
            self._log.warning("fell back", reason=draft.fallback_reason)
        self._done.append((key, draft))

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
