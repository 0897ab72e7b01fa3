"""The console service: follows the feeds, keeps what they say, and tells it over HTTP.

It only looks: nothing waits for it, and a system runs the same without it. The main thread has the
feeds, the keeper and the socket to the explainer; HTTP has a thread and a loop of its own.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from interlatent_live.console.app import TOPICS, Sources, make_app
from interlatent_live.console.asking import Asking
from interlatent_live.console.audit_view import AuditView
from interlatent_live.console.branches import BranchFolder, BranchJobs
from interlatent_live.console.broadcast import Broadcast
from interlatent_live.console.control_link import ControlLink
from interlatent_live.console.exemplar_pictures import Chooser, ExemplarPictures
from interlatent_live.console.history import StepHistory
from interlatent_live.console.keeper import Keeper
from interlatent_live.console.live import LiveHub
from interlatent_live.console.metrics import HttpMetrics
from interlatent_live.console.pictures import TUNING as PICTURE_TUNING
from interlatent_live.console.pictures import PictureHub
from interlatent_live.console.recordings_routes import RecordingReader
from interlatent_live.console.secrets import load_token, request_key, state_folder
from interlatent_live.console.serving import HttpServer
from interlatent_live.console.sessions import Sessions
from interlatent_live.console.state import branch_folder, store_url
from interlatent_live.console.users import Users
from interlatent_live.control.wire import control_key
from interlatent_live.explanations.requests import open_answer, seal
from interlatent_live.feed.client import FeedClient
from interlatent_live.feed.documents import AgentsDocument, Topic
from interlatent_live.feed.pictures import PASSING, TOPIC
from interlatent_live.logs import get_logger
from interlatent_live.queries.client import StatisticsClient
from interlatent_live.services.control import audit_folder
from interlatent_live.services.network import Network
from interlatent_live.services.runtime import ServiceRuntime, explained
from interlatent_live.store import open_store
from interlatent_live.stream import FeatureBatch
from interlatent_live.wire.keys import ServerKeys
from interlatent_live.wire.security import Domain
from interlatent_live.wire.sockets import receive_from, receive_message, send_message
from interlatent_live.zoo.entry import DATA

if TYPE_CHECKING:
    from collections.abc import Callable

    import zmq

    from interlatent_live.config import Settings

POLL_S = 0.1
PICTURES_PER_TURN = 16


def serve(settings: Settings) -> None:
    """Run until told to stop.

    Raises:
        UserError: when the store cannot be opened, or an address is taken.
    """
    state = state_folder(settings)
    token = load_token(state)
    sessions = Sessions(state, token, Users(state))
    log = get_logger("services.console")
    address = settings.console.http
    with (
        ServiceRuntime(
            "console",
            health=settings.endpoints.console_health,
            budget=settings.buffers("console"),
        ) as runtime,
        Network(settings.security.keys) as network,
    ):
        store = open_store(
            store_url(settings),
            runs_kept=settings.console.runs_kept,
            narrations_kept=settings.console.narrations_kept,
        )
        keys = settings.security.keys
        viewer = None if keys is None else ServerKeys.load(keys).client()
        keeper = Keeper(store, lambda why: log.warning("not kept", why=why))
        broadcast = Broadcast(
            most_events=settings.console.replay_events,
            most_bytes=settings.console.replay_bytes,
            most_clients=settings.console.clients,
        )
        live = LiveHub(settings.console.live_bytes)
        asking = Asking()
        explainer = network.dealer(settings.endpoints.explainer_requests)
        queries = settings.endpoints.correlator_queries

        def facts() -> dict[str, Any]:
            health = runtime.health()
            kept = {
                "documents_kept": keeper.kept,
                "documents_not_kept": keeper.not_kept,
                "pictures_refused": eye.pictures.refused,
                "pictures_of_exemplars_dropped": eye.moments.dropped,
            }
            return {name: health[name] for name in ("ready", "live", "uptime_s")} | kept

        control = ControlLink(
            settings.endpoints.control_requests,
            None if network.protected else control_key(token),
            keys=None if keys is None else ServerKeys.load(keys).client(),
        )
        history = StepHistory(settings.console.history_bytes)
        control.told = history.told
        eye = _Eye(settings, network)
        statistics = partial(StatisticsClient, queries, keys=viewer)
        folder = settings.console.recordings or settings.recorder.folder
        recordings = None if folder is None else RecordingReader(folder)
        branches = branch_folder(settings)
        jobs = BranchJobs(
            branches, DATA / "policies", (*settings.encoder.transcoders, DATA / "transcoders")
        )
        sources = Sources(
            store,
            broadcast,
            live,
            asking,
            token,
            statistics,
            facts,
            sessions,
            control,
            AuditView(audit_folder(settings)),
            history,
            eye.pictures,
            moments=eye.moments,
            recordings=recordings,
            branches=(BranchFolder(branches), jobs),
        )
        try:
            with explained("the console", address, "console.http"):
                server = HttpServer(
                    HttpMetrics(make_app(sources), broadcast, runtime.registry),
                    address,
                    (broadcast, live, control),
                    feeds=settings.console.clients,
                )
            feeds = settings.endpoints.feeds()
            with (
                control,
                server,
                Chooser(eye.moments, statistics),
                FeedClient(feeds, tuple(TOPICS), keys=viewer) as feed,
            ):
                key = request_key(token)
                loop = _Loop(
                    feed, keeper, broadcast, live, history, asking, explainer, key, runtime.beat,
                    eye,
                )  # fmt: skip
                runtime.ready(http=server.url)
                while not runtime.stopping:
                    loop.turn()
                    if not server.alive:
                        raise RuntimeError("the HTTP server has ended by itself")
        finally:
            jobs.close()
            if recordings is not None:
                recordings.close()
            explainer.close()
            eye.close()
            store.close()
        log.info("kept", documents=keeper.kept, not_kept=keeper.not_kept)


@dataclass(slots=True)
class _Loop:
    """What the main thread does, again and again."""

    feed: FeedClient
    keeper: Keeper
    broadcast: Broadcast
    live: LiveHub
    history: StepHistory
    asking: Asking
    explainer: zmq.Socket[bytes]
    key: bytes
    beat: Callable[[], None]
    eye: _Eye
    watched: bool = False

    def turn(self) -> None:
        self.beat()
        if (self.live.watched or self.history.wanted) != self.watched:
            # Steps are a hundred times the traffic of all else: heard only while a page shows them,
            # or an intervention is in force that they may be compared with.
            self.watched = not self.watched
            self.feed.subscribe(Topic.FEATURES, wanted=self.watched)
        for event in self.feed.events(POLL_S):
            # Keeping a document waits for the disk, and a turn can have thousands of them.
            self.beat()
            if isinstance(event.value, FeatureBatch):
                self.live.take(event.value)
                self.history.take(event.value)
            else:
                if isinstance(event.value, AgentsDocument):
                    self.history.describe(event.value)
                    self.eye.pictures.describe(event.value)
                self.broadcast.publish(event.topic, event.received_ns, event.value)
                self.keeper.take(event.value, self.feed.counters.documents_missed)
        self.eye.look()
        for request in (*self.keeper.requests(time.time_ns()), *self.asking.requests()):
            send_message(self.explainer, seal(self.key, request))
        while (frames := receive_message(self.explainer)) is not None:
            answer = open_answer(self.key, frames)
            if answer is not None and not self.asking.answered(answer):
                self.keeper.answered(answer)


class _Eye:
    """Pictures of agents: the newest ones, those of exemplars, and all of them to a recorder."""

    def __init__(self, settings: Settings, network: Network) -> None:
        self.pictures = PictureHub()
        self.moments = ExemplarPictures(settings.console.picture_bytes)
        self._network = network
        endpoints = settings.endpoints
        self._in = network.router(
            endpoints.pictures, "endpoints.pictures", Domain.AGENTS, PICTURE_TUNING
        )
        self._on = network.publisher(endpoints.pictures_feed, "endpoints.pictures_feed", PASSING)

    def look(self) -> None:
        """Take in the pictures that came, and pass them on."""
        while receive_message(self._on) is not None:
            pass  # subscriptions, which the socket itself obeys
        for _ in range(PICTURES_PER_TURN):
            received = receive_from(self._in, protected=self._network.protected)
            if received is None:
                return
            if not self._network.allows(received.user_id):
                continue
            shown = self.pictures.take(received.frames, received.user_id)
            if shown is not None:
                one = shown.picture
                self.moments.offer(shown.run_id, one.boot_id, one.env, one.seq, bytes(one.jpeg))
                send_message(self._on, [f"{TOPIC}{one.boot_id}".encode(), *received.frames])

    def close(self) -> None:
        """Close the sockets."""
        self._in.close()
        self._on.close()
