from __future__ import annotations

import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import zmq
from zmq.utils import z85

from interlatent_live.errors import UserError
from interlatent_live.stream import Manifest
from interlatent_live.wire.clock import read_clock
from interlatent_live.wire.codec import decode, encode, encode_hello
from interlatent_live.wire.keys import (
    Certificate,
    ClientKeys,
    KeyDirectory,
    KeyRing,
    KeyRole,
    ServerKeys,
)
from interlatent_live.wire.messages import Heartbeat, Hello, Refuse, Welcome
from interlatent_live.wire.receiver_link import Asked, ReceiverHub, Reply
from interlatent_live.wire.security import Authenticator, Domain, speaks_for, zap_answer
from interlatent_live.wire.sockets import (
    SocketTuning,
    bind_publisher,
    bind_router,
    bound_endpoint,
    check_endpoint,
    connect_dealer,
    connect_subscriber,
    receive_from,
    receive_message,
    send_message,
    send_to,
)
from tests.support.wire_network import make_manifest

BEAT = encode(Heartbeat(sent_ns=1))


class HoldingContext:
    """Keeps its sockets alive, so that a test need not close each of them."""

    def __init__(self):
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._held: list[zmq.Socket[bytes]] = []

    def socket(self, kind):
        made = self._context.socket(kind)
        self._held.append(made)
        return made

    def close(self):
        for socket in self._held:
            socket.close(linger=0)
        self._context.term()


@pytest.fixture
def context():
    made = HoldingContext()
    yield made
    made.close()


@pytest.fixture
def keys(tmp_path):
    directory = KeyDirectory(tmp_path / "keys")
    directory.create("service", KeyRole.SERVICE)
    directory.create("lander", KeyRole.AGENT)
    return directory


def client_keys(keys, name):
    return ClientKeys.load(keys.path / f"{name}.key", keys.path / "service.pub")


def arrives(router, *, protected=False, seconds=5.0):
    if not router.poll(int(seconds * 1000)):
        return None
    return receive_from(router, protected=protected)


def test_a_message_goes_there_and_back(context):
    router = bind_router(context, "tcp://127.0.0.1:*")
    dealer = connect_dealer(context, bound_endpoint(router))
    assert send_message(dealer, BEAT)
    received = arrives(router)
    assert received is not None
    assert received.frames == BEAT
    assert received.user_id == ""
    assert received.size() == len(BEAT[0])
    assert send_to(router, received.peer, BEAT)
    assert dealer.poll(5000)
    assert receive_message(dealer) == BEAT
    assert receive_message(dealer) is None
    assert receive_from(router, protected=False) is None


def test_a_reply_to_nobody_is_told(context):
    router = bind_router(context, "tcp://127.0.0.1:*")
    assert not send_to(router, b"nobody", BEAT)


def test_frames_beyond_the_third_are_thrown_away(context):
    router = bind_router(context, "tcp://127.0.0.1:*")
    dealer = connect_dealer(context, bound_endpoint(router))
    dealer.send_multipart([b"a"] * 50)
    received = arrives(router)
    assert received is not None
    assert len(received.frames) == 3


def test_a_frame_beyond_the_limit_ends_the_connection(context):
    router = bind_router(context, "tcp://127.0.0.1:*", tuning=SocketTuning(largest_message=1000))
    dealer = connect_dealer(context, bound_endpoint(router))
    dealer.send_multipart([bytes(2000)])
    assert arrives(router, seconds=0.4) is None


def test_a_sender_without_a_receiver_never_blocks(context):
    dealer = connect_dealer(context, "tcp://127.0.0.1:1", tuning=SocketTuning(send_queue=4))
    begun = time.monotonic()
    results = [send_message(dealer, BEAT) for _ in range(20)]
    assert time.monotonic() - begun < 1.0
    assert results[0]
    assert not results[-1]


def test_viewers_hear_their_topics(context):
    publisher = bind_publisher(context, "tcp://127.0.0.1:*")
    subscriber = connect_subscriber(context, bound_endpoint(publisher), ["claims"])
    assert publisher.poll(5000)
    assert publisher.recv() == b"\x01claims"
    publisher.send_multipart([b"status", *BEAT])
    publisher.send_multipart([b"claims", *BEAT])
    assert subscriber.poll(5000)
    assert receive_message(subscriber) == [b"claims", *BEAT]


