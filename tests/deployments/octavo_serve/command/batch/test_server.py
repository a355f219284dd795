"""A file's lines answered by a server that has batches."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from octavo_serve.api.batches.batches import Batches
from octavo_serve.api.batches.nouns import Counts, StoreSettings
from octavo_serve.api.batches.runner import Reply, Runner
from octavo_serve.api.service import Service
from octavo_serve.command.batch import server
from octavo_serve.command.batch.command import batch, errors_of
from octavo_serve.surfaces.served import BATCHED


async def ask(owner: str, path: str, body: bytes) -> Reply:
    return Reply(400 if b"wrong" in body else 200, b"{}")


@contextmanager
def working(settings: StoreSettings) -> Iterator[None]:
    """Another gateway, which does the work."""

    async def work() -> None:
        batches = Batches(Counts())
        batches.settings = settings
        task = asyncio.create_task(Runner(batches, ask, lambda model: 8, lambda: 2**20).run())
        await asyncio.to_thread(over.wait)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    over = threading.Event()
    thread = threading.Thread(target=asyncio.run, args=(work(),))
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.fixture
def settings(service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StoreSettings:
    monkeypatch.setattr(server, "POLL_SECONDS", 0.05)
    service.batches.paths = BATCHED
    service.batches.settings = StoreSettings(tmp_path / "store")
    return service.batches.settings


def lines(file: Path, *names: str) -> None:
    url = "/v1/chat/completions"
    made = [{"custom_id": name, "method": "POST", "url": url, "body": {"user": name}} for name in names]
    file.write_text("\n".join(map(json.dumps, made)))


def test_a_server_answers_and_a_second_start_waits_for_the_same_batch(
    serving: Callable[..., Any], settings: StoreSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, output = tmp_path / "lines.jsonl", tmp_path / "out.jsonl"
    lines(file, "a", "b", "wrong")

    def leave(seconds: float) -> None:
        raise KeyboardInterrupt

    with serving() as url:
        with monkeypatch.context() as patch:
            patch.setattr("time.sleep", leave)
            assert batch(file, output, [], url, None) == 130
        with working(settings):
            assert batch(file, output, [], url, None) == 0
    assert [json.loads(each)["custom_id"] for each in output.read_text().splitlines()] == ["a", "b"]
    assert json.loads(errors_of(output).read_text())["custom_id"] == "wrong"
    assert len(list(settings.folder.glob("file-*"))) == 3, "one input, not two"
    assert sorted(path.name for path in tmp_path.glob("out*")) == ["out.jsonl", "out.jsonl.errors"]


def test_what_a_server_refuses_is_said(
    serving: Callable[..., Any], settings: StoreSettings, service: Service, tmp_path: Path, capsys: Any
) -> None:
    file, output = tmp_path / "lines.jsonl", tmp_path / "out.jsonl"
    lines(file, "a", "a")
    with serving() as url, working(settings):
        assert batch(file, output, [], url, None) == 1
        assert "line 2: line 1 has the same custom_id" in capsys.readouterr().err
        assert batch(file, output, ["--dtype", "float32"], url, None) == 1
        assert "leave out --dtype float32" in capsys.readouterr().err
        service.batches.settings = None
        assert batch(file, output, [], url, None) == 1
        assert "gateway.batches" in capsys.readouterr().err
