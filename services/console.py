"""The console service: follows the feeds and keeps claims, verdicts, costs and narration.

It only looks: nothing waits for it, and a system runs the same without it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from interlatent_live.console.keeper import Keeper
from interlatent_live.console.secrets import load_token, request_key, state_folder
from interlatent_live.explanations.requests import open_answer, seal
from interlatent_live.feed.client import FeedClient
from interlatent_live.feed.documents import Topic
from interlatent_live.logs import get_logger
from interlatent_live.services.network import Network
from interlatent_live.services.runtime import ServiceRuntime
from interlatent_live.store import open_store
from interlatent_live.stream import FeatureBatch
from interlatent_live.wire.keys import ServerKeys
from interlatent_live.wire.sockets import receive_message, send_message

if TYPE_CHECKING:
    import zmq

    from interlatent_live.config import Settings

TOPICS = (Topic.AGENTS, Topic.CLAIMS, Topic.NARRATION, Topic.COSTS)
POLL_S = 0.1


def store_url(settings: Settings) -> str:
    """The configured database, or SQLite in the state folder.

    Raises:
        UserError: when the state folder cannot be made.
    """
    return settings.console.store or f"sqlite:///{state_folder(settings) / 'store.sqlite3'}"


def serve(settings: Settings) -> None:
    """Run until told to stop.

    Raises:
        UserError: when the store cannot be opened, or an address is taken.
    """
    key = request_key(load_token(state_folder(settings)))
    log = get_logger("services.console")
    with (
        ServiceRuntime("console", health=settings.endpoints.console_health) as runtime,
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
        explainer = network.dealer(settings.endpoints.explainer_requests)
        try:
            with FeedClient(settings.endpoints.feeds(), TOPICS, keys=viewer) as client:
                runtime.ready()
                while not runtime.stopping:
                    runtime.beat()
                    _turn(client, keeper, explainer, key)
        finally:
            explainer.close()
            store.close()
        log.info("kept", documents=keeper.kept, not_kept=keeper.not_kept)


def _turn(client: FeedClient, keeper: Keeper, explainer: zmq.Socket[bytes], key: bytes) -> None:
    for event in client.events(POLL_S):
        if not isinstance(event.value, FeatureBatch):
            keeper.take(event.value, client.counters.documents_missed)
    for request in keeper.requests(time.time_ns()):
        send_message(explainer, seal(key, request))
    while (frames := receive_message(explainer)) is not None:
        answer = open_answer(key, frames)
        if answer is not None:
            keeper.answered(answer)
