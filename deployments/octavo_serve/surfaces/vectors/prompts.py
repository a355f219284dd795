"""What a checkpoint wants put before a text, by what the text is for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from octavo.errors import BadRequest
from octavo.pooling import PoolingInfo
from octavo_serve.api.texts import Text

InputType = Literal["query", "search_query", "document", "passage", "search_document", "classification", "clustering"]
"""Cohere's words for what a text is for, and others'."""

_SAME: Mapping[str, Sequence[str]] = {
    "query": ("query", "search_query"),
    "search_query": ("search_query", "query"),
    "document": ("document", "passage", "search_document"),
    "passage": ("passage", "document", "search_document"),
    "search_document": ("search_document", "document", "passage"),
}


def prompt_of(info: PoolingInfo, name: str | None = None, kind: InputType | None = None) -> str:
    """What to put before a text.

    Args:
        name: of one of the checkpoint's prompts.
        kind: what the text is for; nothing is put where the checkpoint has no prompt for it.

    Raises:
        BadRequest: there is no prompt of this name.
    """
    prompts = info.prompts
    if name is not None:
        if name not in prompts:
            there = f"it has {', '.join(prompts)}" if prompts else "it has none"
            raise BadRequest(f"this model has no prompt {name!r:.80}: {there}", "prompt_name")
        return prompts[name]
    if kind is not None:
        return next((prompts[each] for each in _SAME.get(kind, (kind,)) if each in prompts), "")
    return "" if info.default_prompt is None else prompts.get(info.default_prompt, "")


def prompted(texts: Sequence[Text], prompt: str, param: str) -> Sequence[Text]:
    """The texts with a prompt before each.

    Raises:
        BadRequest: one of them is token ids.
    """
    if not prompt:
        return texts
    if not all(isinstance(text, str) for text in texts):
        raise BadRequest("a prompt is put before texts, not before token ids: send texts", param)
    return [f"{prompt}{text}" if text else "" for text in texts]  # an empty text stays one, and is refused
