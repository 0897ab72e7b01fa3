"""Brings "why this action?" from whoever asks to the agent's shadow, and the account back.

Only a shadow can take a decision apart: it has a copy of the policy, and what the policy was called
with. A shadow says every few seconds that it is there (:class:`ShadowHere`) on the connection it
made to the explainer, and questions go back on that one, so an agent opens no port. The explainer
passes messages on and does nothing else with them: its worker may be in the midst of something.

No I/O and no clock in here. Whatever is not answered in time is answered with what is known of why.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from interlatent_live.wire.speaking import may_speak

HERE_EVERY_S: Final = 2.0
SILENT_NS: Final = 8 * 10**9
"""A shadow that was not heard for so long is not asked."""
KNOWN_NS: Final = 600 * 10**9
"""For so long it is remembered that there was one."""
WITHIN_NS: Final = 6 * 10**9
"""A shadow gives up after five seconds by itself and says so; after this, it is frozen."""
MOST_SHADOWS: Final = 256
MOST_UNDER_WAY: Final = 16


class ShadowHere(msgspec.Struct, frozen=True, tag="shadow"):
    """An agent's shadow is there; ``cannot`` says why it takes no decision apart, or is empty."""

    id: str
    sent_ns: int
    agent: str
    run_id: str
    cannot: str = ""


class AskWhy(msgspec.Struct, frozen=True, tag="why"):
    """Why did a copy of an agent act as it did?

    The newest step that its shadow observed, or the given one; ``run_id`` may be empty. Of a
    continuous action ``component`` names which part of it, of a discrete one which action's score;
    empty leaves the choice to the shadow.
    """

    id: str
    sent_ns: int
    agent: str
    run_id: str = ""
    env: int = 0
    episode: int | None = None
    t: int | None = None
    component: str = ""


class WhyAnswered(msgspec.Struct, frozen=True, tag="because"):
    """The account, or why there is none.

    ``why`` is empty with an account, or one of ``unknown`` (no shadow), ``cannot`` (it never will),
    ``refused`` (not this one), ``busy``, ``silent``.
    """

    id: str
    sent_ns: int
    found: dict[str, Any] | None = None
    why: str = ""
    message: str = ""


WhyMessage = ShadowHere | AskWhy | WhyAnswered
Passed = tuple[bytes, AskWhy | WhyAnswered]
"""To which peer, and what."""


@dataclass(slots=True)
class _Known:
    peer: bytes
    here: ShadowHere
    heard_ns: int


@dataclass(slots=True)
class _UnderWay:
    asker: bytes
    shadow: bytes
    agent: str
    until_ns: int


@dataclass(slots=True)
class WhyRelay:
    """Shadows that are there, and questions that are under way."""

    _shadows: OrderedDict[str, _Known] = field(default_factory=OrderedDict)
    _under_way: dict[str, _UnderWay] = field(default_factory=dict)

    def take(self, peer: bytes, user_id: str, message: WhyMessage, now_ns: int) -> Passed | None:
        """What is to be passed on for a message that came; None where there is nothing."""
        match message:
            case ShadowHere():
                if may_speak(user_id, message.agent):
                    self._here(_Known(peer, message, now_ns))
                return None
            case AskWhy():
                return self._ask(peer, message, now_ns)
            case WhyAnswered():
                asked = self._under_way.get(message.id)
                if asked is None or asked.shadow != peer:
                    return None
                del self._under_way[message.id]
                return asked.asker, message

    def owns(self, peer: bytes, run_id: str) -> bool:
        """Whether the shadow of that run is at this peer."""
        known = self._shadows.get(run_id)
        return known is not None and known.peer == peer

    def overdue(self, now_ns: int) -> list[Passed]:
        """Answers to what was asked too long ago."""
        late = [name for name, one in self._under_way.items() if now_ns >= one.until_ns]
        return [self._late(name, self._under_way.pop(name), now_ns) for name in late]

    # -- inside --------------------------------------------------------------------------------

    def _here(self, known: _Known) -> None:
        run_id = known.here.run_id
        self._shadows[run_id] = known
        self._shadows.move_to_end(run_id)
        while len(self._shadows) > MOST_SHADOWS:
            self._shadows.popitem(last=False)

    def _ask(self, peer: bytes, request: AskWhy, now_ns: int) -> Passed:
        def no(why: str, message: str) -> Passed:
            return peer, WhyAnswered(request.id, now_ns, why=why, message=message)

        known = self._of(request, now_ns)
        name = repr(request.agent)
        if known is None:
            return no(
                "unknown",
                f"no shadow of {name} has been heard of: attach the agent with "
                "shadow=ShadowOptions(transcoders=…, explainer=…), which runs a copy of its policy",
            )
        if known.here.cannot:
            return no("cannot", known.here.cannot)
        silent_ns = now_ns - known.heard_ns
        if silent_ns > SILENT_NS:
            return no(
                "silent",
                f"the shadow of {name} has been silent for {silent_ns / 1e9:.0f} s: the agent has "
                "ended, is frozen, or cannot reach the explainer",
            )
        if len(self._under_way) >= MOST_UNDER_WAY or request.id in self._under_way:
            return no("busy", "too many are asking why; ask again in a moment")
        self._under_way[request.id] = _UnderWay(peer, known.peer, name, now_ns + WITHIN_NS)
        return known.peer, request

    def _of(self, request: AskWhy, now_ns: int) -> _Known | None:
        found = [
            one
            for run_id, one in self._shadows.items()
            if one.here.agent == request.agent
            and request.run_id in {"", run_id}
            and now_ns - one.heard_ns < KNOWN_NS
        ]
        return max(found, key=lambda one: one.heard_ns, default=None)

    @staticmethod
    def _late(name: str, asked: _UnderWay, now_ns: int) -> Passed:
        message = (
            f"the shadow of {asked.agent} did not answer within {WITHIN_NS / 1e9:.0f} s: it is "
            "frozen, or the machine too busy; the agent goes on without it"
        )
        return asked.asker, WhyAnswered(name, now_ns, why="silent", message=message)
