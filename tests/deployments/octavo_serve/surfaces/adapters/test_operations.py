"""Adapters over HTTP, on a real engine: chosen by name, loaded and unloaded while others run."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import httpx
import pytest

from octavo_serve.api.access import Caller, Keys, KnownKey, Rules
from octavo_serve.api.adapters import AdapterSettings
from octavo_serve.http.app import http_app

ASK = {"prompt": "Once upon a time, in a land of many adapters", "max_tokens": 12, "temperature": 0, "ignore_eos": True}


@pytest.fixture
def folder(make_adapter: Any, tmp_path: Path) -> Path:
    """Where adapters may lie."""
    for seed in (1, 2):
        shutil.copytree(make_adapter("qwen3", seed=seed), tmp_path / "adapters" / f"a{seed}")
    shutil.copytree(make_adapter("llama3"), tmp_path / "adapters" / "of another model")
    shutil.copytree(make_adapter("qwen3"), tmp_path / "elsewhere")
    return tmp_path / "adapters"


@pytest.fixture
def served(in_process: Any, folder: Path, tiny_model: Any, post: Any) -> Any:
    post.service = in_process.service
    settings = AdapterSettings(str(tiny_model("qwen3")), {"written": str(folder / "a1")}, (str(folder),))

    async def configure() -> None:
        in_process.service.models.adapters.configure({"tiny": settings}, alone=True)
        await asyncio.gather(*in_process.service.models.adapters._reading)

    asyncio.run(configure())
    return in_process


def text(post: Any, model: str) -> str:
    answer = post("/v1/completions", ASK | {"model": model})
    assert answer.status_code == 200, answer.text
    assert answer.json()["model"] == model
    return str(answer.json()["choices"][0]["text"])


def test_an_adapter_is_asked_for_by_its_name(post: Any, served: Any, folder: Path) -> None:
    assert post("/v1/load_lora_adapter", {"lora_name": "late", "lora_path": "a2"}).status_code == 200
    said = {name: text(post, name) for name in ("tiny", "written", "late")}
    assert len(set(said.values())) == 3
    assert {name: text(post, name) for name in said} == said  # from the cache
    assert [request.adapter_digest for request in served.opened[:3]] == [
        request.adapter_digest for request in served.opened[3:]
    ]
    cards = {card["id"]: card for card in post("/v1/models", method="GET").json()["data"]}
    assert list(cards) == ["tiny", "written", "late"]
    assert (cards["late"]["parent"], cards["late"]["root"]) == ("tiny", str(folder / "a2"))
    assert cards["written"]["status"] == "ready"
    assert post("/v1/models/late", method="GET").json() == cards["late"]
    assert post("/v1/unload_lora_adapter", {"lora_name": "late"}).status_code == 200
    gone = post("/v1/completions", ASK | {"model": "late"})
    assert (gone.status_code, "served here: tiny, written" in gone.text) == (404, True)


def test_other_contents_under_a_name_meet_nothing_of_the_old_ones(served: Any, post: Any, folder: Path) -> None:
    """Loaded again while streams of it run: those end as they began, and none after that sees their blocks."""
    shutil.copytree(folder / "a2", folder / "x")
    load = {"lora_name": "x", "lora_path": "x"}
    assert post("/v1/load_lora_adapter", load).status_code == 200
    old = text(post, "x")
    again = post("/v1/load_lora_adapter", load)
    assert (again.status_code, "load_inplace: true" in again.text) == (400, True)

    async def run() -> list[str]:
        transport = httpx.ASGITransport(http_app(served.service, post.backend, post.access))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            asks = [http.post("/v1/completions", json=ASK | {"model": "x"}) for _ in range(6)]
            running = [asyncio.create_task(ask) for ask in asks]
            while len(served.opened) < 7:
                await asyncio.sleep(0)
            shutil.copytree(folder / "a1", folder / "x", dirs_exist_ok=True)
            await http.post("/v1/load_lora_adapter", json=load | {"load_inplace": True})
            answers = [*await asyncio.gather(*running), await http.post("/v1/completions", json=ASK | {"model": "x"})]
            return [answer.json()["choices"][0]["text"] for answer in answers]

    *before, after = asyncio.run(run())
    assert before == [old] * 6
    assert after == text(post, "written") != old


def test_one_that_begins_late_goes_on_from_the_models_own_blocks(
    served: Any, post: Any, folder: Path, make_adapter: Any
) -> None:
    many = [ord(letter) - ord("!") for letter in "many"]
    shutil.copytree(make_adapter("qwen3", seed=3, alora_invocation_tokens=many), folder / "late")
    assert post("/v1/load_lora_adapter", {"lora_name": "late", "lora_path": "late"}).status_code == 200
    prompt = "One text after another. " * 3

    def answer(model: str, prompt: str) -> tuple[str, int]:
        body = post("/v1/completions", ASK | {"model": model, "prompt": prompt}).json()
        return body["choices"][0]["text"], body["usage"]["prompt_tokens_details"]["cached_tokens"]

    (own, _), (late, cached) = answer("tiny", f"{prompt}many"), answer("late", f"{prompt}many")
    assert (own != late, cached) == (True, len(prompt))  # whole blocks
    assert answer("late", prompt) == answer("tiny", prompt)  # nothing invokes it


def test_files_that_change_alone_are_noticed(served: Any, post: Any, folder: Path) -> None:
    shutil.copytree(folder / "a1", folder / "y")
    assert post("/v1/load_lora_adapter", {"lora_name": "y", "lora_path": "y"}).status_code == 200
    shutil.copytree(folder / "a2", folder / "y", dirs_exist_ok=True)
    failed = post("/v1/completions", ASK | {"model": "y"})
    assert failed.status_code == 500
    assert "has changed since it was loaded: load it again" in failed.text


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({"lora_name": "x", "lora_path": "../elsewhere"}, "none of the model's lora_folders"),
        ({"lora_name": "x", "lora_path": "/etc"}, "none of the model's lora_folders"),
        ({"lora_name": "x", "lora_path": "."}, "none of the model's lora_folders"),
        ({"lora_name": "x", "lora_path": "link"}, "none of the model's lora_folders"),
        ({"lora_name": "x", "lora_path": "not there"}, "none of the model's lora_folders"),
        ({"lora_name": "x", "lora_path": "of another model"}, "cannot be loaded: the adapter changes"),
        ({"lora_name": "tiny", "lora_path": "a1"}, "'tiny' is the name of something else"),
        ({"lora_name": "x", "lora_path": "a1", "model": "other"}, "may be loaded for: tiny"),
        ({"lora_name": "x"}, "lora_path"),
        ({"lora_name": "", "lora_path": "a1"}, "lora_name must have at least 1 character"),
    ],
)  # fmt: skip
def test_what_may_not_be_loaded(served: Any, post: Any, folder: Path, body: Any, sentence: str) -> None:
    (folder / "link").symlink_to(folder.parent / "elsewhere")
    answer = post("/v1/load_lora_adapter", body)
    assert answer.status_code == 400
    assert sentence in answer.json()["error"]["message"]


def test_operators_alone_load(served: Any, post: Any) -> None:
    keys = Keys([KnownKey(Caller("a"), b"\1" * 32)])
    for rules in (Rules(keys, disclose=True), Rules(None, disclose=False)):
        post.access.rules = rules
        for path, body in [("load", {"lora_name": "x", "lora_path": "a1"}), ("unload", {"lora_name": "written"})]:
            answer = post(f"/v1/{path}_lora_adapter", body, headers={"Authorization": "Bearer x"})
            assert answer.status_code in (401, 403)
    assert Rules(keys).operates(Caller("b", operator=True))
    assert not Rules(keys).operates(Caller("a"))
    assert list(served.service.models.adapters.entries) == ["written"]


def test_several_gateways_load_what_the_config_names(served: Any, post: Any) -> None:
    adapters = served.service.models.adapters
    adapters.alone = False
    for path, body in [("load", {"lora_name": "x", "lora_path": "a1"}), ("unload", {"lora_name": "written"})]:
        assert "several gateways" in post(f"/v1/{path}_lora_adapter", body).json()["error"]["message"]
