"""A collector of OpenTelemetry traces: OTLP over HTTP on loopback, decoded with the protocol's own messages."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Status

from tests.support.waiting import wait_until


@dataclass(frozen=True)
class Span:
    """A span as it arrived. Times are in seconds since the epoch."""

    name: str
    trace_id: str
    id: str
    parent_id: str
    began: float
    ended: float
    attributes: dict[str, Any]
    error: str
    resource: dict[str, Any]


class Collector:
    """The spans that have arrived at `endpoint`."""

    def __init__(self, endpoint: str):
        self.endpoint = endpoint
        self.spans: list[Span] = []
        self.status = 200  # of the answers

    def receive(self, body: bytes) -> None:
        request = ExportTraceServiceRequest.FromString(body)
        for resource_spans in request.resource_spans:
            resource = _plain(resource_spans.resource.attributes)
            for scope in resource_spans.scope_spans:
                self.spans += [_span(span, resource) for span in scope.spans]

    def wait_for(self, condition: Callable[[list[Span]], bool]) -> list[Span]:
        """All spans, once the condition holds."""
        wait_until(lambda: condition(self.spans), "for spans")
        return self.spans


def _span(span: Any, resource: dict[str, Any]) -> Span:
    return Span(
        span.name,
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        span.start_time_unix_nano / 1e9,
        span.end_time_unix_nano / 1e9,
        _plain(span.attributes),
        span.status.message if span.status.code == Status.STATUS_CODE_ERROR else "",
        resource,
    )


def _plain(attributes: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}


@contextlib.contextmanager
def collector() -> Iterator[Collector]:
    """A collector that runs while the context is open."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path == "/v1/traces" and running.status == 200:
                running.receive(body)
            self.send_response(running.status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running = Collector(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield running
    finally:
        server.shutdown()
        server.server_close()
