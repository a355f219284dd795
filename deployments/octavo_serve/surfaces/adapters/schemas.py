"""Bodies and answers of vLLM's /v1/load_lora_adapter and /v1/unload_lora_adapter."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from typing_extensions import TypedDict  # pydantic reads the standard one from Python 3.12 on

from octavo_serve.api.body import Body
from octavo_serve.api.fields import Name


class LoadAdapter(Body):
    """Body of /v1/load_lora_adapter; `model` says which one it is for, where that may be several."""

    lora_name: Annotated[Name, Field(min_length=1)]
    lora_path: Name
    model: Name | None = None
    load_inplace: bool = False


class UnloadAdapter(Body):
    """Body of /v1/unload_lora_adapter."""

    lora_name: Name
    lora_int_id: int | None = None  # of vLLM's own; it names nothing here


class Done(TypedDict):
    """Answer of both."""

    message: str
