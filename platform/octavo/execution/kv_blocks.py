"""What an executor's KV cache is to a tier (`octavo.kvcache.tier.KVBlocks`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor as Threads

from octavo.kvcache.tier import Bytes, KVBlocks
from octavo_kernels.decoder import PackedKV


class NativeBlocks:
    """Those of the native executor, whose steps have ended when they are launched."""

    def __init__(self, form: str, kv: PackedKV) -> None:
        self.form, self.block_bytes = f"{form} {kv.dtype} {kv.block_size}", kv.block_bytes
        self._kv = kv

    def read(self, blocks: Sequence[int]) -> Callable[[], Bytes]:
        """As in `KVBlocks`."""
        data = self._kv.read(blocks)
        return lambda: data

    def write(self, blocks: Sequence[int], data: Bytes) -> None:
        """As in `KVBlocks`."""
        self._kv.write(blocks, data)


class BehindSteps:
    """Those of an executor whose steps run in a thread: copies are made there, in turn."""

    def __init__(self, own: KVBlocks, thread: Threads) -> None:
        self.form, self.block_bytes = own.form, own.block_bytes
        self._own, self._thread = own, thread

    def read(self, blocks: Sequence[int]) -> Callable[[], Bytes]:
        """As in `KVBlocks`."""
        return self._thread.submit(lambda: self._own.read(blocks)()).result

    def write(self, blocks: Sequence[int], data: Bytes) -> None:
        """As in `KVBlocks`; waits for the step that runs, so that it is known to have been done."""
        self._thread.submit(self._own.write, blocks, data).result()
