"""The Triton kernels compile to machine code, which needs no GPU: the interpreter accepts more than the compiler does.

A process of its own compiles (this file as a script), because Triton cannot interpret and compile in one.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SHARED_MEMORY = 99 * 1024
"""Bytes per program on compute capability 8.6, the least since Ampere."""

TYPES = {
    "weight_ptr": "*fp32", "cos_sin_ptr": "*fp32", "eps": "fp32", "scale": "fp32", "slots_ptr": "*i64",
    "positions_ptr": "*i64", "query_start_ptr": "*i32", "context_lens_ptr": "*i32", "block_tables_ptr": "*i32",
}  # fmt: skip
"""Of arguments that are neither data (pointers otherwise), nor counts and strides (the rest)."""

ROW_KERNELS: list[tuple[str, str, dict[str, Any]]] = [
    ("rms_norm", "_rms_norm_kernel", {"BLOCK": 1024}),
    ("rms_norm", "_add_rms_norm_kernel", {"BLOCK": 1024}),
    ("rotary", "_rotary_kernel", {"Q_HEADS": 16, "K_HEADS": 4, "HALF": 32}),
    ("kv_store", "_kv_store_kernel", {"BLOCK": 1024}),
    ("activation", "_gated_kernel", {"GELU": False, "BLOCK": 1024}),
    ("activation", "_gated_kernel", {"GELU": True, "BLOCK": 1024}),
]
ATTENTION: list[tuple[str, int, int, dict[str, Any]]] = [
    ("bf16", 64, 3, {}),
    ("bf16", 80, 64, {"WINDOW": 512, "SOFTCAP": 30.0}),
    ("fp32", 128, 64, {}),
]
"""Data type, head size, rows, kind of mask."""


@pytest.mark.slow
def test_kernels_compile_and_fit_the_shared_memory(tmp_path: Path) -> None:
    # Triton 3.9 warns until FP_FUSION says what it does anyway.
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path), "TRITON_DEFAULT_FP_FUSION": "1"}
    done = subprocess.run([sys.executable, __file__], env=environment, check=True, stdout=subprocess.PIPE)
    shared = json.loads(done.stdout)
    assert len(shared) == 2 * len(ROW_KERNELS) + len(ATTENTION)
    assert max(shared) <= SHARED_MEMORY


def shared_memory(op: str, kernel: str, data: str, constants: dict[str, Any], **options: int) -> int:
    """Compile for compute capability 8.0 and return the bytes of shared memory that a program takes."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    function = getattr(importlib.import_module(f"octavo_kernels.{op}.gpu"), kernel)
    names = function.arg_names
    types = {
        name: "constexpr" if name.isupper() else TYPES.get(name, f"*{data}" if name.endswith("_ptr") else "i32")
        for name in names
    }
    source = ASTSource(function, types, {(names.index(name),): value for name, value in constants.items()})
    binary = triton.compile(source, target=GPUTarget("cuda", 80, 32), options=options)
    assert binary.asm["cubin"]
    return int(binary.metadata.shared)


def attention_memory(data: str, dim: int, rows: int, kind: dict[str, Any]) -> int:
    import triton

    from octavo_kernels.paged_attention.gpu import _tile

    block_d = triton.next_power_of_2(dim)
    block_m, block_n = _tile(rows, block_d * (4 if data == "fp32" else 2))
    constants = {"GROUP": 3, "KV_HEADS": 2, "BLOCK_SIZE": 16, "WINDOW": None, "SOFTCAP": None} | kind
    tile = {"DIM": dim, "BLOCK_D": block_d, "BLOCK_M": block_m, "BLOCK_N": block_n}
    return shared_memory("paged_attention", "_paged_attention_kernel", data, constants | tile, num_stages=2)


if __name__ == "__main__":
    rows = [shared_memory(op, kernel, data, fixed) for data in ("fp32", "bf16") for op, kernel, fixed in ROW_KERNELS]
    print(json.dumps(rows + [attention_memory(*case) for case in ATTENTION]))  # noqa: T201
