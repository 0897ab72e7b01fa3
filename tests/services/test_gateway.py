"""The gateway with real sockets and shards that are played by the test."""

import time
from contextlib import ExitStack

import pytest
import zmq

from interlatent_live.config import on_free_ports, resolve
from interlatent_live.engine.leases import Claim
from interlatent_live.engine.slots import SLOTS, slot_of, slots_text
from interlatent_live.feed.client import FeedClient
from interlatent_live.feed.documents import AgentsDocument, ProfilesDocument, Topic
from interlatent_live.queries import messages as m
from interlatent_live.queries.codec import (
    decode_reply,
    decode_request,
    encode_answer,
    encode_request,
)
from interlatent_live.services.claiming import Claimant
from interlatent_live.services.gateway import Gateway
from interlatent_live.services.network import Network
from interlatent_live.services.publishing import FeedPublisher
from interlatent_live.wire.codec import decode, encode_hello, encode_message
from interlatent_live.wire.messages import Heartbeat, Refuse
from interlatent_live.wire.security import Domain
from interlatent_live.wire.sockets import receive_from, receive_message, send_message, send_to
from tests.support.feature_stream import manifest

ALL = slots_text(range(SLOTS))


class FakeShard:
    """A start of a shard: sockets like its services', and claims."""

    def __init__(self, network, base, shard, epoch, slots=ALL):
        self.network, self.base = network, base
        own = on_free_ports(base).endpoints
        self.agents = network.router(own.agents, "agents", Domain.AGENTS)
        self.queries = network.router(own.correlator_queries, "queries", Domain.FEED)
        self.encoder = FeedPublisher(network, own.encoder_feed, "encoder")
        self.correlator = FeedPublisher(network, own.correlator_feed, "correlator")
        claim = Claim(
            shard,
            epoch,
            slots,
            own.agents,
            own.encoder_feed,
            own.correlator_feed,
            own.correlator_queries,
        )
        self.claimant = Claimant(network, base.endpoints.correlator, claim)

    def turn(self):
        self.claimant.turn(0.0)
        self.encoder.welcome_viewers()
        self.correlator.welcome_viewers()

    def says(self, run_id, steps):
        document = ProfilesDocument(
            run_id=run_id,
            boot_id="boot",
            hook_point="net.0",
            transcoder="sha256:" + "1" * 64,
            processed_seq=steps,
            steps=steps,
            features=[],
            published_ns=0,
            lost={},
        )
        self.correlator.documents(Topic.PROFILES, document, key=run_id)

    def close(self):
        self.claimant.close()
        self.encoder.close()
        self.correlator.close()
        self.agents.close()
        self.queries.close()


class Stage:
    def __init__(self):
        base = resolve(flags={"logging.level": "warning"}, environment={}).settings
        self.settings = on_free_ports(base)
        self.stack = ExitStack()
        self.shards = []
        self.seen = []

    def __enter__(self):
        self.network = self.stack.enter_context(Network(None))
        self.gateway = Gateway(self.settings, self.network)
        self.stack.callback(self.gateway.close)
        feeds = (self.settings.endpoints.encoder_feed, self.settings.endpoints.correlator_feed)
        self.viewer = self.stack.enter_context(FeedClient(feeds))
        return self

    def __exit__(self, *error):
        self.stack.close()

    def shard(self, name, epoch, slots=ALL):
        shard = FakeShard(self.network, self.settings, name, epoch, slots)
        self.shards.append(shard)
        self.stack.callback(shard.close)
        return shard

    def until(self, condition, timeout_s=10.0):
        deadline = time.monotonic() + timeout_s
        while not (found := condition()):
            assert time.monotonic() < deadline
            self.gateway.turn()
            for shard in self.shards:
                shard.turn()
            self.seen += [event.value for event in self.viewer.events(0.0)]
        return found

    def steps(self, run_id):
        """In their order, without repeats: who joins may be sent what was just published again."""
        own = [one for one in self.seen if isinstance(one, ProfilesDocument)]
        return list(dict.fromkeys(one.steps for one in own if one.run_id == run_id))


