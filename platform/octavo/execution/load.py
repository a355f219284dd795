"""From a `Source` and its settings to the executor that runs its steps.

Importing torch takes 1.2 s and 150 MB, and a packed model on a CPU needs none of it: each kind of executor is imported
where it is chosen.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from octavo.config import EngineConfig
from octavo.errors import ConfigError
from octavo.execution.capacity import CPU_KV_BYTES
from octavo.models.pooling_facts import read_pooling
from octavo.models.source_spec import read_spec
from octavo.pooling import PoolingInfo
from octavo.source import Source

if TYPE_CHECKING:
    from octavo.execution.executor import Executor
    from octavo.execution.ranks import Launch


def load_executor(
    source: Source, config: EngineConfig, *, progress: bool = False, launch: Launch | None = None
) -> Executor:
    """Load a model into this process, or over ranks.

    Args:
        launch: starts the other tensor-parallel ranks; None makes them children of this process.

    Raises:
        ModelError, ConfigError: it cannot be loaded, or not with these settings.
    """
    executor: Executor
    if read_spec(source).encoder is not None:
        from octavo.execution.local import load_local_encoder

        if config.tensor_parallel_size > 1:
            raise ConfigError(f"tensor_parallel_size must be 1 for {source.name!r}: an encoder is not cut")
        executor = load_local_encoder(source, config, progress=progress)
    elif config.tensor_parallel_size > 1:
        from octavo.execution.ranks import load_parallel

        executor = load_parallel(source, config, launch, progress=progress)
    else:
        from octavo.execution.local import load_local

        executor = load_local(source, config, progress=progress)
    if config.async_scheduling and executor.max_in_flight == 1:
        from octavo.execution.background import BackgroundExecutor

        return BackgroundExecutor(executor)
    return executor


def load_draft(source: Source, draft: Source, config: EngineConfig) -> tuple[Executor, EngineConfig]:
    """Load a draft model beside a model, whole where that is cut: as many tokens of both fit into the KV cache.

    Returns:
        what runs it, and the settings with which the model itself is to be loaded.

    Raises:
        ModelError, ConfigError: it cannot be loaded, or not with these settings.
    """
    from octavo.execution.device import find_device
    from octavo.execution.local import load_local

    if config.kv_cache_bytes is None and find_device(config.device) != "cpu":
        raise ConfigError("speculation.draft on a GPU needs kv_cache_bytes: the draft model has its part of them")
    spec, small = read_spec(source), read_spec(draft)
    for name, each in ((source.name, spec), (draft.name, small)):
        if not each.generates:
            raise ConfigError(f"speculation.draft is for models that generate text, and {name!r} generates none")
        if each.recurrence is not None:
            raise ConfigError(
                f"speculation.draft is not for {name!r}, whose recurrent layers cannot give tokens back: leave it out"
            )
    total = config.kv_cache_bytes or CPU_KV_BYTES
    width, own = (each.kv_parts * each.num_layers * each.num_kv_heads * each.head_dim for each in (spec, small))
    part = total * own // (own + width // config.tensor_parallel_size)
    alone = replace(config, kv_cache_bytes=max(1, part), quantization=None, max_model_len=None, speculation=False)
    return load_local(draft, replace(alone, async_scheduling=False, tensor_parallel_size=1)), replace(
        config, kv_cache_bytes=total - part
    )


def load_pooling(source: Source) -> PoolingInfo:
    """How a model makes vectors.

    Raises:
        ModelError: a damaged checkpoint, or a way of pooling that is not supported.
    """
    return read_pooling(source, read_spec(source))
