"""The whole path with the real model: `octavo serve`, HAProxy, gateway, router, two shards, the OpenAI SDK."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

pytestmark = [pytest.mark.ray, pytest.mark.slow]

FRANCE: Any = [{"role": "user", "content": "What is the capital of France?"}]
STORY: dict[str, Any] = {
    "model": "smollm2",
    "messages": [{"role": "user", "content": "Tell me a very long story."}],
    "max_tokens": 4000,
    "ignore_eos": True,
}
ROOT = Path(__file__).parents[3]


@pytest.fixture
def sdk(server: Any) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_chat(sdk: openai.OpenAI) -> None:
    answer = sdk.chat.completions.create(model="smollm2", messages=FRANCE, temperature=0)
    assert "Paris" in (answer.choices[0].message.content or "")
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_stream(sdk: openai.OpenAI) -> None:
    whole = sdk.chat.completions.create(model="smollm2", messages=FRANCE, temperature=0, max_tokens=30)
    stream = sdk.chat.completions.create(
        model="smollm2", messages=FRANCE, temperature=0, max_tokens=30, stream=True,
        stream_options={"include_usage": True},
    )  # fmt: skip
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert len(chunks) > 5  # a piece per token, not one for all


def test_logprobs(sdk: openai.OpenAI) -> None:
    answer = sdk.chat.completions.create(
        model="smollm2", messages=FRANCE, temperature=0, logprobs=True, top_logprobs=3, max_tokens=5
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    for entry in logprobs.content:
        assert entry.logprob == entry.top_logprobs[0].logprob  # greedy
        assert [top.logprob for top in entry.top_logprobs] == sorted(
            (t.logprob for t in entry.top_logprobs), reverse=True
        )


def test_n_and_seed(sdk: openai.OpenAI) -> None:
    def ask() -> list[str | None]:
        answer = sdk.chat.completions.create(model="smollm2", messages=FRANCE, n=2, seed=7, max_tokens=12)
        return [choice.message.content for choice in answer.choices]

    first = ask()
    assert len(set(first)) == 2
    assert ask() == first


def test_beam_search_whole_and_streamed(sdk: openai.OpenAI) -> None:
    wanted: Any = {"model": "smollm2", "messages": FRANCE, "n": 2, "max_tokens": 9, "logprobs": True}
    extra = {"beam_width": 4, "length_penalty": 0.0, "early_stopping": "never"}
    answer = sdk.chat.completions.create(**wanted, extra_body=extra)
    sums = [sum(entry.logprob for entry in choice.logprobs.content) for choice in answer.choices if choice.logprobs]
    assert sums == sorted(sums, reverse=True)
    texts = {choice.index: choice.message.content for choice in answer.choices}
    assert len(set(texts.values())) == 2
    streamed = {0: "", 1: ""}
    for chunk in sdk.chat.completions.create(**wanted, stream=True, extra_body=extra):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == texts
    with pytest.raises(openai.BadRequestError, match="beam_width is 100, and this engine runs"):
        sdk.chat.completions.create(**wanted, extra_body={"beam_width": 100})


def test_a_repeated_prompt_finds_the_shard_that_has_it(sdk: openai.OpenAI) -> None:
    """With two shards and no affinity half of these would miss."""
    for topic in ("rivers", "bridges", "harbours", "lighthouses", "canals"):
        messages: Any = [{"role": "user", "content": f"Write a list of famous {topic} and say why they are known."}]
        sdk.chat.completions.create(model="smollm2", messages=messages, max_tokens=1)
        again = sdk.chat.completions.create(model="smollm2", messages=messages, max_tokens=1)
        assert again.usage is not None
        assert again.usage.prompt_tokens_details is not None
        assert again.usage.prompt_tokens_details.cached_tokens == (again.usage.prompt_tokens - 1) // 16 * 16


def test_lm_evals_request(server: Any) -> None:
    prompts = [
        httpx.post(f"{server.url}/tokenize", json={"prompt": text}).json()["tokens"]
        for text in ("The capital of France is Paris", "Water boils at 100 degrees")
    ]
    body = {"model": "smollm2", "prompt": prompts, "echo": True, "logprobs": 1, "max_tokens": 1, "temperature": 0}
    choices = httpx.post(f"{server.url}/v1/completions", json=body | {"seed": 1234}, timeout=60).json()["choices"]
    for choice, prompt in zip(choices, prompts, strict=True):
        assert len(choice["logprobs"]["token_logprobs"]) == len(choice["logprobs"]["top_logprobs"]) == len(prompt) + 1
    paris = choices[0]["logprobs"]
    assert max(paris["top_logprobs"][5], key=paris["top_logprobs"][5].get) == paris["tokens"][5] == " Paris"


def test_many_prompts_side_by_side(sdk: openai.OpenAI) -> None:
    prompts = [f"{word} is" for word in ("water", "fire", "stone", "wood", "iron", "gold", "silver", "glass")]
    answer = sdk.completions.create(model="smollm2", prompt=prompts, max_tokens=2, temperature=0, echo=True)
    assert [choice.text.startswith(prompt) for choice, prompt in zip(answer.choices, prompts, strict=True)] == [
        True
    ] * 8


BAD = {
    "malformed JSON": ({"content": b'{"model": "smollm2", '}, 400, "not valid JSON"),
    "invalid UTF-8": (
        {"content": b'{"model": "smollm2", "messages": [{"role": "user", "content": "\xff"}]}'},
        400,
        "JSON",
    ),
    "no object": ({"json": [1]}, 400, "must be"),
    "no messages": ({"json": {"model": "smollm2"}}, 400, "'messages' is required"),
    "empty messages": ({"json": {"messages": []}}, 400, "must not be empty"),
    "wrong type": ({"json": {"messages": FRANCE, "temperature": "hot"}}, 400, "temperature"),
    "wrong type deep": ({"json": {"messages": [{"role": 1}]}}, 400, "messages.0.role"),
    "unknown model": ({"json": {"model": "gpt-4", "messages": FRANCE}}, 404, "served here: smollm2"),
    "unknown field": ({"json": {"messages": FRANCE, "tempurature": 1}}, 400, "did you mean 'temperature'"),
    "too long": ({"json": {"messages": [{"role": "user", "content": "word " * 9000}]}}, 400, "context"),
    "negative max_tokens": ({"json": {"messages": FRANCE, "max_tokens": -1}}, 400, "max_tokens"),
    "huge max_tokens": ({"json": {"messages": FRANCE, "max_tokens": 10**9}}, 400, "ask for at most"),
    "n over the limit": ({"json": {"messages": FRANCE, "n": 1000}}, 400, "n must be"),
    "50 MB": ({"content": b"x" * 50_000_000}, 413, "at most"),
    "50 MB in chunks": ({"content": (b"x" * 1_000_000 for _ in range(50))}, 413, "accepted"),
    "image": ({"json": {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}}, 400, "image_url"),
}


@pytest.mark.parametrize(("sent", "status", "sentence"), BAD.values(), ids=BAD.keys())
def test_bad_input(server: Any, sent: dict[str, Any], status: int, sentence: str) -> None:
    answer = httpx.post(f"{server.url}/v1/chat/completions", **sent, timeout=30)
    assert (answer.status_code, sentence in answer.json()["error"]["message"]) == (status, True), answer.text
    good = httpx.post(f"{server.url}/v1/chat/completions", json={"messages": FRANCE, "max_tokens": 1}, timeout=30)
    assert good.status_code == 200


@pytest.mark.parametrize(
    ("prompt", "sentence"),
    [([], "empty"), ([[]], "empty"), ([10**7], "vocabulary"), (["a", 1], "must be")],
)
def test_bad_prompts(server: Any, prompt: Any, sentence: str) -> None:
    answer = httpx.post(f"{server.url}/v1/completions", json={"model": "smollm2", "prompt": prompt})
    assert (answer.status_code, sentence in answer.json()["error"]["message"]) == (400, True), answer.text


def test_leaving_a_stream_frees_its_blocks(server: Any) -> None:
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=STORY | {"stream": True}, timeout=30) as answer:
        lines = answer.iter_lines()
        for _ in range(9):
            next(lines)
        while server.metric("vllm:kv_cache_usage_perc") == 0:
            assert next(lines, None) is not None  # a shard that is late has its last statistics
    assert server.wait_for("vllm:num_requests_running", 0, seconds=3) < 3
    server.wait_for("vllm:kv_cache_usage_perc", 0, seconds=3)


def test_leaving_before_the_answer_frees_its_blocks(server: Any) -> None:
    address = httpx.URL(server.url)
    body = json.dumps(STORY).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with socket.create_connection((address.host, address.port)) as connection:
        connection.sendall(head + body)
        server.wait_for("vllm:num_requests_running", 1, seconds=10)
    assert server.wait_for("vllm:num_requests_running", 0, seconds=3) < 3
    server.wait_for("vllm:kv_cache_usage_perc", 0, seconds=3)


def test_a_stop_string_ends_one_of_two_sequences_at_its_shard(server: Any) -> None:
    body = STORY | {"n": 2, "seed": 1, "stop": [" the"], "max_tokens": 400}
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=120).json()
    for choice in answer["choices"]:
        assert choice["stop_reason"] == " the"
        assert " the" not in choice["message"]["content"]
    server.wait_for("vllm:num_requests_running", 0, seconds=3)


def test_streams_side_by_side_use_both_shards(server: Any) -> None:
    def read(seed: int) -> None:
        body = {"model": "smollm2", "messages": FRANCE, "max_tokens": 24, "ignore_eos": True, "seed": seed}
        answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=120)
        texts.append(answer.json()["choices"][0]["message"]["content"])

    texts: list[str] = []
    readers = [threading.Thread(target=read, args=(seed,)) for seed in range(24)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert len(texts) == 24
    lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    steps = [float(line.rpartition(" ")[2]) for line in lines if line.startswith("octavo_shard_steps_total{")]
    assert len(steps) == 2
    assert min(steps) > 10


def test_a_full_queue_is_a_429_that_says_when_to_come_back(server: Any) -> None:
    body = {"model": "smollm2", "prompt": [f"{i}" for i in range(400)], "max_tokens": 50, "ignore_eos": True}
    answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=60)
    assert answer.status_code == 429, answer.text
    assert int(answer.headers["retry-after"]) >= 1
    assert "are waiting" in answer.json()["error"]["message"]
    server.wait_for("vllm:num_requests_running", 0, seconds=3)


def test_health_ids_and_unknown_paths(server: Any) -> None:
    models = {"smollm2": {"status": "ready", "reason": None}}
    assert httpx.get(f"{server.url}/health").json() == {"status": "ok", "shards": {"smollm2": 2}, "models": models}
    assert httpx.get(f"{server.url}/v1/models", headers={"x-request-id": "mine"}).headers["x-request-id"] == "mine"
    assert httpx.get(f"{server.url}/props").status_code == 404


def told(url: str, body: dict[str, Any], on_text: Any = None) -> list[str]:
    """The text of each choice of a streamed completion; `on_text` is called with the first piece."""
    texts = [""] * body.get("n", 1)
    with httpx.stream("POST", f"{url}/v1/completions", json=body | {"stream": True}, timeout=200) as answer:
        for line in answer.iter_lines():
            if not line or line == "data: [DONE]":
                continue
            event = json.loads(line.removeprefix("data: "))
            assert "error" not in event, event
            for choice in event["choices"]:
                texts[choice["index"]] += choice["text"]
            if on_text is not None:
                on_text = on_text()
    return texts


def test_streams_survive_their_shards(server: Any) -> None:
    """All shards are killed at once; each stream goes on at a new one with the tokens of the unbroken run."""
    common = {"model": "smollm2", "max_tokens": 300, "ignore_eos": True}
    bodies = [
        common | {"prompt": "Once upon a time", "temperature": 0},
        common | {"prompt": "The sea", "seed": 11, "n": 2, "frequency_penalty": 0.5},
    ]
    unbroken = [told(server.url, body) for body in bodies]
    answers: dict[int, list[str]] = {}
    begun = threading.Event()
    readers = [threading.Thread(target=lambda: answers.update({1: told(server.url, bodies[1], on_text=begun.set)}))]
    readers += [threading.Thread(target=lambda: answers.update({2: asked(server.url, bodies[1])}))]
    for reader in readers:
        reader.start()
    assert begun.wait(30)

    def kill() -> None:
        for pid in server.shards():
            os.kill(pid, signal.SIGKILL)

    answers[0] = told(server.url, bodies[0], on_text=kill)
    for reader in readers:
        reader.join()
    assert [answers[0], answers[1], answers[2]] == [*unbroken, unbroken[1]]
    assert server.metric("octavo_stream_moves_total") >= 1
    server.wait_for("vllm:num_requests_running", 0, seconds=10)


def asked(url: str, body: dict[str, Any]) -> list[str]:
    answer = httpx.post(f"{url}/v1/completions", json=body, timeout=200)
    assert answer.status_code == 200, answer.text
    return [choice["text"] for choice in answer.json()["choices"]]


def test_each_line_about_a_request_names_it(server: Any) -> None:
    """As the client named it, or as the server did where the name was none that a log should hold."""
    mine, *made = (named(server.url, name) for name in ("mine-1", "x" * 129, "a b", "\x1b[31m"))
    assert (mine, [len(name) for name in made]) == ("mine-1", [36, 36, 36])
    lines: list[dict[str, Any]] = []
    for _ in range(100):  # a log shows a line after a second at the latest
        time.sleep(0.1)
        logs = [path.read_text() for path in server.logs.glob("replica*.log")]
        lines = [json.loads(line) for log in logs for line in log.splitlines()]
        if {mine, *made} <= {line.get("request_id") for line in lines}:
            break
    assert {mine, *made} <= {line.get("request_id") for line in lines}
    asked = [line["message"] for line in lines if line.get("request_id") == mine]
    assert [message.partition(" 200 ")[0] for message in asked] == ["POST /v1/completions"]
    about = [line for line in lines if "POST" in line["message"] or "cmpl-" in line["message"]]
    assert [line for line in about if not line.get("request_id")] == []
    moved = [line for line in about if "looks for another shard" in line["message"]]
    assert len(moved) >= server.metric("octavo_stream_moves_total") >= 1


def named(url: str, name: str) -> str:
    """The id that a request has which was sent with this one."""
    body = {"model": "smollm2", "prompt": "One", "max_tokens": 1}
    answer = httpx.post(f"{url}/v1/completions", json=body, headers={"x-request-id": name.encode()}, timeout=60)
    assert answer.status_code == 200
    return str(answer.headers["x-request-id"])


HANDLE_CALLS = """
import json, ray
from ray import serve
from octavo.errors import BadRequest, UnknownModel
ray.init(address="auto", namespace="serve", log_to_driver=False)
gateway = serve.get_app_handle("octavo")
question = {"messages": [{"role": "user", "content": "What is the capital of France?"}], "temperature": 0}
answer = gateway.chat.remote(question).result()
stream = gateway.options(stream=True).chat_stream.remote(question)
text = "".join(choice["delta"].get("content", "") for chunk in stream for choice in chunk["choices"])
many = gateway.complete.remote({"prompt": ["One two", "A b c"], "max_tokens": 3}, "acme").result()
pieces = list(gateway.options(stream=True).complete_stream.remote({"prompt": "One two", "max_tokens": 3}))
refused = []
for body, *tenant in (
    [{"messages": []}], [question | {"model": "huge"}], [question | {"temperature": 1000}], [question, "acne"],
):
    try:
        gateway.chat.remote(body, *tenant).result()
    except BadRequest as error:
        refused.append([isinstance(error, UnknownModel), error.param])