@pytest.fixture
def stage():
    with Stage() as stage:
        yield stage


def test_what_a_zombie_says_of_a_run_that_has_a_newer_owner_is_refused(stage):
    mine, other = "run-1", "run-2"
    assert slot_of(mine) != slot_of(other)
    zombie = stage.shard("shard-0", 1)
    stage.until(lambda: zombie.claimant.verdict)
    zombie.says(mine, 10)
    stage.until(lambda: stage.steps(mine) == [10])
    successor = stage.shard("shard-1", 2, slots_text({slot_of(mine)}))
    stage.until(lambda: successor.claimant.verdict)
    # It still owns the other run, so it is still listened to.
    zombie.says(mine, 11)
    successor.says(mine, 20)
    zombie.says(other, 30)
    stage.until(lambda: stage.steps(other) and len(stage.steps(mine)) == 2)
    assert stage.steps(mine) == [10, 20]
    assert stage.steps(other) == [30]
    assert stage.gateway.feeds.fenced >= 1
    assert not zombie.claimant.verdict.fenced


def test_an_earlier_start_is_told_that_it_is_over(stage):
    first = stage.shard("shard-0", 1)
    stage.until(lambda: first.claimant.verdict)
    assert not first.claimant.verdict.fenced
    second = stage.shard("shard-0", 2)
    stage.until(lambda: first.claimant.verdict.fenced)
    assert not second.claimant.verdict.fenced
    assert stage.gateway.claims.fenced >= 1
    second.says("run-1", 5)
    stage.until(lambda: stage.steps("run-1") == [5])


def test_agents_reach_the_shard_of_their_run_and_are_told_when_it_is_another(stage):
    run = "run-1"
    agent = stage.network.dealer(stage.settings.endpoints.agents)
    hello = encode_hello(manifest(run=run))
    send_message(agent, hello)
    stage.until(lambda: stage.gateway.agents.connections == 1)  # held: there is no shard yet
    first = stage.shard("shard-0", 1)
    got = stage.until(lambda: receive_from(first.agents, protected=False))
    assert decode(got.frames).manifest == manifest(run=run)
    send_to(first.agents, got.peer, encode_message(Heartbeat(sent_ns=7)))
    assert decode(stage.until(lambda: receive_message(agent))) == Heartbeat(sent_ns=7)
    second = stage.shard("shard-0", 2)
    refused = decode(stage.until(lambda: receive_message(agent)))
    assert isinstance(refused, Refuse)
    assert refused.reason == "hello"  # as an encoder says that was restarted
    agent.close()
    agent = stage.network.dealer(stage.settings.endpoints.agents)
    send_message(agent, encode_message(Heartbeat(sent_ns=1)))
    assert decode(stage.until(lambda: receive_message(agent))).reason == "hello"
    send_message(agent, hello)
    # A run of another slot on the same connection stays with the first one.
    send_message(agent, encode_hello(manifest(run="run-2", boot="boot-2")))
    stage.until(lambda: receive_from(second.agents, protected=False))
    stage.until(lambda: receive_from(second.agents, protected=False))
    assert stage.gateway.leases.strays() == {"run-2": slot_of(run)}
    stage.until(lambda: second.claimant.verdict.strays == {"run-2": slot_of(run)})
    agent.close()


def test_an_agent_that_nobody_has_answered_is_handed_to_the_next_start(stage):
    gone = stage.shard("shard-0", 1)  # as one whose node died: it claims no more and answers nobody
    stage.until(lambda: gone.claimant.verdict)
    agent = stage.network.dealer(stage.settings.endpoints.agents)
    send_message(agent, encode_hello(manifest(run="run-1")))
    stage.until(lambda: stage.gateway.agents.connections == 1)
    stage.shards.remove(gone)
    successor = stage.shard("shard-0", 2)
    got = stage.until(lambda: receive_from(successor.agents, protected=False))
    assert decode(got.frames).manifest == manifest(run="run-1")
    assert receive_message(agent) is None
    agent.close()


