"""`TokenizerParts`: what a tokenizer is made of, whichever kind of source it was read from."""

from __future__ import annotations

from dataclasses import dataclass

from tokenizers import Tokenizer as Backend
from tokenizers.processors import TemplateProcessing


@dataclass(frozen=True, slots=True)
class TokenizerParts:
    """Read from a directory by `hf_tokenizer`, from a GGUF file by `gguf_tokenizer`."""

    backend: Backend
    eos_token_ids: frozenset[int]  # all that end a turn or a text
    bos_token_id: int | None
    special_tokens: dict[str, str]  # "bos_token" -> "<s>" and so on: variables of the chat template
    chat_templates: dict[str, str]  # "default", "tool_use", ... -> Jinja source


def wrap_with(bos: tuple[str, int] | None, eos: tuple[str, int] | None) -> TemplateProcessing:
    """A post-processor that puts `bos` before and `eos` after a text when special tokens are asked for."""
    single = " ".join([*([bos[0]] if bos else []), "$A", *([eos[0]] if eos else [])])
    return TemplateProcessing(single=single, pair=f"{single} $B", special_tokens=[t for t in (bos, eos) if t])
