"""Blocks: every field and every type that Anthropic's SDK knows is accepted, or refused by name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args, get_type_hints

import pytest
from anthropic.types import beta as sdk
from anthropic.types.beta import beta_tool_result_block_param
from pydantic import TypeAdapter, ValidationError
from typing_extensions import is_typeddict

from octavo_serve.surfaces.messages.blocks import REFUSED, Block, ResultBlock

KNOWN: dict[str, Any] = {
    "text": sdk.BetaTextBlockParam,
    "thinking": sdk.BetaThinkingBlockParam,
    "redacted_thinking": sdk.BetaRedactedThinkingBlockParam,
    "tool_use": sdk.BetaToolUseBlockParam,
    "tool_result": sdk.BetaToolResultBlockParam,
    "tool_reference": sdk.BetaToolReferenceBlockParam,
    "tool_addition": sdk.BetaRequestToolAdditionBlockParam,
    "tool_removal": sdk.BetaRequestToolRemovalBlockParam,
}


def _types(union: Any) -> Iterator[str]:
    for kind in get_args(union):
        if is_typeddict(kind):
            yield get_args(get_args(get_type_hints(kind, include_extras=True)["type"])[0])[0]


def _models(union: Any) -> dict[str, Any]:
    return {get_args(one.model_fields["type"].annotation)[0]: one for one in get_args(get_args(union)[0])}


OURS = _models(Block) | _models(ResultBlock)


@pytest.mark.parametrize("kind", sorted(KNOWN))
def test_every_field_is_known(kind: str) -> None:
    assert OURS[kind].model_fields.keys() == get_type_hints(KNOWN[kind]).keys()


def test_every_type_is_known_or_refused_by_name() -> None:
    found = {*_types(sdk.BetaContentBlockParam), *_types(beta_tool_result_block_param.Content)}
    assert len(found) > 20
    assert found <= OURS.keys() | REFUSED.keys()
    assert not OURS.keys() & REFUSED.keys()
    for kind in REFUSED:
        with pytest.raises(ValidationError, match=f"'{kind}' is not supported here: {REFUSED[kind][:20]}"):
            TypeAdapter(Block).validate_python({"type": kind})


@pytest.mark.parametrize(
    "value", [7, {}, {"type": 7}, {"type": "txt"}, {"type": "text", **{str(i): 1 for i in range(99)}}]
)
def test_what_is_no_block_is_one_error(value: Any) -> None:
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(Block).validate_python(value)
    assert caught.value.error_count() == 1