@pytest.mark.parametrize(
    "endpoint", ["tcp://0.0.0.0:1", "tcp://*:1", "tcp://192.0.2.1:1", "tcp://[::]:1", "tcp://h:1"]
)
def test_nothing_leaves_this_machine_without_keys(context, endpoint):
    with pytest.raises(UserError, match="without keys"):
        bind_router(context, endpoint)
    with pytest.raises(UserError, match="without keys"):
        bind_publisher(context, endpoint)
    with pytest.raises(UserError, match="without keys"):
        connect_dealer(context, endpoint)
    with pytest.raises(UserError, match="without keys"):
        connect_subscriber(context, endpoint)
    check_endpoint(endpoint, protected=True, listening=True)


@pytest.mark.parametrize(
    "endpoint", ["tcp://127.0.0.1:1", "tcp://localhost:1", "tcp://[::1]:1", "inproc://a"]
)
def test_loopback_needs_no_keys(endpoint):
    check_endpoint(endpoint, protected=False, listening=True)


@pytest.mark.parametrize("endpoint", ["", "udp://127.0.0.1:1", "127.0.0.1:1", "tcp://", "pgm://x"])
def test_what_is_no_endpoint(endpoint):
    with pytest.raises(UserError, match="not an endpoint"):
        check_endpoint(endpoint, protected=True, listening=True)


def test_a_taken_port_is_one_sentence(context):
    router = bind_router(context, "tcp://127.0.0.1:*")
    with pytest.raises(UserError, match="in use"):
        bind_router(context, bound_endpoint(router))
    with pytest.raises(UserError, match="cannot listen"):
        bind_router(context, "tcp://127.0.0.1:port")


def test_an_ipc_socket_is_for_its_user_only(context, tmp_path):
    private = tmp_path / "run" / "agents"
    router = bind_router(context, f"ipc://{private}")
    assert private.parent.stat().st_mode & 0o777 == 0o700
    assert private.stat().st_mode & 0o777 == 0o700
    dealer = connect_dealer(context, f"ipc://{private}")
    send_message(dealer, BEAT)
    assert arrives(router) is not None
    tmp_path.chmod(0o755)
    with pytest.raises(UserError, match="chmod 700"):
        bind_router(context, f"ipc://{tmp_path}/open")
    with pytest.raises(UserError, match="abstract"):
        bind_router(context, "ipc://@name")
    with pytest.raises(UserError, match="107 bytes"):
        bind_router(context, f"ipc://{tmp_path}/{'x' * 120}")


def protected_pair(context, keys, name="lander", domain=Domain.AGENTS):
    router = bind_router(
        context, "tcp://127.0.0.1:*", keys=ServerKeys.load(keys.path), domain=domain
    )
    dealer = connect_dealer(context, bound_endpoint(router), keys=client_keys(keys, name))
    send_message(dealer, BEAT)
    return router, dealer


def test_a_known_key_gets_in_under_its_name(context, keys):
    with Authenticator(context, keys.path) as authenticator:
        router, _ = protected_pair(context, keys)
        received = arrives(router, protected=True)
        assert received is not None
        assert received.frames == BEAT
        assert received.user_id == keys.certificate("lander").user_id
        assert authenticator.outcomes == {"accepted": 1}
        assert authenticator.allows(received.user_id)


def test_every_message_of_a_connection_carries_its_user(context, keys):
    with Authenticator(context, keys.path):
        router, dealer = protected_pair(context, keys)
        send_message(dealer, [*BEAT, bytes(100_000)])
        users = set()
        for _ in range(2):
            received = arrives(router, protected=True)
            assert received is not None
            users.add(received.user_id)
        assert users == {keys.certificate("lander").user_id}


def test_a_stranger_stays_out(context, keys, tmp_path):
    strangers = KeyDirectory(tmp_path / "strangers")
    strangers.create("lander", KeyRole.AGENT)
    key = strangers.private("lander")
    stranger = ClientKeys(
        "lander",
        key.certificate.public.encode(),
        key.secret.encode(),
        server=keys.certificate("service").public.encode(),
    )
    with Authenticator(context, keys.path) as authenticator:
        router = bind_router(context, "tcp://127.0.0.1:*", keys=ServerKeys.load(keys.path))
        dealer = connect_dealer(context, bound_endpoint(router), keys=stranger)
        send_message(dealer, BEAT)
        assert arrives(router, protected=True, seconds=0.5) is None
        assert authenticator.outcomes["unknown"] >= 1
        assert authenticator.outcomes["accepted"] == 0


