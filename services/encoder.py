"""The encoder service: agents' steps in, features out, as fast as the device allows.

A shell around :class:`~interlatent_live.pipeline.encoder.EncoderCore`: one thread, one poll loop.
It binds a ROUTER for agents, sends features to each consumer over a link with credit, and publishes
the same messages for viewers, who may miss some.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import zmq

from interlatent_live.config import Buffer, BufferBudget
from interlatent_live.encoding.devices import open_device
from interlatent_live.encoding.micro_batching import BatchLimits
from interlatent_live.encoding.prepared import PreparedEncoders
from interlatent_live.errors import UserError
from interlatent_live.feed.documents import AgentsDocument, Topic, agents_that_fit
from interlatent_live.logs import get_logger
from interlatent_live.pipeline.encoder import EncoderCore
from interlatent_live.pipeline.gathering import Gatherer
from interlatent_live.pipeline.library import BUILT_IN, FolderLibrary, LibraryEncode
from interlatent_live.pipeline.stages import StageTimes
from interlatent_live.pipeline.tracing import RowTraces, Stage
from interlatent_live.services.encoder_metrics import EncoderMetrics, VersionCounts
from interlatent_live.services.network import Network
from interlatent_live.services.publishing import FeedPublisher
from interlatent_live.services.receiving import open_receiver
from interlatent_live.services.reloading import Reloader
from interlatent_live.services.runtime import ServiceRuntime
from interlatent_live.services.sending import FeatureSender
from interlatent_live.services.tracing import Tracing
from interlatent_live.wire.codec import encode_features
from interlatent_live.wire.limits import DEFAULT_LIMITS
from interlatent_live.wire.messages import FeaturesMessage, StepsMessage
from interlatent_live.wire.receiver_link import Asked, Deliver, Detached, Ended
from interlatent_live.wire.security import Domain

if TYPE_CHECKING:
    from interlatent_live.config import Settings
    from interlatent_live.encoding.backend import EncodeBackend
    from interlatent_live.pipeline.library import Scan
    from interlatent_live.services.receiving import Received
    from interlatent_live.stream import FeatureBatch

STATUS_EVERY_S = 0.5
STATUS_BYTES = DEFAULT_LIMITS.document_bytes * 3 // 4
"""Of the agents in the status; the rest of the document is for the encoder's own counts."""
STATUS_COST = 20
"""The status is published again after at least so many times what it took."""
LONGEST_POLL_MS = 20
GOODBYE_WITHIN_S = 30.0
"""How long a finished run's rows may take to reach a consumer before they are declared lost."""


def serve(settings: Settings) -> None:
    """Run the encoder until it is told to stop.

    Raises:
        UserError: when an endpoint is taken, a transcoder folder cannot be read, or the device is
            not there.
    """
    weights = Buffer("weights on the device", settings.encoder.weight_bytes)
    with ServiceRuntime(
        "encoder",
        health=settings.endpoints.encoder_health,
        budget=BufferBudget((*settings.buffers("encoder").buffers, weights)),
    ) as runtime:
        import torch  # noqa: PLC0415 - health answers while torch loads

        torch.set_num_threads(settings.encoder.threads)
        device = open_device(settings.encoder.device)
        with (
            Network(settings.security.keys) as network,
            Tracing(settings, "encoder", runtime.registry) as tracing,
        ):
            traces = RowTraces(tracing.every, tracing.emit)
            shell = EncoderShell(settings, network, runtime, device, traces)
            try:
                shell.run()
            finally:
                shell.close()


