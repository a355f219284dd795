"""Sends traces to a collector, by OpenTelemetry's SDK and its OTLP/HTTP exporter: the extra `otel`.

Only a gateway that traces imports this. Spans are made of a trace when its request has ended, and not as it goes: the
SDK's own way of starting and ending them takes 130 us of a request with seven, this takes 10. They are encoded and sent
in the SDK's thread. What it cannot take is dropped and counted.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import Decision, ParentBased, Sampler, TraceIdRatioBased
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, TraceFlags, get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.trace.status import Status, StatusCode

from octavo import __version__
from octavo_serve.api.tracing import Phase, Trace, Value
from octavo_serve.config.settings import TraceSettings

QUEUE = 8192
"""Spans that may wait, 1 kB each; OTEL_BSP_MAX_QUEUE_SIZE says otherwise."""
BATCH = 512
"""Spans sent at once: of a request's seven, encoding takes 120 us, and its part of the sending 60 us where 128 go at
once, 20 us where 512 do. OTEL_BSP_MAX_EXPORT_BATCH_SIZE says otherwise."""
DELAY = 500
"""Milliseconds that a span waits at most for others; OTEL_BSP_SCHEDULE_DELAY says otherwise."""
LONGEST_HEADER = 512
"""Bytes of a caller's `tracestate`: as many as the standard wants passed on."""

SAMPLED = TraceFlags(TraceFlags.SAMPLED)
FINE, FAILED = Status(StatusCode.UNSET), Status(StatusCode.ERROR)
SCOPE = InstrumentationScope("octavo", __version__)

Count = Callable[[str, int], None]
"""Counts spans by what became of them: exported, failed, dropped."""


class Spans:
    """Decides which requests are traced, and makes spans of their traces: a `Tracer`.

    Args:
        count: called in the exporter's thread too.
    """

    def __init__(self, settings: TraceSettings, count: Count) -> None:
        # of the SDK's provider only what the environment says: who we are, and which requests are traced
        resource = Resource.create(_names(settings))
        provider = TracerProvider(_sampler(settings), resource, shutdown_on_exit=False)
        self._sampler, self._ids, self._resource = provider.sampler, provider.id_generator, provider.resource
        self._outbox = _Outbox(OTLPSpanExporter(endpoint=_url(settings.endpoint)), count)

    def begin(self, name: str, headers: Iterable[tuple[bytes, bytes]]) -> Trace | None:
        """See `Tracer`."""
        context = _caller(headers)
        caller = None if context is None else get_current_span(context).get_span_context()
        parent = caller if caller is not None and caller.is_valid else None
        trace_id = self._ids.generate_trace_id() if parent is None else parent.trace_id
        verdict = self._sampler.should_sample(context, trace_id, name, SpanKind.SERVER)
        if verdict.decision is not Decision.RECORD_AND_SAMPLE:
            return None
        own = SpanContext(trace_id, self._ids.generate_span_id(), False, SAMPLED, verdict.trace_state)
        return Trace(name, (f"{trace_id:032x}", f"{own.span_id:016x}"), (own, parent))

    def take(self, trace: Trace) -> None:
        """See `Tracer`."""
        own, parent = trace.context
        spans = [
            self._phase(trace, phase, own, number)
            for number, course in enumerate(trace.courses)
            for phase in course.phases
        ]
        times = trace.since, trace.wall(trace.end or trace.start)
        attributes = trace.attributes | _outcome(trace)
        spans.append(self._span(trace.name, own, parent, SpanKind.SERVER, attributes, trace.failed, times))
        self._outbox.put(spans)

    def _phase(self, trace: Trace, phase: Phase, parent: SpanContext, prompt: int) -> ReadableSpan:
        own = SpanContext(parent.trace_id, self._ids.generate_span_id(), False, SAMPLED, parent.trace_state)
        attributes, times = phase.attributes, (trace.wall(phase.start), trace.wall(phase.end))
        if prompt:
            attributes["octavo.prompt"] = prompt
        if phase.error is not None:
            attributes["error.type"] = phase.error
        return self._span(phase.name, own, parent, SpanKind.INTERNAL, attributes, phase.error is not None, times)

    def _span(
        self,
        name: str,
        own: SpanContext,
        parent: SpanContext | None,
        kind: SpanKind,
        attributes: dict[str, Value],
        failed: bool,
        times: tuple[int, int],
    ) -> ReadableSpan:
        return ReadableSpan(
            name,
            own,
            parent,
            self._resource,
            attributes,
            kind=kind,
            status=FAILED if failed else FINE,
            start_time=times[0],
            end_time=times[1],
            instrumentation_scope=SCOPE,
        )

    def close(self) -> None:
        """Send what waits, as far as the collector takes it; may take seconds."""
        self._outbox.close()


