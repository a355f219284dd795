"""Has a prompt computed on one shard, before its request runs on another, which fetches the blocks as they come."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import replace

from octavo.engine.async_engine import Stream
from octavo.errors import OctavoError
from octavo.request import Request, SamplingParams
from octavo_serve.gateway.link import Link, ShardGone
from octavo_serve.gateway.picker import Picked
from octavo_serve.wire.messages import MAX_BROUGHT

logger = logging.getLogger("ray.serve")

LEAST_SECONDS = 2.0
"""That a prompt may take there, and twice what was predicted besides."""


FOLLOWED_SECONDS = 0.05
"""Between two looks at what it has computed."""


async def compute_prompt(request: Request, picked: Picked, runs: Link) -> None:
    """Wait until a shard has computed a request's prompt; what it does not do in time is left to the other one.

    Args:
        request: its deadline is that much nearer afterwards.
        picked: the shard; its place is free when this ends, however that is.
        runs: to where the request will run.
    """
    name, stream, begun, ended = picked.placement.ticket, Stream(asyncio.get_running_loop()), time.monotonic(), False
    prompt = replace(
        request, request_id=name, params=SamplingParams(max_tokens=0), placement=picked.placement, deadline=None,
        predicted=None,
    )  # fmt: skip
    following = asyncio.create_task(_follow(request.block_hashes or [], picked, runs))
    try:
        picked.link.submit(prompt, stream)
        async with asyncio.timeout(LEAST_SECONDS + 2 * picked.placement.first_token):
            while not ended:
                ended = any(update.finish_reason is not None for update in await stream.take())
    except (TimeoutError, ShardGone, OctavoError) as error:
        logger.info("%s: its prompt is computed where it runs: %r", request.request_id, error)
    finally:
        following.cancel()
        if not ended:
            picked.link.abort(name)
        picked.link.forget(name)
        picked.ended(ran=ended)
    if request.deadline is not None:
        request.deadline = max(1e-3, request.deadline - (time.monotonic() - begun))


async def _follow(chain: Sequence[bytes], picked: Picked, runs: Link) -> None:
    """Have a prompt's blocks go to where its request will run, as they are computed."""
    told = 0
    while told < len(chain):
        await asyncio.sleep(FOLLOWED_SECONDS)
        if (there := min(picked.holds(chain), told + MAX_BROUGHT)) > told:
            runs.bring(picked.placement.shard, chain[told:there])
            told = there
