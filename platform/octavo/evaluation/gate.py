"""The accuracy gate: a model that diverges too far from its reference is not served."""

from __future__ import annotations

import logging
from pathlib import Path

from octavo.config import EngineConfig
from octavo.errors import ConfigError, ModelError
from octavo.evaluation.evaluate import Evaluation, Settings, judge, read_text, text_windows
from octavo.evaluation.layers import worst
from octavo.execution.executor import Executor
from octavo.source import resolve_source

logger = logging.getLogger(__name__)


def require(
    executor: Executor, model: str, config: EngineConfig, settings: Settings, text: Path, reference: str | None
) -> Evaluation:
    """Measure a loaded model before it is served, and refuse it if it exceeds `settings.max_kl`.

    The reference is loaded on the CPU in float32, and freed afterwards.

    Args:
        executor: runs the model; its KV cache must still be empty.
        model: its source.
        config: its settings.
        text: what to measure on.
        reference: a source to compare with; None means the model's own.

    Raises:
        ModelError: it exceeds the bound; the message names the part that differs most.
        ConfigError: it cannot be measured; the message says what to change.
    """
    loaded = executor.local
    if loaded is None:
        raise ConfigError("accuracy is measured in one process: set tensor_parallel_size to 1 and no rehearsal")
    slots = loaded.num_blocks // loaded.groups.count * loaded.block_size
    if settings.window > slots:
        raise ConfigError(f"accuracy.window is {settings.window}, but the KV cache holds {slots} tokens: lower it")
    source = resolve_source(model)
    exact = EngineConfig(dtype="float32", device="cpu", threads=config.threads)
    windows = text_windows(source, read_text(text), settings)
    found = judge(loaded, source, exact, resolve_source(reference or model), windows, settings)
    logger.info("%s: %s", model, found.verdict)
    if found.passed is False:
        where = f"; {worst(found.layers)}" if found.layers else ""
        raise ModelError(f"{model!r} is not accurate enough to serve: {found.verdict}{where}")
    return found
