"""Batches as OpenAI's client uses them: begun, looked at, answered in files, cancelled."""

from __future__ import annotations

import asyncio
from typing import Any


def test_a_batch_is_answered_in_a_file_with_its_custom_ids(batching: Any, line: Any) -> None:
    async def run() -> None:
        async with batching.client() as client, batching.working():
            begun = await batching.begun(client, *[line(f"q{n}") for n in range(9)], metadata={"for": "test"})
            assert (begun.status, begun.metadata) == ("validating", {"for": "test"})
            batch = await batching.ended(client, begun.id)
            assert batch.status == "completed"
            assert batch.model == "tiny"
            assert (batch.request_counts.total, batch.request_counts.completed) == (9, 9)
            assert batch.created_at <= batch.in_progress_at <= batch.finalizing_at <= batch.completed_at
            lines = await batching.lines_of(client, batch.output_file_id)
            assert [each["custom_id"] for each in lines] == [f"q{n}" for n in range(9)]
            for each in lines:
                assert each["response"]["status_code"] == 200
                assert each["response"]["body"]["choices"][0]["message"]["content"] == "Paris."
            assert batch.error_file_id is None
            assert [one.id async for one in client.batches.list()] == [batch.id]
            files = [one.purpose async for one in client.files.list()]
            assert files == ["batch_output", "batch"]

    asyncio.run(run())
