"""Bodies and answers of vLLM's /tokenize and /detokenize."""

from __future__ import annotations

from typing_extensions import TypedDict  # pydantic reads the standard one from Python 3.12 on

from octavo_serve.api.body import Body
from octavo_serve.api.fields import Name, Options, TokenIds, Tools
from octavo_serve.surfaces.openai.schemas import Messages


class TokenizeRequest(Body):
    """Body of /tokenize: a prompt or chat messages."""

    model: Name | None = None
    prompt: str | None = None
    messages: Messages | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    return_token_strs: bool | None = None
    tools: Tools | None = None
    chat_template_kwargs: Options | None = None


class DetokenizeRequest(Body):
    """Body of /detokenize."""

    model: Name | None = None
    tokens: TokenIds


class Tokens(TypedDict):
    """Answer of /tokenize."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class Detokenized(TypedDict):
    """Answer of /detokenize."""

    prompt: str
