"""An engine that keeps its answers to schemas, behind two lines, for structured.py: "WORKLOAD SEED" in, JSON out.

    python structured_engines.py octavo|vllm|llama-server MODEL [--threads 2] [--backend xgrammar]

An answer has `seconds` and `tokens` of a text that keeps to the schema, the same of a free one with as many tokens
(`free_seconds`), whether the first is valid, and the seconds to one token with a schema that the engine has never seen,
`new`, and without one, `none`.
"""

from __future__ import annotations

import argparse
import atexit
import http.client
import json
import os
import socket
import subprocess
import sys
import time
from typing import Any, Protocol

import jsonschema_rs

PEOPLE = "Ada Lovelace", "Alan Turing", "Grace Hopper", "Edsger Dijkstra", "Barbara Liskov", "Donald Knuth"
TEXT = {"type": "string", "maxLength": 40}


def _object(**properties: Any) -> dict[str, Any]:
    named = {"properties": properties, "required": [*properties]}
    return {"type": "object", **named, "additionalProperties": False}


SCHEMAS = {
    "person": _object(
        full_name=TEXT,
        occupation=TEXT,
        nationality={"enum": ["British", "American", "Dutch", "French", "German"]},
        year_of_birth={"type": "integer", "minimum": 1700, "maximum": 2020},
        is_still_alive={"type": "boolean"},
        best_known_for=TEXT,
    ),
    "order": _object(
        order_number={"type": "integer", "minimum": 1, "maximum": 99999},
        customer=_object(name=TEXT, country={"enum": ["UK", "US", "NL"]}),
        items={
            "type": "array",
            "minItems": 2,
            "maxItems": 2,
            "items": _object(title=TEXT, quantity={"type": "integer", "minimum": 1, "maximum": 9}),
        },
        express_delivery={"type": "boolean"},
    ),
}
MOST = 200


class Engine(Protocol):
    """Loads a model when it is made."""

    def say(self, prompt: str, tokens: int, schema: dict[str, Any] | None) -> tuple[str, int]:
        """Greedily, at most so many tokens of a schema's JSON, or so many tokens; the text, and their number."""
        ...


class Octavo:
    def __init__(self, options: argparse.Namespace) -> None:
        from octavo import LLM, SamplingParams, StructuredOutputs

        self._llm = LLM(options.model, dtype=options.dtype, max_model_len=2048, max_num_seqs=4,
                        threads=options.threads, kv_cache_bytes=2**28, speculation=False)  # fmt: skip
        self._params, self._outputs = SamplingParams, StructuredOutputs

    def say(self, prompt: str, tokens: int, schema: dict[str, Any] | None) -> tuple[str, int]:
        wanted = None if schema is None else self._outputs(json=schema)
        params = self._params(temperature=0, max_tokens=tokens, ignore_eos=wanted is None, structured_outputs=wanted)
        output = self._llm.generate([prompt], params, use_tqdm=False)[0].outputs[0]
        return output.text, len(output.token_ids)


class VLLM:
    def __init__(self, options: argparse.Namespace) -> None:
        os.environ |= {
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": f"0-{options.threads - 1}",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        import vllm
        from vllm.sampling_params import StructuredOutputsParams

        self._llm = vllm.LLM(options.model, dtype=options.dtype, max_model_len=2048, max_num_seqs=4,
                             structured_outputs_config={"backend": options.backend})  # fmt: skip
        self._params, self._outputs = vllm.SamplingParams, StructuredOutputsParams

    def say(self, prompt: str, tokens: int, schema: dict[str, Any] | None) -> tuple[str, int]:
        wanted = None if schema is None else self._outputs(json=schema)
        params = self._params(temperature=0, max_tokens=tokens, ignore_eos=wanted is None, structured_outputs=wanted)
        output = self._llm.generate([prompt], params, use_tqdm=False)[0].outputs[0]
        return output.text, len(output.token_ids)


class LlamaServer:
    def __init__(self, options: argparse.Namespace) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        command = [os.environ["LLAMA_BIN"] + "/llama-server", "-m", options.model, "--port", str(self._port)]
        command += ["-t", str(options.threads), "-tb", str(options.threads), "-np", "1", "-c", "2048", "-fa", "on"]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        atexit.register(self._process.terminate)
        while self._ask("GET", "/health")[0] != 200:
            if self._process.poll() is not None:
                raise SystemExit("llama-server ended")
            time.sleep(0.05)

    def say(self, prompt: str, tokens: int, schema: dict[str, Any] | None) -> tuple[str, int]:
        body = {"prompt": prompt, "n_predict": tokens, "samplers": ["top_k"], "top_k": 1, "ignore_eos": schema is None}
        if schema is not None:
            body["json_schema"] = schema
        status, text = self._ask("POST", "/completion", json.dumps(body))
        if status != 200:
            raise SystemExit(f"llama-server: {text[:300]}")
        answer = json.loads(text)
        return answer["content"], answer["timings"]["predicted_n"]

    def _ask(self, method: str, path: str, body: str | None = None) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=600)
        try:
            connection.request(method, path, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            return response.status, response.read().decode()
        except OSError as error:
            return 0, str(error)


ENGINES: dict[str, type] = {"octavo": Octavo, "vllm": VLLM, "llama-server": LlamaServer}


def run(engine: Engine, workload: str, seed: int) -> dict[str, Any]:
    """A fixed schema beside free text, then a schema that is new beside none; no prompt comes twice."""
    schema, person = SCHEMAS[workload], PEOPLE[seed % len(PEOPLE)]
    begin = time.perf_counter()
    text, tokens = engine.say(f"Number {seed}. Describe {person}'s {workload} as JSON:\n", MOST, schema)
    middle = time.perf_counter()
    _, free = engine.say(f"Number {seed}. Describe {person}'s {workload} in prose:\n", tokens, None)
    end = time.perf_counter()
    if free != tokens:
        raise SystemExit(f"{free} tokens instead of {tokens}")
    new = _object(**{f"{name}_{seed}": value for name, value in schema["properties"].items()})
    times = {}
    for name, wanted in (("new", new), ("none", None)):
        since = time.perf_counter()
        engine.say(f"Number {seed}, {name}: {person}'s {workload}, " + "of a list of many things " * 20, 1, wanted)
        times[name] = time.perf_counter() - since
    valid = tokens == MOST or jsonschema_rs.is_valid(schema, json.loads(text))
    return {"seconds": middle - begin, "free_seconds": end - middle, "tokens": tokens, "valid": valid, **times}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", choices=ENGINES)
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--backend", default="xgrammar", help="vLLM's")
    options = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w")  # engines print to stdout
    os.dup2(2, 1)
    engine: Engine = ENGINES[options.engine](options)
    for workload in SCHEMAS:
        run(engine, workload, 0)
    print("{}", file=answers, flush=True)
    for line in sys.stdin:
        name, seed = line.split()
        print(json.dumps(run(engine, name, int(seed))), file=answers, flush=True)


if __name__ == "__main__":
    main()
