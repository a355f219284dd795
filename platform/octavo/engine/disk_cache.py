"""Names what an engine's KV blocks are, and finds where they outlive the cache: in memory, or in a file."""

from __future__ import annotations

import itertools
from hashlib import sha256
from pathlib import Path

from octavo.config import EngineConfig
from octavo.errors import ConfigError
from octavo.execution.executor import Executor
from octavo.kvcache.layered_tier import LayeredTier
from octavo.kvcache.slot_file import SlotFile, remove_unused, slots_within
from octavo.kvcache.slot_memory import SlotMemory
from octavo.kvcache.slot_tier import SlotTier
from octavo.kvcache.tier import KVBlocks, Tier
from octavo.models.packed_cache import version
from octavo.source import Source
from octavo_kernels.native.cache import cache_folder, own_folder


def open_disk_cache(source: Source, config: EngineConfig, executor: Executor, first: Source | None = None) -> SlotTier:
    """The first file for blocks of this form that nobody else has open.

    A block of another form lies in another file. Those of other weights in the same place, and of other code, are of no
    use any more: what nobody has open of them is removed.

    Args:
        first: as of `Engine.load`.

    Raises:
        ConfigError: there can be none.
    """
    kv = _kept(executor, "disk_cache_bytes")
    if (slots := slots_within(config.disk_cache_bytes or 0, kv.block_bytes)) < 1:
        raise ConfigError(f"disk_cache_bytes holds no block, which takes {kv.block_bytes}: raise it")
    form = block_form(version(source), config, executor)
    folder = Path(config.disk_cache_path) if config.disk_cache_path else cache_folder() / "kv"
    place = block_form(str((first or source).path.resolve()), config, executor)[:16]
    try:
        file = _first_free(own_folder(folder, "disk_cache_path"), place, form, kv.block_bytes, slots)
        for older in set(folder.glob(f"{place}-*.kv")) - set(folder.glob(f"{place}-{form}-*.kv")):
            remove_unused(older)
        return SlotTier(file)
    except OSError as error:
        raise ConfigError(f"disk_cache_path {folder} cannot be used: {error}") from None


def open_tier(source: Source, config: EngineConfig, executor: Executor, first: Source | None = None) -> Tier | None:
    """What takes blocks that the cache has no room for: memory of the host, a file, the one in front of the other.

    Args:
        first: as of `Engine.load`.

    Raises:
        ConfigError: there can be none.
    """
    host = _host_tier(config.host_cache_bytes, executor) if config.host_cache_bytes else None
    if not config.disk_cache_bytes:
        return host
    file = open_disk_cache(source, config, executor, first)
    return file if host is None else LayeredTier(host, file)


def _host_tier(num_bytes: int, executor: Executor) -> SlotTier:
    kv = _kept(executor, "host_cache_bytes")
    if (slots := num_bytes // kv.block_bytes) < 1:
        raise ConfigError(f"host_cache_bytes holds no block, which takes {kv.block_bytes}: raise it")
    try:
        return SlotTier(SlotMemory(kv.block_bytes, slots))
    except MemoryError:
        raise ConfigError(f"host_cache_bytes {num_bytes} is more than the system gives: lower it") from None


def _kept(executor: Executor, setting: str) -> KVBlocks:
    """The blocks that a tier can hold."""
    kv = executor.kv
    if kv is None:
        raise ConfigError(f"{setting} is for models that generate text, in one process: leave it off")
    if executor.states is not None:
        raise ConfigError(
            f"{setting} is not for models with recurrent layers, whose states it would lack: leave it off"
        )
    return kv


def block_form(model: str, config: EngineConfig, executor: Executor) -> str:
    """A hash over the checkpoint's files, the code that reads and runs them, what the executor says of its blocks, and
    settings that change a model.

    Args:
        model: names the first two.
    """
    assert executor.kv is not None
    told = model, executor.spec, config.runner, config.quantization, config.batch_invariant
    return sha256(f"{executor.kv.form} {told}".encode()).hexdigest()[:32]


def _first_free(folder: Path, place: str, form: str, block_bytes: int, slots: int) -> SlotFile:
    for number in itertools.count():
        try:
            return SlotFile(folder / f"{place}-{form}-{number}.kv", form, block_bytes, slots)
        except BlockingIOError:  # another shard's
            continue
    raise AssertionError
