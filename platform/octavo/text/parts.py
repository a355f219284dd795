"""`TokenizerParts`: what a tokenizer is made of, whichever kind of source it was read from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer as Backend


@dataclass(frozen=True, slots=True)
class TokenizerParts:
    """Read from a directory by `hf_tokenizer`, from a GGUF file by `gguf_tokenizer`."""

    backend: Backend
    eos_token_ids: frozenset[int]  # all that end a turn or a text
    bos_token_id: int | None
    special_tokens: dict[str, str]  # "bos_token" -> "<s>" and so on: variables of the chat template
    chat_templates: dict[str, str]  # "default", "tool_use", ... -> Jinja source
    response_template: Any = None  # how answers are to be read, where the model's files say
    has_types: bool = True  # models are given the token types that the backend finds
