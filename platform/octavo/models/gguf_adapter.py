"""Reads LoRA adapters in llama.cpp's format (its convert_lora_to_gguf.py): one GGUF file, two matrices per change."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from octavo.errors import ModelError
from octavo.gguf_header import Entry, read_directory, read_metadata, split_files

Float32 = npt.NDArray[np.float32]

_NAME = re.compile(r"(.+)\.weight\.lora_([ab])")


def read_gguf_adapter(
    file: Path, data: bytes, as_float32: Callable[[memoryview, str, str], Float32]
) -> Iterator[tuple[str, Float32, Float32]]:
    """(Module, A, B times the scale) of every matrix that is changed.

    Args:
        data: the file's bytes, which are what is read of its tensors.
        as_float32: bytes, their type and the tensor's name to values.

    Raises:
        ModelError: it is something else.
    """
    if split_files(file) != [file]:
        raise ModelError(f"{file} is one of several files: an adapter is one")
    alpha = _alpha(file, read_metadata(file))
    halves: dict[str, dict[str, Float32]] = {}
    for name, entry in read_directory(file).items():
        if (found := _NAME.fullmatch(name)) is None:
            raise ModelError(f"the adapter holds {name:.200}: only lora_a and lora_b of matrices are supported")
        halves.setdefault(found[1], {})[found[2]] = _values(entry, data, as_float32)
    for module, pair in halves.items():
        if len(pair) != 2:
            raise ModelError(f"the adapter has only one of lora_a and lora_b of {module:.200}")
        yield module, pair["a"], pair["b"] * (alpha / len(pair["a"]) if alpha else 1.0)


def gguf_invocation(file: Path) -> object:
    """The token ids that it begins at, as the file has them; None: it is there from the first token on."""
    return read_metadata(file).get("adapter.alora.invocation_tokens")


def _alpha(file: Path, metadata: dict[str, Any]) -> float:
    if metadata.get("general.type") != "adapter" or metadata.get("adapter.type") != "lora":
        raise ModelError(f"{file} is no LoRA adapter")
    alpha = metadata.get("adapter.lora.alpha", 0.0)
    if type(alpha) not in (int, float) or not math.isfinite(alpha):
        raise ModelError(f"adapter.lora.alpha is {alpha!r:.40}, which is not a number")
    return float(alpha)


def _values(entry: Entry, data: bytes, as_float32: Callable[[memoryview, str, str], Float32]) -> Float32:
    part = memoryview(data)[entry.offset : entry.offset + entry.num_bytes]
    return as_float32(part, entry.format, entry.name).reshape(entry.shape)
