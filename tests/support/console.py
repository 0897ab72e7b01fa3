"""A console over real sockets without its process: store, ring, and an explainer's answers."""

import threading
import time
from contextlib import ExitStack

from interlatent_live.console.app import Sources, make_app
from interlatent_live.console.asking import Asking
from interlatent_live.console.broadcast import Broadcast
from interlatent_live.console.live import LiveHub
from interlatent_live.console.serving import HttpServer
from interlatent_live.explanations.requests import Refused
from interlatent_live.feed.documents import Topic
from interlatent_live.store import open_store
from tests.support.feeds import narration_document

TOKEN = "t" * 43


class RunningConsole:
    """Serves while it is entered; ``answer`` says what the explainer says to a request."""

    def __init__(
        self, folder, *, address="127.0.0.1:0", most_events=50, control=None, sessions=None,
        audit=None, recordings=None, branches=None,
    ):  # fmt: skip
        self.store = open_store(f"sqlite:///{folder}/store.sqlite3")
        self.broadcast = Broadcast(most_events=most_events)
        self.asking = Asking()
        self.answer = lambda request: Refused(request.id, "refused", "not today")
        self.asked = []
        live = LiveHub()
        sources = Sources(
            self.store, self.broadcast, live, self.asking, TOKEN, None, self._health,
            sessions, control, audit, recordings=recordings, branches=branches,
        )  # fmt: skip
        self._control = control
        endless = (self.broadcast, live) if control is None else (self.broadcast, live, control)
        self._server = HttpServer(make_app(sources), address, endless, feeds=8)
        self.url = self._server.url
        self.address = self.url.removeprefix("http://")
        self._stop = threading.Event()
        self._explainer = threading.Thread(target=self._explain)
        self._stack = ExitStack()

    def __enter__(self):
        if self._control is not None:
            self._stack.enter_context(self._control)
        self._stack.enter_context(self._server)
        self._explainer.start()
        return self

    def __exit__(self, *error):
        self._stop.set()
        self._explainer.join()
        self._stack.close()
        self.store.close()

    def say(self, *texts):
        for text in texts:
            self.broadcast.publish(Topic.NARRATION, 9, narration_document(text))

    def _health(self):
        return {"ready": True}

    def _explain(self):
        while not self._stop.is_set():
            for request in self.asking.requests():
                self.asked.append(request)
                self.asking.answered(self.answer(request))
            time.sleep(0.005)
