"""When the narrator speaks: every few seconds, at once where something happened, never in a flood.

Two lines are at least ``gap_ns`` apart, and so long that narrating takes at most a fifth of the
time. Of several triggers that wait for that, the most urgent is kept, the newest of equal ones; one
that waited longer than an interval is old news and is dropped. What is spoken of once is not spoken
of again within an interval, so an episode that ends every second does not drown the rest. Pure:
time comes in, turns come out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from interlatent_live.explanations.triggers import Trigger

MOST_OF_THE_TIME: Final = 5
"""Between two lines goes by at least so many times what making the first one took."""
_REMEMBERED: Final = 256


@dataclass(frozen=True, slots=True)
class Turn:
    """A moment to speak; without a trigger it is the interval's."""

    trigger: Trigger | None = None


@dataclass(slots=True)
class Pacing:
    """The turns of one stream.

    ``every_ns`` after the last line the next one is due, whatever happens; no two are closer than
    ``gap_ns``.
    """

    every_ns: int
    gap_ns: int
    unspoken: int = 0
    """Triggers that others displaced, that repeated what was just said, or that became old."""
    _due_ns: int = 0
    _free_ns: int = 0
    _pending: tuple[Trigger, int] | None = None
    _spoken: dict[tuple[str, str], int] = field(default_factory=dict)

    def offer(self, trigger: Trigger, now_ns: int) -> None:
        """Something happened; it waits for the next turn, if it is worth one."""
        said = self._spoken.get((trigger.kind, trigger.subject))
        if said is not None and now_ns - said < self.every_ns:
            self.unspoken += 1
            return
        if self._pending is not None:
            self.unspoken += 1
            if trigger.urgency < self._pending[0].urgency and not self._old(now_ns):
                return
        self._pending = (trigger, now_ns)

    def turn(self, now_ns: int, *, last: bool = False) -> Turn | None:
        """The turn that is due now; it is over with :meth:`spoke`. None: be silent.

        The ``last`` one need not wait for the interval's end, but for the gap.
        """
        if now_ns < self._free_ns:
            return None
        if self._pending is not None and self._old(now_ns):
            self._pending = None
            self.unspoken += 1
        if self._pending is not None:
            return Turn(self._pending[0])
        return Turn() if last or now_ns >= self._due_ns else None

    def spoke(self, turn: Turn, began_ns: int, ended_ns: int, *, said: bool = True) -> None:
        """A turn is over; not ``said``: nothing verified held.

        Then the interval's turn comes as if there had been none, and the trigger may come again;
        but the work was done, so the gap holds.
        """
        took = MOST_OF_THE_TIME * (ended_ns - began_ns)
        self._free_ns = began_ns + max(self.gap_ns, took)
        if turn.trigger is not None:
            self._pending = None
        if turn.trigger is not None and said:
            key = (str(turn.trigger.kind), turn.trigger.subject)
            self._spoken.pop(key, None)
            self._spoken[key] = began_ns
            if len(self._spoken) > _REMEMBERED:
                del self._spoken[next(iter(self._spoken))]
        if said or turn.trigger is None:
            self._due_ns = began_ns + max(self.every_ns, took)

    def _old(self, now_ns: int) -> bool:
        return self._pending is not None and now_ns - self._pending[1] > self.every_ns
