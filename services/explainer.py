"""The explainer service: features in, checked claims and a running account of the agent out.

The loop's thread only moves messages; a worker thread thinks, one unit at a time, and a second one
waits for language models where one was chosen. Rows count as processed when the worker has taken
them in, so their credit bounds what can pile up.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from functools import partial
from typing import TYPE_CHECKING

from interlatent_live.console.secrets import load_token, request_key, state_folder
from interlatent_live.errors import UserError
from interlatent_live.explanations import ExplainerConfig
from interlatent_live.explanations.requests import carry_out
from interlatent_live.feed.client import FeedClient
from interlatent_live.feed.documents import (
    AlertsDocument,
    ClaimsDocument,
    NarrationDocument,
    Topic,
)
from interlatent_live.logs import get_logger
from interlatent_live.pipeline.calibration import load_calibrations
from interlatent_live.pipeline.explainer import ExplainerCore, Pace, calibrations_from
from interlatent_live.pipeline.looks import load_looks
from interlatent_live.pipeline.tracing import NO_CLAIMS, ClaimTraces
from interlatent_live.services.explainer_metrics import ExplainerMetrics
from interlatent_live.services.network import Network
from interlatent_live.services.receiver_service import FeatureService
from interlatent_live.services.requests import RequestSocket
from interlatent_live.services.runtime import ServiceRuntime
from interlatent_live.services.tracing import Tracing
from interlatent_live.services.writing import WriterThread
from interlatent_live.services.writing_metrics import WriterMetrics
from interlatent_live.wire.keys import ServerKeys

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from interlatent_live.config import Settings
    from interlatent_live.explanations.requests import Answer, Request
    from interlatent_live.services.publishing import FeedPublisher
    from interlatent_live.services.receiver_service import Losses
    from interlatent_live.stream import FeatureBatch, Manifest

IDLE_S = 0.02
PROFILES_AT_ONCE = 4
COSTS_EVERY_S = 2.0


def serve(settings: Settings) -> None:
    """Run the explainer until it is told to stop.

    Raises:
        UserError: when an endpoint is taken, a calibration cannot be read, or the chosen writer
            lacks its key or model.
    """
    with (
        ServiceRuntime(
            "explainer",
            health=settings.endpoints.explainer_health,
            budget=settings.buffers("explainer"),
        ) as runtime,
        Network(settings.security.keys) as network,
        Tracing(settings, "explainer", runtime.registry) as tracing,
    ):
        shell = ExplainerShell(settings, ClaimTraces(tracing.every, tracing.emit))
        service = FeatureService("explainer", settings, network, shell)
        requests = _request_socket(settings, network)
        shell.requests = requests
        shell.alerts = alerts = _alerts(settings)
        try:
            claims = shell.prepare()
            shell.metrics = ExplainerMetrics(lambda: shell.evidence_bytes, runtime.registry)
            if shell.words is not None:
                WriterMetrics(shell.words.costs, runtime.registry)
            runtime.ready(writer=shell.writer, claims_prepared=claims)
            with shell:
                service.run(runtime, alive=shell.check)
        finally:
            alerts.close()
            if requests is not None:
                requests.close()
            service.close()


def _alerts(settings: Settings) -> FeedClient:
    """The correlator's word on alerts and drift; one that is not there yet is waited for."""
    keys = settings.security.keys
    viewer = None if keys is None else ServerKeys.load(keys).client()
    return FeedClient([settings.endpoints.correlator_feed], [Topic.ALERTS], keys=viewer)


def _request_socket(settings: Settings, network: Network) -> RequestSocket | None:
    """Where people's claims come in; without a place for the secret, explaining goes on alone."""
    try:
        key = request_key(load_token(state_folder(settings)))
    except UserError as error:
        get_logger("services.explainer").warning("no claims by people", why=str(error))
        return None
    return RequestSocket(network, settings.endpoints.explainer_requests, key)


