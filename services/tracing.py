"""Sends spans to a collector by OTLP over HTTP, off the data path: a thread, bounded and patient.

Nothing happens unless ``tracing.endpoint`` names a collector: no import, no thread, no request. No
variable that OpenTelemetry's own SDK reads (``OTEL_*``) has any effect, nor has a proxy of the
environment, because only OTLP's messages are used of it: ids here are hashes that every service
computes by itself, so there is nothing left that the SDK would do, and its queue does not tell what
it drops. A collector that is slow or gone costs what does not fit the queue, and that is counted.
"""

from __future__ import annotations

import http.client
import threading
import time
from collections import Counter, deque
from typing import TYPE_CHECKING, Final, Self
from urllib.parse import urlsplit

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from interlatent_live import __version__
from interlatent_live.errors import UserError
from interlatent_live.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path
    from types import TracebackType

    from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as service_pb2
    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric

    from interlatent_live.config import Settings
    from interlatent_live.pipeline.tracing import Span

MOST_AT_ONCE: Final = 512
"""Spans of one request."""
WAIT_S: Final = 1.0
"""Longest that a span waits for others."""
TIMEOUT_S: Final = 5.0
LAST_WORDS_S: Final = 2.0
"""What may be sent within when the service ends."""
FIRST_PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 30.0
TRY_AGAIN: Final = frozenset({429, 502, 503, 504})
"""Answers after which the same spans may be sent again (OTLP specification, "Failures")."""
SENT: Final = "sent"
OUTCOMES: Final = (SENT, "full", "refused", "ended")
"""What became of spans: sent; dropped because the queue was full, the collector did not want them,
or the service ended before they were sent."""


