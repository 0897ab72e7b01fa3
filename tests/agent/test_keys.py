"""Beyond this machine the tap needs keys, and with them it streams."""

from __future__ import annotations

import pytest
import zmq

from interlatent_live.errors import UserError
from interlatent_live.wire.clock import read_clock
from interlatent_live.wire.codec import decode, encode_message
from interlatent_live.wire.keys import ClientKeys, KeyDirectory, KeyRole, ServerKeys
from interlatent_live.wire.messages import StepsMessage
from interlatent_live.wire.receiver_link import Asked, Deliver, ReceiverHub, Reply
from interlatent_live.wire.security import Authenticator
from interlatent_live.wire.sockets import bind_router, bound_endpoint, receive_from

from .test_sender import make, publish


def test_an_endpoint_elsewhere_is_refused_without_keys():
    with pytest.raises(UserError, match="without keys"):
        make("tcp://10.0.0.7:28410")


def test_a_tap_with_keys_streams_to_a_protected_service(tmp_path):
    directory = KeyDirectory(tmp_path / "keys")
    directory.create("encoder", KeyRole.SERVICE)
    directory.create("agent", KeyRole.AGENT)
    own, server = tmp_path / "keys" / "agent.key", tmp_path / "keys" / "encoder.pub"
    keys = ClientKeys.load(own, server)
    context = zmq.Context()
    rows: list[float] = []
    with Authenticator(context, tmp_path / "keys"):
        router = bind_router(
            context, "tcp://127.0.0.1:*", keys=ServerKeys.load(tmp_path / "keys", "encoder")
        )
        hub = ReceiverHub()
        tap = make(bound_endpoint(router), keys=keys)
        publish(tap, 20)

        def carry(instructions):
            for one in instructions:
                match one:
                    case Reply(peer, message):
                        router.send_multipart([peer, *encode_message(message)])
                    case Asked(peer, hello):
                        carry(hub.accept(read_clock(), peer, hello))
                    case Deliver(boot, message):
                        assert isinstance(message, StepsMessage)
                        rows.extend(message.batch.steps.metrics[:, 0])
                        carry(hub.processed(read_clock(), boot, 1))

        for _ in range(500):
            if router.poll(10):
                received = receive_from(router, protected=True)
                assert received is not None
                assert received.user_id.startswith("agent/agent/")
                message = decode(received.frames)
                carry(
                    hub.on_message(
                        read_clock(), received.peer, message, size=received.size(),
                        user_id=received.user_id,
                    )
                )  # fmt: skip
            carry(hub.on_tick(read_clock()))
            if tap.stats().link.acknowledged == 20:
                break
        tap.close(0.2)
        router.close(0)
    context.term()
    assert rows == list(range(20))
    assert tap.stats().link.acknowledged == 20