def test_without_an_authenticator_nobody_gets_in(context, keys):
    router, _ = protected_pair(context, keys)
    assert arrives(router, protected=True, seconds=0.5) is None


def test_no_key_at_all_stays_out(context, keys):
    with Authenticator(context, keys.path):
        router = bind_router(context, "tcp://127.0.0.1:*", keys=ServerKeys.load(keys.path))
        dealer = connect_dealer(context, bound_endpoint(router))
        send_message(dealer, BEAT)
        assert arrives(router, protected=True, seconds=0.5) is None


def test_an_expired_key_stays_out(context, keys):
    past = datetime.now(UTC) - timedelta(days=10)
    keys.create("old", KeyRole.AGENT, days=1, now=past)
    with Authenticator(context, keys.path) as authenticator:
        router, _ = protected_pair(context, keys, "old")
        assert arrives(router, protected=True, seconds=0.5) is None
        assert authenticator.outcomes["expired"] >= 1


def test_a_key_works_only_where_its_role_belongs(context, keys):
    keys.create("eye", KeyRole.VIEWER)
    with Authenticator(context, keys.path) as authenticator:
        router, _ = protected_pair(context, keys, "eye")
        services, _ = protected_pair(context, keys, "lander", Domain.SERVICES)
        assert arrives(router, protected=True, seconds=0.3) is None
        assert arrives(services, protected=True, seconds=0.3) is None
        assert authenticator.outcomes["role"] >= 2
        publisher = bind_publisher(context, "tcp://127.0.0.1:*", keys=ServerKeys.load(keys.path))
        viewer = connect_subscriber(
            context, bound_endpoint(publisher), keys=client_keys(keys, "eye")
        )
        assert publisher.poll(5000)
        publisher.recv()
        publisher.send_multipart([b"topic", *BEAT])
        assert viewer.poll(5000)


def test_a_key_revoked_at_run_time_is_turned_away_and_its_connection_ended(context, keys):
    with Authenticator(context, keys.path) as authenticator:
        router, dealer = protected_pair(context, keys)
        received = arrives(router, protected=True)
        assert received is not None
        hub = ReceiverHub(speaks_for=speaks_for)
        manifest = make_manifest(agent="lander")
        now = read_clock()
        asked = hub.on_message(
            now, received.peer, Hello(manifest), size=1, user_id=received.user_id
        )
        assert isinstance(asked[0], Asked)
        hub.accept(now, received.peer, Hello(manifest))
        hub.on_message(now, received.peer, decode(BEAT), size=1, user_id=received.user_id)
        assert hub.expel(now, authenticator.allows) == []
        keys.revoke("lander")
        deadline = time.monotonic() + 5
        while authenticator.allows(received.user_id) and time.monotonic() < deadline:
            time.sleep(0.05)
        out = hub.expel(now, authenticator.allows)
        assert isinstance(out[0], Reply)
        assert isinstance(out[0].message, Refuse)
        assert out[0].message.reason == "key"
        assert hub.peers() == 0
        dealer.close()
        again = connect_dealer(context, bound_endpoint(router), keys=client_keys(keys, "lander"))
        send_message(again, BEAT)
        assert arrives(router, protected=True, seconds=0.5) is None
        assert authenticator.outcomes["revoked"] >= 1


def test_a_key_made_at_run_time_is_let_in(context, keys):
    with Authenticator(context, keys.path) as authenticator:
        keys.create("late", KeyRole.AGENT)
        user_id = keys.certificate("late").user_id
        deadline = time.monotonic() + 5
        while not authenticator.allows(user_id) and time.monotonic() < deadline:
            time.sleep(0.05)
        router, _ = protected_pair(context, keys, "late")
        assert arrives(router, protected=True) is not None


def test_a_known_key_cannot_take_another_agents_name(context, keys):
    keys.create("walker", KeyRole.AGENT)
    hub = ReceiverHub(speaks_for=speaks_for)
    with Authenticator(context, keys.path):
        router, dealer = protected_pair(context, keys, "walker")
        arrives(router, protected=True)
        for agent, expected in (("lander", Refuse), ("walker", Welcome)):
            send_message(dealer, encode_hello(make_manifest(agent, agent)))
            received = arrives(router, protected=True)
            assert received is not None
            out = hub.on_message(
                read_clock(),
                received.peer,
                decode(received.frames),
                size=received.size(),
                user_id=received.user_id,
            )
            if isinstance(out[0], Asked):
                out = hub.accept(read_clock(), received.peer, out[0].hello)
            assert isinstance(out[-1], Reply)
            assert isinstance(out[-1].message, expected)
            send_to(router, received.peer, encode(out[-1].message))
            assert dealer.poll(5000)
            assert isinstance(decode(receive_message(dealer) or []), expected)


