"""What the scripts share: cases run one after another, and one JSON line says how they went."""

from __future__ import annotations

import asyncio
import importlib.metadata
import inspect
import json
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

URL = os.environ.get("COMPAT_URL", "http://127.0.0.1:8000")
MODEL = os.environ.get("COMPAT_MODEL", "scripted")
EMBEDDER = os.environ.get("COMPAT_EMBEDDER", "minilm")
CAPITAL, WEATHER, PERSON = "What is the capital of France?", "What is the weather in Paris?", "Describe Ada Lovelace."
RESULT = "14 degrees, rain"
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = {"type": "function", "function": {"name": "weather", "description": "The weather.", "parameters": SCHEMA}}

DOCUMENTS = ["Cats sleep for most of the day.", "Paris is the capital of France.", "Bread is made of flour."]
"""The second answers CAPITAL."""


def user(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


def prompt(text: str) -> str:
    """A question as the scripted model's template writes it, for protocols without chats."""
    return f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"


ASKED = prompt(CAPITAL)


def check(told: bool, *found: Any) -> None:
    """As assert, which says what was found."""
    if not told:
        raise AssertionError(" ".join(map(repr, found)))


def check_near(query: list[float], documents: list[list[float]], dimensions: int = 384) -> None:
    """Vectors of length 1, of which CAPITAL's is nearest to the second of DOCUMENTS."""
    check({len(vector) for vector in (query, *documents)} == {dimensions}, len(query))
    check(abs(sum(value * value for value in query) - 1) < 1e-3, query)
    near = [sum(a * b for a, b in zip(query, document, strict=True)) for document in documents]
    check(len(near) == 3 and near[1] == max(near), near)


def run(client: str, package: str, *cases: Callable[[], Any]) -> None:
    """Run each case, named by its function, and print the line."""
    print(json.dumps({"client": client, "version": _version(package), "cases": [_run(case) for case in cases]}))


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return package


def _run(case: Callable[[], Any]) -> dict[str, Any]:
    try:
        said = case()
        if inspect.isawaitable(said):
            said = asyncio.run(_awaited(said))
        return {"name": case.__name__, "ok": True, "why": said or ""}
    except BaseException as error:
        traceback.print_exc(file=sys.stderr)
        return {"name": case.__name__, "ok": False, "why": f"{type(error).__name__}: {error}"[:600]}


async def _awaited(said: Any) -> Any:
    return await said
