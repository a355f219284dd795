"""A template in a tokenizer's tokens, and where a message begins in a prompt."""

from __future__ import annotations

import pytest

from octavo.text.responses.bound import BoundTemplate
from octavo.text.responses.families import builtin
from octavo.text.responses.template import TemplateError, load_template


def test_tokens_that_the_template_names_have_marks() -> None:
    bound = BoundTemplate(builtin("hermes"), {"<tool_call>": 7, "</think>": 8, "<other>": 9, "<": 10})
    assert bound.marks == {8: "\ud800", 7: "\ud801"}
    assert list(bound.names.items()) == [("\ud800", "</think>"), ("\ud801", "<tool_call>")]
    assert bound.end_of_prompt("<|im_start|>assistant\n</think>") == "\ud800"


@pytest.mark.parametrize(
    ("prompt", "end"),
    [
        ("<|im_start|>assistant\na<|im_end|><|im_start|>assistant\n<think>\n", "<think>\n"),
        ("<|im_start|>assistant\n" + "x" * 5000, ""),
        ("no turn at all", ""),
        ("", ""),
    ],
)
def test_the_end_of_a_prompt_is_what_its_last_turn_has(prompt: str, end: str) -> None:
    assert BoundTemplate(builtin("hermes"), {}).end_of_prompt(prompt) == end


def test_a_delimiter_that_is_none_is_refused() -> None:
    with pytest.raises(TemplateError, match="any character"):
        BoundTemplate(load_template({"fields": {"thinking": {"open_pattern": ".x"}}}), {})
    with pytest.raises(TemplateError, match="tag_pattern"):
        BoundTemplate(load_template({"fields": {"tool_calls": {"open": "<c>", "content": "xml-inline"}}}), {})
