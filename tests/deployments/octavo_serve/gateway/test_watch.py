from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ray.serve._private.common import ReplicaState

from octavo_serve.api.registry import ModelEntry
from octavo_serve.gateway import watch
from octavo_serve.gateway.watch import State, deployment_states, last_error, load_text, watch_shards
from octavo_serve.wire.messages import ModelInfo

INFO = ModelInfo("h", 100, 50, 16)
CLIENT: Any = object()


async def until(condition: Any) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


def test_a_tokenizer_that_comes_later_is_found(tiny_model: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(watch, "LAST_DELAY", 0.05)
    source = tmp_path / "model"

    async def run() -> None:
        entry = ModelEntry("m", 0, CLIENT)
        task = asyncio.create_task(load_text(entry, str(source)))
        await until(lambda: entry.tokenizer_error)
        assert entry.tokenizer_error.startswith(f"no model at '{source}'")
        shutil.copytree(tiny_model("llama2"), source)
        await task
        assert entry.tokenizer is not None
        assert entry.tokenizer_error == ""

    asyncio.run(run())


class Shards:
    def __init__(self) -> None:
        self.found = 0

    async def describe(self) -> ModelInfo:
        return INFO

    asleep = 0

    def num_answering(self) -> int:
        return self.found


def test_an_entry_follows_its_shards() -> None:
    async def run() -> None:
        state = State(note="its shards are starting")

        async def ask() -> State:
            return state

        entry, shards = ModelEntry("m", 0, CLIENT, tokenizer=CLIENT), Shards()
        task = asyncio.create_task(watch_shards(entry, shards, ask, period=0.01))
        await until(lambda: entry.reason == "its shards are starting")
        shards.found = 2
        await until(lambda: entry.status == "ready")
        assert (entry.shards, entry.info) == (2, INFO)
        shards.found, state = 0, State(running=2)  # Serve lists them, but they cannot be reached
        await until(lambda: entry.status == "loading")
        assert (entry.reason, entry.shards) == ("its shards do not answer", 0)
        state = State(error="out of memory")
        await until(lambda: entry.status == "failed")
        assert entry.reason == "out of memory"
        shards.found = 1
        await until(lambda: entry.status == "ready")
        task.cancel()

    asyncio.run(run())


TRACEBACK = """The deployment failed to start 2 times in a row. Error:
  File "shard.py", line 33, in __init__
    raise ModelError(...)
octavo.errors.ModelError: no model at '/x'
"""


def test_the_last_error_of_a_traceback() -> None:
    assert last_error(TRACEBACK) == "octavo.errors.ModelError: no model at '/x'"
    assert last_error("no trace of a traceback\n") == "no trace of a traceback"


def test_replicas_are_counted_by_state_however_serve_says_it(monkeypatch: Any) -> None:
    for running, stopping in (("RUNNING", "STOPPING"), (ReplicaState.RUNNING, ReplicaState.STOPPING)):
        deployment = SimpleNamespace(
            message="", status="HEALTHY", replica_states={running: 2, stopping: 1, "STARTING": 0}
        )
        application = SimpleNamespace(deployments={"shard-m": deployment})
        monkeypatch.setattr(
            watch.serve, "status", lambda found=application: SimpleNamespace(applications={"octavo": found})
        )
        state = deployment_states("octavo")["shard-m"]
        assert (state.running, state.replicas) == (2, {"RUNNING": 2, "STOPPING": 1})
        assert [str(name) for name in state.replicas] == ["RUNNING", "STOPPING"]
