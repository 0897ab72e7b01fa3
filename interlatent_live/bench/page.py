"""``interlatent-live bench page``: frames, memory, first view and weight of the console's page.

The console's own application serves the page in this process and is fed what a busy agent would
send: 20 metrics and 256 features, 30 messages a second, with the full history of points behind
every chart. A real Chromium draws it. Its frame rate on an empty page of the same size, in the same
run, is the reference: where nothing is drawn it can do no better. Needs Playwright and Chromium.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np

from interlatent_live.bench.progress import progress_bar
from interlatent_live.bench.report import BenchReport, bench_report, bench_row, median
from interlatent_live.console.app import Sources, make_app
from interlatent_live.console.asking import Asking
from interlatent_live.console.broadcast import Broadcast
from interlatent_live.console.built_page import built_page
from interlatent_live.console.control_link import ControlLink
from interlatent_live.console.live import LiveHub
from interlatent_live.console.serving import HttpServer
from interlatent_live.errors import UserError
from interlatent_live.feed.documents import (
    AgentsDocument,
    AgentStatus,
    HookPointStatus,
    Percentiles,
    Topic,
)
from interlatent_live.queries.client import StatisticsClient
from interlatent_live.store import open_store
from interlatent_live.stream import FeatureBatch, SparseCodes, steps_without_columns

if TYPE_CHECKING:
    from collections.abc import Iterator

NAMES: Final = ("chromium", "chromium-browser", "google-chrome", "chrome")
ARGUMENTS: Final = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-precise-memory-info",
)
METRICS: Final = 20
FEATURES: Final = 256
ACTIVE: Final = 32
MESSAGES_HZ: Final = 30
HISTORY_S: Final = 60
NOBODY: Final = "tcp://127.0.0.1:9"
"""Where no service answers: the agent's view asks no statistics, and nobody commands."""
STEPS_HZ: Final = 60
"""So that a minute is 3,600 points."""
SEED: Final = 11
FRAMES_IN = """seconds => new Promise(done => {
  const times = []; const end = performance.now() + 1000 * seconds;
  const turn = now => { times.push(now); now < end ? requestAnimationFrame(turn) : done(times); };
  requestAnimationFrame(turn);
})"""


def run(*, quick: bool = False) -> BenchReport:
    """Measure; ``quick`` watches the memory for 20 seconds rather than 10 minutes.

    Raises:
        UserError: without Playwright or Chromium.
    """
    repeats, watched_s, frames_s = (3, 20.0, 5.0) if quick else (5, 600.0, 20.0)
    with ExitStack() as stack:
        begin = stack.enter_context(progress_bar(4))
        begin("starting Chromium")
        browser = stack.enter_context(_chromium())
        agent = stack.enter_context(_Agent())
        begin("first view")
        views = [_first_view(browser, agent.url) for _ in range(repeats)]
        begin("frames")
        bound = _frames(_empty(browser), frames_s)
        page = _watching(browser, agent)
        frames = _frames(page, frames_s)
        begin(f"memory, {watched_s:.0f} s")
        heap, nodes = _memory(page, watched_s)
        late = _frames(page, frames_s)
    weight = sum(len(one.gzipped) for name, one in built_page().items() if name != "index.html")
    shown = f"{METRICS} charts of {HISTORY_S * STEPS_HZ:,} points, {FEATURES} features, 30 Hz"
    return bench_report(
        "page",
        [
            bench_row(
                f"frames a second: {shown}", _rate(frames), "1/s",
                reference="an empty page", reference_value=_rate(bound), goal="ratio >= 0.97",
            ),
            bench_row(
                "the same, after the memory was watched", _rate(late), "1/s",
                reference="an empty page", reference_value=_rate(bound), goal="ratio >= 0.97",
            ),
            bench_row(
                "99th percentile between two frames", _p99(frames), "ms",
                reference="an empty page", reference_value=_p99(bound), goal="shown",
            ),
            bench_row(
                f"growth of the script's memory in {watched_s:.0f} s", heap, "MB",
                reference="megabytes allowed", reference_value=1.0, goal="value <= 1",
            ),
            bench_row(
                "growth of the number of elements", float(nodes), "elements",
                reference="elements allowed", reference_value=50.0, goal="ratio <= 1",
            ),
            bench_row(
                f"first view, median of {repeats}, nothing kept", median(views), "s",
                reference="seconds allowed", reference_value=1.5, goal="ratio <= 1",
            ),
            bench_row(
                "weight of the page, gzipped", weight / 1000, "kB",
                reference="kB allowed", reference_value=500.0, goal="ratio <= 1",
            ),
        ],
        notes=[f"Chromium {browser.version} without a GPU, all on one processor, 1400 × 1000"],
    )  # fmt: skip


