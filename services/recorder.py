"""The recorder service: features in with credit, documents by subscription, files out.

It owns no feed and answers no questions. Rows are acknowledged when the operating system has them,
so ``kill -9`` costs what the encoder then declares lost: the rows of at most one chunk.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Final

import zmq

from interlatent_live import __version__
from interlatent_live.errors import UserError, WireError
from interlatent_live.feed.documents import Topic
from interlatent_live.feed.pictures import PictureClient
from interlatent_live.logs import get_logger
from interlatent_live.recordings.origins import SETTINGS, settings_text
from interlatent_live.recordings.recorder import Recorder, RecorderOptions
from interlatent_live.recordings.writer import Compression
from interlatent_live.services.network import Network
from interlatent_live.services.receiver_service import LONGEST_POLL_MS
from interlatent_live.services.receiving import open_receiver
from interlatent_live.services.recorder_metrics import RecorderMetrics
from interlatent_live.services.runtime import ServiceRuntime
from interlatent_live.wire.codec import decode
from interlatent_live.wire.keys import ServerKeys
from interlatent_live.wire.messages import Document, FeaturesMessage, Picture
from interlatent_live.wire.receiver_link import Asked, Deliver, Detached, Ended
from interlatent_live.wire.security import Domain
from interlatent_live.wire.sockets import connect_subscriber, receive_message

if TYPE_CHECKING:
    from collections.abc import Sequence

    from interlatent_live.config import Settings
    from interlatent_live.services.receiving import Received
    from interlatent_live.wire.keys import ClientKeys

RECORDED_TOPICS: Final = (Topic.AGENTS, Topic.CLAIMS, Topic.NARRATION, Topic.ALERTS)
DOCUMENTS_A_TURN: Final = 256
HOUSEKEEPING_S: Final = 1.0
DAY_S: Final = 86_400.0


def serve(settings: Settings) -> None:
    """Record until told to stop.

    Raises:
        UserError: when no folder is configured, it cannot be written to, or the endpoint is taken.
    """
    folder = settings.recorder.folder
    if folder is None:
        raise UserError(
            "there is no folder to record to; set recorder.folder, for the encoder too, or give "
            "--folder"
        )
    with (
        ServiceRuntime(
            "recorder",
            health=settings.endpoints.recorder_health,
            budget=settings.buffers("recorder"),
        ) as runtime,
        Network(settings.security.keys) as network,
    ):
        log = get_logger("services.recorder")
        recorder = Recorder(
            folder,
            recorder_options(settings),
            provenance={
                "recorder": f"interlatent-live {__version__}",
                SETTINGS: settings_text(settings),
            },
            wall_ns=time.time_ns,
            clock=time.monotonic,
            told=lambda what: log.warning("recording", what=what),
        )
        service = RecorderService(settings, network, recorder)
        try:
            service.run(runtime)
        finally:
            service.close()


def recorder_options(settings: Settings) -> RecorderOptions:
    """The settings' choices as the recorder takes them."""
    options = settings.recorder
    return RecorderOptions(
        chunk_seconds=options.chunk_seconds,
        file_bytes=options.file_bytes,
        file_seconds=options.file_seconds,
        keep_bytes=options.keep_bytes,
        keep_s=None if options.keep_days is None else options.keep_days * DAY_S,
        redact=options.redact,
        foxglove=options.foxglove,
        compression=Compression(options.compression),
        durable=options.durable,
        picture_bytes_per_s=options.picture_bytes_per_s,
    )