class EncoderShell:
    """The encoder's sockets and loop."""

    def __init__(
        self,
        settings: Settings,
        network: Network,
        runtime: ServiceRuntime,
        device: EncodeBackend,
        traces: RowTraces,
    ) -> None:
        encoder, limits = settings.encoder, settings.limits
        self._runtime = runtime
        self._log = get_logger("services.encoder")
        folders = (*encoder.transcoders, BUILT_IN)
        # Before the library reads: what comes between the two is then noticed.
        self._reloader = Reloader(folders, encoder.rescan_s)
        self._library = FolderLibrary(folders)
        self._prepared = PreparedEncoders(device, limit_bytes=encoder.weight_bytes)
        self._versions = VersionCounts()
        self._stages = StageTimes()
        self._traces = traces
        self._core = EncoderCore(
            self._library,
            self._stages.encoding(LibraryEncode(self._prepared)),
            limits=BatchLimits(
                max_rows=encoder.batch_rows,
                max_delay_ns=int(encoder.batch_delay_ms * 1e6),
                max_pending_rows=max(encoder.pending_rows, encoder.batch_rows),
            ),
            clock=time.time_ns,
        )
        self._agents = open_receiver(settings, network, "agents", Domain.AGENTS, server="encoder")
        self._feed = FeedPublisher(
            network, settings.endpoints.encoder_feed, "encoder", limits.feed_bytes
        )
        self._consumers = [
            FeatureSender(
                network,
                one,
                limits.consumer_bytes,
                # What a recorder that dies has not written is sent again to the next one.
                lossless=one == settings.endpoints.recorder,
            )
            for one in settings.consumers()
        ]
        # What waits here takes of the room that consumers have anyway.
        self._gatherer = Gatherer(limits.consumer_bytes // 4)
        self._polled: tuple[zmq.Socket[bytes], ...] | None = None
        self._poller = zmq.Poller()
        self._metrics = EncoderMetrics(
            runtime.registry, self._core, self._consumers, self._versions, self._stages
        )
        self._waiting: dict[str, int] = {}
        self._ending: dict[str, int] = {}
        self._status_at = 0.0

    def run(self) -> None:
        """Turn until stopped."""
        policies = self._library.policies()
        with self._reloader:
            self._runtime.ready(
                transcoders=sum(len(hooks) for hooks in policies.values()),
                device=self._prepared.device,
            )
            self._turn_until_stopped()

    def _turn_until_stopped(self) -> None:
        while not self._runtime.stopping:
            self._runtime.beat()
            self._poll()
            for received in self._agents.receive(self._core.has_room):
                self._on_received(received)
            for received in self._agents.tick():
                self._on_received(received)
            for scan in self._reloader.scans():
                self._adopt(scan)
            for batch in self._core.encode_ready(time.monotonic_ns()):
                self._publish(batch)
            self._end_runs()
            for batch in self._gatherer.due(time.monotonic_ns()):
                self._hand_on(batch)
            for consumer in self._consumers:
                consumer.receive()
                consumer.tick()
            self._feed.welcome_viewers()
            if time.monotonic() >= self._status_at:
                self._publish_status()

    def close(self) -> None:
        """Close every socket; consumers are told goodbye."""
        for batch in self._core.encode_ready(time.monotonic_ns(), flush=True):
            self._publish(batch)
        for batch in self._gatherer.flush():
            self._hand_on(batch)
        for consumer in self._consumers:
            consumer.close()
        self._feed.close()
        self._agents.close()
        self._prepared.close()

    # -- the loop's parts --------------------------------------------------------------------------

    def _poll(self) -> None:
        wait_ms = LONGEST_POLL_MS
        for due_ns in (self._core.next_ready_ns(), self._gatherer.next_due_ns()):
            if due_ns is not None:
                wait_ms = min(wait_ms, max(0, (due_ns - time.monotonic_ns()) // 1_000_000))
        consumers = tuple(one.socket for one in self._consumers if one.socket is not None)
        if consumers != self._polled:
            self._polled, self._poller = consumers, zmq.Poller()
            sources = (self._agents.socket, self._feed.socket, self._runtime.wakeup_fd)
            for source in (*sources, *consumers):
                self._poller.register(source, zmq.POLLIN)
        self._poller.poll(wait_ms)

    def _on_received(self, received: Received) -> None:
        match received:
            case Asked():
                self._admit(received)
            case Deliver(boot_id=boot_id, message=message):
                self._take(boot_id, message)
            case Ended(boot_id=boot_id, statement=statement):
                self._ending[boot_id] = statement.sent
            case Detached(boot_id=boot_id):
                self._log.warning("agent lost", boot=boot_id)

    def _admit(self, asked: Asked) -> None:
        manifest = asked.hello.manifest
        boot_id = manifest.boot_id
        try:
            if not self._core.follows(boot_id):
                missing = self._enter(asked)
                transcoders = self._core.transcoders(boot_id)
                for consumer in self._consumers:
                    consumer.open_stream(manifest, transcoders, asked.hello.first_seq)
                self._log.info(
                    "agent admitted",
                    agent=manifest.agent,
                    run=manifest.run_id,
                    boot=boot_id,
                    transcoders=transcoders,
                    without=missing,
                )
        except UserError as error:
            self._log.warning("agent refused", agent=manifest.agent, why=str(error))
            self._agents.refuse(asked, "mismatch", str(error))
            return
        self._agents.accept(asked)

    def _enter(self, asked: Asked) -> tuple[str, ...]:
        manifest, transcoders = asked.hello.manifest, asked.hello.transcoders
        if not transcoders:
            return self._core.admit(manifest.boot_id, manifest)
        self._core.admit_encoded(manifest.boot_id, manifest, transcoders)
        return ()

    def _take(self, boot_id: str, message: StepsMessage | FeaturesMessage) -> None:
        self._traces.arrived(boot_id, message.batch.steps)
        if isinstance(message, FeaturesMessage):
            self._take_features(boot_id, message)
            return
        self._waiting[boot_id] = self._waiting.get(boot_id, 0) + 1
        if self._core.submit(boot_id, message.batch, time.monotonic_ns()):
            self._stages.arrived(boot_id)
        else:
            self._done(boot_id)

    def _take_features(self, boot_id: str, message: FeaturesMessage) -> None:
        self._waiting[boot_id] = self._waiting.get(boot_id, 0) + 1
        try:
            batch = self._core.encoded_elsewhere(boot_id, message.batch)
        except UserError as error:
            self._log.warning("features not used", boot=boot_id, why=str(error))
            self._done(boot_id)
        else:
            self._publish(batch)

    def _publish(self, batch: FeatureBatch) -> None:
        self._stages.encoded(batch.boot_id)
        self._traces.passed(Stage.ENCODE, batch, last=False)
        if self._feed.wanted(Topic.FEATURES):
            self._feed.forward(Topic.FEATURES, encode_features(batch, sent_ns=batch.encoded_ns))
        for gathered in self._gatherer.add(batch, time.monotonic_ns()):
            self._hand_on(gathered)
        self._done(batch.boot_id)

    def _hand_on(self, batch: FeatureBatch) -> None:
        with self._stages.publishing():
            frames = encode_features(batch, sent_ns=batch.encoded_ns)
            for consumer in self._consumers:
                consumer.offer(batch, frames)
        self._traces.passed(Stage.PUBLISH, batch)

    def _done(self, boot_id: str) -> None:
        self._waiting[boot_id] -= 1
        self._agents.processed(boot_id)

    def _adopt(self, scan: Scan) -> None:
        """Serve new versions from the next message on; go on with the old where one is no good."""
        self._library.adopt(scan)
        for sentence in scan.refused:
            self._refuse_version(sentence)
        for (policy_hash, hook_point), held in scan.loaded.items():
            try:
                runs = self._core.replace(policy_hash, hook_point, held)
            except UserError as error:
                self._library.reject(held.identity)
                self._refuse_version(str(error))
                continue
            self._versions.adopted += 1
            self._log.info(
                "transcoder replaced", hook_point=hook_point, by=held.identity, runs=runs
            )

    def _refuse_version(self, sentence: str) -> None:
        self._versions.refused += 1
        self._log.warning("transcoder refused, the old one goes on", why=sentence)

    def _end_runs(self) -> None:
        """Runs that said goodbye end once the last of their rows is encoded."""
        for boot_id, sent in list(self._ending.items()):
            if self._waiting.get(boot_id, 0) == 0:
                del self._ending[boot_id]
                self._keep_counts(boot_id)
                self._core.goodbye(boot_id, sent)
                self._end_streams(boot_id)

    def _end_vanished(self) -> None:
        """Runs end too that the receiver has forgotten because they were silent for so long."""
        known = {*self._agents.hub.streams(), *self._ending}
        for boot_id in self._core.going_on():
            if boot_id not in known:
                self._log.warning("run vanished", boot=boot_id)
                self._core.vanish(boot_id)
                self._end_streams(boot_id)

    def _end_streams(self, boot_id: str) -> None:
        self._waiting.pop(boot_id, None)
        for batch in self._gatherer.flush(boot_id):
            self._hand_on(batch)
        for consumer in self._consumers:
            consumer.end_stream(boot_id, GOODBYE_WITHIN_S)
        self._status_at = 0.0

    def _keep_counts(self, boot_id: str) -> None:
        counts = self._agents.hub.counts(boot_id)
        self._core.set_loss(
            boot_id,
            received=counts.received,
            declared={reason.value: rows for reason, rows in counts.declared.items()},
            undeclared=counts.undeclared,
            duplicates=counts.duplicate,
        )

    def _publish_status(self) -> None:
        began = time.monotonic()
        for identity in self._core.retired():
            self._prepared.release(identity)
            self._library.forget(identity)
        self._end_vanished()
        self._reloader.serving(self._core.serving())
        for boot_id in self._agents.hub.streams():
            if self._core.manifest(boot_id) is not None:
                self._keep_counts(boot_id)
        agents = self._core.agents()
        self._metrics.update(agents)
        shown = agents_that_fit(agents, STATUS_BYTES)
        document = AgentsDocument(
            agents=shown,
            service={
                "agents_known": len(agents),
                "agents_shown": len(shown),
                "refusals": dict(self._agents.hub.counters.refusals),
                "vanished": self._core.vanished,
                "transcoders": {
                    "device": self._prepared.device,
                    "ready": len(self._prepared),
                    "ready_bytes": self._prepared.n_bytes,
                    "limit_bytes": self._prepared.limit_bytes,
                    "evicted": self._prepared.evicted,
                    "adopted": self._versions.adopted,
                    "refused": self._versions.refused,
                },
                "consumers": [
                    {
                        "endpoint": one.endpoint,
                        "state": one.link.state.value,
                        "queued_bytes": one.queued_bytes,
                        "lost": one.lost(),
                    }
                    for one in self._consumers
                ],
            },
            published_ns=time.time_ns(),
        )
        self._feed.documents(Topic.AGENTS, document)
        # However many agents there are: never more than a twentieth of the time.
        spent = time.monotonic() - began
        self._status_at = began + max(STATUS_EVERY_S, STATUS_COST * spent)
