"""The grammar of a whole message: what a model thinks, then an answer that is what the request wants, or calls.

Where a template has fields for these, `written` says how they are opened and closed (see `calls`), and `after` what
comes between the thinking and the rest.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from octavo.constraint import MAX_GRAMMAR, Grammar, StructuredOutputs, Thinking
from octavo.errors import BadRequest
from octavo.text.grammars.calls import CallableTool, CallGrammar, shortest
from octavo.text.grammars.sound import check_sound, is_sound
from octavo.text.grammars.sources import Rule, lark, rule
from octavo.text.responses.bound import BoundTemplate
from octavo.text.responses.parser import ResponseParser
from octavo.text.responses.patterns import plain
from octavo.text.responses.template import Field
from octavo.text.tokenizer import Tokenizer

State = Literal["none", "open", "closed", "may open"]
"""Of the thinking where the message begins: the model has none, the prompt opened it, or closed it, or neither."""
_THOUGHT = "THOUGHT: /(?s:.*)/\nGAP: /[ \\n]{1,4}/\n"


@dataclass(frozen=True, slots=True)
class _Marks:
    """What opens and closes the thinking, and what comes after it, as texts."""

    open: str
    close: str
    after: str


class MessageGrammar:
    """Grammars of one message.

    Args:
        template: how the message is read.
        ends: the model's end tokens.
        prompt: what the message goes on from.

    Attributes:
        state: of the thinking.
    """

    def __init__(self, template: BoundTemplate, ends: Collection[int], prompt: str) -> None:
        self._template = template
        self._calls = CallGrammar(template, ends)
        self._marks = _marks(template)
        self.state = self._state(prompt)

    def _state(self, prompt: str) -> State:
        if self._marks is None:
            return "none"
        if ResponseParser(self._template, None, prompt).in_reasoning:
            return "open"
        begun = plain(self._template.end_of_prompt(prompt), self._template.names)
        return "closed" if self._marks.open.strip() in begun else "may open"

    def answer(self, wanted: StructuredOutputs, tools: Sequence[CallableTool] = (), *, many: bool = True) -> Grammar:
        """An answer that is what is wanted, or calls of the tools.

        Raises:
            BadRequest: either is malformed or too large; or they could not be told apart.
        """
        made = self._content(rule(wanted))
        if tools:
            spelled = self._calls.written is not None and self._calls.written.open.startswith("<")
            if not self._calls.begins_with_token() and not (made.is_json and spelled):
                raise BadRequest(
                    f"{wanted.param} together with tools: this model's calls cannot be told from such answers; "
                    'send one of them, or tool_choice: "none"',
                    wanted.param,
                )
            calls = self._calls.calls(self._kept(tools), many=many)
            made = Rule(
                f"({made.text}) | ({calls.text})",
                made.grammars + calls.grammars,
                made.terminals + calls.terminals,
                is_json=made.is_json,
            )
        if self.state == "open" and (closing := self._closing_token()) is not None:
            return self._after_thinking(made, closing, wanted.param)
        return Grammar(source=lark(self._thought(made)), is_json=made.is_json, param=wanted.param)

    def forced(self, tools: Sequence[CallableTool], *, many: bool) -> Grammar:
        """Thinking, and then calls.

        Raises:
            BadRequest: how the model writes calls is not known, or a schema is refused.
        """
        if not tools:
            raise BadRequest("tool_choice demands a call, but there are no tools to call", "tool_choice")
        made = self._calls.calls(self._kept(tools), many=many)
        return Grammar(source=lark(self._thought(made)), is_json=made.is_json, param=tools[0].param)

    def begun(self, tools: Sequence[CallableTool], *, many: bool) -> Grammar | None:
        """Calls as soon as the model begins one; None where that cannot be told.

        Raises:
            BadRequest: a schema is refused.
        """
        if _too_large(tools) and not any(tool.strict for tool in tools):
            return None
        found = self._calls.begun(self._kept(tools), many=many)
        if found is None:
            return None
        tokens, texts, made = found
        if len(source := lark(made)) > MAX_GRAMMAR and not any(tool.strict for tool in tools):
            return None
        return Grammar(
            source=source,
            is_json=made.is_json,
            after_tokens=tokens,
            after_texts=texts,
            again=many,
            param=tools[0].param if tools else "tools",
        )

    def thinking(self, budget: int, tokenizer: Tokenizer) -> Thinking | None:
        """A budget for the thinking; None where there is none to come."""
        if self._marks is None or self.state == "closed":
            return None
        begin = () if self.state == "open" else tuple(_encoded(tokenizer, self._marks.open.rstrip()))
        close = tuple(_encoded(tokenizer, self._marks.close + self._marks.after))
        return Thinking(budget=budget, open_tokens=begin, close=close)

    # ── parts ──

    def _kept(self, tools: Sequence[CallableTool]) -> list[CallableTool]:
        """The tools, those that are not strict without schemas that the library does not take: a client that has such
        a tool among others can still use them all.

        Raises:
            BadRequest: their schemas are too large together; each would be compiled before that is seen of the grammar.
        """
        if size := _too_large(tools):
            raise BadRequest(
                f"the schemas of the tools have {size} characters; at most {MAX_GRAMMAR} can be kept to: send fewer",
                tools[0].param,
            )
        if self._calls.written is None:
            return [*tools]
        for tool in tools:
            if tool.strict:
                check_sound(None if tool.custom else tool.parameters, tool.param, partial(self._alone, tool))
        return [tool if tool.strict or self._is_sound(tool) else replace(tool, parameters=None) for tool in tools]

    def _is_sound(self, tool: CallableTool) -> bool:
        return is_sound(self._alone(tool, tool.parameters))

    def _alone(self, tool: CallableTool, parameters: Any) -> str:
        """The grammar of a call of one tool, whatever its name is: many tools have the same schema."""
        named = replace(tool, name="f", parameters=tool.parameters if tool.custom else parameters)
        return lark(self._calls.calls([named], many=False))

    def _content(self, made: Rule) -> Rule:
        """An answer with what opens and closes the content of a message."""
        form = next((f.written for f in self._template.fields.values() if f.role == "content" and f.written), {})
        opening, closing = (self._calls.spelled(str(form.get(key, ""))) for key in ("open", "close"))
        if not opening and not closing:
            return made
        return Rule(f"{opening} ({made.text}) {closing}", made.grammars, made.terminals, is_json=made.is_json)

    def _thought(self, made: Rule) -> Rule:
        """A rule behind the thinking that may come, or that the prompt opened."""
        if self._marks is None or self.state == "closed":
            return made
        text, more = self._closed()
        if self.state == "open":
            whole = f"{text} GAP? ({made.text})"
        else:
            whole = f"(GAP? {self._calls.spelled(self._marks.open.rstrip())} {text} GAP?)? ({made.text})"
        return Rule(whole, made.grammars, f"{made.terminals}{_THOUGHT}{more}", is_json=made.is_json)

    def _closed(self) -> tuple[str, str]:
        """Free text up to what closes the thinking, as the right side of a rule, and further rules."""
        assert self._marks is not None
        close, after = self._calls.spelled(self._marks.close), self._calls.spelled(self._marks.after)
        if close.startswith("<["):
            return f"THOUGHT? {close} {after}", ""
        return f"thought {after}", f"thought[lazy]: THOUGHT {close}\n"

    def _closing_token(self) -> int | None:
        """The token that closes the thinking. Where it is only spelled, a token could close it and go on."""
        return None if self._marks is None else self._calls.token(self._marks.close)

    def _after_thinking(self, made: Rule, closing: int, param: str) -> Grammar:
        """A grammar that begins where a token closes the thinking."""
        assert self._marks is not None
        source = Rule(
            f"{self._calls.spelled(self._marks.after)} GAP? ({made.text})", made.grammars, made.terminals + _THOUGHT
        )
        return Grammar(source=lark(source), is_json=made.is_json, after_tokens=(closing,), param=param)


def _too_large(tools: Sequence[CallableTool]) -> int:
    """Characters of the tools' schemas, if their grammar would have too many."""
    size = sum(len(json.dumps(tool.parameters or {})) for tool in tools)
    return size if size > MAX_GRAMMAR else 0


def _marks(template: BoundTemplate) -> _Marks | None:
    field = next((field for field in template.fields.values() if field.role == "reasoning"), None)
    if field is None:
        return None
    opening, closing = _text(field, "open"), _text(field, "close")
    return None if not opening or not closing else _Marks(opening, closing, str(field.written.get("after", "")))


def _text(field: Field, key: Literal["open", "close"]) -> str:
    node = field.opening if key == "open" else field.closing
    return str(field.written.get(key) or shortest(node) or "")


def _encoded(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)
