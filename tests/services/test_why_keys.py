"""Why, under CURVE: an agent's key is its own shadow's; strangers and viewers reach nobody."""

import threading
import time

import pytest
import zmq

from interlatent_live.agent.shadow_link import ShadowLink
from interlatent_live.explanations.requests import open_answer, seal
from interlatent_live.explanations.why_relay import AskWhy
from interlatent_live.services.network import Network
from interlatent_live.services.requests import RequestSocket
from interlatent_live.wire.keys import ClientKeys, KeyDirectory, KeyRole, ServerKeys
from interlatent_live.wire.sockets import receive_message, send_message

KEY = b"k" * 32


class Worker:
    """A shadow that has one answer."""

    cannot_explain = ""

    def __init__(self):
        self.asked = []

    def explain(self, question, answered):
        self.asked.append(question)
        answered(question.id, {"value": 2.5}, "", "")


@pytest.fixture
def keys(tmp_path):
    directory = KeyDirectory(tmp_path / "keys")
    directory.create("service", KeyRole.SERVICE)
    for name, role in (("cart", KeyRole.AGENT), ("walker", KeyRole.AGENT), ("eve", KeyRole.VIEWER)):
        directory.create(name, role)
    others = KeyDirectory(tmp_path / "others")
    others.create("cart", KeyRole.AGENT)
    server = ServerKeys.load(directory.path).public

    def client(name, of=directory):
        private = of.private(name)
        return ClientKeys(
            name, private.certificate.public.encode(), private.secret.encode(), server
        )

    return directory.path, client, others


@pytest.fixture
def place(keys):
    """An explainer's request socket, tended by a thread, and a console's connection to it."""
    stop, made = threading.Event(), []

    def tend():
        with Network(keys[0]) as network:
            socket = RequestSocket(network, "tcp://127.0.0.1:*", KEY)
            made.append(socket)
            while not stop.wait(0.01):
                assert list(socket.receive()) == []
            socket.close()

    thread = threading.Thread(target=tend)
    thread.start()
    while not made:
        time.sleep(0.01)
    endpoint = made[0].socket.getsockopt_string(zmq.LAST_ENDPOINT)
    yield endpoint, made[0]
    stop.set()
    thread.join()


def answered(console, links, agent, within_s=5.0):
    """What the console is told, while the shadows attend to their links."""
    name = f"q{time.time_ns()}"
    send_message(console, seal(KEY, AskWhy(name, time.time_ns(), agent)))
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        for link in links:
            link.attend()
        frames = receive_message(console)
        if frames is not None:
            return open_answer(KEY, frames)
        time.sleep(0.01)
    return None


def test_only_the_agents_own_key_is_its_shadow(keys, place):
    folder, client, others = keys
    endpoint, socket = place

    def link(agent, key):
        one = ShadowLink(endpoint, KEY, agent=agent, run_id=f"{agent}-run", actions=(), keys=key)
        one.worker = Worker()
        return one

    strange = [
        link("cart", client("walker")),  # another agent's
        link("cart", client("cart", others)),  # of another directory
        link("cart", client("eve")),  # a viewer's
        link("cart", None),  # none
    ]
    mine = link("cart", client("cart"))
    try:
        with Network(folder) as network:
            console = network.dealer(endpoint)
            for _ in range(30):
                for one in strange:
                    one.attend()
                time.sleep(0.01)
            assert answered(console, strange, "cart").why == "unknown"
            mine.attend()
            until = time.monotonic() + 10
            while (told := answered(console, [mine], "cart")).why == "unknown":
                assert time.monotonic() < until
                time.sleep(0.1)
            assert told.found == {"agent": "cart", "run_id": "cart-run", "value": 2.5}
            assert len(mine.worker.asked) == 1
            assert all(one.worker.asked == [] for one in strange)
            console.close(0)
        assert socket.refused == {}
    finally:
        for one in (*strange, mine):
            one.close()
