"""From a request to a collector, over real sockets: the spans of streams that fail over, fail, or are left."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.errors import BadRequest, EngineDead, OctavoError, Overloaded
from octavo_serve.api.bounds import Limits
from octavo_serve.api.registry import ModelEntry, Registry
from octavo_serve.api.service import Service
from octavo_serve.api.telemetry import Telemetry
from octavo_serve.config.settings import TraceSettings
from octavo_serve.gateway.spans import Spans
from octavo_serve.http.app import http_app

sys.path.insert(0, str(Path(__file__).parents[1] / "proofs"))
from collector import Collector, Span, collecting

SECRET = "the prompt that nobody may read"
PROMPT = [7, 8, 9] * 11
CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED, NOT_SAMPLED = (f"00-{CALLER[0]}-{CALLER[1]}-{flags}" for flags in ("01", "00"))


PARENTS = st.from_regex(rb"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-.*)?", fullmatch=True)


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
    with collecting() as found:
        yield found


@asynccontextmanager
async def asking(of: Service, backend: Any, **settings: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the application, traced; on leaving all spans have been sent, or were not to be."""
    of.tracer = Spans(TraceSettings(**settings), of.telemetry.count_spans)
    transport = httpx.ASGITransport(http_app(of, backend), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://llm.example:8123") as http:
        yield http
    await asyncio.to_thread(of.tracer.close)


def service_of(client: Any, tokenizer: Any, info: Any) -> Service:
    entry = ModelEntry("tiny", 1_700_000_000, client, tokenizer=tokenizer, info=info, shards=1)
    return Service(Registry([entry]), Limits(), Telemetry())


def sent(service: Service, outcome: str) -> int:
    return service.telemetry.spans[outcome]


def tiles(trace: list[Span]) -> bool:
    """Whether the phases of a request with one prompt follow each other without a gap, from its begin to its end."""
    root, *phases = trace
    ends, starts = [root.start, *(phase.end for phase in phases)], [*(phase.start for phase in phases), root.end]
    return ends == starts


def test_a_stream_that_fails_over(fleet: Any, backend: Any, tokenizer: Any, collector: Collector) -> None:
    async def scenario(client: Any) -> None:
        first = await fleet.add()
        await fleet.add()
        service = service_of(client, tokenizer, await client.describe())
        body = {"prompt": PROMPT, "max_tokens": 30, "temperature": 0.5, "seed": 3, "stream": True}
        async with asking(service, backend, endpoint=collector.url, service="ours") as http:
            kill_at(fleet, first, 5)
            headers = {"traceparent": SAMPLED, "tracestate": "vendor=1"}
            answer = await http.post("/v1/completions", json=body, headers=headers)
        assert answer.text.endswith("data: [DONE]\n\n")
        assert sent(service, "exported") == 11

    assert fleet.run(scenario) == ["lost"]
    (trace,) = collector.traces(1)
    root, *phases = trace
    on_a_shard = ["queue", "prefill", "decode"]
    assert [phase.name for phase in phases] == ["prepare", "route", *on_a_shard, "failover", *on_a_shard, "respond"]
    assert tiles(trace)
    assert {span.trace for span in trace} == {CALLER[0]}
    assert (root.name, root.parent, root.failed) == ("POST /v1/completions", CALLER[1], False)
    assert collector.services == {"ours"}
    told = {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.request.model": "tiny",
        "gen_ai.request.max_tokens": 30,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.seed": 3,
        "gen_ai.usage.input_tokens": len(PROMPT),
        "gen_ai.usage.output_tokens": 30,
        "gen_ai.response.finish_reasons": ["length"],
        "http.response.status_code": 200,
        "server.address": "llm.example",
        "server.port": 8123,
    }
    assert told.items() <= root.attributes.items()
    _, route, _, prefill, lost, failover, _, again, decode, _ = phases
    assert (lost.failed, lost.attributes["error.type"], lost.attributes["octavo.shard"]) == (True, "lost", "1")
    assert [phase.name for phase in phases if phase.failed] == ["decode"]
    assert route.attributes["octavo.route_reason"] == "load"
    assert failover.attributes["octavo.failover_reason"] == "lost"
    assert failover.attributes["octavo.resumed_tokens"] >= 5
    assert (decode.attributes["octavo.shard"], again.attributes["octavo.shard"]) == ("2", "2")
    first_chunk = root.attributes["gen_ai.response.time_to_first_chunk"]
    assert first_chunk == pytest.approx((prefill.end - root.start) / 1e9, abs=1e-6)


def kill_at(fleet: Any, port: Any, tokens: int) -> None:
    """Kill a shard once it has made so many tokens."""

    async def watch() -> None:
        while port.engine.engine.generation_tokens < tokens:
            await asyncio.sleep(0.002)
        fleet.kill(port)

    fleet.killing = asyncio.create_task(watch())


@pytest.mark.parametrize(
    ("error", "status", "kind", "failed"),
    [
        (Overloaded("too many", 3.0), 429, "overloaded", False),
        (BadRequest("that is not possible", "n"), 400, "400", False),
        (EngineDead("gone"), 503, "engine_dead", True),
        (RuntimeError(SECRET), 500, "RuntimeError", True),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_request_that_is_refused(
    service: Service, backend: Any, client: Any, collector: Collector, error: Any, status: int, kind: str, failed: bool
) -> None:
    client.error = error

    async def main() -> None:
        async with asking(service, backend, endpoint=collector.url) as http:
            assert (await http.post("/v1/chat/completions", json=chat())).status_code == status

    asyncio.run(main())
    (trace,) = collector.traces(1)
    assert tiles(trace)
    found = trace[0].attributes
    assert (found["http.response.status_code"], found["error.type"], trace[0].failed) == (status, kind, failed)
    assert SECRET not in json.dumps([span.attributes for span in trace])


def chat(**extra: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": [{"role": "user", "content": SECRET}], **extra}


def test_an_error_in_a_stream_is_the_spans_too(
    service: Service, backend: Any, client: Any, collector: Collector
) -> None:
    client.late_error, client.fail_after = OctavoError("the token was not a number"), 1

    async def main() -> None:
        async with asking(service, backend, endpoint=collector.url) as http:
            assert (await http.post("/v1/chat/completions", json=chat(stream=True))).status_code == 200
            assert (await http.post("/v1/chat/completions", content=b"{")).status_code == 400
            assert (await http.post("/v1/nothing", json={})).status_code == 404
            assert (await http.get("/health")).status_code == 200

    asyncio.run(main())
    failed, bad = collector.traces(2)
    found = failed[0].attributes
    assert (found["http.response.status_code"], found["error.type"], failed[0].failed) == (200, "500", True)
    assert (bad[0].attributes["http.response.status_code"], bad[0].failed) == (400, False)
    assert found["gen_ai.operation.name"] == "chat"
    assert SECRET not in json.dumps([span.attributes for span in [*failed, *bad]])


def test_a_client_that_leaves(fleet: Any, backend: Any, tokenizer: Any, collector: Collector) -> None:
    async def scenario(client: Any) -> None:
        port = await fleet.add()
        service = service_of(client, tokenizer, await client.describe())
        async with asking(service, backend, endpoint=collector.url) as http:
            body = {"prompt": PROMPT, "max_tokens": 4000, "ignore_eos": True}
            request = asyncio.create_task(http.post("/v1/completions", json=body))
            while port.engine.engine.generation_tokens < 5:
                await asyncio.sleep(0.002)
            request.cancel()
            await asyncio.wait([request])

    fleet.run(scenario)
    (trace,) = collector.traces(1)
    assert tiles(trace)
    assert [phase.name for phase in trace[1:]] == ["prepare", "route", "queue", "prefill", "decode"]
    assert (trace[0].attributes["error.type"], trace[0].failed) == ("cancelled", False)
    assert trace[0].attributes["gen_ai.usage.output_tokens"] >= 4
    assert trace[0].attributes["gen_ai.response.finish_reasons"] == ["abort"]


def test_several_prompts_each_have_their_phases(fleet: Any, backend: Any, tokenizer: Any, collector: Collector) -> None:
    async def scenario(client: Any) -> None:
        await fleet.add()
        service = service_of(client, tokenizer, await client.describe())
        async with asking(service, backend, endpoint=collector.url) as http:
            body = {"prompt": [[number, 8, 9] * 11 for number in range(3)], "max_tokens": 4}
            assert (await http.post("/v1/completions", json=body)).status_code == 200

    fleet.run(scenario)
    (trace,) = collector.traces(1)
    root, *phases = trace
    assert [span.name for span in phases].count("decode") == 3
    for number in (1, 2):
        mine = [span for span in phases if span.attributes.get("octavo.prompt") == number]
        assert [span.name for span in mine] == ["route", "queue", "prefill", "decode", "respond"]
        assert all(before.end == after.start for before, after in pairwise(mine))
        assert mine[-1].end == root.end


@pytest.mark.parametrize(
    ("sample", "traceparent", "traced"),
    [(0.0, None, 0), (0.0, SAMPLED, 1), (1.0, NOT_SAMPLED, 0), (1.0, "nonsense", 1), (None, None, 1)],
)
def test_who_is_traced(
    service: Service, backend: Any, collector: Collector, sample: float | None, traceparent: str | None, traced: int
) -> None:
    headers = {} if traceparent is None else {"traceparent": traceparent}

    async def main() -> None:
        async with asking(service, backend, endpoint=collector.url, sample=sample) as http:
            assert (await http.post("/v1/chat/completions", json=chat(), headers=headers)).status_code == 200

    asyncio.run(main())
    assert len(collector.traces(traced)) == traced


@given(st.lists(st.tuples(st.sampled_from([b"traceparent", b"tracestate"]), st.binary(max_size=600) | PARENTS)))
def test_any_header_is_taken_or_ignored(quiet: Spans, headers: list[tuple[bytes, bytes]]) -> None:
    trace = quiet.begin("POST /", headers)
    if trace is not None:
        trace.finish()
        quiet.take(trace)


@pytest.fixture(scope="module")
def quiet() -> Iterator[Spans]:
    """Sends nothing: its queue has no room for a request's two spans."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "1")
        spans = Spans(TraceSettings(endpoint="http://127.0.0.1:9"), lambda outcome, number: None)
    yield spans
    spans.close()


@pytest.mark.parametrize(
    ("path", "route"),
    [
        ("/models/tiny", "/models/{model}"),
        ("/v2/models/a/b/generate", "/v2/models/{model}/generate"),
        ("/v2/models/tiny/versions/1/infer", "/v2/models/{model}/versions/{version}/infer"),
    ],
)
def test_a_route_names_the_span_whatever_model_the_path_names(
    service: Service, backend: Any, collector: Collector, path: str, route: str
) -> None:
    async def main() -> None:
        async with asking(service, backend, endpoint=collector.url) as http:
            await http.post(path, json={})

    asyncio.run(main())
    (trace,) = collector.traces(1)
    found = trace[0].attributes
    assert (trace[0].name, found["http.route"], found["url.path"]) == (f"POST {route}", route, path)


def test_the_environment_says_what_the_config_does_not(
    service: Service, backend: Any, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    monkeypatch.setenv("OTEL_SERVICE_NAME", "theirs")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")

    async def main(**settings: Any) -> None:
        async with asking(service, backend, **settings) as http:
            await http.post("/v1/chat/completions", json=chat())

    asyncio.run(main())
    asyncio.run(main(sample=1.0))
    assert len(collector.traces(1)) == 1
    assert collector.services == {"theirs"}


def test_a_collector_that_takes_nothing_harms_no_request(
    service: Service, backend: Any, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "3")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "60000")
    collector.status = 400

    async def main() -> None:
        async with asking(service, backend, endpoint=collector.url) as http:
            for _ in range(9):
                assert (await http.post("/v1/chat/completions", json=chat())).status_code == 200

    asyncio.run(main())
    each = 2  # nothing here goes to a shard
    assert (sent(service, "failed"), sent(service, "dropped"), sent(service, "exported")) == (each, 8 * each, 0)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("llm.example", {"server.address": "llm.example"}),
        ("[::1]:80", {"server.address": "::1", "server.port": 80}),
        ("x:99999", {"server.address": "x:99999"}),
    ],
)
def test_the_server_is_the_one_that_the_client_named(
    service: Service, backend: Any, collector: Collector, host: str, expected: dict[str, Any]
) -> None:
    async def main() -> None:
        async with asking(service, backend, endpoint=f"{collector.url}/v1/traces") as http:
            await http.post("/v1/chat/completions", json=chat(), headers={"host": host})

    asyncio.run(main())
    (trace,) = collector.traces(1)
    assert {name: value for name, value in trace[0].attributes.items() if name.startswith("server.")} == expected
