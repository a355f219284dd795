"""Tools of the body: what the model is told of them, what the answer says, what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from octavo.errors import BadRequest
from octavo_serve.surfaces.responses.tools import Known, tools_of

LOOK_UP = {"type": "function", "name": "look_up", "description": "d", "parameters": {"type": "object"}, "strict": True}
SPACE = {"type": "namespace", "name": "mcp__files__", "description": "", "tools": [LOOK_UP]}


def test_a_function_is_one_of_the_chat() -> None:
    found = tools_of([LOOK_UP | {"defer_loading": None}])
    function = {name: value for name, value in LOOK_UP.items() if name != "type"}
    assert found.chat == [{"type": "function", "function": function}]
    assert found.known == {"look_up": Known("look_up")}


def test_a_custom_tool_is_a_function_with_a_text_that_keeps_to_its_format() -> None:
    form = {"type": "grammar", "syntax": "lark", "definition": "start: X"}
    space = SPACE | {"tools": [{"type": "custom", "name": "h"}]}
    found = tools_of([{"type": "custom", "name": "g", "description": "d", "format": form}, space, LOOK_UP])
    assert found.custom == {"g": form, "mcp__files__h": None}
    function = found.chat[0]["function"]
    assert function["parameters"]["properties"] == {"input": {"type": "string"}}
    assert function["description"].endswith("start: X")


def test_a_namespace_is_its_tools() -> None:
    found = tools_of([SPACE, LOOK_UP])
    assert list(found.known) == ["mcp__files__look_up", "look_up"]
    assert found.known["mcp__files__look_up"] == Known("look_up", "mcp__files__")
    assert found.names("mcp__files__") == ["mcp__files__look_up"]
    assert found.names("look_up") == ["mcp__files__look_up", "look_up"]
    assert found.names("look_up", "mcp__files__") == ["mcp__files__look_up"]


def test_what_the_server_cannot_run_is_left_out_and_not_shown() -> None:
    found = tools_of([{"type": "web_search", "external_web_access": False}, LOOK_UP])
    assert (list(found.known), found.shown) == (["look_up"], [LOOK_UP])
    with pytest.raises(BadRequest, match="nothing that can be called here"):
        tools_of([{"type": "web_search"}])


@pytest.mark.parametrize(
    "tools",
    [[LOOK_UP, LOOK_UP], [SPACE, SPACE], [SPACE | {"name": "s" * 60}]],
)
def test_names_are_each_of_one_tool(tools: list[dict[str, Any]]) -> None:
    with pytest.raises(BadRequest):
        tools_of(tools)


@pytest.mark.parametrize(
    ("tool", "sentence"),
    [
        (1, "tools[0] must be an object"),
        ({"type": "file_search"}, "tools[0].type 'file_search' is not supported"),
        ({"type": "function"}, "tools[0].name must be 1 to 64"),
        (LOOK_UP | {"parameters": []}, "tools[0].parameters must be an object"),
        (LOOK_UP | {"strict": 1}, "tools[0].strict must be true or false"),
        ({"type": "custom", "name": "a", "format": {"type": "grammar"}}, "tools[0].format must have a syntax"),
        ({"type": "custom", "name": "a", "format": {"type": "json"}}, "tools[0].format must be"),
        (SPACE | {"tools": [SPACE]}, "tools[0].tools[0].type 'namespace' is not supported"),
        (SPACE | {"tools": None}, "tools[0].tools must be a list"),
    ],
)
def test_what_is_no_tool_is_refused(api: Any, tool: Any, sentence: str) -> None:
    message, param = api.refused(tools=[tool])
    assert message.startswith(sentence)
    assert param == "tools"


def test_a_grammar_that_cannot_be_kept_to_is_refused_where_it_stands(api: Any) -> None:
    odd = {"type": "custom", "name": "g", "format": {"type": "grammar", "syntax": "lark", "definition": "start: @x"}}
    assert api.refused(tools=[{"type": "web_search"}, odd], tool_choice="required")[1] == "tools.1.format"
    message, param = api.refused(tools=[LOOK_UP, SPACE | {"tools": [odd]}], tool_choice="required")
    assert param == "tools.1.tools.0.format"
    assert message.startswith(param)
    assert tools_of([SPACE]).fields == {"mcp__files__look_up": "tools.0.tools.0.parameters"}
