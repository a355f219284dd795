"""Instructor, in each of its modes for OpenAI-compatible servers."""

from __future__ import annotations

from collections.abc import Callable

import instructor
from cases import MODEL, PERSON, URL, check, run, user
from instructor import Mode
from openai import OpenAI
from pydantic import BaseModel

client = OpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0, timeout=60)
CHAT = "TOOLS", "TOOLS_STRICT", "JSON", "JSON_SCHEMA", "MD_JSON"
RESPONSES = "RESPONSES_TOOLS", "RESPONSES_TOOLS_WITH_INBUILT_TOOLS"


class Person(BaseModel):
    name: str
    born: int


def case(mode: str) -> Callable[[], None]:
    def asked() -> None:
        given = {"model": MODEL, "messages": user(PERSON), "response_model": Person, "max_retries": 0}
        said = instructor.from_openai(client, mode=Mode[mode]).create(**given)
        check(said.name == "Ada Lovelace" and said.born == 1815, said)

    asked.__name__ = mode
    return asked


def partial() -> None:
    patched = instructor.from_openai(client, mode=Mode.JSON_SCHEMA)
    parts = list(patched.create_partial(model=MODEL, messages=user(PERSON), response_model=Person))
    check(parts[-1].born == 1815, parts[-1:])


run("instructor", "instructor", *map(case, (*CHAT, *RESPONSES)), partial)
