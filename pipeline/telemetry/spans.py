"""The trace of a run, sent to an OpenTelemetry collector: run -> shard -> visit of a stage -> step.

    run night-1
      attempt 1
      shard 42
        reading      (on node-3)
          read
        segmenting   (on node-7, lost: its process died)
        segmenting   (on node-5)
          decode, resize, model, reduce, encode
        writing
          encode, write

The driver sends all spans; workers need neither OpenTelemetry nor a way to the collector. The ids of trace, run and
shard follow from output, run id and shard, so the visits of repeated shards and later attempts join the same trace. A
collector that is slow or away costs spans, and never fails or slows a run.
"""

import hashlib
import importlib.util
import logging
import os
import threading
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from pipeline.errors import RunError
from pipeline.shown_text import shown
from pipeline.telemetry.in_flight import Visit

logger = logging.getLogger(__name__)

_FLAG = "--otlp-endpoint"
# The standard's variables; the exporter reads them, and others such as OTEL_EXPORTER_OTLP_HEADERS, by itself.
_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_INSTALL = "needs the extra `otel`: pip install 'm2f-pipeline[otel]'"
_QUEUE = 16_384  # spans that wait for the collector; a shard has about a dozen, and more are dropped
_LAST_SECONDS = 5.0  # for the last spans of a run


def check_endpoint(endpoint: str | None) -> None:
    """RunError if a run cannot obey this --otlp-endpoint."""
    if endpoint is None:
        return
    url = urlsplit(endpoint)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise RunError(f"{_FLAG} must be the URL of an OTLP/HTTP collector, such as http://localhost:4318")
    if "@" in url.netloc or url.query:
        raise RunError(f"{_FLAG} must hold no credentials; put them into OTEL_EXPORTER_OTLP_HEADERS")
    if not _has_exporter():
        raise RunError(f"{_FLAG} {_INSTALL}")


def wants_trace(endpoint: str | None) -> bool:
    """Whether a run with this --otlp-endpoint, in this environment, sends a trace.

    If only the environment asks for traces and the extra is missing, a warning says so and no more: the variables may
    be set for every program of a platform.
    """
    asked = endpoint is not None or any(os.environ.get(name) for name in _VARIABLES)
    if not asked or os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    if not _has_exporter():
        logger.warning("no trace is sent: OTEL_EXPORTER_OTLP_ENDPOINT %s", _INSTALL)
        return False
    return True


def _has_exporter() -> bool:
    try:
        return importlib.util.find_spec("opentelemetry.exporter.otlp.proto.http.trace_exporter") is not None
    except ModuleNotFoundError:  # a package above it is missing
        return False


class Spans:
    """Sends the spans of one run. Used by one thread at a time. All times are seconds since the epoch."""

    def __init__(self, endpoint: str | None, output: str, run_id: str):
        """`endpoint`: of --otlp-endpoint; None: of the environment."""
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        self.run_id = run_id
        self.name = f"{output}\0{run_id}"
        self.ids = _make_ids(self._digest("trace", 16))
        service = {} if "OTEL_SERVICE_NAME" in os.environ else {"service.name": "m2f-pipeline"}
        self.provider = TracerProvider(
            resource=Resource.create({**service, "m2f.run_id": run_id, "m2f.output": shown(output)}),
            id_generator=self.ids,
            shutdown_on_exit=False,
        )
        _say_once_what_goes_wrong()
        # The standard appends the path of the signal to the endpoint for all signals.
        url = None if endpoint is None else endpoint.rstrip("/") + "/v1/traces"
        self.processor = BatchSpanProcessor(OTLPSpanExporter(endpoint=url), max_queue_size=_QUEUE)
        self.provider.add_span_processor(self.processor)
        self.tracer = self.provider.get_tracer("m2f-pipeline")

    def run(self, began: float, ended: float, attributes: Mapping[str, Any]) -> None:
        """The span of a finished run, the root of the trace."""
        self._add(f"run {self.run_id}", began, ended, None, "run", attributes)

    def attempt(self, number: int, began: float, ended: float, error: str | None) -> None:
        """The work of one driver on the run."""
        self._add(f"attempt {number}", began, ended, "run", f"attempt {number}", {}, error)

    def shard(self, shard: int, began: float, ended: float, attributes: Mapping[str, Any]) -> None:
        """A shard that has its receipt."""
        self._add(f"shard {shard}", began, ended, "run", f"shard {shard}", {"m2f.shard": shard, **attributes})

    def visit(self, visit: Visit) -> None:
        """A visit of a stage, finished or lost, with its steps."""
        error = "the process died or failed, and the shard was tried again" if visit.lost else None
        own = f"visit {visit.shard} {visit.stage} {visit.began!r} {visit.host}"
        attributes = {"m2f.shard": visit.shard, "m2f.first_image_key": shown(visit.first_key), "host.name": visit.host}
        self._add(visit.stage, visit.began, visit.ended, f"shard {visit.shard}", own, attributes, error)
        for step, (began, ended, seconds) in visit.steps.items():
            self._add(step, began, ended, own, f"{own} {step}", {"m2f.seconds": seconds})

    def close(self) -> None:
        """Send what is left, for a few seconds at most."""
        last = threading.Thread(target=self.processor.force_flush, daemon=True, name="last spans")
        last.start()
        last.join(_LAST_SECONDS)

    def _add(
        self,
        name: str,
        began: float,
        ended: float,
        parent: str | None,
        own: str,
        attributes: Mapping[str, Any],
        error: str | None = None,
    ) -> None:
        """One span. `parent` and `own` name spans of this trace; their ids follow from the names."""
        from opentelemetry import trace

        context = None
        if parent is not None:
            above = trace.SpanContext(
                self.ids.trace_id, self._digest(parent, 8), is_remote=True, trace_flags=trace.TraceFlags(1)
            )
            context = trace.set_span_in_context(trace.NonRecordingSpan(above))
        self.ids.span_id = self._digest(own, 8)
        span = self.tracer.start_span(name, context, attributes=dict(attributes), start_time=int(began * 1e9))
        if error is not None:
            span.set_status(trace.StatusCode.ERROR, shown(error))
        span.end(int(ended * 1e9))

    def _digest(self, what: str, size: int) -> int:
        digest = hashlib.sha256(f"{self.name}\0{what}".encode()).digest()
        return int.from_bytes(digest[:size], "big") or 1  # 0 is no id


def _make_ids(trace_id: int) -> Any:
    """OpenTelemetry's source of ids: one trace, and the id that is set before each span."""
    from opentelemetry.sdk.trace.id_generator import IdGenerator

    class Ids(IdGenerator):
        def __init__(self) -> None:
            self.trace_id, self.span_id = trace_id, 0

        def generate_trace_id(self) -> int:
            return self.trace_id

        def generate_span_id(self) -> int:
            return self.span_id

    return Ids()


class _OneWarning(logging.Handler):
    """Turns the first warning of OpenTelemetry into a line of ours and drops the others."""

    said = False

    def emit(self, record: logging.LogRecord) -> None:
        if not self.said:
            self.said = True
            text = " ".join(record.getMessage().split())[:300]
            logger.warning("spans of the trace are lost, and the run goes on: %s", text)


def _say_once_what_goes_wrong() -> None:
    log = logging.getLogger("opentelemetry")
    log.handlers = [_OneWarning(logging.WARNING)]
    log.propagate = False
