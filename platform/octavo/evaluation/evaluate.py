"""Compares a model, as it is served, with the same or another model in exact float32, on a text."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from octavo.config import EngineConfig
from octavo.errors import ConfigError, ModelError
from octavo.evaluation.divergence import Divergence, cut, greedy_divergence, measure
from octavo.evaluation.layers import layer_errors
from octavo.execution.capacity import groups_of
from octavo.execution.device import find_device
from octavo.execution.executor import LocalExecutor
from octavo.execution.local import load_local
from octavo.execution.native_executor import precision_of
from octavo.models.quantization import STORED
from octavo.models.source_spec import read_spec
from octavo.source import Source
from octavo.text.tokenizer import load_tokenizer
from octavo_kernels.decoder import CELL, block_bytes
from octavo_kernels.linear.formats import Precision

PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 4, 32, 64
"""Greedy continuations that are compared: the number of prompts, their tokens, and the tokens generated. Prompts are
the beginnings of windows."""

LAYER_TOKENS = 256
"""Tokens of the first window on which every layer is compared."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What to measure on.

    Attributes:
        tokens: most tokens of the text that are used.
        window: tokens of one sequence.
        max_kl: largest accepted mean KL divergence, in nats; None gives no verdict.
    """

    tokens: int = 4096
    window: int = 512
    max_kl: float | None = None

    def __post_init__(self) -> None:
        if self.window < 4 or self.tokens < 2:
            raise ConfigError(f"tokens must be at least 2 and window at least 4, got {self.tokens} and {self.window}")
        if self.max_kl is not None and not self.max_kl >= 0:
            raise ConfigError(f"max_kl must be at least 0, got {self.max_kl}")


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What `evaluate` found.

    Attributes:
        model, reference: descriptions of the two models.
        greedy: per continuation, tokens before it first differs from the reference's; None: not within `NEW_TOKENS`.
        layers: relative error of each part (see `layers.py`); empty if it was not requested, or if the reference's
            layers differ.
        weight_bytes, reference_weight_bytes: bytes in memory.
        passed: whether the mean KL divergence is within the bound; None without a bound.
    """

    model: str
    reference: str
    weight_bytes: int
    reference_weight_bytes: int
    divergence: Divergence
    greedy: list[int | None]
    layers: dict[str, float]
    max_kl: float | None
    passed: bool | None

    @property
    def verdict(self) -> str:
        """The result in one sentence."""
        kl = f"mean KL divergence {self.divergence.mean_kl:.3g}"
        if self.passed is None:
            return f"{kl}; no bound was given"
        return f"{kl} is {'within' if self.passed else 'over'} the bound of {self.max_kl:g}"


def evaluate(
    source: Source,
    config: EngineConfig,
    reference: Source,
    text: str,
    settings: Settings,
    *,
    layers: bool = False,
    progress: bool = False,
) -> Evaluation:
    """Load a model with its settings and a reference in float32, and compare them.

    Args:
        config: settings of the model; the reference uses the same device and threads. KV caches get the size that is
            needed here.
        layers: also measure the relative error of every part. This always happens if the bound is exceeded.

    Raises:
        ModelError: one of them cannot be loaded, or they have different vocabularies.
        ConfigError: a setting does not fit the model, or the text is too short.
    """
    windows = text_windows(source, text, settings)
    model = load_local(source, _sized(source, config, settings), progress=progress)
    try:
        exact = EngineConfig(dtype="float32", device=config.device, threads=config.threads)
        return judge(model, source, exact, reference, windows, settings, layers=layers, progress=progress)
    finally:
        model.close()


def compares_with_itself(source: Source, config: EngineConfig, reference: Source) -> bool:
    """Whether the model, as it would be served, is the very reference: then nothing can differ."""
    wide = config.dtype == "float32" or (config.dtype == "auto" and find_device(config.device) == "cpu")
    exact = wide and precision_of(config) is Precision.EXACT
    return exact and source.name == reference.name and config.quantization in (None, "gguf", *STORED)


def judge(
    model: LocalExecutor,
    source: Source,
    config: EngineConfig,
    reference: Source,
    windows: list[list[int]],
    settings: Settings,
    *,
    layers: bool = False,
    progress: bool = False,
) -> Evaluation:
    """As `evaluate`, for a loaded model; `config` is for the reference. The model's KV cache is overwritten."""
    exact = load_local(reference, _sized(reference, config, settings), progress=progress)
    try:
        if model.spec.vocab_size != exact.spec.vocab_size:
            sizes = f"{model.spec.vocab_size} and {exact.spec.vocab_size}"
            raise ModelError(
                f"{source.name!r} and the reference {reference.name!r} have {sizes} tokens: not comparable"
            )
        return _judge(model, exact, windows, settings, layers, progress)
    finally:
        exact.close()


def text_windows(source: Source, text: str, settings: Settings) -> list[list[int]]:
    """Tokenize a text and cut it into windows (see `divergence`)."""
    limit = read_spec(source).max_position_embeddings
    if settings.window > limit:
        raise ConfigError(f"window is {settings.window} tokens, but the model holds at most {limit}")
    tokenizer = load_tokenizer(source)
    begin = [token for token in tokenizer.encode("") if token == tokenizer.bos_token_id]
    windows = cut(tokenizer.encode(text, add_special_tokens=False)[: settings.tokens], settings.window, begin)
    if not windows:
        raise ConfigError("the text has fewer than two tokens: give a longer one")
    return windows


def read_text(file: Path) -> str:
    """Read a text to measure on.

    Raises:
        ConfigError: it is not there, or not UTF-8.
    """
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the text {file} cannot be read as UTF-8: {error}") from error


def _judge(
    model: LocalExecutor,
    exact: LocalExecutor,
    windows: list[list[int]],
    settings: Settings,
    layers: bool,
    progress: bool,
) -> Evaluation:
    divergence = measure(model, exact, windows, progress=progress)
    passed = None if settings.max_kl is None else divergence.mean_kl <= settings.max_kl
    length = min(PROMPT_TOKENS, len(windows[0]) // 2)
    prompts = [window[:length] for window in windows[:PROMPTS] if len(window) >= length]
    alike = all(getattr(model.spec, size) == getattr(exact.spec, size) for size in ("num_layers", "hidden_size"))
    wanted = alike and (layers or passed is False)
    errors = layer_errors(model.parts, exact.parts, windows[0][:LAYER_TOKENS]) if wanted else {}
    return Evaluation(
        model=str(model),
        reference=str(exact),
        weight_bytes=model.parts.num_bytes,
        reference_weight_bytes=exact.parts.num_bytes,
        divergence=divergence,
        greedy=greedy_divergence(model, exact, prompts, min(NEW_TOKENS, settings.window - length)),
        layers=errors,
        max_kl=settings.max_kl,
        passed=passed,
    )


def _sized(source: Source, config: EngineConfig, settings: Settings) -> EngineConfig:
    """`config` with a KV cache just large enough for one window or for the continuations."""
    spec = read_spec(source)
    tokens = max(settings.window, PROMPTS * (PROMPT_TOKENS + NEW_TOKENS)) + PROMPTS * config.block_size
    sized = replace(config, max_model_len=settings.window)
    groups = groups_of(spec, sized)  # each keeps all tokens here
    shape = groups.count * groups.depth, CELL, spec.num_kv_heads, spec.head_dim
    per_token = block_bytes(*shape, "float32", spec.kv_parts) // CELL
    return replace(sized, kv_cache_bytes=tokens * per_token)
