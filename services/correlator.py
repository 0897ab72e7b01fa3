"""The correlator service: features in, statistics of every feature with every metric out."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import zmq

from interlatent_live.alerts.board import AlertBoard
from interlatent_live.alerts.delivery import Delivery, alertmanager, webhook
from interlatent_live.alerts.rulefile import load_rules
from interlatent_live.alerts.rules_engine import RulesEngine
from interlatent_live.engine.leases import EVERYTHING, read_ownership
from interlatent_live.errors import UserError
from interlatent_live.feed.documents import Topic
from interlatent_live.logs import get_logger
from interlatent_live.pipeline.blocks import Blocks
from interlatent_live.pipeline.catching_up import CatchUp
from interlatent_live.pipeline.correlator import CorrelatorCore
from interlatent_live.pipeline.tracing import OFF, RowTraces, Stage
from interlatent_live.queries.answering import Answerer
from interlatent_live.services.correlator_metrics import CorrelatorMetrics
from interlatent_live.services.network import Network
from interlatent_live.services.querying import QueryServer
from interlatent_live.services.receiver_service import LONGEST_POLL_MS, FeatureService
from interlatent_live.services.replaying import FollowedRecordings
from interlatent_live.services.runtime import ServiceRuntime
from interlatent_live.services.saving import SnapshotThread
from interlatent_live.services.tracing import Tracing
from interlatent_live.statistics.config import CorrelatorConfig
from interlatent_live.statistics.slices import parse_slices
from interlatent_live.statistics.snapshot_folder import SnapshotFolder
from interlatent_live.statistics.watching import WatchConfig
from interlatent_live.wire.limits import Limits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    from prometheus_client import CollectorRegistry

    from interlatent_live.config import Settings
    from interlatent_live.engine.leases import Owner
    from interlatent_live.feed.documents import ProfilesDocument
    from interlatent_live.pipeline.blocks import Block
    from interlatent_live.pipeline.correlator import Stream
    from interlatent_live.services.publishing import FeedPublisher
    from interlatent_live.services.receiver_service import Losses
    from interlatent_live.statistics.correlator import CorrelatorState
    from interlatent_live.statistics.rules import Transition
    from interlatent_live.stream import FeatureBatch, Manifest


CLOCK_SKEW_NS: Final = 60 * 10**9
"""Most that the clocks of encoder and recorder are taken to differ."""
METRICS_EVERY_S: Final = 1.0
REPOST_EVERY_S: Final = 60.0
"""Alertmanager resolves what it has not heard of for its resolve_timeout, 5 minutes by default."""


def serve(settings: Settings, ownership: Path | None = None) -> None:
    """Run the correlator until it is told to stop.

    Args:
        settings: as configured.
        ownership: file that says which runs are its own where there are several correlators; only
            those are taken from snapshots and recordings.

    Raises:
        UserError: when an endpoint is taken, or the file is not understood.
    """
    owner = EVERYTHING if ownership is None else read_ownership(ownership)
    with (
        ServiceRuntime(
            "correlator",
            health=settings.endpoints.correlator_health,
            budget=settings.buffers("correlator"),
        ) as runtime,
        Network(settings.security.keys) as network,
        Tracing(settings, "correlator", runtime.registry) as tracing,
    ):
        shell = CorrelatorShell(settings, owner, RowTraces(tracing.every, tracing.emit))
        service = CorrelatorService(settings, network, shell)
        try:
            runtime.ready(**shell.restored)
            service.run(runtime)
        finally:
            service.close()
            shell.close()


class CorrelatorService(FeatureService):
    """A feature service that also answers questions, in turns with the rows."""

    def __init__(self, settings: Settings, network: Network, shell: CorrelatorShell) -> None:
        super().__init__("correlator", settings, network, shell)
        self._shell = shell
        self.queries = QueryServer(
            network,
            settings.endpoints.correlator_queries,
            shell.answerer,
            settings.limits.message_bytes,
        )

    def run(self, runtime: ServiceRuntime, *, alive: Callable[[], None] = lambda: None) -> None:
        """Turn until stopped; as the base's loop, which knows nothing of questions."""
        metrics = self._shell.metrics(runtime.registry, self.queries)
        metrics_due = 0.0
        poller = zmq.Poller()
        rows, asked = self._receiver.socket, self.queries.socket
        for source in (rows, asked, self._feed.socket, runtime.wakeup_fd):
            poller.register(source, zmq.POLLIN)
        while not runtime.stopping:
            runtime.beat()
            alive()
            busy = self.queries.waiting or self._shell.catching_up
            ready = dict(poller.poll(1 if busy else LONGEST_POLL_MS))
            for received in self._receiver.receive():
                self._on_received(received)
            for received in self._receiver.tick():
                self._on_received(received)
            self._feed.welcome_viewers()
            for boot_id in self._handler.turn(self._feed, self.lost):
                self._receiver.processed(boot_id)
            self.queries.turn(rows_wait=rows in ready)
            if time.monotonic() >= metrics_due:
                metrics.update(self._shell.replayed)
                metrics_due = time.monotonic() + METRICS_EVERY_S

    def close(self) -> None:
        """Close the sockets."""
        self.queries.close()
        super().close()


