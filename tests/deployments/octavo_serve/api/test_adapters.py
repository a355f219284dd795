"""The adapters of a gateway as its config changes; loading by HTTP is in `surfaces/adapters`."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from octavo.errors import BadRequest, ModelNotReady, UnknownModel
from octavo_serve.api.adapters import Adapters, AdapterSettings


def configured(adapters: Adapters, models: Any) -> None:
    async def run() -> None:
        adapters.configure(models, alone=True)
        await asyncio.gather(*adapters._reading)

    asyncio.run(run())


def test_a_config_that_changes(tiny_model: Any, make_adapter: Any, tmp_path: Path) -> None:
    source, folder = str(tiny_model("qwen3")), make_adapter("qwen3")
    adapters = Adapters()
    paths = {"a": str(folder), "b": str(folder), "broken": str(tmp_path)}
    configured(adapters, {"tiny": AdapterSettings(source, paths, (str(folder.parent),))})
    asyncio.run(adapters.load("by hand", folder.name, None, ["tiny"], again=False))
    kept = adapters.entries["a"]
    assert kept.ready(True).digest == adapters.entries["b"].ready(True).digest
    with pytest.raises(ModelNotReady, match=r"'broken' has failed: .* holds no adapter_model\.safetensors"):
        adapters.entries["broken"].ready(True)
    with pytest.raises(ModelNotReady, match=r"'broken' has failed$"):
        adapters.entries["broken"].ready(False)
    configured(adapters, {"tiny": AdapterSettings(source, {"a": str(folder)})})
    assert list(adapters.entries) == ["by hand", "a"]
    assert adapters.entries["a"] is kept
    with pytest.raises(BadRequest, match="lora_folders in the config says where they lie"):
        asyncio.run(adapters.load("c", folder.name, None, [], again=False))
    with pytest.raises(UnknownModel, match="'b' is not loaded; loaded: by hand, a"):
        adapters.unload("b")
    configured(adapters, {})
    assert adapters.entries == {}


def test_what_changes_while_an_adapter_is_read(tiny_model: Any, make_adapter: Any) -> None:
    """One that is unloaded meanwhile is served once its load has said so, and none is without its model."""
    source, folder = str(tiny_model("qwen3")), make_adapter("qwen3")
    adapters = Adapters()
    models = {"tiny": AdapterSettings(source, {}, (str(folder.parent),))}
    configured(adapters, models)

    async def beside(change: Any) -> None:
        loading = asyncio.create_task(adapters.load("a", folder.name, None, [], again=True))
        await asyncio.sleep(0)  # it is being read
        change()
        await loading

    async def twice() -> list[Any]:
        loads = [adapters.load("b", folder.name, None, [], again=False) for _ in range(2)]
        return await asyncio.gather(*loads, return_exceptions=True)

    asyncio.run(adapters.load("a", folder.name, None, [], again=False))
    asyncio.run(beside(lambda: adapters.unload("a")))
    assert list(adapters.entries) == ["a"]
    first, second = asyncio.run(twice())
    assert (first, str(second)) == (None, "adapter 'b' is loaded; load_inplace: true puts another in its place")
    with pytest.raises(BadRequest, match="the config of 'tiny' has changed meanwhile"):
        asyncio.run(beside(lambda: adapters.configure({}, alone=True)))
    assert adapters.entries == {}


def test_a_card_says_what_is_true_of_both(make_adapter: Any, tmp_path: Path, tiny_model: Any) -> None:
    adapters = Adapters()
    configured(adapters, {"tiny": AdapterSettings(str(tiny_model("qwen3")), {"a": str(tmp_path)})})
    parent = {"id": "tiny", "status": "ready", "reason": None, "root": "r", "parent": None, "created": 1}
    card = adapters.entries["a"].card(parent, True)
    assert (card["id"], card["parent"], card["status"], card["root"]) == ("a", "tiny", "failed", str(tmp_path))
    assert "holds no" in str(card["reason"])
    hidden = adapters.entries["a"].card(parent, False)
    assert (hidden["root"], hidden["reason"]) == (None, None)
    loading = adapters.entries["a"].card({**parent, "status": "loading", "reason": "its shards are starting"}, True)
    assert (loading["status"], loading["reason"]) == ("loading", "its shards are starting")
