"""A collector of traces for tests: takes OTLP over HTTP, in a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True, slots=True)
class Span:
    """A span as it came.

    Attributes:
        start, end: nanoseconds since 1970.
        failed: whether its status is an error.
    """

    trace: str
    id: str
    parent: str
    name: str
    start: int
    end: int
    failed: bool
    attributes: dict[str, Any]


@dataclass
class Collector:
    """What has come so far.

    Attributes:
        status: what it answers; 200 takes spans.
    """

    url: str = ""
    status: int = 200
    services: set[str] = field(default_factory=set)
    _spans: list[Span] = field(default_factory=list)
    _news: threading.Condition = field(default_factory=threading.Condition)

    def take(self, body: bytes) -> None:
        request = ExportTraceServiceRequest.FromString(body)
        with self._news:
            for resource in request.resource_spans:
                self.services |= {a.value.string_value for a in resource.resource.attributes if a.key == "service.name"}
                self._spans += [_span(span) for scope in resource.scope_spans for span in scope.spans]
            self._news.notify_all()

    def traces(self, count: int, seconds: float = 20) -> list[list[Span]]:
        """The first whole traces, once there are so many; each from its request's span on, in order of time."""
        with self._news:
            assert self._news.wait_for(lambda: len(self._whole()) >= count, seconds), f"{len(self._whole())} traces"
            return self._whole()

    def trace(self, trace_id: str, seconds: float = 20) -> list[Span]:
        """The whole trace of this id, once it is there."""

        def found() -> list[Span]:
            return next((spans for spans in self._whole() if spans[0].trace == trace_id), [])

        with self._news:
            assert self._news.wait_for(found, seconds), f"no trace {trace_id}"
            return found()

    def _whole(self) -> list[list[Span]]:
        roots = [span for span in self._spans if span.name.startswith("POST ")]
        whole = []
        for root in roots:
            mine = [span for span in self._spans if span.parent == root.id]
            whole.append([root, *sorted(mine, key=lambda span: (span.start, span.end))])
        return [spans for spans in whole if len(spans) > 1]


@contextmanager
def collecting() -> Iterator[Collector]:
    """A collector that listens on loopback."""
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if collector.status == 200 and self.path == "/v1/traces":
                collector.take(body)
            self.send_response(collector.status)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        collector.url = f"http://127.0.0.1:{server.server_address[1]}"
        try:
            yield collector
        finally:
            server.shutdown()
            thread.join()


def _span(span: Any) -> Span:
    return Span(
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        span.name,
        span.start_time_unix_nano,
        span.end_time_unix_nano,
        span.status.code == 2,
        {attribute.key: _value(attribute.value) for attribute in span.attributes},
    )


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    return [_value(each) for each in value.array_value.values] if kind == "array_value" else getattr(value, kind)


def main() -> None:
    """Print the URL of a collector that throws away what it takes, until it is ended."""
    with collecting() as collector:
        collector.take = lambda body: None  # type: ignore[method-assign]
        print(collector.url, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