class Tracing(Collector):
    """Where a service's spans go; a context manager, off unless ``tracing.endpoint`` is set.

    Args:
        settings: as configured.
        service: its name, as traces show it.
        registry: the process's own.

    Raises:
        UserError: when an endpoint is set and the extra is missing, or the file of headers cannot
            be used.
    """

    def __init__(self, settings: Settings, service: str, registry: CollectorRegistry) -> None:
        options = settings.tracing
        self._endpoint = options.endpoint
        self.every = 0 if self._endpoint is None else options.every_steps
        self._limit = options.spans
        self._service = service
        self._waiting: deque[Span] = deque()
        self._counts: Counter[str] = Counter()
        self._change = threading.Condition()
        self._stopping = False
        self._headers: dict[str, str] = {}
        self._log = get_logger("services.tracing")
        self._thread = threading.Thread(target=self._run, name="tracing", daemon=True)
        if self._endpoint is None:
            return
        _require_messages()
        if options.headers is not None:
            self._headers = read_headers(options.headers)
        registry.register(self)

    def __enter__(self) -> Self:
        if self._endpoint is not None:
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Send what waits, for a moment; the rest is counted as lost."""
        if not self._thread.is_alive():
            return
        with self._change:
            self._stopping = True
            self._change.notify()
        self._thread.join(LAST_WORDS_S)

    def emit(self, span: Span) -> None:
        """Take a span; never waits."""
        with self._change:
            if len(self._waiting) >= self._limit:
                self._counts["full"] += 1
                return
            self._waiting.append(span)
            if len(self._waiting) == MOST_AT_ONCE:
                self._change.notify()

    def counts(self) -> dict[str, int]:
        """Spans by what became of them, and ``waiting``."""
        with self._change:
            return {**{one: self._counts[one] for one in OUTCOMES}, "waiting": len(self._waiting)}

    def collect(self) -> Iterator[Metric]:
        """What became of spans, for Prometheus."""
        counts = self.counts()
        spans = CounterMetricFamily(
            "interlatent_tracing_spans", "Spans, by what became of them.", labels=["outcome"]
        )
        for one in OUTCOMES:
            spans.add_metric([one], counts[one])
        yield spans
        yield GaugeMetricFamily(
            "interlatent_tracing_spans_waiting", "Spans not yet sent.", value=counts["waiting"]
        )

    def _run(self) -> None:
        pause, until = FIRST_PAUSE_S, float("inf")
        while True:
            with self._change:
                self._change.wait_for(self._enough, timeout=WAIT_S)
                if self._stopping:
                    until = min(until, time.monotonic() + LAST_WORDS_S)
                spans = [self._waiting[i] for i in range(min(MOST_AT_ONCE, len(self._waiting)))]
                if self._stopping and (not spans or time.monotonic() > until):
                    return self._end()
            if not spans:
                continue
            refused, why = self._post(spans)
            with self._change:
                if refused is not None:
                    self._counts["refused"] += refused
                    self._counts[SENT] += len(spans) - refused
                    for _ in spans:
                        self._waiting.popleft()
                if why:
                    self._log.warning("spans not taken", why=why, again_in_s=pause)
                    if self._stopping:
                        return self._end()
                    self._change.wait_for(lambda: self._stopping, timeout=pause)
                    pause = min(2 * pause, LONGEST_PAUSE_S)
                else:
                    pause = FIRST_PAUSE_S

    def _end(self) -> None:
        self._counts["ended"] += len(self._waiting)
        self._waiting.clear()

    def _enough(self) -> bool:
        return self._stopping or len(self._waiting) >= MOST_AT_ONCE

    def _post(self, spans: list[Span]) -> tuple[int | None, str]:
        """Send spans once.

        Returns how many the collector refused, ``None`` when the same may be tried again, and why.
        """
        from opentelemetry.proto.collector.trace.v1 import (  # noqa: PLC0415 - an extra
            trace_service_pb2 as service_pb2,
        )

        body = to_request(spans, self._service).SerializeToString()
        parts = urlsplit(self._endpoint or "")
        https = parts.scheme == "https"
        kind = http.client.HTTPSConnection if https else http.client.HTTPConnection
        connection = kind(parts.hostname or "", parts.port, timeout=TIMEOUT_S)
        path = (parts.path or "/v1/traces") + (f"?{parts.query}" if parts.query else "")
        headers = {
            "Content-Type": "application/x-protobuf",
            "User-Agent": f"interlatent-live/{__version__}",
            **self._headers,
        }
        try:
            connection.request("POST", path, body, headers)
            response = connection.getresponse()
            answer = response.read(1 << 16)
        except (OSError, http.client.HTTPException) as error:
            return None, str(error) or type(error).__name__
        finally:
            connection.close()
        if response.status in TRY_AGAIN:
            return None, f"HTTP {response.status}"
        if response.status // 100 != 2:
            return len(spans), f"HTTP {response.status}"
        try:
            partial = service_pb2.ExportTraceServiceResponse.FromString(answer).partial_success
        except ValueError:  # protobuf's DecodeError: taken all the same
            return 0, ""
        return min(len(spans), max(0, partial.rejected_spans)), partial.error_message


def to_request(spans: list[Span], service: str) -> service_pb2.ExportTraceServiceRequest:
    """Spans as OTLP's message, under one resource.

    Args:
        spans: of one service.
        service: its name; shown as ``interlatent-live.NAME``.
    """
    from opentelemetry.proto.collector.trace.v1 import (  # noqa: PLC0415 - an extra
        trace_service_pb2 as service_pb2,
    )
    from opentelemetry.proto.common.v1 import common_pb2  # noqa: PLC0415
    from opentelemetry.proto.trace.v1 import trace_pb2  # noqa: PLC0415

    def pairs(values: Mapping[str, str | float | bool]) -> Iterator[common_pb2.KeyValue]:
        for key, value in values.items():
            match value:
                case bool():
                    typed = common_pb2.AnyValue(bool_value=value)
                case int():
                    typed = common_pb2.AnyValue(int_value=value)
                case float():
                    typed = common_pb2.AnyValue(double_value=value)
                case _:
                    typed = common_pb2.AnyValue(string_value=value)
            yield common_pb2.KeyValue(key=key, value=typed)

    request = service_pb2.ExportTraceServiceRequest()
    of_resource = request.resource_spans.add()
    facts = {"service.name": f"interlatent-live.{service}", "service.version": __version__}
    of_resource.resource.attributes.extend(pairs(facts))
    of_scope = of_resource.scope_spans.add()
    of_scope.scope.name = "interlatent_live"
    for span in spans:
        one = of_scope.spans.add(
            trace_id=span.ref.trace_id,
            span_id=span.ref.span_id,
            parent_span_id=b"" if span.parent is None else span.parent.span_id,
            name=span.name,
            kind=trace_pb2.Span.SPAN_KIND_INTERNAL,
            start_time_unix_nano=span.began_ns,
            end_time_unix_nano=span.ended_ns,
            attributes=pairs(span.attributes),
        )
        for link in span.links:
            one.links.add(trace_id=link.trace_id, span_id=link.span_id)
        if span.failed:
            one.status.code = trace_pb2.Status.STATUS_CODE_ERROR
            one.status.message = span.failed
    return request


def read_headers(file: Path) -> dict[str, str]:
    """Headers of a file, one ``NAME: VALUE`` a line, such as a hosted collector's key.

    Raises:
        UserError: when it cannot be read, is open to other users, or holds something else.
    """
    try:
        text, mode = file.read_text(encoding="ascii"), file.stat().st_mode
    except (OSError, ValueError) as error:
        raise UserError(f"tracing.headers: {file} can't be read: {error}") from error
    if mode & 0o077:
        raise UserError(f"tracing.headers: {file} is open to other users; run `chmod 600 {file}`")
    found = {}
    for line in filter(str.strip, text.splitlines()):
        name, colon, value = line.partition(":")
        if not (colon and name.strip() and value.strip()):
            raise UserError(f"tracing.headers: {file} must hold lines such as NAME: VALUE")
        found[name.strip()] = value.strip()
    return found


def _require_messages() -> None:
    try:
        import opentelemetry.proto.collector.trace.v1.trace_service_pb2  # noqa: F401, PLC0415
    except ImportError as error:
        raise UserError(
            "tracing.endpoint is set, and the extra otel is not installed: run "
            "pip install 'interlatent-live[otel]', or leave tracing.endpoint out"
        ) from error
