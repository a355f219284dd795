"""How near to its hardware the engine runs on a GPU, and what Hugging Face does beside it.

    .venv/bin/python examples/benchmark_gpu.py --out results                    all parts, both models: about 20 minutes
    .venv/bin/python examples/benchmark_gpu.py --parts decode,prefill --models 8b
    .venv/bin/python examples/benchmark_gpu.py --tiny --device cpu              a model of two small layers, in seconds

Models of Llama 3's shapes are made on the device with random weights. Decoding is held against the bandwidth, prompts
against the matrix rate, both measured in the same run; 256 requests with lengths like ShareGPT's are given to this
engine, to `generate` of transformers in batches of 64 and to its continuous batching. A part that fails is reported and
the others go on. Results: gpu.json and gpu.md in --out, and the same JSON as the last line.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import random
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from octavo import EngineConfig, SamplingParams
from octavo.engine.engine import Engine
from octavo.execution.background import BackgroundExecutor
from octavo.execution.executor import Wait, finished
from octavo.execution.graphs import padded_sizes
from octavo.layer_groups import ONE_GROUP
from octavo.request import Request
from octavo.source import resolve_source
from octavo.step import StepBatch, StepResult
from octavo_kernels.timing import SIZES, Bench, Ceilings

_COMMON = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "rms_norm_eps": 1e-5,
    "rope_theta": 500_000.0, "dtype": "bfloat16", "eos_token_id": None, "bos_token_id": 0, "pad_token_id": 0,
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
           "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128_256, "max_position_embeddings": 8192,
           "tie_word_embeddings": True},
    "8b": {"hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32, "num_attention_heads": 32,
           "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128_256, "max_position_embeddings": 8192,
           "tie_word_embeddings": False},
    "tiny": {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 300, "max_position_embeddings": 512,
             "tie_word_embeddings": False},
}  # fmt: skip
"""Llama-3.2-1B's shape, Llama-3-8B's, and one for trying this file out."""


@dataclass(frozen=True)
class Scale:
    """How much is run."""

    batches: tuple[int, ...]
    decode: tuple[int, int]  # tokens of the prompt, tokens out
    prompts: tuple[int, int]  # how many, tokens of each
    requests: int
    longest: int  # prompt or output of a request
    hf_batch: int


FULL = Scale((1, 8, 64, 256), (128, 128), (8, 2048), 256, 1024, 64)
TINY = Scale((1, 3), (5, 6), (2, 20), 6, 12, 3)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="1b,8b", help=f"some of {', '.join(MODELS)}")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"some of {', '.join(PARTS)}")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tiny", action="store_true", help="a tiny model and a few tokens")
    parser.add_argument("--quantization", help="as in EngineConfig")
    parser.add_argument("--seconds", type=float, default=540, help="after which no new part begins")
    parser.add_argument("--out", type=Path, default=Path("gpu-results"))
    options = parser.parse_args(arguments)
    print(f"{options.seconds / 60:.0f} minutes and the part that runs then, at most", flush=True)
    begin = time.monotonic()
    size = SIZES["tiny" if options.tiny else "cpu" if options.device == "cpu" else "gpu"]
    dtype = torch.float32 if options.device == "cpu" else torch.bfloat16
    ceilings = Bench(options.device, 10, size, dtype).ceilings()
    machine = "CPU" if options.device == "cpu" else torch.cuda.get_device_name()
    report: dict[str, Any] = {"machine": machine, "torch": torch.__version__, "ceilings": asdict(ceilings)}
    print(f"{machine}: {ceilings.gb_per_s:.0f} GB/s, {ceilings.tflop_per_s:.1f} TFLOP/s", flush=True)
    for model in ["tiny"] if options.tiny else options.models.split(","):
        for part in options.parts.split(","):
            if time.monotonic() - begin > options.seconds:
                report[f"{model} {part}"] = {"error": "the time is up"}
                continue
            report[f"{model} {part}"] = _guarded(lambda m=model, p=part: PARTS[p](m, options, ceilings))
            print(model, part, json.dumps(report[f"{model} {part}"]), flush=True)
            _write(report, options.out)
    print(json.dumps(report))


def _guarded(run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return run()
    except Exception as error:
        traceback.print_exc()
        return {"error": repr(error)}
    finally:
        _free()


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _write(report: dict[str, Any], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "gpu.json").write_text(json.dumps(report, indent=1))
    ceilings = report["ceilings"]
    lines = [
        f"# {report['machine']}, torch {report['torch']}",
        "",
        f"Copying: {ceilings['gb_per_s']:.0f} GB/s. Products: {ceilings['tflop_per_s']:.1f} TFLOP/s.",
        "",
        "| part | what | figure |",
        "|---|---|---|",
    ]
    for part, values in report.items():
        if isinstance(values, dict) and part != "ceilings":
            lines += [f"| {part} | {name} | {_figure(value)} |" for name, value in values.items()]
    (folder / "gpu.md").write_text("\n".join(lines) + "\n")


def _figure(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_figure(inner)}" for name, inner in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)


# ---- this engine ----------------------------------------------------------------------------------------------------


def _engine(model: str, options: argparse.Namespace, **settings: Any) -> Engine:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(_COMMON | MODELS[model]))
        small = {"kv_cache_bytes": 2**22} if options.device == "cpu" else {}
        config = EngineConfig(
            load_format="dummy", device=options.device, quantization=options.quantization, enable_prefix_caching=False,
            **small, **settings,
        )  # fmt: skip
        return Engine.load(resolve_source(folder), config, SimpleNamespace(eos_token_ids=()))  # type: ignore[arg-type]


def _add(engine: Engine, prompts: list[list[int]], outputs: list[int]) -> None:
    for i, (prompt, count) in enumerate(zip(prompts, outputs, strict=True)):
        params = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True)
        engine.add(Request(request_id=str(i), prompt_token_ids=prompt, params=params))


def _run(engine: Engine, prompts: list[list[int]], outputs: list[int]) -> list[tuple[float, int]]:
    """When each step's tokens were there, and how many."""
    _add(engine, prompts, outputs)
    steps = []
    while engine.has_work:
        count = len(engine.step())
        steps.append((time.perf_counter(), count))
    return steps