def _names(settings: TraceSettings) -> dict[str, str]:
    """Who the collector knows us as."""
    names = {"service.version": __version__}
    if settings.service is not None or not os.environ.get("OTEL_SERVICE_NAME"):
        names["service.name"] = settings.service or "octavo"
    return names


def _sampler(settings: TraceSettings) -> Sampler | None:
    """None: as the environment says."""
    return None if settings.sample is None else ParentBased(TraceIdRatioBased(settings.sample))


def _url(endpoint: str | None) -> str | None:
    """Where spans go; None: where the environment says."""
    return None if endpoint is None else f"{endpoint.rstrip('/').removesuffix('/v1/traces')}/v1/traces"


def _caller(headers: Iterable[tuple[bytes, bytes]]) -> Context | None:
    """The W3C context that a request came with; None where there is none."""
    found = [(name, value) for name, value in headers if name in (b"traceparent", b"tracestate")]
    if not found:
        return None
    short = {name.decode(): value.decode("latin-1") for name, value in found if len(value) <= LONGEST_HEADER}
    return TraceContextTextMapPropagator().extract(short)


def _outcome(trace: Trace) -> dict[str, Value]:
    """How a request ended, in attributes of its span."""
    found: dict[str, Value] = {}
    if trace.status:
        found["http.response.status_code"] = trace.status
    if trace.error is not None:
        found["error.type"] = trace.error
    first = next((phase.start for phase in trace.courses[0].phases if phase.name == "decode"), None)
    if first is not None:
        found["gen_ai.response.time_to_first_chunk"] = first - trace.start
    return found


class _Outbox:
    """The SDK's batch processor, and what became of the spans that were to go through it."""

    def __init__(self, exporter: OTLPSpanExporter, count: Count) -> None:
        self._room = _setting("OTEL_BSP_MAX_QUEUE_SIZE", QUEUE)
        self._count = count
        self._given = 0
        self._counting = _Counting(exporter, count)
        self._processor = BatchSpanProcessor(
            self._counting,
            max_queue_size=self._room,
            max_export_batch_size=_setting("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", min(BATCH, self._room)),
            schedule_delay_millis=_setting("OTEL_BSP_SCHEDULE_DELAY", DELAY),
        )

    def put(self, spans: list[ReadableSpan]) -> None:
        """Have one request's spans sent, or drop them all: the processor would drop the oldest, and not say so."""
        if self._given - self._counting.taken + len(spans) > self._room:
            self._count("dropped", len(spans))
            return
        self._given += len(spans)
        for span in spans:
            self._processor.on_end(span)

    def close(self) -> None:
        self._processor.shutdown()  # type: ignore[no-untyped-call]


class _Counting(SpanExporter):
    """An exporter, counted.

    Attributes:
        taken: spans that the processor has given it; written in the processor's thread alone.
    """

    def __init__(self, exporter: SpanExporter, count: Count) -> None:
        self.taken = 0
        self._exporter = exporter
        self._count = count

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.taken += len(spans)
        result = self._exporter.export(spans)
        self._count("exported" if result is SpanExportResult.SUCCESS else "failed", len(spans))
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()


def _setting(name: str, default: int) -> int:
    """What the environment says; something that is no number is left to the SDK's own complaint."""
    value = os.environ.get(name, "")
    return int(value) if value.isdecimal() and int(value) else default
