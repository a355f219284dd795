"""What Codex (0.169) sends in a turn of its loop: all of it is taken, and what came back goes back."""

from __future__ import annotations

import json
from typing import Any

import pytest
from llguidance import LLMatcher, LLTokenizer

from octavo_serve.wire.messages import ModelInfo

EMPTY = "*** Begin Patch\n*** End Patch\n"
CALL = f'<tool_call>\n{{"name": "apply_patch", "arguments": {{"input": {json.dumps(EMPTY)}}}}}\n</tool_call>'
PATCH = r"""
start: begin_patch hunk+ end_patch
begin_patch: "*** Begin Patch" LF
end_patch: "*** End Patch" LF?

hunk: add_hunk | delete_hunk | update_hunk
add_hunk: "*** Add File: " filename LF add_line+
delete_hunk: "*** Delete File: " filename LF
update_hunk: "*** Update File: " filename LF change_move? change?

filename: /(.+)/
add_line: "+" /(.*)/ LF -> line

change_move: "*** Move to: " filename LF
change: (change_context | change_line)+ eof_line?
change_context: ("@@" | "@@ " /(.+)/) LF
change_line: ("+" | "-" | " ") /(.*)/ LF
eof_line: "*** End of File" LF

%import common.LF
"""
TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "name": "shell_command",
        "description": "Runs a shell command and returns its output.",
        "strict": False,
        "parameters": {
            "type": "object",
            "properties": {"command": {"type": "string"}, "workdir": {"type": "string"}},
            "required": ["command"],
            "additionalProperties": False,
        },
    },
    {
        "type": "custom",
        "name": "apply_patch",
        "description": "Edits files. Do not wrap the patch in JSON.",
        "format": {"type": "grammar", "syntax": "lark", "definition": PATCH},
    },
    {"type": "web_search", "external_web_access": False},
    {"type": "tool_search", "execution": "client", "description": "Finds tools.", "parameters": {"type": "object"}},
    {
        "type": "namespace",
        "name": "mcp__files__",
        "description": "Tools of a server.",
        "tools": [{"type": "function", "name": "read", "description": "", "strict": False, "parameters": {}}],
    },
]
ITEMS: list[dict[str, Any]] = [
    {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "Sandbox: read-only."}]},
    {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "<environment_context/>"}]},
    {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Make a.txt"}]},
]
BODY: dict[str, Any] = {
    "model": "tiny",
    "instructions": "You are a coding agent.",
    "tools": TOOLS,
    "tool_choice": "auto",
    "parallel_tool_calls": True,
    "reasoning": None,
    "store": False,
    "stream": True,
    "include": ["reasoning.encrypted_content"],
    "prompt_cache_key": "0199-a",
    "client_metadata": {"x-codex-installation-id": "0199-b"},
}


@pytest.fixture(autouse=True)
def long_context(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    info = ModelInfo("scripted", max_model_len=8192, vocab_size=client.tokenizer.vocab_size, block_size=16)

    async def describe() -> ModelInfo:
        return info

    monkeypatch.setattr(client, "describe", describe)


def test_a_turn_that_patches_and_the_next(api: Any, client: Any) -> None:
    client.texts = [CALL]
    first = api.stream(ITEMS, **BODY)[-1]["response"]
    (call,) = first["output"]
    assert (call["type"], call["name"], call["input"]) == (
        "custom_tool_call",
        "apply_patch",
        "*** Begin Patch\n*** End Patch\n",
    )
    assert [tool["type"] for tool in first["tools"]] == ["function", "custom", "namespace"]
    sent = client.tokenizer.decode(client.opened[-1].prompt_token_ids)
    assert all(text in sent for text in ("coding agent", "read-only", "Make a.txt", "mcp__files__read"))
    assert "web_search" not in sent
    assert client.opened[-1].session == "0199-a"
    client.texts = ["Done."]
    output = {"type": "custom_tool_call_output", "call_id": call["call_id"], "output": "Success."}
    thought = {"type": "reasoning", "summary": [], "content": None, "encrypted_content": None}
    given = {name: value for name, value in call.items() if name != "id"}
    last = api.stream([*ITEMS, thought, given, output], **BODY)[-1]["response"]
    assert last["output"][0]["content"][0]["text"] == "Done."
    assert "Success." in client.tokenizer.decode(client.opened[-1].prompt_token_ids)


def test_a_patch_keeps_to_its_grammar(api: Any, client: Any) -> None:
    client.texts = [CALL]
    api.stream(ITEMS, **BODY | {"tool_choice": {"type": "custom", "name": "apply_patch"}})
    tokenizer, asked = client.tokenizer, client.opened[-1]
    trie = LLTokenizer(tokenizer.to_json(), n_vocab=tokenizer.vocab_size)

    def takes(text: str) -> bool:
        matcher, ids = LLMatcher(trie, asked.params.grammar.source), tokenizer.encode(text, add_special_tokens=False)
        return bool(matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting())

    patch = '*** Begin Patch\n*** Update File: a "b".py\n@@ def f():\n-\told\n+new\\n\n*** End Patch\n'
    whole = CALL.replace(json.dumps(EMPTY), json.dumps(patch))
    assert takes(whole)
    assert not takes(CALL)  # a patch without a hunk
    assert not takes(whole.replace("*** End Patch", "--- End Patch"))
    assert "*** Move to: " in tokenizer.decode(asked.prompt_token_ids)  # the model is told the grammar, too


def test_an_output_schema(api: Any, client: Any) -> None:
    client.texts = ['{"a": 1}']
    form = {"type": "json_schema", "strict": True, "name": "codex_output_schema", "schema": {"type": "object"}}
    assert api.stream(ITEMS, **BODY, text={"format": form})[-1]["response"]["status"] == "completed"
