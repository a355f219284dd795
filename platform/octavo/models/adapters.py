"""Reads LoRA adapters (Hu et al. 2021) as PEFT stores them, `adapter_config.json` and `adapter_model.safetensors`, and
llama.cpp's (`gguf_adapter`).

An adapter adds (x A^T) B^T s to what some matrices of the layers compute. Whatever it would change beside that is
refused: half an adapter answers wrongly without saying so. What is read was hashed before in the same bytes, so a
digest stands for exactly these weights. No torch: a native start does without it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from octavo.errors import ModelError
from octavo.model_files import reading
from octavo.models.gguf_adapter import gguf_invocation, read_gguf_adapter
from octavo.models.parallel import Share
from octavo.models.spec import ModelSpec
from octavo.models.weights.fused import stacked_rows
from octavo.models.weights.names import Naming, gguf_naming, halves_order, hf_naming, plain_name
from octavo.request import Adapter
from octavo.safetensors_header import header_in

Float32 = npt.NDArray[np.float32]

PARTS = ("q", "k", "v", "out", "gate", "up", "down")
"""The matrices of a layer that an adapter may change."""

MAX_RANK = 256

MAX_INVOCATION = 1024
"""Token ids that an activated adapter begins at."""

MAX_FILE = 2**32
"""Bytes of an adapter's file; rank 256 on all matrices of an 8 B model takes 1.3 GB in bf16."""

_HEADER = 2**24
"""Bytes of a config, and of what a file holds beside its values."""

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

Place = tuple[int, str]
"""Layer and part."""


@dataclass(frozen=True, slots=True)
class LowRank:
    """What is added to one matrix: y += (x A^T) B^T."""

    a: Float32  # [rank, in]
    b: Float32  # [out, rank], times the adapter's scale


@dataclass(frozen=True, slots=True)
class _Files:
    """An adapter's files as they were read, once."""

    path: Path
    config: bytes
    weights: bytes

    @property
    def digest(self) -> str:
        whole = blake2b(len(self.config).to_bytes(8, "little"), digest_size=16)
        whole.update(self.config)
        whole.update(self.weights)
        return whole.hexdigest()


def find_adapter(name: str, path: Path) -> Adapter:
    """What a request says of an adapter that is to be called `name`.

    Raises:
        ModelError: there is none, or it cannot be read.
    """
    files = _read_files(path)
    with reading(path):
        return Adapter(name, files.digest, str(path), _invocation(files))


def _invocation(files: _Files) -> tuple[int, ...]:
    """Token ids that it begins at, of an activated adapter."""
    is_gguf = files.path.suffix == ".gguf"
    found: Any = gguf_invocation(files.path) if is_gguf else _config(files).get("alora_invocation_tokens")
    if found is None:
        return ()
    are_ids = isinstance(found, list) and all(type(token) is int for token in found)
    if not are_ids or not 0 < len(found) <= MAX_INVOCATION:
        raise ModelError(f"the adapter's invocation tokens are {found!r:.80}: they must be 1 to {MAX_INVOCATION} ids")
    return tuple(found)


def read_adapter(path: Path, share: Share, digest: str | None = None) -> dict[Place, LowRank]:
    """An adapter's matrices, or a rank's part of them.

    Args:
        share: what of the model it is for.
        digest: what it must have; None: any.

    Raises:
        ModelError: it is damaged, has changed, does not fit the model, or changes more than matrices of its layers.
    """
    if share.whole.encoder is not None:
        raise ModelError("adapters of encoders are not supported")
    if share.whole.latent is not None:
        raise ModelError("adapters of models with latent attention are not supported: merge it into the weights")
    if share.whole.attention_gate:
        raise ModelError("adapters of models whose attention has a gate are not supported: merge it into the weights")
    files = _read_files(path, _most_bytes(share.whole))
    if digest is not None and files.digest != digest:
        raise ModelError(f"the adapter at {path} has changed since it was loaded: load it again")
    with reading(path):
        if any(not 0 <= token < share.whole.vocab_size for token in _invocation(files)):
            raise ModelError("the adapter begins at tokens that the model does not have: it was made for another model")
        changes = _of_gguf if path.suffix == ".gguf" else _of_peft
        found: dict[Place, LowRank] = {}
        for place, low in changes(files, share.whole):
            if place in found:  # stored under two names, or alone and stacked
                raise ModelError(f"the adapter changes {place[1]} of layer {place[0]} twice")
            found[place] = _cut(low, place, share)
        return found


def _most_bytes(spec: ModelSpec) -> int:
    """Of a file that fits the model: float32 of the largest rank for every matrix. Larger ones are not read."""
    shapes = [_shape(spec, (layer, part)) for layer in range(spec.num_layers) for part in PARTS]
    return _HEADER + 4 * MAX_RANK * sum(rows + columns for rows, columns in shapes)


def _of_peft(files: _Files, spec: ModelSpec) -> Iterator[tuple[Place, LowRank]]:
    config, pairs = _checked_config(files), _pairs(dict(_tensors(files)), files.path)
    scaled = ((plain_name(module), a, b * _scale(config, module, len(a))) for module, a, b in pairs)
    return _placed(scaled, hf_naming(spec), spec)


