"""Has a prompt computed on one shard, before its request runs on another, which fetches the blocks."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import replace

from octavo.engine.async_engine import Stream
from octavo.errors import OctavoError
from octavo.request import Request, SamplingParams
from octavo_serve.gateway.link import ShardGone
from octavo_serve.gateway.picker import Picked

logger = logging.getLogger("ray.serve")

LEAST_SECONDS = 2.0
"""That a prompt may take there, and twice what was predicted besides."""


async def compute_prompt(request: Request, picked: Picked) -> None:
    """Wait until a shard has computed a request's prompt; what it does not do in time is left to the other one.

    Args:
        request: its deadline is that much nearer afterwards.
        picked: the shard; its place is free when this ends, however that is.
    """
    name, stream, begun, ended = picked.placement.ticket, Stream(asyncio.get_running_loop()), time.monotonic(), False
    prompt = replace(
        request, request_id=name, params=SamplingParams(max_tokens=0), placement=picked.placement, deadline=None,
        predicted=None,
    )  # fmt: skip
    try:
        picked.link.submit(prompt, stream)
        async with asyncio.timeout(LEAST_SECONDS + 2 * picked.placement.first_token):
            while not ended:
                ended = any(update.finish_reason is not None for update in await stream.take())
    except (TimeoutError, ShardGone, OctavoError) as error:
        logger.info("%s: its prompt is computed where it runs: %r", request.request_id, error)
    finally:
        if not ended:
            picked.link.abort(name)
        picked.link.forget(name)
        picked.ended(ran=ended)
    if request.deadline is not None:
        request.deadline = max(1e-3, request.deadline - (time.monotonic() - begun))
