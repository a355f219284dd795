"""What the autoscaler decided of late, read where Serve's controller keeps it (`controller.journal`)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping

from octavo_serve.ray_private import kept
from octavo_serve.wire.scaling import Scaling, decode_scaling

logger = logging.getLogger("ray.serve")

AGE_SECONDS = 1.0
"""From which it is read again."""
WAIT_SECONDS = 0.05
"""That who asks waits for it; /metrics is to answer within 0.1 s."""


class ScalingReader:
    """Reads the decisions of all models that scale, when somebody asks.

    Args:
        keys: where they are kept, by model; asked for each time.
        found: set to what was found, by model.
        read: takes a key, and blocks for about a millisecond.
    """

    def __init__(
        self,
        keys: Callable[[], Mapping[str, str]],
        found: Callable[[dict[str, Scaling]], None],
        read: Callable[[str], bytes | None] = kept,
    ) -> None:
        self._keys, self._found, self._read = keys, found, read
        self._asked = float("-inf")
        self._reading: asyncio.Task[None] | None = None

    async def refresh(self) -> None:
        """Read again what is old; who asks does not wait long for it."""
        now = time.monotonic()
        if (self._reading is None or self._reading.done()) and now - self._asked > AGE_SECONDS:
            self._asked = now
            self._reading = asyncio.create_task(self._read_all())
        if self._reading is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(WAIT_SECONDS):
                    await asyncio.shield(self._reading)

    async def _read_all(self) -> None:
        if not (keys := self._keys()):
            self._found({})
            return
        try:
            self._found(await asyncio.to_thread(self._all, keys))
        except Exception as error:  # Ray's GCS does not answer; what was read before stays, with its time
            logger.info("The autoscaler's decisions cannot be read: %s", error)

    def _all(self, keys: Mapping[str, str]) -> dict[str, Scaling]:
        values = {model: self._read(key) for model, key in keys.items()}
        return {model: decode_scaling(value) for model, value in values.items() if value is not None}