def run_item(run):
    return m.RunItem(
        run_id=run, agent="a", environment="", policy_hash="", boots=1, rows=1, ended=False,
        hook_points=[], metrics=[],
    )  # fmt: skip


def test_questions_go_to_the_owner_and_lists_are_put_together(stage):
    runs = ("run-1", "run-2")
    shards = [
        stage.shard(f"shard-{i}", i + 1, slots_text({slot_of(run)})) for i, run in enumerate(runs)
    ]
    stage.until(lambda: all(one.claimant.verdict for one in shards))
    asking = stage.network.dealer(stage.settings.endpoints.correlator_queries)
    send_message(asking, encode_request(41, m.Runs()))
    for shard in shards:
        got = stage.until(lambda one=shard: receive_from(one.queries, protected=False))
        request = decode_request(got.frames)
        # Both say that they have both; each is believed of its own.
        answer = m.RunsAnswer(items=[run_item(run) for run in runs], next_cursor=None, matched=2)
        send_to(shard.queries, got.peer, encode_answer(request.id, answer))
    reply, _ = decode_reply(stage.until(lambda: receive_message(asking)))
    assert reply.id == 41
    assert sorted(one.run_id for one in reply.answer.items) == sorted(runs)
    send_message(asking, encode_request(42, m.HookPoints(run="run-2")))
    got = stage.until(lambda: receive_from(shards[1].queries, protected=False))
    request = decode_request(got.frames)
    assert request.question.run == "run-2"
    nothing = m.HookPointsAnswer(items=[], next_cursor=None, matched=0)
    send_to(shards[1].queries, got.peer, encode_answer(request.id, nothing))
    reply, _ = decode_reply(stage.until(lambda: receive_message(asking)))
    assert (reply.id, reply.answer) == (42, nothing)
    send_message(asking, encode_request(43, m.HookPoints(run="nobody")))
    reply, _ = decode_reply(stage.until(lambda: receive_message(asking)))
    assert reply.refused == "busy"
    asking.close()


def test_the_agents_of_all_shards_are_one_list(stage):
    shards = [stage.shard(f"shard-{i}", i + 1) for i in range(2)]
    stage.until(lambda: all(one.claimant.verdict for one in shards))
    for shard in shards:
        document = AgentsDocument(agents=[], service={"agents_known": 2}, published_ns=0)
        shard.encoder.documents(Topic.AGENTS, document)

    def newest():
        return [one for one in stage.seen if isinstance(one, AgentsDocument)][-1:]

    # The first one owns no slot any more, and is not listened to.
    stage.until(lambda: newest() and newest()[0].service["shards"] == ["shard-1"])
    assert newest()[0].service["agents_known"] == 2


def test_nonsense_at_the_claims_ends_nothing(stage):
    stranger = stage.network.dealer(stage.settings.endpoints.correlator)
    send_message(stranger, [b"\xc1", b"?"])
    bad = Claimant(stage.network, stage.settings.endpoints.correlator, Claim("x", 1, "zz"))
    away = Claim("x", 1, ALL, "tcp://192.0.2.1:1", "", "", "")
    elsewhere = Claimant(stage.network, stage.settings.endpoints.correlator, away)
    until = time.monotonic() + 0.5
    while time.monotonic() < until:
        stage.gateway.turn()
        bad.turn(0.0)
        elsewhere.turn(0.0)
    assert bad.verdict is None
    assert elsewhere.verdict is None
    assert stage.gateway.leases.holder(0) is None
    for one in (bad, elsewhere):
        one.close()
    stranger.setsockopt(zmq.LINGER, 0)
    stranger.close()
