"""Puts a model's shards to sleep, wakes them up, and has them go over to other weights.

Other weights come in two passes over all shards. In the first each checks them, and loads them where it has room for
both: one that cannot is the end of it, and nothing has changed. In the second the shards go over, the first half one
after the other, while the others answer; then the others, while the first half answers. What a shard runs it ends with
the weights that it began with. Shards that start later are told by what is kept in the cluster.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable

from octavo.errors import BadRequest, OctavoError
from octavo_serve.api.model import Updated
from octavo_serve.gateway.link import Link
from octavo_serve.gateway.shard_client import ShardClient
from octavo_serve.ray_private import keep, kept
from octavo_serve.wire.messages import Do
from octavo_serve.wire.weights import Kept, decode_kept, encode_kept

logger = logging.getLogger("ray.serve")


class Keeper:
    """Of one model, in one gateway.

    Args:
        client: of its shards.
        source: of the config.
        key: where other processes find what was done.
        write, read: keep a value there, and find it; both block for about a millisecond.
    """

    def __init__(
        self,
        client: ShardClient,
        source: str,
        key: str,
        write: Callable[[str, bytes], None] = keep,
        read: Callable[[str], bytes | None] = kept,
    ) -> None:
        self._client, self._source, self._key = client, source, key
        self._write, self._read = write, read
        self._changing = asyncio.Lock()

    async def sleep(self, level: int) -> None:
        """Have all shards end what was accepted, and give their memory back.

        Raises:
            OctavoError: a shard could not, or was woken up before.
        """
        links = self._links()
        await self._remember(level=level)
        try:
            await self._all(links, "sleep", level=level)
        except BaseException:
            await self._remember(level=0)
            raise

    async def wake_up(self) -> None:
        """Have all shards load their weights.

        Raises:
            OctavoError: a shard could not.
        """
        links = self._links()
        await self._remember(level=0)
        await self._all(links, "wake_up")

    async def update(self, path: str) -> Updated:
        """Have all shards go over to the weights at a path.

        Raises:
            BadRequest: they are not for this model, or others are on their way.
            OctavoError: a shard could not; the sentence says which weights serve.
        """
        if self._changing.locked():
            raise BadRequest("other weights are on their way: wait until they are there")
        async with self._changing:
            return await self._update(path)

    async def _update(self, path: str) -> Updated:
        begun, links, before = time.monotonic(), self._links(), await self._kept()
        try:
            names = set(await self._all(links, "stage", path=path))
            if len(names) > 1:
                raise BadRequest("the shards do not see the same files under this path", "path")
        except BaseException:
            await asyncio.gather(*(link.manage("unstage") for link in links), return_exceptions=True)
            raise
        staged = time.monotonic()
        await self._remember(path=path)
        half = max(1, len(links) // 2)  # one shard alone, too, is told to go back where it fails
        try:
            for link in links[:half]:
                await link.manage("switch")
        except BaseException:
            await self._remember(path=before.path)
            await self._back(links, before.path or self._source)
            raise
        await self._all(links[half:], "switch")
        name = names.pop()
        logger.info("%s: the weights are now %s", self._source, name)
        return Updated(name.rpartition("=")[2], len(links), staged - begun, time.monotonic() - staged)

    async def _back(self, links: list[Link], path: str) -> None:
        """Have the shards that have gone over go back."""
        for link in links:
            try:
                await link.manage("stage", path=path)
                await link.manage("switch")
            except OctavoError as error:
                logger.error("a shard cannot go back to %s: %s", path, error)

    def _links(self) -> list[Link]:
        found = list(self._client.links.values())
        if not found:
            raise BadRequest("no shard of this model is there")
        return found

    async def _all(self, links: Iterable[Link], do: Do, *, level: int = 1, path: str = "") -> list[str]:
        """Have shards do something at once; raises the first error once all are done."""
        answers = [link.manage(do, level=level, path=path) for link in links]
        found = await asyncio.gather(*answers, return_exceptions=True)
        for each in found:
            if isinstance(each, BaseException):
                raise each
        return [each for each in found if isinstance(each, str)]

    async def _kept(self) -> Kept:
        return decode_kept(await asyncio.to_thread(self._read, self._key), self._source)

    async def _remember(self, *, path: str | None = None, level: int | None = None) -> None:
        known = await self._kept()
        known.path = known.path if path is None else path
        known.level = known.level if level is None else level
        await asyncio.to_thread(self._write, self._key, encode_kept(known))
