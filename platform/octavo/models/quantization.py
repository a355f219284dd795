"""Valid `quantization` settings, and the quantised checkpoints that can be read (without torch).

Weights that are stored quantised (GGUF's blocks, GPTQ, AWQ, compressed-tensors) stay as they are. Other weights can be
rounded while they are loaded: the layers' matrices, but not the embedding and the head.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from octavo.errors import ConfigError, ModelError
from octavo.model_files import reading

STORED = ("gptq", "awq", "compressed-tensors", "mxfp4")
"""Supported values of `quantization_config.quant_method` in a Hugging Face config."""

ROUNDINGS = "int8, int4, either with -g32, -g64 or -g128, int4 with -sym, fp8, bitsandbytes-int8, bitsandbytes-nf4"

_CODES = re.compile(r"int(4|8)(?:-g(32|64|128))?(-sym)?")
_FORMATS = ("dense", "pack-quantized", "int-quantized", "float-quantized", "naive-quantized", "mixed-precision")


@dataclass(frozen=True, slots=True)
class Rounding:
    """How matrices are quantised while they are loaded.

    Attributes:
        kind: "int" means integer codes with scales, described by the fields below.
        group: columns that share a scale; None means a whole row.
        symmetric: without zero points.
    """

    kind: Literal["int", "fp8", "bitsandbytes-int8", "bitsandbytes-nf4"]
    bits: int = 8
    group: int | None = None
    symmetric: bool = True


def parse_rounding(name: str | None) -> Rounding | None:
    """A setting's rounding ("int4": groups of 32 with zero points, "int8": a scale per row); None for any other."""
    match name:
        case "fp8" | "bitsandbytes-int8" | "bitsandbytes-nf4":
            return Rounding(name)
    found = _CODES.fullmatch(name or "")
    if found is None or (found[1] == "8" and found[3]):
        return None
    if found[1] == "8":
        return Rounding("int", 8, int(found[2]) if found[2] else None)
    return Rounding("int", 4, int(found[2] or 32), symmetric=found[3] is not None)


def check_setting(name: str | None, stored: str | None, model: str) -> None:
    """Check a `quantization` setting against a checkpoint.

    Args:
        stored: how the checkpoint is quantised: None, "gguf", or one of `STORED`.
        model: its name.

    Raises:
        ConfigError: they cannot be combined; the message lists valid settings.
    """
    is_rounding = parse_rounding(name) is not None
    if name in (None, stored) or (is_rounding and stored in (None, "gguf")):
        return
    if is_rounding:
        raise ConfigError(f"quantization is {name!r}, but {model!r} is quantised already ({stored}): leave it out")
    valid = f"None{'' if stored is None else f' or {stored!r}'}"
    valid += f" or one of {ROUNDINGS}" if stored in (None, "gguf") else ""
    raise ConfigError(f"quantization must be {valid} for {model!r}, got {name!r}")


def check_stored(config: Mapping[str, Any]) -> None:
    """Check a `quantization_config`.

    Raises:
        ModelError: a kind that is not supported; the message lists those that are.
    """
    with reading("the config's quantization_config"):
        method = config.get("quant_method")
        if method not in STORED:
            kinds = f"{', '.join(STORED)}, GGUF and unquantised safetensors"
            raise ModelError(f"the checkpoint is quantised ({method}), which is not supported; supported are {kinds}")
        checks = {"gptq": _check_gptq, "awq": _check_awq, "compressed-tensors": _check_compressed}
        if method in checks:
            checks[method](config)
        for group in [config] if method != "compressed-tensors" else _compressed_weights(config):
            if type(group.get("group_size") or 0) is not int:
                raise ModelError(f"quantization_config says group_size {group['group_size']!r}, which is no number")


def _check_gptq(config: Mapping[str, Any]) -> None:
    _expect("GPTQ", "bits", config.get("bits"), (4, 8))
    _expect("GPTQ", "checkpoint_format", config.get("checkpoint_format") or "gptq", ("gptq", "gptq_v2"))


def _check_awq(config: Mapping[str, Any]) -> None:
    _expect("AWQ", "bits", config.get("bits", config.get("w_bit")), (4,))
    _expect("AWQ", "version", str(config.get("version") or "gemm").lower(), ("gemm",))


def _check_compressed(config: Mapping[str, Any]) -> None:
    name = "compressed-tensors"
    groups = (config.get("config_groups") or {}).values()
    for form in [config.get("format"), *(group.get("format") for group in groups)]:
        _expect(name, "format", form or "dense", _FORMATS)
    sparsity = (config.get("sparsity_config") or {}).get("format") or "dense"
    _expect(name, "sparsity_config.format", sparsity, ("dense",))
    for weights in _compressed_weights(config):
        kind = f"{weights.get('type', 'int')}{weights.get('num_bits', 8)}"
        _expect(name, "type of weights", kind, ("int4", "int8", "float8"))
        strategies = ("tensor", "channel") if kind == "float8" else ("tensor", "channel", "group")
        _expect(name, f"strategy of {kind} weights", weights.get("strategy") or "tensor", strategies)


def _expect(method: str, what: str, found: object, supported: tuple[object, ...]) -> None:
    if found not in supported:
        kinds = " and ".join(map(str, supported))
        raise ModelError(f"{method} checkpoints with {what} {found} are not supported; supported: {kinds}")


def unpackable(rounding: Rounding | None, stored: Mapping[str, Any] | None, columns: list[int]) -> str | None:
    """Why the native runner cannot run matrices quantised like this, as a clause; None if it can.

    Args:
        stored: `quantization_config`, checked.
        columns: of the layers' matrices.
    """
    if rounding is None and stored is None:
        return None
    if odd := [k for k in columns if k % 32]:
        return f"quantised matrices have {odd[0]} columns; multiples of 32 can be packed"
    if rounding is not None:
        return None if rounding.kind == "int" else f"{rounding.kind} matrices cannot be packed"
    assert stored is not None
    groups = [stored] if stored["quant_method"] != "compressed-tensors" else _compressed_weights(stored)
    for group in groups:
        if group.get("desc_act") or group.get("actorder") in ("group", True):
            return "columns are grouped by their importance (act-order)"
        if (group.get("group_size") or -1) > 0 and group["group_size"] % 32:
            return f"groups have {group['group_size']} columns; multiples of 32 can be packed"
        if group.get("type") == "float":
            return "fp8 matrices cannot be packed"
    return None


def _compressed_weights(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [group["weights"] for group in (config.get("config_groups") or {}).values() if group.get("weights")]
