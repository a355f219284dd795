"""From the quickstart's GGUF file the same weights as others want them: a bf16 checkpoint, and one of INT8 for vLLM.

    python make_models.py SmolLM2-135M-Instruct.Q4_1.gguf FOLDER   # needs torch, transformers >= 5.23, gguf, accelerate

The INT8 weights (a scale per row, activations quantised as they come) are rounded to nearest: for speed, not quality.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig


def main(gguf: Path, folder: Path) -> None:
    checkpoint(gguf, folder / "smollm2-hf")
    w8a8(folder / "smollm2-hf", folder / "smollm2-w8a8")


def checkpoint(gguf: Path, out: Path) -> None:
    config = GgufConfig(dequantize=True)
    options = {"gguf_file": gguf.name, "dtype": torch.bfloat16, "quantization_config": config}
    AutoModelForCausalLM.from_pretrained(gguf.parent, **options).save_pretrained(out)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(out)


def w8a8(source: Path, out: Path) -> None:
    """In the layout of compressed-tensors."""
    shutil.copytree(source, out, dirs_exist_ok=True)
    tensors = {}
    for name, tensor in load_file(source / "model.safetensors").items():
        tensors[name] = tensor
        if name.endswith("_proj.weight"):
            scale = tensor.float().abs().amax(1, keepdim=True).clamp_min(1e-8) / 127
            tensors[name] = (tensor.float() / scale).round().clamp(-127, 127).to(torch.int8)
            tensors[name + "_scale"] = scale.to(torch.bfloat16)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    rows = {"dynamic": False, "num_bits": 8, "strategy": "channel", "symmetric": True, "type": "int"}
    activations = rows | {"dynamic": True, "strategy": "token"}
    groups = {"group_0": {"targets": ["Linear"], "weights": rows, "input_activations": activations}}
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": groups,
    }
    (out / "config.json").write_text(json.dumps(config, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
