"""Bodies and answers of vLLM's /sleep, /wake_up and /is_sleeping, and of /v1/update_weights."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from typing_extensions import TypedDict  # pydantic reads the standard one from Python 3.12 on

from octavo_serve.api.body import Body
from octavo_serve.api.fields import Name
from octavo_serve.api.operation import Names, Query


class WhichModel(Query):
    """Which model is meant, where there are several."""

    model: Name | None = None


class SleepQuery(WhichModel):
    """How deep it sleeps, and what becomes of requests that run: `wait` lets them end."""

    level: Annotated[int, Field(ge=1, le=2)] = 1
    mode: Literal["wait"] = "wait"


class WakeQuery(WhichModel):
    """What wakes up: all, as weights without a cache answer nothing."""

    tags: Names = Field(default_factory=list)


class UpdateWeights(Body):
    """Body of /v1/update_weights; `model` says whose they are, where that may be several."""

    path: Annotated[Name, Field(min_length=1)]
    model: Name | None = None


class Done(TypedDict):
    """Answer of /sleep and /wake_up."""

    message: str
    seconds: float


class Sleeping(TypedDict):
    """Answer of /is_sleeping."""

    is_sleeping: bool
    level: int


class Replaced(TypedDict):
    """Answer of /v1/update_weights.

    `weights` is the hash of what serves now, `seconds` what took how long: `load`, while the old weights served, and
    `switch`.
    """

    message: str
    weights: str
    shards: int
    seconds: dict[str, float]
