"""Turns the Messages API's messages and tools into the chat that chat templates read.

* Messages of one role that follow each other are one turn.
* A result of a tool is a message of the role "tool".
* A message of the role "system" that comes after the first turn is text of the user's turn, between <system> and
  </system>: many templates take a system message at the beginning alone.
* A tool with `defer_loading` is shown once a block refers to it.
* The line `x-anthropic-billing-header: ...` that Claude Code begins its system prompt with is left out. It may differ
  in each request, and with it every token after it would miss the cache.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from octavo_serve.api.chats import Message
from octavo_serve.surfaces.messages import signature
from octavo_serve.surfaces.messages.blocks import (
    Block,
    RedactedThinkingBlock,
    SystemBlock,
    TextBlock,
    ThinkingBlock,
    ToolAdditionBlock,
    ToolReferenceBlock,
    ToolRemovalBlock,
    ToolResultBlock,
    ToolUseBlock,
)

if TYPE_CHECKING:
    from octavo_serve.surfaces.messages.schemas import Message as Sent
    from octavo_serve.surfaces.messages.schemas import Tool

_BILLING = re.compile(r"\A(?:x-anthropic-billing-header:[^\n]*(?:\n|\Z))+")


@dataclass(frozen=True, slots=True)
class Conversation:
    """A chat's messages and tools; `continues`: the last message is the assistant's, to be gone on with."""

    messages: list[Message]
    tools: list[dict[str, Any]]
    continues: bool


def read(system: str | Sequence[SystemBlock] | None, messages: Sequence[Sent], tools: Sequence[Tool]) -> Conversation:
    """The chat.

    Raises:
        ValueError: a block is in a message that cannot hold it.
    """
    reader = _Reader()
    reader.system += _texts(system or "")
    for number, message in enumerate(messages):
        if isinstance(message.content, str):
            reader.text(message.role, message.content)
        else:
            reader.blocks(message.role, message.content, f"messages.{number}")
    return reader.conversation(tools)


def _texts(content: str | Sequence[SystemBlock]) -> list[str]:
    texts = [content] if isinstance(content, str) else [block.text for block in content]
    return [text for text in (_BILLING.sub("", text) for text in texts) if text]


class _Turn:
    """What one role says before another does."""

    def __init__(self, role: str) -> None:
        self.role = role
        self.texts: list[str] = []
        self.thoughts: list[str] = []
        self.calls: list[dict[str, Any]] = []

    def message(self) -> Message:
        texts = [text for text in self.texts if text]
        content: Any = texts[0] if len(texts) == 1 else [{"type": "text", "text": text} for text in texts] or ""
        more: dict[str, Any] = {}
        if self.thoughts:
            more["reasoning_content"] = "\n".join(self.thoughts)
        if self.calls:
            more["tool_calls"] = self.calls
        return Message.model_construct(role=self.role, content=None if more and not texts else content, **more)


class _Reader:
    def __init__(self) -> None:
        self.system: list[str] = []
        self._done: list[Message] = []
        self._turn: _Turn | None = None
        self._names: dict[str, str] = {}  # of calls, by their ids
        self._shown: dict[str, bool] = {}  # tools that blocks refer to, and whether they are shown

    def blocks(self, role: str, blocks: Sequence[Block], where: str) -> None:
        """Read a message; it is a turn also where it says nothing."""
        for block in blocks:
            self._block(role, block, where)
        if not blocks and role != "system":
            self._of(role)

    def text(self, role: str, text: str) -> None:
        """Read a text."""
        if role != "system":
            self._of(role).texts.append(text)
        elif self._turn is None and not self._done:
            self.system += _texts(text)
        elif text:
            self._of("user").texts.append(f"<system>\n{text}\n</system>")

    def conversation(self, tools: Sequence[Tool]) -> Conversation:
        last = self._turn if self._turn is not None and self._turn.role == "assistant" else None
        if last is not None and (last.calls or not any(last.texts)):
            raise ValueError("the last message is the assistant's and has no text to go on with: send what follows it")
        self._end()
        if not self._done:
            raise ValueError("messages must hold what a user says")
        if self.system:
            parts = [{"type": "text", "text": text} for text in self.system]
            content: Any = self.system[0] if len(parts) == 1 else parts
            self._done.insert(0, Message.model_construct(role="system", content=content))
        shown = [_function(tool) for tool in tools if self._shown.get(tool.name, not tool.defer_loading)]
        return Conversation(self._done, shown, continues=last is not None)

    def _block(self, role: str, block: Block, where: str) -> None:
        if isinstance(block, TextBlock):
            self.text(role, block.text)
        elif isinstance(block, ToolAdditionBlock | ToolRemovalBlock):
            _check_role("system", role, block, where)
            self._shown[block.tool.name] = isinstance(block, ToolAdditionBlock)
        elif isinstance(block, ToolResultBlock):
            _check_role("user", role, block, where)
            self._result(block)
        else:
            _check_role("assistant", role, block, where)
            self._of_assistant(block)

    def _of_assistant(self, block: ThinkingBlock | RedactedThinkingBlock | ToolUseBlock) -> None:
        turn = self._of("assistant")
        if isinstance(block, ThinkingBlock):
            if thought := block.thinking or signature.carried(block.signature):
                turn.thoughts.append(thought)
        elif isinstance(block, ToolUseBlock):
            self._names[block.id] = block.name
            arguments = json.dumps(block.input, ensure_ascii=False)
            function = {"name": block.name, "arguments": arguments}
            turn.calls.append({"id": block.id, "type": "function", "function": function})

    def _result(self, block: ToolResultBlock) -> None:
        self._end()
        texts = ["Error:"] if block.is_error else []
        if isinstance(block.content, str):
            texts.append(block.content)
        for part in () if isinstance(block.content, str) else block.content or ():
            if isinstance(part, ToolReferenceBlock):
                self._shown[part.tool_name] = True
                texts.append(f"The tool {part.tool_name} can be called now.")
            else:
                texts.append(part.text)
        result: dict[str, Any] = {"tool_call_id": block.tool_use_id}
        if name := self._names.get(block.tool_use_id):
            result["name"] = name
        self._done.append(Message.model_construct(role="tool", content="\n".join(texts), **result))

    def _of(self, role: str) -> _Turn:
        if self._turn is None or self._turn.role != role:
            self._end()
            self._turn = _Turn(role)
        return self._turn

    def _end(self) -> None:
        if self._turn is not None:
            self._done.append(self._turn.message())
            self._turn = None


def _check_role(wanted: str, role: str, block: Any, where: str) -> None:
    if role != wanted:
        raise ValueError(f"{where} is of the role {role}: a block of type {block.type!r} is the {wanted}'s")


def _function(tool: Tool) -> dict[str, Any]:
    """A tool as chat templates know it; keys have one order, whatever the client's is."""
    examples = [json.dumps(example, ensure_ascii=False) for example in tool.input_examples or ()]
    described = [tool.description or "", *(["Examples:", *examples] if examples else [])]
    function: dict[str, Any] = {"name": tool.name, "description": "\n".join(described).strip("\n")}
    function["parameters"] = tool.input_schema
    if tool.strict is not None:
        function["strict"] = tool.strict
    return {"type": "function", "function": function}