class ExplainerShell:
    """Threads and queues around the core."""

    def __init__(self, settings: Settings, traces: ClaimTraces = NO_CLAIMS) -> None:
        options = settings.explainer
        self._log = get_logger("services.explainer")
        self._traces = traces
        self._words = WriterThread(options, self._traces) if options.writer != "builtin" else None
        self._second_opinion = options.second_opinion
        if self._second_opinion and self._words is None:
            raise UserError(
                "explainer.second_opinion needs a language model: set explainer.writer to openai "
                "or anthropic, or leave it out"
            )
        self.writer = self._words.name if self._words else "built-in (no LLM)"
        recordings = () if options.calibration is None else (options.calibration,)
        looks = load_looks(options.looks) if options.looks else None
        for run in () if looks is None else looks.incomplete:
            self._log.warning("recorded looks are not all known: scored in its own time", run=run)
        self._core = ExplainerCore(
            ExplainerConfig(
                null_draws=options.null_draws,
                seed=options.seed,
                limit_bytes=settings.limits.evidence_bytes,
                block_steps=options.block_steps,
            ),
            calibrations=calibrations_from(load_calibrations(recordings)),
            pace=Pace(narrate_s=options.narrate_every_s, narrate_gap_s=options.narrate_gap_s),
            writer=self.writer,
            words=self._words is not None,
            clock=time.time_ns,
            looks=looks,
            cost_of=self._words.cost_of if self._words else lambda _: None,
        )
        self._events: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._processed: deque[str] = deque()
        self._documents: deque[ClaimsDocument | NarrationDocument] = deque(maxlen=1000)
        self.requests: RequestSocket | None = None
        self.alerts: FeedClient | None = None
        """Where the correlator tells of alerts and drift."""
        self.metrics: ExplainerMetrics | None = None
        self._answers: deque[Answer] = deque()
        self._evidence_bytes = 0
        self._costs_due = 0.0
        self._stop = threading.Event()
        self._crash: BaseException | None = None
        self._worker = threading.Thread(target=self._think, name="think", daemon=True)

    @property
    def words(self) -> WriterThread | None:
        """Who asks a language model; None with the built-in writer."""
        return self._words

    @property
    def evidence_bytes(self) -> int:
        """Bytes of all rows that are held, as the worker last counted them."""
        return self._evidence_bytes

    def prepare(self) -> int:
        """Propose claims from the configured calibration; returns how many there are."""
        return self._core.prepare()

    def __enter__(self) -> None:
        self._worker.start()
        if self._words is not None:
            self._words.start()

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._worker.join(timeout=5.0)
        if self._words is not None:
            self._words.stop()

    def check(self) -> None:
        """Pass on a crash of the worker: a service that cannot think must not look healthy."""
        if self._crash is not None:
            raise self._crash

    # -- the loop's thread -------------------------------------------------------------------------

    def hello(self, manifest: Manifest, transcoders: Mapping[str, str]) -> None:
        """A run begins or goes on."""
        self._events.put(lambda: self._core.hello(manifest, transcoders))

    def features(self, batch: FeatureBatch) -> bool:
        """Hand rows to the worker; they are done with when it has taken them."""
        self._traces.rows.arrived(batch.boot_id, batch.steps)

        def take() -> None:
            try:
                self._core.features(batch)
                self._traces.taken(batch)
            finally:
                self._processed.append(batch.boot_id)

        self._events.put(take)
        return False

    def goodbye(self, boot_id: str) -> None:
        """A run ended."""
        self._events.put(lambda: self._core.goodbye(boot_id))

    def turn(self, feed: FeedPublisher, lost: Losses) -> list[str]:
        """Publish what the worker found; returns the streams whose oldest rows are done with."""
        del lost  # claims are scored on what arrived; the correlator shows what did not
        self._pass_requests_on()
        self._pass_alerts_on()
        while self._documents:
            document = self._documents.popleft()
            if self.metrics is not None:
                self.metrics.note(document)
            if isinstance(document, ClaimsDocument):
                key = f"{document.run_id}/{document.hook_point}"
                feed.documents(Topic.CLAIMS, document, key=key)
            else:
                key = f"{document.run_id}/{document.env}"
                feed.documents(Topic.NARRATION, document, key=key)
        if self._words is not None and time.monotonic() >= self._costs_due:
            self._costs_due = time.monotonic() + COSTS_EVERY_S
            feed.documents(Topic.COSTS, self._words.costs(), key="costs")
        done = []
        while self._processed:
            done.append(self._processed.popleft())
        return done

    def _pass_requests_on(self) -> None:
        if self.requests is None:
            return
        for request in self.requests.receive():
            self._events.put(partial(self._carry_out, request))
        while self._answers:
            self.requests.answer(self._answers.popleft())

    def _pass_alerts_on(self) -> None:
        if self.alerts is None:
            return
        for event in self.alerts.events(0.0):
            if isinstance(event.value, AlertsDocument):
                self._events.put(partial(self._core.alerts, event.value))

    # -- the worker's thread -----------------------------------------------------------------------

    def _carry_out(self, request: Request) -> None:
        self._answers.append(carry_out(request, self._core))

    def _think(self) -> None:
        try:
            while not self._stop.is_set():
                self._take_in()
                self._words_in_and_out()
                began_ns = self._traces.now()
                found = self._core.work()
                self._traces.published(found, began_ns)
                self._documents.extend(found)
                if found:
                    self._evidence_bytes = self._core.evidence_bytes
        except BaseException as error:  # noqa: BLE001 - raised again on the loop's thread
            self._crash = error

    def _take_in(self) -> None:
        """Everything that waits; sleeps a little when there is nothing."""
        try:
            event = self._events.get(timeout=IDLE_S)
        except queue.Empty:
            return
        while True:
            try:
                event()
            except UserError as error:
                self._log.warning("rows not used", why=str(error))
            try:
                event = self._events.get_nowait()
            except queue.Empty:
                return

    def _words_in_and_out(self) -> None:
        if self._words is None:
            return
        for (run_id, hook_point, feature), draft in self._words.finished():
            self._core.adopt(run_id, hook_point, feature, draft)
        for one in self._core.profiles_to_write(PROFILES_AT_ONCE):
            key = (one.run_id, one.hook_point, one.profile.address.index)
            self._words.ask(
                key, one.profile, importance=one.importance, asked_by_person=one.by_person
            )
        if self._second_opinion:
            self._opinions_in_and_out(self._words)

    def _opinions_in_and_out(self, words: WriterThread) -> None:
        for (run_id, hook_point, feature), version, found in words.opinions():
            self._core.note_opinion(run_id, hook_point, feature, version, found)
        if words.judging:
            return
        wanted = self._core.claim_to_judge()
        if wanted is not None:
            run_id, hook_point, claim, held_out = wanted
            words.judge((run_id, hook_point, claim.address.index), claim, held_out)
