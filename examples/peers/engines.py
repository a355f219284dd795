"""One engine of another make, or ours, behind two lines: it reads "W2 7" (workload, seed) and answers with JSON.

    python engines.py ENGINE MODEL [--threads 2] [--dtype bfloat16] [--kv-gib 1]

compare.py starts each with the Python that has it installed. Every answer has `seconds` and, for one request,
`first_token` and `decode` in seconds; an engine that does not give as many tokens as were asked for ends with an error.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import http.client
import json
import os
import resource
import socket
import subprocess
import sys
import threading
import time
from typing import Any, Protocol

import workloads

Timing = dict[str, float]


class Engine(Protocol):
    """Loads a model when it is made."""

    def run(self, requests: workloads.Requests) -> Timing:
        """Answer all requests, which arrive at once."""
        ...


class Octavo:
    def __init__(self, options: argparse.Namespace) -> None:
        from octavo import LLM, SamplingParams

        self._params = SamplingParams
        self._llm = LLM(
            options.model,
            dtype=options.dtype,
            max_model_len=2048,
            max_num_seqs=64,
            kv_cache_bytes=options.kv_gib * 2**30,
            threads=options.threads,
        )

    def run(self, requests: workloads.Requests) -> Timing:
        params = [self._params(temperature=0, max_tokens=n, ignore_eos=True) for _, n in requests]
        begin = time.perf_counter()
        outputs = self._llm.generate([prompt for prompt, _ in requests], params, use_tqdm=False)
        seconds = time.perf_counter() - begin
        check([len(output.outputs[0].token_ids) for output in outputs], requests)
        metrics = outputs[0].metrics
        first = metrics.first_token_time - metrics.arrival_time
        return {"seconds": seconds, "first_token": first, "decode": metrics.finished_time - metrics.first_token_time}


class LlamaServer:
    """llama.cpp's server with parallel slots. The best flags for many requests are others than those for one."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._port = free_port()
        slots, context = (options.slots, 1152) if options.slots > 1 else (1, 2048)
        attention = "off" if options.slots > 4 else "on"  # faster without for 16 slots, with for 1 and 4
        command = [os.environ["LLAMA_BIN"] + "/llama-server", "-m", options.model, "--port", str(self._port)]
        command += [
            "-t",
            str(options.threads),
            "-tb",
            str(options.threads),
            "-np",
            str(slots),
            "-c",
            str(slots * context),
        ]
        command += ["-b", "2048", "-ub", str(128 * slots if slots > 1 else 512), "-fa", attention, "--cache-ram", "0"]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        atexit.register(self._process.terminate)
        wait_for(self._port, self._process)

    def run(self, requests: workloads.Requests) -> Timing:
        answers: list[tuple[int, float, float]] = []
        ask = [threading.Thread(target=lambda r=r: answers.append(self._ask(*r, len(requests) == 1))) for r in requests]
        begin = time.perf_counter()
        for thread in ask:
            thread.start()
        for thread in ask:
            thread.join()
        seconds = time.perf_counter() - begin
        check([sum(count for count, _, _ in answers)], [([], sum(n for _, n in requests))])
        return {"seconds": seconds, "first_token": answers[0][1] - begin, "decode": answers[0][2] - answers[0][1]}

    def _ask(self, prompt: list[int], tokens: int, stream: bool) -> tuple[int, float, float]:
        body = {"prompt": prompt, "n_predict": tokens, "ignore_eos": True, "stream": stream, "cache_prompt": True}
        body |= {"samplers": ["top_k"], "top_k": 1}
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=600)
        connection.request("POST", "/completion", json.dumps(body), {"Content-Type": "application/json"})
        first, last = 0.0, b""
        for line in connection.getresponse():
            if line.strip():
                first, last = first or time.perf_counter(), line.removeprefix(b"data: ")
        return json.loads(last)["timings"]["predicted_n"], first, time.perf_counter()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until a llama-server has its model."""
    while process.poll() is None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        with contextlib.suppress(OSError):
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return
        time.sleep(0.05)
    raise SystemExit("llama-server ended")


class LlamaBench:
    """llama.cpp without its server; it brings its own tokens, and a workload of one kind only."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._command = [os.environ["LLAMA_BIN"] + "/llama-bench", "-m", options.model, "-t", str(options.threads)]
        self._command += ["-o", "json", "-r", "1", "-fa", "1"]

    def run(self, requests: workloads.Requests) -> Timing:
        prompt, tokens = len(requests[0][0]), requests[0][1]
        reading = len(requests) * self._seconds("-p", str(prompt), "-n", "0")
        if tokens == 1:
            return {"seconds": reading, "rss_mb": _ended_children_mb()}
        decode = self._seconds("-p", "0", "-n", str(tokens - 1), "-d", str(prompt))
        times = {"seconds": reading + decode, "first_token": reading, "decode": decode}
        return times | {"rss_mb": _ended_children_mb()}

    def _seconds(self, *arguments: str) -> float:
        out = subprocess.run([*self._command, *arguments], check=True, capture_output=True, text=True).stdout
        return float(json.loads(out)[0]["avg_ns"]) / 1e9


def _ended_children_mb() -> float:
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024


