"""Between a shadow and the explainer: effects and accounts out, questions in; nobody is waited for.

It is the explainer's request socket that takes them, and a report is signed like every request
there: another user of the machine must not be able to say what a feature does. The shadow says
every two seconds that it is there, and "why this action?" comes back on the same connection.
"""

from __future__ import annotations

import logging
import time
import uuid
from typing import TYPE_CHECKING, Any

import zmq

from interlatent_live.agent.shadow_values import WhyQuestion
from interlatent_live.explanations.requests import (
    FRESH_NS,
    EffectMeasured,
    EffectOnAction,
    open_request,
    seal,
)
from interlatent_live.explanations.why_relay import (
    HERE_EVERY_S,
    AskWhy,
    ShadowHere,
    WhyAnswered,
)
from interlatent_live.wire.sockets import connect_dealer, receive_message, send_message

if TYPE_CHECKING:
    from interlatent_live.agent.shadow_values import Explains, MeasuredFeature
    from interlatent_live.explanations.requests import Incoming
    from interlatent_live.explanations.scores import Interval
    from interlatent_live.wire.keys import ClientKeys

LINGER_MS = 200
MOST_WORDS = 1000

logger = logging.getLogger(__name__)


class ShadowLink:
    """Sends reports to the explainer; belongs to the shadow's thread.

    Args:
        endpoint: the explainer's request socket.
        key: what reports are signed with.
        agent: name of the agent.
        run_id: of the tap.
        actions: names of the actions, or of the components of a continuous one.
        keys: CURVE keys, for endpoints beyond this machine.
    """

    def __init__(
        self,
        endpoint: str,
        key: bytes,
        *,
        agent: str,
        run_id: str,
        actions: tuple[str, ...],
        keys: ClientKeys | None = None,
    ) -> None:
        self._endpoint, self._key, self._keys = endpoint, key, keys
        self._agent, self._run_id, self._actions = agent, run_id, actions
        self.worker: Explains | None = None
        """Who is asked; from when it is set."""
        self._here_at = 0.0
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._socket: zmq.Socket[bytes] | None = None
        self.sent = 0
        self.dropped = 0
        self.faults = 0

    def publish(self, measured: MeasuredFeature) -> None:
        """Send one report, or drop it where nobody listens."""
        self._send(report_of(measured, self._run_id, self._actions))

    def attend(self) -> None:
        """Say that the shadow is there, and hand it what is asked; must be called again and again.

        Nothing that is wrong here may end the shadow's thread.
        """
        try:
            self._attend()
        except Exception:
            self.faults += 1
            if self.faults == 1:
                logger.exception("the shadow's link to the explainer failed and goes on")

    def _attend(self) -> None:
        worker, now = self.worker, time.monotonic()
        if worker is None:
            return
        if now >= self._here_at:
            self._here_at = now + HERE_EVERY_S
            name = uuid.uuid4().hex
            cannot = worker.cannot_explain
            self._send(ShadowHere(name, time.time_ns(), self._agent, self._run_id, cannot))
        if self._socket is None:
            return
        # Besides questions there is what the explainer made of reports, which nobody needs.
        while (frames := receive_message(self._socket)) is not None:
            asked = open_request(self._key, frames)
            if isinstance(asked, AskWhy) and abs(time.time_ns() - asked.sent_ns) < FRESH_NS:
                question = WhyQuestion(asked.id, asked.env, asked.episode, asked.t, asked.component)
                worker.explain(question, self._answered)

    def _answered(self, name: str, found: dict[str, Any] | None, why: str, message: str) -> None:
        if found is not None:
            found = {"agent": self._agent, "run_id": self._run_id, **found}
        self._send(WhyAnswered(name, time.time_ns(), found, why, message[:MOST_WORDS]))

    def _send(self, message: Incoming) -> None:
        if self._socket is None:
            self._context = zmq.Context()
            self._socket = connect_dealer(self._context, self._endpoint, keys=self._keys)
        if send_message(self._socket, seal(self._key, message)):
            self.sent += 1
        else:
            self.dropped += 1

    def close(self) -> None:
        """Close the socket; call it when the shadow's thread has ended."""
        if self._socket is not None and self._context is not None:
            self._socket.close(LINGER_MS)
            self._context.term()
            self._socket = None


def report_of(measured: MeasuredFeature, run_id: str, actions: tuple[str, ...]) -> EffectMeasured:
    """A measured feature as it travels."""
    named = len(actions) == len(measured.effects)
    return EffectMeasured(
        id=uuid.uuid4().hex,
        sent_ns=time.time_ns(),
        run_id=run_id,
        hook_point=measured.hook_point,
        transcoder=measured.transcoder,
        feature=measured.feature,
        steps=measured.steps,
        episodes=measured.episodes,
        effects=[
            EffectOnAction(
                action=actions[place] if named else f"action {place}",
                effect=_numbers(effect.effect),
                percentiles={kind: _numbers(one) for kind, one in effect.percentile.items()},
                controls=effect.controls,
                stands_out=effect.stands_out,
            )
            for place, effect in enumerate(measured.effects)
        ],
    )


def _numbers(interval: Interval) -> tuple[float | None, float | None, float | None]:
    return interval.value, interval.low, interval.high