def _prompts(model: str, count: int, length: int, seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(MODELS[model]["vocab_size"]) for _ in range(length)] for _ in range(count)]


def decode(model: str, options: argparse.Namespace, ceilings: Ceilings) -> dict[str, Any]:
    """Milliseconds a step at each batch size, and the share of the bandwidth: weights and cache, read once a step."""
    scale, shape = (TINY if options.tiny else FULL), MODELS[model]
    engine = _engine(model, options, max_num_seqs=max(scale.batches), max_model_len=sum(scale.decode) + 16)
    weights = engine.executor.parts.num_bytes  # type: ignore[attr-defined]
    item = 4 if options.device == "cpu" else 2
    if not shape["tie_word_embeddings"]:
        weights -= shape["vocab_size"] * shape["hidden_size"] * item  # of the embedding a step reads some rows
    per_token = 2 * shape["num_hidden_layers"] * shape["num_key_value_heads"] * shape["head_dim"] * item
    found: dict[str, Any] = {}
    for batch in scale.batches:
        length, count = scale.decode
        _run(engine, _prompts(model, batch, length, batch), [8 if count > 8 else 2] * batch)  # compiles and captures
        steps = _run(engine, _prompts(model, batch, length, batch + 1), [count] * batch)
        times = [at for at, tokens in steps if tokens == batch]
        gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
        seconds = statistics.median(gaps[len(gaps) // 4 :])
        moved = weights + batch * (length + count * 5 // 8) * per_token
        rate = moved / seconds / 1e9
        found[f"batch {batch}"] = {
            "ms": seconds * 1e3, "tokens_per_s": batch / seconds, "of_bandwidth": rate / ceilings.gb_per_s
        }  # fmt: skip
    engine.close()
    return found


def prefill(model: str, options: argparse.Namespace, ceilings: Ceilings) -> dict[str, Any]:
    """Prompt tokens a second, and the share of the matrix rate: two operations a weight, and attention's."""
    count, length = (TINY if options.tiny else FULL).prompts
    shape = MODELS[model]
    engine = _engine(model, options, max_num_seqs=count, max_num_batched_tokens=8192, max_model_len=length + 16)
    seconds = []
    for seed in range(4):  # the first one compiles
        begin = time.perf_counter()
        steps = _run(engine, _prompts(model, count, length, seed), [1] * count)
        seconds.append(steps[-1][0] - begin)
    engine.close()
    width, heads = shape["hidden_size"], shape["num_attention_heads"] * shape["head_dim"]
    kv = shape["num_key_value_heads"] * shape["head_dim"]
    matrices = width * (2 * heads + 2 * kv + 3 * shape["intermediate_size"])
    tokens = count * length
    attention = 4 * count * (length * (length + 1) // 2) * heads
    head = 2 * count * width * shape["vocab_size"]
    operations = shape["num_hidden_layers"] * (2 * tokens * matrices + attention) + head
    best = statistics.median(seconds[1:])
    rate = operations / best / 1e12
    return {"tokens_per_s": tokens / best, "tflop_per_s": rate, "of_matrix_rate": rate / ceilings.tflop_per_s}


class _Waits:
    """An executor whose steps take so many seconds of nobody's time."""

    max_in_flight: int = 1
    batch_invariant = False
    groups = ONE_GROUP
    kv = states = local = None

    def __init__(self, vocab_size: int, seconds: float) -> None:
        self.spec = SimpleNamespace(vocab_size=vocab_size, max_position_embeddings=8192, encoder=None, generates=True)
        self.num_blocks = 40_000
        self._seconds = seconds

    def launch(self, batch: StepBatch) -> Wait:
        end = time.perf_counter() + self._seconds
        if self._seconds:
            time.sleep(self._seconds * 0.8)
        while time.perf_counter() < end:
            time.sleep(0)  # a longer sleep would oversleep
        return finished(StepResult(np.zeros(len(batch.sampling.token_index), np.int64), {}, [], self._seconds))

    def check_health(self) -> None: ...

    def close(self) -> None: ...


def host(model: str, options: argparse.Namespace, _: Ceilings) -> dict[str, Any]:
    """Microseconds from decode step to decode step without a model: all of it is the processor's.

    Then with a device that takes 2 ms for every step, one step at a time and planned ahead: what is over 2,000 is the
    part of the processor's work that the device waits for.
    """
    found = {}
    for batch in (TINY if options.tiny else FULL).batches:
        found[f"batch {batch}"] = {
            "us": _step_us(model, options, batch, 0.0, ahead=False),
            "us_beside_2000": _step_us(model, options, batch, 2e-3, ahead=False),
            "us_beside_2000_ahead": _step_us(model, options, batch, 2e-3, ahead=True),
        }
    return found


def _step_us(model: str, options: argparse.Namespace, batch: int, seconds: float, *, ahead: bool) -> float:
    config = EngineConfig(max_num_seqs=256, max_num_batched_tokens=8192, enable_prefix_caching=False)
    waits = _Waits(MODELS[model]["vocab_size"], seconds)
    engine = Engine("host", BackgroundExecutor(waits) if ahead else waits, config, ())
    length, count = (TINY if options.tiny else FULL).decode
    times = [at for at, tokens in _run(engine, _prompts(model, batch, length), [count] * batch) if tokens == batch]
    engine.close()
    return statistics.median(later - earlier for earlier, later in itertools.pairwise(times)) * 1e6


# ---- beside Hugging Face --------------------------------------------------------------------------------------------


def throughput(model: str, options: argparse.Namespace, _: Ceilings) -> dict[str, Any]:
    """Seconds for the same requests, each with its own number of tokens out."""
    scale = TINY if options.tiny else FULL
    prompts, outputs = _requests(model, scale)
    found: dict[str, Any] = {"requests": len(prompts), "tokens_in": sum(map(len, prompts)), "tokens_out": sum(outputs)}
    found["octavo"] = _guarded(lambda: _ours(model, options, scale, prompts, outputs))
    found["transformers_continuous"] = _guarded(lambda: _continuous(model, options, prompts, outputs))
    found["transformers_generate"] = _guarded(lambda: _generate(model, options, scale, prompts, outputs))
    for name in ("transformers_continuous", "transformers_generate"):
        if "error" not in found[name] and "error" not in found["octavo"]:
            found[f"times {name}"] = found[name]["seconds"] / found["octavo"]["seconds"]
    return found


def _requests(model: str, scale: Scale) -> tuple[list[list[int]], list[int]]:
    """Log-normal prompts (mu 4.36, sigma 1.39) and Weibull outputs (k 1.56, lambda 483): fits of the ShareGPT trace."""
    rng = random.Random(0)
    lengths = [max(4, min(scale.longest, round(rng.lognormvariate(4.36, 1.39)))) for _ in range(scale.requests)]
    outputs = [max(2, min(scale.longest, round(rng.weibullvariate(483, 1.56)))) for _ in range(scale.requests)]
    vocabulary = MODELS[model]["vocab_size"]
    return [[rng.randrange(1, vocabulary) for _ in range(length)] for length in lengths], outputs


def _timed(run: Callable[[], int], tokens: int) -> dict[str, Any]:
    begin = time.perf_counter()
    made = run()
    seconds = time.perf_counter() - begin
    if made < tokens:
        raise RuntimeError(f"{made} tokens came of {tokens}")
    return {"seconds": seconds, "tokens_per_s": tokens / seconds}


def _ours(
    model: str, options: argparse.Namespace, scale: Scale, prompts: list[list[int]], outputs: list[int]
) -> dict[str, Any]:
    engine = _engine(
        model, options, max_num_seqs=256, max_num_batched_tokens=4096, max_model_len=2 * scale.longest + 16
    )
    for batch in padded_sizes(3 if options.tiny else 256):  # compiles and captures
        _run(engine, _prompts(model, batch, 16, batch), [3] * batch)
    found = _timed(lambda: sum(count for _, count in _run(engine, prompts, outputs)), sum(outputs))
    engine.close()
    return found


def _hf_model(model: str, options: argparse.Namespace, attention: str) -> Any:
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(**{**_COMMON, **MODELS[model]})
    dtype = torch.float32 if options.device == "cpu" else torch.bfloat16
    with torch.device(options.device):
        network = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)
    network = network.eval()
    network.generation_config.eos_token_id = None
    return network


def _generate(
    model: str, options: argparse.Namespace, scale: Scale, prompts: list[list[int]], outputs: list[int]
) -> dict[str, Any]:
    """Batches in the order of their outputs' lengths, so that little is generated in vain."""
    network = _hf_model(model, options, "sdpa")
    order = sorted(range(len(prompts)), key=lambda i: outputs[i])

    @torch.inference_mode()
    def batch(chosen: list[int], count: int) -> None:
        width = max(len(prompts[i]) for i in chosen)
        ids = torch.zeros(len(chosen), width, dtype=torch.int64)
        for row, i in enumerate(chosen):
            ids[row, width - len(prompts[i]) :] = torch.tensor(prompts[i])
        ids = ids.to(network.device)
        network.generate(
            ids, attention_mask=(ids != 0).long(), max_new_tokens=count, min_new_tokens=count, do_sample=False,
            eos_token_id=None, pad_token_id=0,
        )  # fmt: skip

    def run() -> int:
        for start in range(0, len(order), scale.hf_batch):
            chosen = order[start : start + scale.hf_batch]
            batch(chosen, max(outputs[i] for i in chosen))
        return sum(outputs)

    batch(order[:2], 2)
    return _timed(run, sum(outputs))


def _continuous(
    model: str, options: argparse.Namespace, prompts: list[list[int]], outputs: list[int]
) -> dict[str, Any]:
    from transformers import GenerationConfig

    network = _hf_model(model, options, "sdpa")
    config = GenerationConfig(max_new_tokens=max(outputs), eos_token_id=-1, pad_token_id=0, do_sample=False)
    kind: dict[str, Any] = {}
    if options.tiny:  # else it takes most of the memory
        from transformers import ContinuousBatchingConfig

        kind["continuous_batching_config"] = ContinuousBatchingConfig(page_size=16, num_blocks=64, max_batch_tokens=64)

    def run(manager: Any, chosen: list[list[int]], counts: list[int]) -> int:
        for prompt, count in zip(chosen, counts, strict=True):
            manager.add_request(prompt, max_new_tokens=count)
        made = finished = 0
        while finished < len(chosen):
            result = manager.get_result(timeout=5)
            if result is None:
                if not manager.is_running():
                    raise RuntimeError("the manager has stopped")
                continue
            if result.is_finished():
                made, finished = made + len(result.generated_tokens), finished + 1
        return made

    with network.continuous_batching_context_manager(generation_config=config, **kind) as manager:  # captures graphs
        run(manager, prompts[:2], [2, 2])
        return _timed(lambda: run(manager, prompts, outputs), sum(outputs))


PARTS: dict[str, Callable[[str, argparse.Namespace, Ceilings], dict[str, Any]]] = {
    "decode": decode,
    "prefill": prefill,
    "throughput": throughput,
    "host": host,
}

if __name__ == "__main__":
    sys.exit(main())
