"""A collector on loopback that takes spans by OTLP over HTTP, and fails in the ways they do."""

from dataclasses import dataclass

from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as service_pb2

from tests.support.http_server import LocalServer, QuietHandler


@dataclass(frozen=True)
class Seen:
    service: str
    name: str
    trace: bytes
    span: bytes
    parent: bytes
    began_ns: int
    ended_ns: int
    attributes: dict
    links: tuple
    error: str


class Collector(LocalServer):
    """``script``: statuses of the next answers, 200 afterwards; ``rejects`` of every request."""

    def __init__(self, *script, rejects=0):
        self.script = list(script)
        self.spans: list[Seen] = []
        self.requests: list[tuple[str, dict, int]] = []
        outer = self

        class Handler(QuietHandler):
            def posted(self, body):
                status = outer.script.pop(0) if outer.script else 200
                outer.requests.append((self.path, dict(self.headers), status))
                if status == 200:
                    outer.spans += list(parsed(body))
                answer = service_pb2.ExportTraceServiceResponse()
                if rejects:
                    answer.partial_success.rejected_spans = rejects
                    answer.partial_success.error_message = "too many"
                self.answer(status, answer.SerializeToString())

        super().__init__(Handler, "/v1/traces")


def parsed(body):
    request = service_pb2.ExportTraceServiceRequest.FromString(body)
    for of_resource in request.resource_spans:
        facts = _dict(of_resource.resource.attributes)
        for of_scope in of_resource.scope_spans:
            for one in of_scope.spans:
                yield Seen(
                    facts["service.name"],
                    one.name,
                    one.trace_id,
                    one.span_id,
                    one.parent_span_id,
                    one.start_time_unix_nano,
                    one.end_time_unix_nano,
                    _dict(one.attributes),
                    tuple((link.trace_id, link.span_id) for link in one.links),
                    one.status.message,
                )


def _dict(pairs):
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in pairs}