def _of_gguf(files: _Files, spec: ModelSpec) -> Iterator[tuple[Place, LowRank]]:
    yield from _placed(read_gguf_adapter(files.path, files.weights, _as_float32), gguf_naming(spec), spec)
    if _read_files(files.path).weights != files.weights:  # the header was read after them
        raise ModelError(f"{files.path} changed while it was read: load it again")


def _placed(
    changes: Iterable[tuple[str, Float32, Float32]], naming: Naming, spec: ModelSpec
) -> Iterator[tuple[Place, LowRank]]:
    """(Module, A, scaled B) to the matrices that they change."""
    places = _places(naming, spec)
    for module, a, b in changes:
        _check_pair(module, a, b)
        for place, low in _fitted(module, places.get(module), a, b, spec):
            turned = naming.turned.get(place[1])
            yield place, LowRank(low.a, low.b if turned is None else low.b[halves_order(len(low.b), turned)])


# ---- files ----------------------------------------------------------------------------------------------------------


def _read_files(path: Path, most: int = MAX_FILE) -> _Files:
    with reading(path):
        if path.suffix == ".gguf":
            return _Files(path, b"", _bytes_of(path, most))
        if not (path / _WEIGHTS).is_file():
            pickled = (path / "adapter_model.bin").exists()
            why = ": adapter_model.bin is a pickle, which can run code; save it as safetensors" if pickled else ""
            raise ModelError(f"{path} holds no {_WEIGHTS}{why}")
        if not (path / _CONFIG).is_file():
            raise ModelError(f"{path} holds no {_CONFIG}")
        return _Files(path, _bytes_of(path / _CONFIG, _HEADER), _bytes_of(path / _WEIGHTS, most))


def _bytes_of(file: Path, most: int) -> bytes:
    if not file.is_file() or file.stat().st_size > most:
        raise ModelError(f"{file} is no file of at most {most} bytes, which is what the largest adapter takes")
    return file.read_bytes()


def _config(files: _Files) -> dict[str, Any]:
    config = json.loads(files.config)
    if not isinstance(config, dict):
        raise ModelError(f"{files.path / _CONFIG} is not a JSON object")
    return config


def _checked_config(files: _Files) -> dict[str, Any]:
    """The config, of an adapter that is all here.

    Raises:
        ModelError: it says that the adapter changes something else, or in another way.
    """
    config = _config(files)
    if config.get("peft_type") != "LORA":
        raise ModelError(f"the adapter is of type {config.get('peft_type')!r:.40}; only LORA is supported")
    for name, what in _REFUSED.items():
        if config.get(name):
            raise ModelError(f"the adapter has {name}: {what} are not supported; train it without")
    if config.get("bias", "none") != "none":
        raise ModelError(f"the adapter has bias {config['bias']!r:.40}: biases are not supported; train it with 'none'")
    if isinstance(begin := config.get("init_lora_weights"), str) and begin.lower() not in _PLAIN_BEGINNINGS:
        raise ModelError(
            f"the adapter has init_lora_weights {begin!r:.40}, which changes the model's own weights: convert it to a "
            "plain adapter (PEFT's path_initial_model_for_weight_conversion)"
        )
    return config


_REFUSED = {
    "use_dora": "DoRA's magnitudes",
    "modules_to_save": "whole matrices beside the low-rank ones",
    "lora_bias": "biases",
    "trainable_token_indices": "changed embeddings",
    "target_parameters": "changes of bare parameters",
    "layer_replication": "repeated layers",
    "use_qalora": "pooled inputs",
    "use_bdlora": "block-diagonal matrices",
}
"""What a config may say that the weights alone do not mean, and what that is."""

_PLAIN_BEGINNINGS = ("gaussian", "eva", "orthogonal")


def _tensors(files: _Files) -> Iterator[tuple[str, Float32]]:
    """The tensors by name, in float32; safetensors' own reader would hold all threads up for 3 s a GB."""
    for name, entry in header_in(files.weights, files.path / _WEIGHTS).items():
        data = memoryview(files.weights)[entry.offset : entry.offset + entry.num_bytes]
        yield name, _as_float32(data, entry.dtype, name).reshape(entry.shape)


def _as_float32(data: memoryview, dtype: str, name: str) -> Float32:
    if dtype == "F32":
        return np.frombuffer(data, np.float32)
    if dtype == "F16":
        return np.frombuffer(data, np.float16).astype(np.float32)
    if dtype == "BF16":
        return (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32)
    raise ModelError(f"{name} is stored as {dtype}; an adapter's matrices are F32, F16 or BF16")


# ---- from stored names to places -------------------------------------------------------------------------------------

_NAME = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_([AB])(?:\.default)?\.weight")


