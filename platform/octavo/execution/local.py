"""The executor of a model, or of one rank's share of it, in this process."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

from octavo.config import EngineConfig
from octavo.errors import ConfigError
from octavo.execution.capacity import keeps_left_windows
from octavo.execution.device import find_device, limit_torch
from octavo.execution.executor import Executor, LocalExecutor
from octavo.execution.native_encoder import load_native_encoder, why_not_native_encoder
from octavo.execution.native_executor import load_native, why_not_native
from octavo.models.parallel import TPGroup
from octavo.models.source_spec import read_share
from octavo.source import Source
from octavo_kernels.native.cores import available_cores
from octavo_kernels.native.library import Library, library

logger = logging.getLogger(__name__)


def load_local(
    source: Source, config: EngineConfig, *, progress: bool = False, group: TPGroup | None = None
) -> LocalExecutor:
    """Load a model, or one rank's share of it, into this process: native code on a CPU that covers it, else torch.

    Raises:
        ModelError, ConfigError: it cannot be loaded, or not with these settings.
    """
    group = group or TPGroup()
    share = read_share(source, group)
    device = find_device(config.device)
    native = _native_library(source, config, device, partial(why_not_native, share=share))
    if not group.smallest(native is not None) and native is not None:  # the two sum over ranks in different places
        logger.warning("%s runs on the slower torch runner: another rank does", source.name)
        native = None
    executor: LocalExecutor
    if native is not None:
        executor = load_native(native, source, config, share, group, progress=progress)
    else:
        from octavo.execution.torch_executor import load_torch

        executor = load_torch(source, config, device, share, group, progress=progress)
    logger.info("%s: %s, %d KV blocks", source.name, executor, executor.num_blocks)
    if keeps_left_windows(share.spec, config):
        logger.warning(
            "%s: layers with a window keep all of a text, for blocks that go to a tier or another shard hold all "
            "layers: without disk_cache_bytes, host_cache_bytes and share_kv_cache they give back what left it",
            source.name,
        )
    return executor


def load_local_encoder(source: Source, config: EngineConfig, *, progress: bool = False) -> Executor:
    """Load an encoder into this process: native code on a CPU that covers it, else torch.

    Raises:
        ModelError, ConfigError: it cannot be loaded, or not with these settings.
    """
    device = find_device(config.device)
    native = _native_library(source, config, device, why_not_native_encoder)
    executor: Executor
    if native is not None:
        executor = load_native_encoder(native, source, config, progress=progress)
    else:
        from octavo.execution.encoder_executor import load_torch_encoder

        executor = load_torch_encoder(source, config, device, progress=progress)
    logger.info("%s: %s", source.name, executor)
    return executor


def _native_library(
    source: Source, config: EngineConfig, device: str, why_not: Callable[[Source, EngineConfig], str | None]
) -> Library | None:
    """What runs the model on this CPU, if that covers all of it; all CPU libraries get their threads."""
    if device != "cpu":
        _check_activations(source, config, f"its device is {device}")
        return None
    threads = config.threads or available_cores()
    limit_torch(threads)
    native = library()
    reason = "there is no native library" if native is None else why_not(source, config)
    if native is None or reason:
        _check_activations(source, config, str(reason))
        logger.warning("%s runs on the slower torch runner: %s", source.name, reason)
        return None
    native.set_threads(threads)
    return native


def _check_activations(source: Source, config: EngineConfig, reason: str) -> None:
    if config.activations != "auto":
        what = f"activations is for the native CPU runner, which does not run {source.name!r}: {reason}"
        raise ConfigError(f"{what}; leave it at auto")
