"""What a request's tokens must keep to: a grammar, and a budget for thinking. Plain records, as `octavo.request`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from octavo.errors import BadRequest

MAX_GRAMMAR = 2**19
"""Characters of a grammar: all tools of a coding agent take 60,000, the largest schemas that people keep to 500,000. So
long a schema compiles for 5 s at worst (of 260,000 characters 3 s), in the slow lane; those of people in 0.1 to 0.8."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grammar:
    """What the generated text must match, from the beginning or from what begins it.

    Attributes:
        source: in llguidance's own forms: Lark, or a JSON object with "grammars".
        is_json: the text is JSON, or has it: white space outside of strings is bounded.
        after_tokens, after_texts: the grammar begins after any of these tokens, or where the generated text ends with
            any of these texts; both empty: at once.
        again: where it is complete, text is free until it begins again; False: the sequence ends there.
        param: the request's field that it was made of, for errors.

    Raises:
        BadRequest: it is too long.
    """

    source: str
    is_json: bool = False
    after_tokens: tuple[int, ...] = ()
    after_texts: tuple[str, ...] = ()
    again: bool = False
    param: str = "structured_outputs"

    def __post_init__(self) -> None:
        if len(self.source) > MAX_GRAMMAR:
            raise BadRequest(
                f"{self.param} makes a grammar of {len(self.source)} characters; at most {MAX_GRAMMAR} are taken",
                self.param,
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Thinking:
    """A budget for what a model thinks before it answers.

    Attributes:
        budget: tokens between what opens the thinking and what closes it; once they are spent, `close` follows.
        open_tokens: tokens that open it, in this order; () where the prompt has opened it.
        close: the tokens that close it.
    """

    budget: int
    open_tokens: tuple[int, ...] = ()
    close: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StructuredOutputs:
    """What an answer's text must be; one of these (the names are vLLM's).

    Attributes:
        json: a JSON schema.
        strict: what is not implemented of the schema is refused, not ignored.
        json_object: any JSON object.
        regex: a regular expression that the whole text matches.
        choice: the text is one of these.
        grammar: Lark, or llama.cpp's GBNF.
        structural_tag: free text in which each begin tag is followed by what its schema allows and its end tag.
        param: the request's field, for errors.
    """

    json: dict[str, Any] | bool | str | None = None
    strict: bool = False
    json_object: bool | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    structural_tag: dict[str, Any] | str | None = None
    param: str = "structured_outputs"