class VLLM:
    def __init__(self, options: argparse.Namespace) -> None:
        settings = {
            "VLLM_CPU_KVCACHE_SPACE": str(options.kv_gib),
            "VLLM_CPU_OMP_THREADS_BIND": f"0-{options.threads - 1}",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        os.environ.update(settings)
        import vllm

        self._params = vllm.SamplingParams
        limits = {"max_model_len": 2048, "max_num_seqs": 64, "max_num_batched_tokens": 2048}
        self._engine = vllm.LLM(options.model, dtype=options.dtype, **limits).llm_engine
        self._asked = 0

    def run(self, requests: workloads.Requests) -> Timing:
        begin = time.perf_counter()
        for prompt, tokens in requests:
            self._asked += 1
            params = self._params(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
            self._engine.add_request(str(self._asked), {"prompt_token_ids": prompt}, params)
        first, counts = 0.0, []
        while self._engine.has_unfinished_requests():
            for output in self._engine.step():
                first = first or time.perf_counter()
                if output.finished:
                    counts.append(len(output.outputs[0].token_ids))
        end = time.perf_counter()
        check(sorted(counts), sorted(requests, key=lambda request: request[1]))
        return {"seconds": end - begin, "first_token": first - begin, "decode": end - first}


class OpenVINO:
    def __init__(self, options: argparse.Namespace) -> None:
        import numpy
        import openvino
        import openvino_genai as genai

        self._genai = genai
        self._ids = lambda prompt: openvino.Tensor(numpy.array([prompt], numpy.int64))
        scheduler = genai.SchedulerConfig()
        scheduler.max_num_seqs, scheduler.max_num_batched_tokens = 64, 2048
        scheduler.cache_size, scheduler.enable_prefix_caching = options.kv_gib, True
        hints = {
            "INFERENCE_PRECISION_HINT": "bf16",
            "INFERENCE_NUM_THREADS": options.threads,
            "PERFORMANCE_HINT": "LATENCY",
        }
        self._pipeline = genai.ContinuousBatchingPipeline(options.model, scheduler, "CPU", hints)
        self._asked = 0

    def run(self, requests: workloads.Requests) -> Timing:
        begin = time.perf_counter()
        handles = [self._add(prompt, tokens) for prompt, tokens in requests]
        first, counts = 0.0, [0] * len(handles)
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
            first = first or (time.perf_counter() if handles[0].can_read() else 0.0)
        end = time.perf_counter()
        for i, handle in enumerate(handles):
            while handle.can_read():
                counts[i] += sum(len(output.generated_ids) for output in handle.read().values())
        check(counts, requests)
        return {"seconds": end - begin, "first_token": first - begin, "decode": end - first}

    def _add(self, prompt: list[int], tokens: int) -> Any:
        self._asked += 1
        config = self._genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.do_sample = tokens, True, False
        return self._pipeline.add_request(self._asked, self._ids(prompt), config)


class Transformers:
    """`generate` over padded batches of 32, or of 8 long prompts, with like output lengths together."""

    def __init__(self, options: argparse.Namespace) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(options.threads)
        self._torch = torch
        self._model = AutoModelForCausalLM.from_pretrained(options.model, dtype=getattr(torch, options.dtype)).eval()
        self._model.generation_config.eos_token_id = None

    def run(self, requests: workloads.Requests) -> Timing:
        marks: list[float] = []

        class Streamer:  # gets the prompt, then every token
            def put(self, _: object) -> None:
                marks.append(time.perf_counter())

            def end(self) -> None:
                marks.append(time.perf_counter())

        size = 8 if len(requests[0][0]) >= 1024 else 32
        ordered = sorted(requests, key=lambda request: request[1])
        streamer = Streamer() if len(requests) == 1 else None
        begin = time.perf_counter()
        for start in range(0, len(ordered), size):
            self._generate(ordered[start : start + size], streamer)
        end = time.perf_counter()
        if streamer is None:
            return {"seconds": end - begin}
        return {"seconds": end - begin, "first_token": marks[1] - begin, "decode": marks[-1] - marks[1]}

    def _generate(self, requests: workloads.Requests, streamer: object) -> None:
        torch, longest, most = self._torch, max(len(p) for p, _ in requests), max(n for _, n in requests)
        ids = torch.tensor([[2] * (longest - len(prompt)) + prompt for prompt, _ in requests])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt, _ in requests])
        lengths = {"max_new_tokens": most, "min_new_tokens": most, "do_sample": False, "pad_token_id": 2}
        with torch.inference_mode():
            out = self._model.generate(ids, attention_mask=mask, eos_token_id=None, streamer=streamer, **lengths)
        check([out.shape[1] - longest], [([], most)])


ENGINES: dict[str, type] = {
    "octavo": Octavo,
    "llama-server": LlamaServer,
    "llama-bench": LlamaBench,
    "vllm": VLLM,
    "openvino": OpenVINO,
    "transformers": Transformers,
}


def check(counts: list[int], requests: workloads.Requests) -> None:
    wanted = [tokens for _, tokens in requests]
    if counts != wanted:
        raise SystemExit(f"{counts} tokens instead of {wanted}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", choices=ENGINES)
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--kv-gib", type=int, default=1)
    parser.add_argument("--slots", type=int, default=1, help="of llama-server")
    options = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w")  # engines print to stdout
    os.dup2(2, 1)
    engine: Engine = ENGINES[options.engine](options)
    if options.engine != "llama-bench":
        engine.run(workloads.make("W0", 0))
    print("{}", file=answers, flush=True)
    for line in sys.stdin:
        name, seed = line.split()
        print(json.dumps(engine.run(workloads.make(name, int(seed)))), file=answers, flush=True)


if __name__ == "__main__":
    main()
