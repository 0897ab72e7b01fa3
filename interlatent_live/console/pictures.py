"""The newest picture of each agent, from a socket of its own to ``/api/v1/agents/{agent}/picture``.

A picture is other people's bytes: it is bounded, must begin like a JPEG, is never looked into, and
is served as an image and nothing else.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from fastapi import APIRouter, HTTPException, Response

from interlatent_live.errors import WireError
from interlatent_live.feed.pictures import LARGEST, LIMITS
from interlatent_live.wire.codec import decode
from interlatent_live.wire.messages import Picture
from interlatent_live.wire.sockets import SocketTuning
from interlatent_live.wire.speaking import may_speak

if TYPE_CHECKING:
    from collections.abc import Sequence

    from interlatent_live.feed.documents import AgentsDocument, AgentStatus

MOST_BOOTS: Final = 64
STALE_S: Final = 60.0
AGAIN_S: Final = 0.05
"""Pictures of one boot that come faster are passed over."""
JPEG: Final = b"\xff\xd8\xff"
TUNING: Final = SocketTuning(
    receive_queue=2, receive_buffer=128 * 1024, largest_message=LARGEST + 8192
)


@dataclass(frozen=True, slots=True)
class Held:
    """A picture and when it came (monotonic seconds)."""

    picture: Picture
    user_id: str
    at_s: float


@dataclass(frozen=True, slots=True)
class Shown:
    """A picture of a run that is known."""

    picture: Picture
    run_id: str


class PictureHub:
    """Keeps one picture for each boot. One thread takes in; any thread asks."""

    def __init__(self) -> None:
        self.refused = 0
        self._held: OrderedDict[str, Held] = OrderedDict()
        self._agents: dict[str, AgentStatus] = {}

    def describe(self, document: AgentsDocument) -> None:
        """Learn which agent a boot belongs to."""
        self._agents = {one.boot_id: one for one in document.agents}

    def take(self, frames: Sequence[bytes | memoryview], user_id: str) -> Shown | None:
        """Take in a message of an agent; what is no picture is counted.

        Returns:
            The picture and its run, where it is one that others may have too.
        """
        try:
            picture = decode(frames, LIMITS)
        except WireError:
            self.refused += 1
            return None
        if not isinstance(picture, Picture) or bytes(picture.jpeg[:3]) != JPEG:
            self.refused += 1
            return None
        now = time.monotonic()
        before = self._held.get(picture.boot_id)
        if before is not None and now - before.at_s < AGAIN_S:
            return None
        self._held[picture.boot_id] = Held(picture, user_id, now)
        self._held.move_to_end(picture.boot_id)
        while len(self._held) > MOST_BOOTS:
            self._held.popitem(last=False)
        agent = self._agents.get(picture.boot_id)
        if agent is None or not may_speak(user_id, agent.agent):
            return None
        return Shown(picture, agent.run_id)

    def newest(self, agent: str) -> Held | None:
        """The newest picture of an agent, if it is not long ago."""
        now = time.monotonic()
        found = [
            one
            for boot, one in list(self._held.items())
            if boot in self._agents
            and self._agents[boot].agent == agent
            and may_speak(one.user_id, agent)
            and now - one.at_s < STALE_S
        ]
        return max(found, key=lambda one: one.at_s, default=None)


def router(hub: PictureHub) -> APIRouter:
    """``GET /agents/{agent}/picture``."""
    out = APIRouter(tags=["reading"], default_response_class=Response)

    @out.get("/agents/{agent:path}/picture", summary="The newest picture of an agent, as JPEG")
    async def picture(agent: str) -> Response:
        held = hub.newest(agent)
        if held is None:
            raise HTTPException(404, "there is no picture of this agent")
        one = held.picture
        headers = {
            "Age-Ms": str(int((time.monotonic() - held.at_s) * 1000)),
            "Row": str(one.seq),
            "Env": str(one.env),
        }
        return Response(bytes(one.jpeg), headers=headers, media_type="image/jpeg")

    return out