@contextmanager
def _chromium() -> Iterator[Any]:
    path = next((found for name in NAMES if (found := shutil.which(name))), None)
    try:
        from playwright.sync_api import sync_playwright  # noqa: PLC0415 - only this bench needs it
    except ImportError as error:
        raise UserError("bench page needs Playwright: pip install playwright") from error
    if path is None:
        raise UserError("bench page needs Chromium; on Debian: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(ARGUMENTS))
        yield browser
        browser.close()


class _Agent:
    """A console that is fed by a busy agent of our own making."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="interlatent-page-")
        self._store = open_store(f"sqlite:///{self._folder.name}/store.sqlite3")
        self._hub = LiveHub()
        self._broadcast = Broadcast()
        self._control = ControlLink(NOBODY, bytes(32))
        sources: Any = Sources(
            store=self._store,
            broadcast=self._broadcast,
            live=self._hub,
            asking=Asking(),
            token="t" * 43,
            statistics=lambda: StatisticsClient(NOBODY, timeout_s=0.2),
            health=dict,
            control=self._control,
        )
        self._server = HttpServer(
            make_app(sources), "127.0.0.1:0", (self._broadcast, self._hub, self._control), feeds=8
        )
        self.url = self._server.url + "/"
        self._random = np.random.default_rng(SEED)
        self._steps = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._act, daemon=True)

    def __enter__(self) -> Self:
        self._control.__enter__()
        self._server.__enter__()
        self._hub.take(self._batch(HISTORY_S * STEPS_HZ))
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()
        self._server.__exit__(None, None, None)
        self._control.__exit__()
        self._store.close()
        self._folder.cleanup()

    def _act(self) -> None:
        due, said = time.monotonic(), 0.0
        while not self._ended.wait(max(0.0, due - time.monotonic())):
            self._hub.take(self._batch(STEPS_HZ // MESSAGES_HZ))
            due += 1 / MESSAGES_HZ
            if time.monotonic() - said > 1.0:
                said = time.monotonic()
                self._broadcast.publish(Topic.AGENTS, time.time_ns(), self._document())

    def _batch(self, n: int) -> FeatureBatch:
        steps = steps_without_columns(n, METRICS, self._steps)
        number = np.arange(self._steps, self._steps + n)
        self._steps += n
        steps.t[:] = number
        steps.time_ns[:] = time.time_ns() - ((n - 1 - np.arange(n)) * 1e9 / STEPS_HZ).astype(int)
        phase = number[:, None] / (20 + 10 * np.arange(METRICS))
        steps.metrics[:] = np.sin(phase) + 0.1 * self._random.normal(size=(n, METRICS))
        index = np.argsort(self._random.random((n, FEATURES)), axis=1)[:, :ACTIVE]
        codes = SparseCodes(
            n_features=FEATURES,
            indptr=np.arange(0, n * ACTIVE + 1, ACTIVE, dtype=np.uint32),
            index=np.sort(index, axis=1).astype(np.uint32).ravel(),
            value=self._random.exponential(size=n * ACTIVE).astype(np.float32),
            error=np.zeros(n, np.float32),
            error_affine=np.zeros(n, np.float32),
        )
        return FeatureBatch("run", "boot", steps, {"net": codes}, {"net": "sha256:0"})

    def _document(self) -> AgentsDocument:
        status = AgentStatus(
            agent="busy",
            run_id="run",
            boot_id="boot",
            environment="",
            policy_hash="sha256:0",
            env_count=1,
            control_hz=float(STEPS_HZ),
            actions=[],
            metrics=[{"name": f"metric_{i}", "unit": "m", "role": "state"} for i in range(METRICS)],
            hook_points=[HookPointStatus("net", "sha256:0", FEATURES, 0.1, 0.2, 1)],
            steps_received=self._steps,
            steps_encoded=self._steps,
            dropped_declared={},
            gaps_undeclared=0,
            duplicates=0,
            steps_per_second=float(STEPS_HZ),
            step_to_feature_ms=Percentiles(1.0, 2.0),
            last_step_ns=time.time_ns(),
            ended=False,
        )
        return AgentsDocument([status], {}, time.time_ns())


def _first_view(browser: Any, url: str) -> float:
    """Seconds from asking for the page to an agent on it."""
    context = browser.new_context(viewport={"width": 1400, "height": 1000})
    page = context.new_page()
    began = time.perf_counter()
    page.goto(url, wait_until="commit")
    page.wait_for_selector(".fleet .card")
    taken = time.perf_counter() - began
    context.close()
    return taken


def _empty(browser: Any) -> Any:
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    page.goto("about:blank")
    return page


def _watching(browser: Any, agent: _Agent) -> Any:
    """The agent's view with every chart and the whole history on it."""
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    page.goto(f"{agent.url}#/agent/run/net")
    page.locator(".chooser summary").click()
    for box in page.locator(".chooser input").all():
        box.check()
    page.wait_for_function(
        f"document.querySelectorAll('.chart canvas').length === {METRICS}"
        f" && document.querySelector('.raster canvas')?.height === {FEATURES}"
    )
    page.wait_for_timeout(2000)
    return page


def _frames(page: Any, seconds: float) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Milliseconds between displayed frames."""
    page.bring_to_front()
    return np.diff(np.asarray(page.evaluate(FRAMES_IN, seconds), np.float64))


def _rate(frames: np.ndarray[Any, np.dtype[np.float64]]) -> float:
    return float(1000 / frames.mean())


def _p99(frames: np.ndarray[Any, np.dtype[np.float64]]) -> float:
    return float(np.percentile(frames, 99))


def _memory(page: Any, seconds: float) -> tuple[float, int]:
    """Growth of the heap (MB, after collecting garbage) and of the number of elements."""
    session = page.context.new_cdp_session(page)

    def now() -> tuple[float, int]:
        session.send("HeapProfiler.collectGarbage")
        used = session.send("Runtime.getHeapUsage")["usedSize"]
        return used / 1e6, page.evaluate("document.querySelectorAll('*').length")

    before = now()
    page.wait_for_timeout(1000 * seconds)
    after = now()
    return after[0] - before[0], after[1] - before[1]
