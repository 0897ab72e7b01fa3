"""Hands measured effects to the explainer: one signed message each, never waiting for anybody.

It is the explainer's request socket that takes them, and a report is signed like every request
there: another user of the machine must not be able to say what a feature does.
"""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING

import zmq

from interlatent_live.explanations.requests import EffectMeasured, EffectOnAction, seal
from interlatent_live.wire.sockets import connect_dealer, send_message

if TYPE_CHECKING:
    from interlatent_live.agent.shadow_values import MeasuredFeature
    from interlatent_live.explanations.scores import Interval
    from interlatent_live.wire.keys import ClientKeys

LINGER_MS = 200


class ShadowLink:
    """Sends reports to the explainer; belongs to the shadow's thread.

    Args:
        endpoint: the explainer's request socket.
        key: what reports are signed with.
        run_id: of the tap.
        actions: names of the actions, or of the components of a continuous one.
        keys: CURVE keys, for endpoints beyond this machine.
    """

    def __init__(
        self,
        endpoint: str,
        key: bytes,
        *,
        run_id: str,
        actions: tuple[str, ...],
        keys: ClientKeys | None = None,
    ) -> None:
        self._endpoint, self._key, self._keys = endpoint, key, keys
        self._run_id, self._actions = run_id, actions
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._socket: zmq.Socket[bytes] | None = None
        self.sent = 0
        self.dropped = 0

    def publish(self, measured: MeasuredFeature) -> None:
        """Send one report, or drop it where nobody listens."""
        if self._socket is None:
            self._context = zmq.Context()
            self._socket = connect_dealer(self._context, self._endpoint, keys=self._keys)
        while self._socket.poll(0):
            self._socket.recv_multipart(zmq.NOBLOCK)  # what the explainer made of earlier ones
        message = report_of(measured, self._run_id, self._actions)
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
