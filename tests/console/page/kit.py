"""Pages in a real browser, systems behind them, and an agent that asks before it acts."""

import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from playwright.sync_api import expect

from interlatent_live.agent.control import ApprovalRule
from interlatent_live.console.secrets import load_token
from interlatent_live.control.wire import control_key
from interlatent_live.demo.run import AGENT, RECORDINGS, DemoOptions
from interlatent_live.engine.port import Restart, RestartPolicy, ServiceSpec, service_command
from interlatent_live.feed.client import FeedClient
from interlatent_live.feed.documents import Topic
from interlatent_live.policies.hashing import policy_hash
from interlatent_live.transcoders.native import Provenance, save_transcoder
from tests.support.control_kit import HOOK, TwoLayers, controlled, loaded
from tests.support.system import System

STEPS_S = 30
AXE = Path(__file__).parents[3] / "interlatent_live/console/page/node_modules/axe-core/axe.min.js"
WITHIN_MS = 60_000


class Watched:
    """A page, and everything that a browser complains about while it is open."""

    def __init__(self, browser, url, *, folder, **options):
        options = {"viewport": {"width": 1280, "height": 800}, **options}
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.folder = folder
        self.complaints: list[str] = []
        self.requested: list[str] = []
        self.page.on("console", self._said)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requested.append(request.url))
        self.url = url
        self.page.goto(url)

    def _said(self, message):
        # That an agent sends no picture is an answer, which a browser writes down as an error.
        no_picture = message.location["url"].endswith("/picture") and "404" in message.text
        if message.type in {"error", "warning"} and not no_picture:
            self.complaints.append(message.text)

    def sign_in(self, token=None, *, name="", password=""):
        """By the token, or as somebody with a password."""
        page = self.page
        page.get_by_role("button", name="Sign in").click()
        dialog = page.get_by_role("dialog")
        if token is not None:
            dialog.get_by_label("with the console's token").check()
            dialog.get_by_label("token", exact=True).fill(token)
        else:
            dialog.get_by_label("with name and password").check()
            dialog.get_by_label("name", exact=True).fill(name)
            dialog.get_by_label("password", exact=True).fill(password)
        dialog.get_by_role("button", name="Sign in").click()
        expect(page.locator(".who")).to_be_visible(timeout=WITHIN_MS)

    def picture(self, name):
        """Keep what is on the screen as ``name``.png."""
        self.page.screenshot(path=self.folder / f"{name}.png")

    def barriers(self):
        """Rules of axe-core that the page breaks seriously, each with an element that does."""
        if not AXE.is_file():
            pytest.skip("axe-core is not there; in interlatent_live/console/page: npm ci")
        self.page.evaluate(AXE.read_text())
        return [
            (one["id"], one["nodes"][0]["html"][:200])
            for one in self.page.evaluate("() => axe.run()")["violations"]
            if one["impact"] in {"serious", "critical"}
        ]


class Console(System):
    """All services, and what a person needs to sign in."""

    @property
    def url(self):
        return f"http://{self.settings.console.http}/"

    @property
    def state_folder(self):
        return Path(self.settings.console.state)

    @property
    def token(self):
        return load_token(self.state_folder)


class Demo(Console):
    """The demo's agent and services, and every step of copy 0 as the encoder published it."""

    shadow = False
    """Whether the agent has one."""

    def __init__(self, **flags):
        super().__init__(**{"explainer.calibration": RECORDINGS / "cartpole.mcap", **flags})
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
                    "--control",
                    self.settings.endpoints.control,
                    "--report",
                    str(self.state_folder / "agent.json"),
                    *(("--explainer", self.explainer) if self.shadow else ()),
                    *DemoOptions(steps=10_000_000, copies=4, hz=STEPS_S).agent_arguments(),
                ),
                environment=self.settings.environment(),
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
    def explainer(self):
        return self.settings.endpoints.explainer_requests

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


class WalkerOnItsWay:
    """An agent in a thread that asks a person when it tilts; it can be held, stopped and steered.

    Its first metric is what it did, so an intervention shows there.
    """

    RULE = ApprovalRule("near the edge", "tilt > 0.5", timeout_s=30.0)

    def __init__(self, console, folder, **options):
        self.tilt = 0.0
        self.moved_at = 0.0
        self.boot_id = ""
        self._console, self._folder = console, folder
        self._options = {"approvals": (self.RULE,), "lease_s": 2.0, **options}
        self._ready, self._ended = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._walk, daemon=True)

    def __enter__(self):
        self._thread.start()
        assert self._ready.wait(30)
        return self

    def __exit__(self, *error):
        self._ended.set()
        self._thread.join(20)

    def moves(self):
        """Whether its policy acted in the last moments."""
        return time.monotonic() - self.moved_at < 0.5

    def _walk(self):
        policy = TwoLayers()
        random = np.random.default_rng(0)
        settings = self._console.settings
        with controlled(
            policy,
            self._folder,
            endpoint=settings.endpoints.control,
            key=control_key(self._console.token),
            stream=settings.endpoints.agents,
            **self._options,
        ) as tap:
            tap.move_to_this_thread()
            self.boot_id = tap.boot_id
            self._ready.set()
            number = 0
            while not self._ended.is_set():
                obs = torch.from_numpy(random.normal(size=(1, 2)).astype(np.float32))
                with torch.no_grad():
                    meant = policy(obs).numpy()
                taken = tap.control.gate(meant)
                if (taken != 0).any():
                    self.moved_at = time.monotonic()
                number += 1
                tap.step(
                    [float(taken[0, 0]), self.tilt],
                    terminated=number % 100 == 0,
                    truncated=False,
                )
                time.sleep(0.02)


def walkers_transcoder(folder):
    """The walker's transcoder in a folder that ``encoder.transcoders`` can name."""
    policy = TwoLayers()
    provenance = Provenance(policy_hash=policy_hash(policy), hook_point=HOOK)
    save_transcoder(folder / HOOK, loaded(policy).transcoder, provenance)
    return folder