class Intake:
    """Rows into the statistics, the rules after them, and word to the receivers of alerts."""

    def __init__(
        self, core: CorrelatorCore, rules: RulesEngine, deliveries: tuple[Delivery, ...]
    ) -> None:
        self._core = core
        self._rules = rules
        self._deliveries = deliveries
        self._log = get_logger("services.correlator")

    def hello(self, manifest: Manifest) -> None:
        """A run begins or goes on."""
        self._core.hello(manifest)

    def rows(self, batch: FeatureBatch, *, replayed: bool = False) -> int:
        """Add rows to the statistics; returns how many were new."""
        new = 0
        for part in self._rules.parts(batch):
            if self._rules.rules:
                self._evaluate(part)
            taken = self._core.features(part, replayed=replayed)
            if self._rules.rules:
                for stream, rows in taken:
                    self._rules.rows(stream, rows)
            new += max((len(rows.steps) for _, rows in taken), default=0)
        return new

    def _evaluate(self, batch: FeatureBatch) -> None:
        """Let the rules judge what came before these rows."""
        for stream in self._core.streams(batch.run_id):
            if stream.hook_point in batch.codes:
                for change in self._rules.before(stream, batch):
                    self._tell(change, stream.hook_point)
                    stream.save_now = True

    def goodbye(self, boot_id: str) -> None:
        """A boot ended, and its run with it, unless a newer boot goes on with it."""
        for run in self._core.runs():
            if run.manifest.boot_id == boot_id:
                self._core.goodbye(run.manifest.run_id)

    def _tell(self, change: Transition, hook_point: str) -> None:
        self._log.warning(
            "alert", rule=change.rule.name, run=change.run, hook_point=hook_point,
            state="resolved" if change.resolved else "firing",
        )  # fmt: skip
        for one in self._deliveries:
            one.tell(change)