long = gateway.options(stream=True).chat_stream.remote(question | {"max_tokens": 3000, "ignore_eos": True})
next(long)
long.cancel()
print(json.dumps([answer["choices"][0]["message"]["content"], text, len(many["choices"]), len(pieces), refused]))
"""


def test_calls_from_python_without_http(server: Any) -> None:
    done = subprocess.run(
        [sys.executable, "-c", HANDLE_CALLS],
        env=server.environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answer, streamed, many, pieces, refused = json.loads(done.stdout.splitlines()[-1])
    assert "Paris" in answer
    assert streamed == answer
    assert (many, pieces) == (2, 3)
    assert refused == [[False, "messages"], [True, "model"], [False, "temperature"], [False, "tenant"]]
    (used,) = httpx.get(f"{server.url}/v1/usage?tenant=acme").json()["data"]
    assert (used["requests"], used["completion_tokens"], used["engine_seconds"] > 0) == (1, 6, True)
    server.wait_for("vllm:num_requests_running", 0, seconds=3)


def test_the_batch_job_answers_as_http_does(server: Any, sdk: openai.OpenAI, tmp_path: Path) -> None:
    questions = ["What is the capital of France?", "Name a colour.", "What do bees make?"]
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(questions))
    command = [sys.executable, str(ROOT / "examples" / "batch_job.py"), str(prompts)]
    done = subprocess.run(command, env=server.environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line)["answer"] for line in done.stdout.splitlines() if line.startswith("{")]
    for question, answer in zip(questions, answers, strict=True):
        messages: Any = [{"role": "user", "content": question}]
        same = sdk.chat.completions.create(model="smollm2", messages=messages, temperature=0, max_tokens=64)
        assert answer == same.choices[0].message.content
