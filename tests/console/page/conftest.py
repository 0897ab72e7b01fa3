"""A real Chromium, and the whole system with the demo's agent behind the page."""

import shutil
import threading
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

from interlatent_live.bench.page import ARGUMENTS, NAMES
from interlatent_live.demo.run import AGENT, RECORDINGS, DemoOptions
from interlatent_live.engine.port import Restart, RestartPolicy, ServiceSpec, service_command
from interlatent_live.feed.client import FeedClient
from interlatent_live.feed.documents import Topic
from tests.support.system import System

STEPS_S = 30


@pytest.fixture(scope="session")
def chromium():
    path = next((found for name in NAMES if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip("no Chromium; on Debian: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(ARGUMENTS))
        yield browser
        browser.close()


class Watched:
    """A page, and everything that a browser complains about while it is open."""

    def __init__(self, browser, url, **options):
        self.context = browser.new_context(viewport={"width": 1400, "height": 1000}, **options)
        self.page = self.context.new_page()
        self.complaints: list[str] = []
        self.requested: list[str] = []
        self.page.on("console", self._said)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requested.append(request.url))
        self.url = url
        self.page.goto(url)

    def _said(self, message):
        if message.type in {"error", "warning"}:
            self.complaints.append(message.text)


@pytest.fixture
def opened(chromium):
    """Opens pages, and closes them after the test."""
    pages: list[Watched] = []

    def opens(url, **options):
        pages.append(Watched(chromium, url, **options))
        return pages[-1]

    yield opens
    for one in pages:
        one.context.close()


class Demo(System):
    """The demo's agent and services, and every step of copy 0 as the encoder published it."""

    def __init__(self):
        super().__init__(**{"explainer.calibration": RECORDINGS / "cartpole.mcap"})
        self.metrics: dict[tuple[int, int], list[float]] = {}
        self.active: dict[tuple[int, int], set[int]] = {}
        self._ended = threading.Event()
        self._listener = threading.Thread(target=self._listen, daemon=True)

    def __enter__(self):
        super().__enter__()
        self._listener.start()
        self.engine.start(
            ServiceSpec(
                name=AGENT,
                command=service_command(
                    AGENT,
                    "--endpoint",
                    self.settings.endpoints.agents,
                    "--report",
                    str(Path(self.settings.console.state) / "agent.json"),
                    *DemoOptions(steps=10_000_000, copies=4, hz=STEPS_S).agent_arguments(),
                ),
                restart=RestartPolicy(when=Restart.NEVER),
                grace_s=5.0,
                nice=0,
            )
        )
        return self

    def __exit__(self, *error):
        self._ended.set()
        self._listener.join()
        super().__exit__(*error)

    @property
    def url(self):
        return f"http://{self.settings.console.http}/"

    def _listen(self):
        with FeedClient([self.settings.endpoints.encoder_feed], (Topic.FEATURES,)) as client:
            while not self._ended.is_set():
                for event in client.events(0.05):
                    self._keep(event.value)

    def _keep(self, batch):
        (codes,) = batch.codes.values()
        steps = batch.steps
        for row in range(len(steps)):
            if steps.env[row] == 0:
                key = (int(steps.episode[row]), int(steps.t[row]))
                on = codes.index[codes.indptr[row] : codes.indptr[row + 1]]
                self.metrics[key] = steps.metrics[row].tolist()
                self.active[key] = set(on.tolist())


@pytest.fixture(scope="module")
def demo():
    with Demo() as one:
        yield one