class RecorderService:
    """The sockets around a :class:`Recorder`, turned by one loop."""

    def __init__(self, settings: Settings, network: Network, recorder: Recorder) -> None:
        self._log = get_logger("services.recorder")
        self._recorder = recorder
        self._receiver = open_receiver(
            settings, network, "recorder", Domain.SERVICES, server="recorder"
        )
        keys = settings.security.keys
        viewer = None if keys is None else ServerKeys.load(keys).client()
        endpoints = settings.endpoints
        wanted = settings.recorder.picture_bytes_per_s > 0
        self._feeds = FeedTap(
            network, endpoints.feeds(), endpoints.pictures_feed if wanted else None, viewer
        )

    def run(self, runtime: ServiceRuntime) -> None:
        """Turn until stopped."""
        metrics = RecorderMetrics(runtime.registry)
        due = 0.0
        poller = zmq.Poller()
        for source in (self._receiver.socket, *self._feeds.sockets, runtime.wakeup_fd):
            poller.register(source, zmq.POLLIN)
        runtime.ready()
        good = True
        while not runtime.stopping:
            runtime.beat()
            poller.poll(LONGEST_POLL_MS)
            self._turn()
            if good != (not self._recorder.error):
                good = not self._recorder.error
                if good:
                    runtime.ready()
                else:
                    runtime.not_ready(self._recorder.error)
            if time.monotonic() >= due:
                due = time.monotonic() + HOUSEKEEPING_S
                self._recorder.forget_others(self._receiver.hub.streams())
                metrics.update(self._recorder, self._lost(), missed=self._feeds.missed)

    def close(self) -> None:
        """Write and acknowledge what is here, then close file and sockets."""
        for boot_id in self._recorder.close():
            self._receiver.processed(boot_id)
        self._feeds.close()
        self._receiver.close()

    def _lost(self) -> dict[str, int]:
        """Rows that never came, by declared reason or undeclared, of the streams known now."""
        hub = self._receiver.hub
        found: Counter[str] = Counter()
        for boot_id in hub.streams():
            counts = hub.counts(boot_id)
            found.update({reason.value: rows for reason, rows in counts.declared.items()})
            found["undeclared"] += counts.undeclared
        return dict(found)

    def _turn(self) -> None:
        for received in (*self._receiver.receive(), *self._receiver.tick()):
            self._on_received(received)
        for message in self._feeds.messages():
            if isinstance(message, Document):
                self._recorder.document(message)
            else:
                self._recorder.picture(message)
        for boot_id in self._recorder.turn():
            self._receiver.processed(boot_id)

    def _on_received(self, received: Received) -> None:
        match received:
            case Asked(hello=hello) if not hello.transcoders:
                self._receiver.refuse(received, "mismatch", "a recorder takes features alone")
            case Asked(hello=hello):
                self._recorder.hello(hello.manifest, hello.transcoders or {}, hello.first_seq)
                self._receiver.accept(received)
                self._log.info("run", run=hello.manifest.run_id, boot=hello.manifest.boot_id)
            case Deliver(message=message):
                if isinstance(message, FeaturesMessage):
                    self._recorder.rows(message)
            case Ended(statement=statement):
                self._recorder.ended(statement)
            case Detached(boot_id=boot_id):
                self._log.warning("encoder lost", boot=boot_id)


class FeedTap:
    """Documents and pictures of the feeds as they travel, and how many were missed."""

    def __init__(
        self,
        network: Network,
        endpoints: Sequence[str],
        pictures: str | None,
        keys: ClientKeys | None,
    ) -> None:
        words = [topic.value for topic in RECORDED_TOPICS]
        self.sockets = [
            connect_subscriber(network.context, one, words, keys=keys) for one in endpoints
        ]
        self._eye = None if pictures is None else PictureClient(pictures, keys=keys)
        self.missed = 0
        """Documents that a full queue, or a pause of ours, has cost."""
        self._next: dict[tuple[str, str], int] = {}

    def messages(self) -> list[Document | Picture]:
        """What is here now, at most so many that rows get their turn."""
        found: list[Document | Picture] = []
        for socket in self.sockets:
            for _ in range(DOCUMENTS_A_TURN):
                frames = receive_message(socket)
                if frames is None:
                    break
                try:
                    message = decode(frames[1:])
                except WireError:
                    self.missed += 1
                    continue
                if isinstance(message, Document):
                    self._count(message)
                    found.append(message)
        if self._eye is not None:
            # They come when they come, and wake nobody.
            found += self._eye.pictures()
        return found

    def close(self) -> None:
        """Close the sockets."""
        for socket in self.sockets:
            socket.close()
        if self._eye is not None:
            self._eye.close()

    def _count(self, document: Document) -> None:
        key = (document.source, document.topic)
        expected = self._next.get(key, document.seq)
        self.missed += max(0, document.seq - expected)
        self._next[key] = document.seq + 1
