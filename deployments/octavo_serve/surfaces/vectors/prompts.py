"""What a checkpoint wants put before a text, by what the text is for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from octavo.errors import BadRequest
from octavo.pooled import check_prompt
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
    if name is None and kind is not None:
        prompts = info.prompts
        return next((prompts[each] for each in _SAME.get(kind, (kind,)) if each in prompts), "")
    return check_prompt(name, info)


def prompted(
    texts: Sequence[Text], info: PoolingInfo, param: str, name: str | None = None, kind: InputType | None = None
) -> Sequence[Text]:
    """The texts with a prompt before each, as `prompt_of` says; token ids are taken as they are.

    Args:
        param: the field that holds them.

    Raises:
        BadRequest: there is no such prompt, or one is asked for and the texts are token ids.
    """
    prompt, ids = prompt_of(info, name, kind), not all(isinstance(text, str) for text in texts)
    if not prompt or (ids and name is None and kind is None):
        return texts
    if ids:
        raise BadRequest("a prompt is put before texts, not before token ids: send texts", param)
    return [f"{prompt}{text}" if text else "" for text in texts]  # an empty text stays one, and is refused
