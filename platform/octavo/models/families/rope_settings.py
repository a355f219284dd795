"""Rotary settings of configs of both generations.

transformers 5 writes `rope_parameters` (one per layer type where they differ); older checkpoints have `rope_theta`,
`rope_scaling` and `rope_local_base_freq`.
"""

from __future__ import annotations

import math

from octavo.errors import ModelError
from octavo.models.families.record import Config
from octavo.models.spec import (
    FactorScaling,
    LinearScaling,
    Llama3Scaling,
    LongScaling,
    Rope,
    RopeScaling,
    YarnScaling,
)


def global_rope(config: Config, head_dim: int) -> Rope:
    """The rotary embedding of a model's layers, or of those without a window."""
    return _rope(config, _rope_parameters(config, "full_attention"), head_dim)


def _rope_parameters(config: Config, layer_type: str) -> Config:
    """The rotary settings of one layer type, from configs of either generation, as one flat dict."""
    parameters = config.get("rope_parameters") or {}
    if layer_type in parameters or "full_attention" in parameters:
        parameters = parameters.get(layer_type) or {}
    kept = {k: config[k] for k in ("rope_theta", "partial_rotary_factor") if config.get(k) is not None}
    return kept | parameters | (config.get("rope_scaling") or {})


def rotary_settings(config: Config) -> list[Config]:
    """Every dictionary of a config that holds rotary settings."""
    outer = [found for key in ("rope_parameters", "rope_scaling") if isinstance(found := config.get(key), dict)]
    return outer + [inner for each in outer for inner in each.values() if isinstance(inner, dict)]


def local_rope(config: Config, head_dim: int) -> Rope | None:
    """That of layers with a window; None if it is the same."""
    per_type = config.get("rope_parameters") or {}
    base = config.get("rope_local_base_freq")
    if base is None and "sliding_attention" not in per_type:
        return None
    local = {"rope_theta": base, "rope_parameters": {"sliding_attention": per_type.get("sliding_attention")}}
    return _rope(config, _rope_parameters(local, "sliding_attention"), head_dim)


def _rope(config: Config, parameters: Config, head_dim: int) -> Rope:
    rotary_dim = int(head_dim * parameters.get("partial_rotary_factor", 1.0))
    return Rope(float(parameters["rope_theta"]), rotary_dim, _rope_scaling(config, parameters))


def _rope_scaling(config: Config, parameters: Config) -> RopeScaling | None:
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    if "long_factor" in parameters:  # which old configs call su or yarn
        return _long(config, parameters)
    match kind:
        # Dynamic NTK scaling changes angles only beyond max_position_embeddings, which no sequence exceeds.
        case "default" | "dynamic":
            return None
        case "linear":
            return LinearScaling(float(parameters["factor"]))
        case "llama3":
            factor, low, high = (float(parameters[k]) for k in ("factor", "low_freq_factor", "high_freq_factor"))
            return Llama3Scaling(factor, low, high, _original_positions(config, parameters))
        case "yarn":
            return _yarn(config, parameters)
        case "factors":
            return FactorScaling(tuple(parameters["factors"]))
    raise ModelError(
        f"rope scaling {kind!r} is not supported; supported kinds are linear, llama3, yarn, longrope and dynamic"
    )


def _long(config: Config, parameters: Config) -> LongScaling:
    original = _original_positions(config, parameters)
    factor = float(parameters.get("factor") or config["max_position_embeddings"] / original)
    attention = parameters.get("attention_factor")
    if attention is None:
        attention = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    short, long = (tuple(map(float, parameters[f"{name}_factor"])) for name in ("short", "long"))
    return LongScaling(short, long, original, float(attention))


def _yarn(config: Config, parameters: Config) -> YarnScaling:
    original = _original_positions(config, parameters)
    factor = float(parameters.get("factor") or config["max_position_embeddings"] / original)
    return YarnScaling(
        factor=factor,
        original_max_position=original,
        beta_fast=float(parameters.get("beta_fast") or 32),
        beta_slow=float(parameters.get("beta_slow") or 1),
        truncate=bool(parameters.get("truncate", True)),
        attention_factor=_yarn_attention_factor(parameters, factor),
    )


def _yarn_attention_factor(parameters: Config, factor: float) -> float:
    """Attention temperature: 0.1 ln(factor) + 1 in the paper, the quotient of two such terms in DeepSeek's variant."""
    if (given := parameters.get("attention_factor")) is not None:
        return float(given)

    above, below = parameters.get("mscale"), parameters.get("mscale_all_dim")
    if above and below:
        return _temperature(factor, above) / _temperature(factor, below)
    return _temperature(factor, 1.0)


def _temperature(factor: float, scale: float) -> float:
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0


def score_factor(config: Config) -> float:
    """What scaled positions multiply scores with, beside cos and sin, where a config gives `mscale_all_dim`."""
    parameters = _rope_parameters(config, "full_attention")
    kind, scale = parameters.get("rope_type") or parameters.get("type") or "default", parameters.get("mscale_all_dim")
    return _temperature(float(parameters["factor"]), scale) ** 2 if scale and kind != "default" else 1.0


def _original_positions(config: Config, parameters: Config) -> int:
    inner = parameters.get("original_max_position_embeddings")
    return int(config.get("original_max_position_embeddings") or inner or config["max_position_embeddings"])


def max_positions(config: Config, *, linear: bool = True) -> int:
    """The model's context length in tokens.

    Configs with scaled positions often give the length before scaling. It is multiplied by the factor, as in vLLM: for
    YaRN, and where `linear` says so for linear scaling.
    """
    parameters, own = _rope_parameters(config, "full_attention"), int(config["max_position_embeddings"])
    match _rope_scaling(config, parameters):
        case YarnScaling(factor, original):
            return max(own, int(factor * original))
        case LinearScaling(factor) if linear:
            return max(own, int(factor * (parameters.get("original_max_position_embeddings") or own)))
    return own