class CorrelatorShell:
    """Feeds the core and publishes its profiles at a steady pace."""

    def __init__(
        self, settings: Settings, owner: Owner = EVERYTHING, traces: RowTraces = OFF
    ) -> None:
        options = settings.correlator
        self._owner = owner
        self._traces = traces
        config = (
            CorrelatorConfig.core()
            if options.depth == "core"
            else CorrelatorConfig(
                pane_steps=options.pane_steps,
                half_lives=options.half_lives,
                sliding=options.sliding,
            )
        )
        self._core = CorrelatorCore(
            config,
            clock=time.time_ns,
            limit_bytes=settings.limits.statistics_bytes,
            watch=WatchConfig(
                drift=options.drift,
                reference_panes=options.drift_reference_panes,
                panes_to_false_alarm=options.drift_panes_to_false_alarm,
                conformal=options.conformal,
                rate=options.conformal_rate,
                block_steps=options.conformal_block_steps,
            ),
            slices=parse_slices(options.slices),
        )
        self._log = get_logger("services.correlator")
        rules = () if options.alert_rules is None else load_rules(options.alert_rules)
        self._rules = RulesEngine(rules, options.alert_every_s)
        receivers = []
        if options.alertmanager is not None:
            receivers.append(alertmanager(options.alertmanager))
        if options.webhook is not None:
            receivers.append(webhook(options.webhook, options.webhook_key))
        self._deliveries = tuple(Delivery(one) for one in receivers)
        self._board = AlertBoard(self._core, time.time_ns, self._rules, self._deliveries)
        folder = None
        self._saving: SnapshotThread | None = None
        self.restored: dict[str, int] = {}
        if options.snapshots is not None:
            folder = SnapshotFolder(options.snapshots, options.snapshots_kept)
            self._restore(folder)
            self._saving = SnapshotThread(folder)
        self._repost_due = time.monotonic()
        self._save_every_s = options.snapshot_every_s
        self._save_due = time.monotonic() + options.snapshot_every_s
        self._to_save: list[tuple[str, str]] = []
        self.answerer = Answerer(
            self._core, clock=time.monotonic, alerts=self._board, snapshots=folder
        )
        self._intake = Intake(self._core, self._rules, self._deliveries)
        self._blocks = Blocks()
        self._done: list[str] = []
        """Boots whose messages are done with, once per message."""
        self._catch_up: CatchUp | None = None
        if options.replay:
            since_ns = max(0, self._core.replay_from_ns() - CLOCK_SKEW_NS)
            limits = Limits(body_bytes=settings.limits.message_bytes)
            self._catch_up = CatchUp(
                self._core,
                self._intake,
                FollowedRecordings(options.replay, since_ns, limits, owner.owns),
                time.monotonic,
                lambda why: self._log.warning("replay", why=why),
            )
        self._every_s = options.publish_every_s
        self._due = 0.0
        self._publishing: Iterator[ProfilesDocument] | None = None
        self._began = self._spent = 0.0

    def _restore(self, folder: SnapshotFolder) -> None:
        rows = 0
        for state in folder.newest(lambda why: self._log.warning("snapshot", why=why)):
            if not self._owner.owns(str(state.meta["stream"]["manifest"]["run_id"])):
                continue
            try:
                stream = self._core.restore(state)
                self._rules.load(stream, state.meta.get("alerts", {}))
            except (UserError, KeyError, ValueError) as error:
                self._log.warning("snapshot not used", why=str(error))
                continue
            rows += stream.correlator.counts.rows
            self.restored = {"restored_rows": rows, "restored_streams": len(self._core.streams())}

    def close(self) -> None:
        """Stop telling, and save what no snapshot has yet."""
        for one in self._deliveries:
            one.close()
        if self._saving is None:
            return
        for stream in self._core.due(everything=True):
            self._saving.save(self._saved(stream), wait=True)
        self._saving.close()

    def _saved(self, stream: Stream) -> CorrelatorState:
        state = self._core.save(stream)
        return replace(state, meta={**state.meta, "alerts": self._rules.state(stream)})

    def _repost(self) -> None:
        """Tell receivers that forget of what still fires; a run that ended is not told again."""
        now = time.monotonic()
        if now < self._repost_due:
            return
        self._repost_due = now + REPOST_EVERY_S
        going_on = {one.manifest.run_id for one in self._core.runs() if not one.ended}
        for change in self._rules.firing(going_on):
            for one in self._deliveries:
                if one.receiver.forgets:
                    one.tell(change)

    def _save_one(self) -> None:
        """At most one copy of a stream's tables a turn, and none while one is being written."""
        if self._saving is None or not self._saving.idle:
            return
        now = time.monotonic()
        periodic = now >= self._save_due
        due = self._core.due(everything=periodic or bool(self._to_save))
        if periodic:
            self._save_due = now + self._save_every_s
            self._to_save = [(one.run.manifest.run_id, one.hook_point) for one in due]
        for stream in due:
            key = (stream.run.manifest.run_id, stream.hook_point)
            if stream.urgent or key in self._to_save:
                self._to_save = [other for other in self._to_save if other != key]
                self._saving.save(self._saved(stream))
                return
        self._to_save = []

    @property
    def catching_up(self) -> bool:
        """Whether recorded or held rows wait to be taken in."""
        return self._catch_up is not None and self._catch_up.busy

    @property
    def replayed(self) -> int:
        """Rows taken from recordings."""
        return 0 if self._catch_up is None else self._catch_up.rows

    def metrics(self, registry: CollectorRegistry, queries: QueryServer) -> CorrelatorMetrics:
        """This service's metrics, for Prometheus."""
        return CorrelatorMetrics(registry, self._core, self._rules, self._deliveries, queries)

    def hello(self, manifest: Manifest, transcoders: Mapping[str, str]) -> None:
        """A run begins or goes on."""
        del transcoders  # every batch names its own
        self._take(self._blocks.take(manifest.boot_id))
        if not self._held(manifest.boot_id, manifest):
            self._intake.hello(manifest)

    def features(self, batch: FeatureBatch) -> bool:
        """Rows for the statistics: with others as a block, or held until recorded ones are in."""
        self._traces.arrived(batch.boot_id, batch.steps)
        if self.catching_up or (self._catch_up is not None and self._core.catches_up(batch.run_id)):
            self._take(self._blocks.take(batch.boot_id))
            if self._held(batch.boot_id, batch):
                return False
            self._intake.rows(batch)
            self._traces.passed(Stage.CORRELATE, batch)
            return True
        self._take(self._blocks.add(batch))
        return False

    def goodbye(self, boot_id: str) -> None:
        """A run ended: publish at once."""
        self._take(self._blocks.take(boot_id))
        if not self._held(boot_id, None):
            self._intake.goodbye(boot_id)
        self._due, self._publishing = 0.0, None

    def _take(self, blocks: Iterable[Block]) -> None:
        for block in blocks:
            boot_id = block.batch.boot_id
            self._done += [boot_id] * block.messages
            try:
                self._intake.rows(block.batch)
                self._traces.passed(Stage.CORRELATE, block.batch)
            except UserError as error:
                self._log.warning("rows not used", boot=boot_id, why=str(error))

    def _held(self, boot_id: str, event: Manifest | FeatureBatch | None) -> bool:
        return self._catch_up is not None and self._catch_up.holds(boot_id, event)

    def turn(self, feed: FeedPublisher, lost: Losses) -> list[str]:
        """Take in what waits; publish the profiles of what changed when it is time, one a turn.

        Returns the boots whose oldest rows are done with, once per message.
        """
        self._take(self._blocks.take())
        done, self._done = self._done + self._replay(), []
        self._repost()
        self._save_one()
        self._publish(feed, lost)
        return done

    def _replay(self) -> list[str]:
        if not self.catching_up or self._catch_up is None:
            return []
        before = self._catch_up.rows
        done = self._catch_up.turn()
        if not self._catch_up.busy and self._catch_up.rows > before:
            self._log.info("caught up", rows=self._catch_up.rows)
        return done

    def _publish(self, feed: FeedPublisher, lost: Losses) -> None:
        now = time.monotonic()
        if self._publishing is None:
            if now < self._due:
                return
            self._publishing, self._began, self._spent = self._core.documents(lost()), now, 0.0
        document = next(self._publishing, None)
        if document is None:
            self._publishing = None
            self._rules.forget(
                {(one.run.manifest.run_id, one.hook_point) for one in self._core.streams()}
            )
            for run_id in {stream.run.manifest.run_id for stream in self._core.streams()}:
                feed.documents(Topic.ALERTS, self._board.document(run_id), key=run_id)
            # Never more than a fifth of the time, however many features there are.
            self._due = self._began + max(self._every_s, 5 * self._spent)
        else:
            key = f"{document.run_id}/{document.hook_point}"
            feed.documents(Topic.PROFILES, document, key=key)
            self._spent += time.monotonic() - now