def _pairs(tensors: dict[str, Float32], path: Path) -> Iterator[tuple[str, Float32, Float32]]:
    """(module, A, B) of every matrix that is changed.

    Raises:
        ModelError: a tensor is something else, or its other half is missing.
    """
    halves: dict[str, dict[str, Float32]] = {}
    for name, tensor in tensors.items():
        if (found := _NAME.fullmatch(name)) is None:
            raise ModelError(
                f"the adapter holds {name:.200}: only lora_A and lora_B are taken, of no head or embedding"
            )
        pair = halves.setdefault(found[1], {})
        if found[2] in pair:
            raise ModelError(f"the adapter holds lora_{found[2]} of {found[1]:.200} under two names")
        pair[found[2]] = tensor
    if not halves:
        raise ModelError(f"{path} holds no tensors")
    for module, pair in halves.items():
        if len(pair) != 2:
            raise ModelError(f"the adapter has only one of lora_A and lora_B of {module:.200}")
        yield module, pair["A"], pair["B"]


def _check_pair(module: str, a: Float32, b: Float32) -> None:
    if a.ndim != 2 or b.ndim != 2 or len(a) != b.shape[1]:
        raise ModelError(f"lora_A and lora_B of {module:.200} are {list(a.shape)} and {list(b.shape)}")
    if not 1 <= len(a) <= MAX_RANK:
        raise ModelError(f"the rank of {module:.200} is {len(a)}; it must be 1 to {MAX_RANK}")


_PLAIN_PATTERN = re.compile(r"\^?(?:\w|\.|\\\.)+")


def _scale(config: dict[str, Any], module: str, rank: int) -> float:
    alpha = config.get("lora_alpha", 8)
    for name, value in (config.get("alpha_pattern") or {}).items():
        if not _PLAIN_PATTERN.fullmatch(name):
            raise ModelError(f"alpha_pattern names modules by the expression {name!r:.80}: plain names are supported")
        if re.fullmatch(rf"(.*\.)?({name})", module):  # as PEFT, for which a dot is any character
            alpha = value
            break
    if type(alpha) not in (int, float) or not math.isfinite(alpha):
        raise ModelError(f"lora_alpha is {alpha!r:.40}, which is not a number")
    return float(alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank)


def _fitted(
    module: str, places: list[_Rows] | None, a: Float32, b: Float32, spec: ModelSpec
) -> Iterator[tuple[Place, LowRank]]:
    """What is added at the places of a module, several where it is stored stacked by rows.

    Raises:
        ModelError: the model has no such matrix, or one of another shape.
    """
    if places is None:
        raise ModelError(
            f"the adapter changes {module:.200}, which is no matrix of this model's layers that an adapter may change "
            f"({', '.join(part for part in PARTS)}); embeddings, heads and experts are not supported"
        )
    rows, columns = sum(len(run) for _, runs in places for run in runs), _shape(spec, places[0][0])[1]
    if a.shape[1] != columns or len(b) != rows:
        raise ModelError(
            f"the adapter changes {module:.200} from {a.shape[1]} to {len(b)} values, and the model's goes from "
            f"{columns} to {rows}: it was made for another model"
        )
    for place, runs in places:
        parts = [b[run.start : run.stop] for run in runs]
        yield place, LowRank(a, parts[0] if len(parts) == 1 else np.concatenate(parts))


_Rows = tuple[Place, list[range]]
"""A matrix, and the rows of a module that are its."""


def _places(naming: Naming, spec: ModelSpec) -> dict[str, list[_Rows]]:
    """By the name of a module."""
    found = dict[str, list[_Rows]]()
    for i in range(spec.num_layers):
        layer, sizes = naming.layer.format(i), {part: _shape(spec, (i, part))[0] for part in PARTS}
        for part in (part for part, size in sizes.items() if size):
            found[layer + naming.part_name(part, i)] = [((i, part), [range(sizes[part])])]
        for name, stack in naming.stacks.items():
            if not stack.experts and all(sizes.get(part) for part in stack.parts):
                found[layer + name] = [((i, part), runs) for part, runs in stacked_rows(stack, spec).items()]
    return found


def _shape(spec: ModelSpec, place: Place) -> tuple[int, int]:
    """Rows and columns of a layer's matrix; 0 rows of one that it does not have."""
    layer, part = place
    inner = spec.mlp_size(layer)
    if layer in spec.recurrent and part in ("q", "k", "v", "out"):
        return 0, 0
    return {
        "q": (spec.q_size, spec.hidden_size),
        "k": (spec.kv_size, spec.hidden_size),
        "v": (spec.kv_size, spec.hidden_size),
        "out": (spec.hidden_size, spec.q_size),
        "gate": (inner if spec.gated else 0, spec.hidden_size),
        "up": (inner, spec.hidden_size),
        "down": (spec.hidden_size if inner else 0, inner),
    }[part]


def _cut(low: LowRank, place: Place, share: Share) -> LowRank:
    """A rank's part: B is cut where the matrix is cut by rows, A where it is cut by columns."""
    layer, part = place
    rows, columns = share.part(part, layer)
    a = low.a if columns is None else low.a[:, columns.start : columns.stop]
    b = low.b if rows is None else low.b[rows.start : rows.stop]
    return LowRank(a, b)