def test_who_may_speak_for_whom():
    manifest = Manifest("lander", "r", "b", "h", (), ())
    assert speaks_for("", manifest) is None
    assert speaks_for("agent/lander/00", manifest) is None
    assert speaks_for("service/encoder/00", manifest) is None
    assert "may not speak" in str(speaks_for("agent/walker/00", manifest))
    assert "may not speak" in str(speaks_for("viewer/lander/00", manifest))


def request(public, domain=Domain.AGENTS, mechanism=b"CURVE", version=b"1.0"):
    return [version, b"7", domain.encode(), b"127.0.0.1", b"", mechanism, z85.decode(public)]


def test_the_authenticator_answers_by_the_protocol():
    now = datetime.now(UTC)
    certificate = Certificate("a", KeyRole.AGENT, zmq.curve_keypair()[0].decode(), now)
    ring = KeyRing([certificate])
    answer = zap_answer(request(certificate.public), ring, now)
    assert answer is not None
    assert answer.frames == [b"1.0", b"7", b"200", b"OK", certificate.user_id.encode(), b""]
    for bad, outcome in (
        (request(certificate.public, domain="elsewhere"), "domain"),
        (request(certificate.public, domain="*"), "domain"),
        (request(certificate.public, mechanism=b"NULL"), "mechanism"),
        ([*request(certificate.public), b"more"], "mechanism"),
        (request(certificate.public)[:6], "mechanism"),
        (request(zmq.curve_keypair()[0]), "unknown"),
    ):
        answer = zap_answer(bad, ring, now)
        assert answer is not None
        assert (answer.outcome, answer.frames[2]) == (outcome, b"400")
    assert zap_answer([], ring, now) is None
    assert zap_answer(request(certificate.public, version=b"2.0"), ring, now) is None


def test_an_authenticator_needs_a_directory_and_a_free_context(context, keys, tmp_path):
    with pytest.raises(UserError, match="no key directory"):
        Authenticator(context, tmp_path / "none").start()
    with Authenticator(context, keys.path), pytest.raises(zmq.ZMQError):
        Authenticator(context, keys.path).start()


def test_nothing_is_left_open(context, keys):
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        inner = zmq.Context()
        with Authenticator(inner, keys.path):
            router, dealer = protected_pair(inner, keys)
            router.close()
            dealer.close()
        inner.term()
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 2


CUT_WHILE_FULL = """
import sys, time, zmq
from interlatent_live.wire.sockets import SocketTuning, bind_router, bound_endpoint, connect_dealer
small = SocketTuning(receive_queue=1, receive_buffer=4096, send_buffer=4096)
receiving, sending = zmq.Context(), zmq.Context()
router = bind_router(receiving, "tcp://127.0.0.1:*", tuning=small)
if "heartbeats" in sys.argv:
    router.close()
    router = receiving.socket(zmq.ROUTER)
    options = {zmq.RCVHWM: 1, zmq.RCVBUF: 4096}
    options |= {zmq.HEARTBEAT_IVL: 50, zmq.HEARTBEAT_TIMEOUT: 60_000}
    for option, value in options.items():
        router.setsockopt(option, value)
    router.bind("tcp://127.0.0.1:*")
dealer = connect_dealer(sending, bound_endpoint(router))
end = time.monotonic() + 0.5
while time.monotonic() < end:
    try:
        dealer.send(bytes(20_000), zmq.NOBLOCK)
    except zmq.Again:
        time.sleep(0.001)
dealer.close(0)
sending.term()
time.sleep(1)
while router.poll(100):
    router.recv_multipart()
"""


def test_a_connection_cut_while_its_queue_is_full_does_not_abort_the_process():
    command = [sys.executable, "-c", CUT_WHILE_FULL]
    assert subprocess.run(command, check=False, timeout=60).returncode == 0


@pytest.mark.skipif(zmq.zmq_version_info() != (4, 3, 5), reason="libzmq may have mended it")
def test_with_zeromqs_own_heartbeats_it_would():
    command = [sys.executable, "-c", CUT_WHILE_FULL, "heartbeats"]
    done = subprocess.run(command, check=False, timeout=60, capture_output=True)
    assert done.returncode == -signal.SIGABRT
    assert b"_io_error" in done.stderr
