"""Templates of the families, shortened where they repeat themselves, against transformers' apply_chat_template."""

# ruff: noqa: E501 - the templates' own lines

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import pytest
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE

from octavo.errors import BadRequest
from octavo.text.chat import render_chat
from octavo.text.default_form import knows_tools
from octavo.text.parts import TokenizerParts
from octavo.text.template import NotQuick
from octavo.text.tokenizer import Tokenizer


def _template(name: str) -> str:
    """The shape of a family's template, shortened where it repeats itself."""
    return (Path(__file__).parent / "templates" / f"{name}.jinja").read_text()


LLAMA3 = _template("llama3")

GEMMA = _template("gemma")

MISTRAL = _template("mistral")

QWEN3 = _template("qwen3")

CHATML = """{% for message in messages %}
{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""

TRAINING = """{% for message in messages %}{% if message.role == 'skip' %}{% continue %}{% endif %}
{% if message.role == 'assistant' %}{% generation %}{{ message.content }}{% endgeneration %}{% else %}
{{ message.content }}{% endif %}
{% endfor %}"""

TEMPLATES = {
    "llama3": LLAMA3, "gemma": GEMMA, "mistral": MISTRAL, "qwen3": QWEN3, "chatml": CHATML, "training": TRAINING
}  # fmt: skip

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Says <b>how</b> it's & 'ü'",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Zürich"}}}

CHATS: dict[str, list[dict[str, Any]]] = {
    "one": [{"role": "user", "content": "What is the capital of France?"}],
    "system": [{"role": "system", "content": "Be <brief> & kind."}, {"role": "user", "content": "  Hi 🙂 "}],
    "turns": [
        {"role": "user", "content": "a\n\nb"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\n c "},
        {"role": "user", "content": "d"},
    ],
    "tools": [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "call_1", "name": "weather", "content": "12 °C"},
        {"role": "user", "content": "Thanks"},
    ],
}
NO_TOOL_TURNS = {"gemma", "chatml", "training"}


def tokenizer_with(*templates: str, **named: str) -> Tokenizer:
    """A tokenizer that has nothing but templates: the default one, if given, and named ones."""
    chat_templates = ({"default": templates[0]} if templates else {}) | named
    special = {"bos_token": "<s>", "eos_token": "</s>"}
    return Tokenizer(TokenizerParts(Backend(BPE()), frozenset(), None, special, chat_templates))


@pytest.fixture(scope="module")
def in_transformers() -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=Backend(BPE()), bos_token="<s>", eos_token="</s>")


@pytest.mark.parametrize("with_tools", [False, True])
@pytest.mark.parametrize("add_generation_prompt", [False, True])
@pytest.mark.parametrize(
    ("template", "chat"), [(t, c) for t in TEMPLATES for c in CHATS if c != "tools" or t not in NO_TOOL_TURNS]
)
def test_renders_as_transformers_does(in_transformers, template, chat, add_generation_prompt, with_tools):
    messages = CHATS[chat]
    tools = TOOLS if with_tools and knows_tools(TEMPLATES[template]) else None
    expected = in_transformers.apply_chat_template(
        messages,
        tools=tools,
        chat_template=TEMPLATES[template],
        add_generation_prompt=add_generation_prompt,
        tokenize=False,
    )
    ours = tokenizer_with(TEMPLATES[template])
    assert render_chat(ours, messages, tools=tools, add_generation_prompt=add_generation_prompt) == expected


@pytest.mark.parametrize("content", ["I think", " padded ", "ends in a colon:\n"])
@pytest.mark.parametrize("template", ["llama3", "gemma", "qwen3", "chatml"])
def test_the_last_message_goes_on_as_in_transformers(in_transformers, template, content):
    messages = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": content}]
    expected = in_transformers.apply_chat_template(
        messages, chat_template=TEMPLATES[template], continue_final_message=True, tokenize=False
    )
    found = render_chat(
        tokenizer_with(TEMPLATES[template]), messages, add_generation_prompt=False, continue_final_message=True
    )
    assert found == expected
    assert found.rstrip().endswith(content.strip())


def test_smollm2_chat_has_the_tokens_transformers_gives(smollm2, smollm2_in_transformers):
    for messages in (CHATS["one"], CHATS["system"], CHATS["turns"]):
        text = render_chat(smollm2, messages)
        ids = smollm2_in_transformers.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert smollm2.encode(text, add_special_tokens=False) == ids


def test_further_variables_reach_the_template():
    tokenizer = tokenizer_with(QWEN3)
    assert "<think>" not in render_chat(tokenizer, CHATS["one"])
    quiet = render_chat(tokenizer, CHATS["one"], chat_template_kwargs={"enable_thinking": False})
    assert quiet.endswith("<think>\n\n</think>\n\n")


def test_tools_choose_their_own_template():
    tokenizer = tokenizer_with("plain", tool_use="with tools")
    assert render_chat(tokenizer, CHATS["one"]) == "plain"
    assert render_chat(tokenizer, CHATS["one"], tools=TOOLS) == "with tools"
    assert render_chat(tokenizer_with("plain"), CHATS["one"], tools=TOOLS) == "plain"


def test_the_date_is_todays():
    assert render_chat(tokenizer_with("{{ strftime_now('%Y') }}"), CHATS["one"]) in {
        str(datetime.now().year),
        str(datetime.now().year - 1),  # at midnight on New Year's Eve
    }


def test_parts_are_joined():
    content = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert "user\none\ntwo<|im_end|>" in render_chat(tokenizer_with(CHATML), [{"role": "user", "content": content}])


def test_developer_becomes_system_where_the_template_does_not_know_it():
    messages = [{"role": "developer", "content": "x"}]
    assert "<|im_start|>system\nx" in render_chat(tokenizer_with(CHATML), messages)
    knows = CHATML + "{# developer #}"
    assert "<|im_start|>developer\nx" in render_chat(tokenizer_with(knows), messages)


def test_tool_arguments_given_as_json_are_parsed():
    call = {**CALL, "function": {"name": "weather", "arguments": '{"city": "Zürich"}'}}
    as_text = [{"role": "user", "content": "?"}, {"role": "assistant", "content": None, "tool_calls": [call]}]
    as_object = [{"role": "user", "content": "?"}, {"role": "assistant", "content": None, "tool_calls": [CALL]}]
    tokenizer = tokenizer_with(LLAMA3)
    assert render_chat(tokenizer, as_text) == render_chat(tokenizer, as_object)
    assert as_text[1]["tool_calls"][0]["function"]["arguments"] == '{"city": "Zürich"}'  # the caller's is untouched


@pytest.mark.parametrize("name", ["reasoning_content", "thinking", "reasoning"])
def test_reasoning_by_any_name(in_transformers, name):
    source = "{% for m in messages %}{{ m.thinking }}|{{ m.reasoning_content }};{% endfor %}"
    render_chat(tokenizer_with(source), [{"role": "assistant", "content": None, name: "because"}])  # and cut off there
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "a", name: "because"}]
    expected = in_transformers.apply_chat_template(messages, chat_template=source, tokenize=False)
    assert (
        render_chat(tokenizer_with(source), messages, add_generation_prompt=False) == expected == "|;because|because;"
    )


# how templates in use read a content; each must show the user's text, whichever way it came
READS = {
    "adds it": "{% for m in messages %}{{ '<' + m['content'] + '>' }}{% endfor %}",
    "string or loop": """{% for m in messages %}<{% if m.content is string %}{{ m.content | trim }}{% else %}
        {%- for p in m.content %}{% if p.type == 'text' %}{{ p['text'] | trim }}{% endif %}{% endfor %}{% endif %}>{% endfor %}""",
    "loop or string": """{% for m in messages %}<{% if m.content is iterable and m.content is not string %}
        {%- for p in m['content'] %}{{ p.text }}{% endfor %}{% else %}{{ m.content }}{% endif %}>{% endfor %}""",
    "loop only": "{% for m in messages %}<{% for p in m['content'] %}{{ p['text'] }}{% endfor %}>{% endfor %}",
    "variable": """{% for m in messages %}{% set c = m.content %}<{% if c is string %}{{ c }}{% else %}
        {%- for p in c %}{{ p.text }}{% endfor %}{% endif %}>{% endfor %}""",
    "macro": """{% macro show(c) %}{% if c is string %}{{ c }}{% else %}{% for p in c %}{{ p.text }}{% endfor %}{% endif %}
        {%- endmacro %}{% for m in messages %}<{{ show(m.content) }}>{% endfor %}""",
    "filters": """{% for m in messages %}<{% if m.content is string %}{{ m.content }}{% else %}
        {{- m.content | selectattr('type', 'equalto', 'text') | map(attribute='text') | join('') }}{% endif %}>{% endfor %}""",
    "first part": """{% for m in messages %}<{{ m.content if m.content is string else m.content[0]['text'] }}>{% endfor %}""",
}


@pytest.mark.parametrize("as_parts", [False, True])
@pytest.mark.parametrize("shape", READS)
def test_no_text_is_lost(in_transformers, shape, as_parts):
    content: Any = [{"type": "text", "text": "hello"}] if as_parts else "hello"
    messages = [{"role": "user", "content": content}]
    assert render_chat(tokenizer_with(READS[shape]), messages, add_generation_prompt=False) == "<hello>"
    if (shape, as_parts) not in [("adds it", True), ("loop only", False)]:  # where transformers has no text to show
        theirs = in_transformers.apply_chat_template(messages, chat_template=READS[shape], tokenize=False)
        assert theirs == "<hello>"


def test_parts_of_other_names_are_text():
    parts = [{"type": "input_text", "text": "a"}, "b", {"type": "refusal", "refusal": "c"}]
    messages = [{"role": "user", "content": parts}]
    assert render_chat(tokenizer_with(READS["loop only"]), messages) == "<abc>"
    assert render_chat(tokenizer_with(READS["adds it"]), messages) == "<a\nb\nc>"


@pytest.mark.parametrize("shape", ["string or loop", "loop only"])
def test_the_last_part_goes_on(in_transformers, shape):
    for content in ("I think", [{"type": "text", "text": "So "}, {"type": "text", "text": "I think"}]):
        messages = [
            {"role": "user", "content": [{"type": "text", "text": "Why?"}]},
            {"role": "assistant", "content": content},
        ]
        found = render_chat(
            tokenizer_with(READS[shape]), messages, add_generation_prompt=False, continue_final_message=True
        )
        assert found.endswith("I think")
        if shape == "string or loop" or not isinstance(content, str):
            assert found == in_transformers.apply_chat_template(
                messages, chat_template=READS[shape], tokenize=False, continue_final_message=True
            )


# shapes of families in use, and which of the two forms of arguments each was written for
DEEPSEEK = _template("deepseek")

HERMES = _template("hermes")

GLM = _template("glm")

FAMILIES = {"llama3": (LLAMA3, "object"), "mistral": (MISTRAL, "object"), "qwen3": (QWEN3, "object"),
            "deepseek": (DEEPSEEK, "text"), "hermes": (HERMES, "object"), "glm": (GLM, "object")}  # fmt: skip


@pytest.mark.parametrize(
    "content", [{}, {"content": None}, {"content": "Let me look."}], ids=["absent", "null", "text"]
)
@pytest.mark.parametrize("family", FAMILIES)
def test_an_agents_second_request(in_transformers, family, content):
    source, form = FAMILIES[family]

    def chat(arguments: Any) -> list[dict[str, Any]]:
        call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": arguments}}
        return [
            {"role": "user", "content": "Weather?"},
            {"role": "assistant", "tool_calls": [call], **content},
            {"role": "tool", "tool_call_id": "call_1", "content": "12 °C"},
        ]

    text = '{"city": "Zürich", "days": 2}'
    right = chat(json.loads(text) if form == "object" else text)
    expected = in_transformers.apply_chat_template(
        right, chat_template=source, tokenize=False, add_generation_prompt=True
    )
    assert render_chat(tokenizer_with(source), chat(text)) == expected
    assert "Zürich" in expected


# how templates in use write a call: -> whether they want the object, or the text that OpenAI's clients send
CALLS = {
    "{{ c.arguments | tojson }}": "object",
    "{% for k, v in c.arguments | items %}{{ k }}={{ v | tojson }}{% endfor %}": "object",
    "{% for k, v in c.arguments.items() %}{{ k }}={{ v }}{% endfor %}": "object",
    "{{ c | tojson }}": "object",
    "{{ c.arguments.city }}": "object",
    "{% if c.arguments is string %}{{ c.arguments }}{% else %}{{ c.arguments | tojson }}{% endif %}": "object",
    "{% if c.arguments is mapping %}{{ c.arguments | tojson }}{% else %}{{ c.arguments }}{% endif %}": "object",
    "{{ '```json\n' + c['arguments'] + '\n```' }}": "text",
    "{{ c.name ~ c.arguments }}": "text",
    "{{ c.arguments }}": "text",
    "{{ c.arguments + '!' }}": "text",
    "{{ [c.name, c.arguments] | join(':') }}": "text",
    "{{ c.arguments | string | trim }}": "text",
}


@pytest.mark.parametrize("text", ['{"city": "Zürich", "days": [1, 2]}', "{}"])
@pytest.mark.parametrize("shape", CALLS)
def test_arguments_are_what_a_template_wants(in_transformers, shape, text):
    source = (
        "{% for m in messages %}{% for t in m.tool_calls %}{% set c = t.function %}"
        + shape
        + "{% endfor %}{% endfor %}"
    )

    def call(arguments: Any) -> list[dict[str, Any]]:
        return [{"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": arguments}}]}]

    right = call(json.loads(text) if CALLS[shape] == "object" else text)
    expected = in_transformers.apply_chat_template(right, chat_template=source, tokenize=False)
    assert render_chat(tokenizer_with(source), call(text), add_generation_prompt=False) == expected
    if CALLS[shape] == "object":
        assert render_chat(tokenizer_with(source), right, add_generation_prompt=False) == expected


@pytest.mark.parametrize("nothing", [{"arguments": ""}, {"arguments": None}, {}, {"arguments": " "}])
def test_no_arguments_are_an_empty_object(nothing):
    call = {"id": "c", "function": {"name": "f", **nothing}}
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "tool_calls": [call]}]
    assert '"arguments": {}' in render_chat(tokenizer_with(QWEN3), messages)
    adds = "{{ '<' + messages[1].tool_calls[0].function.arguments + '>' }}"
    assert render_chat(tokenizer_with(adds), messages).strip("< >") == ""


NOTHING = {
    "m.role + m.content": "assistant",
    "m['role'] + '\n' + m['content'] | trim": "assistant\n",
    "m.role ~ m.content": "assistant",
    "m.content.split('</think>')[-1]": "",
    "'defined' if m.content is defined else 'undefined'": "undefined",
    "'there' if 'content' in m else 'absent'": "absent",
    "'none' if m.content is none else 'some'": "some",
    "m.content | default('x')": "x",
    "'full' if m.content else 'empty'": "empty",
}


@pytest.mark.parametrize("content", [{}, {"content": None}, {"content": ""}])
def test_a_template_may_look_at_the_first_part_of_a_content_that_has_none(content):
    source = (
        "{% for m in messages %}{{ m.role }}{{ '' if m.content[0].type == 'image' else ': ' }}"
        "{% for part in m['content'] %}{{ part['text'] }}{% endfor %}{% for c in m.tool_calls %}{{ c.id }}{% endfor %};{% endfor %}"
    )
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", **content, "tool_calls": [CALL]}]
    assert render_chat(tokenizer_with(source), messages) == "user: Hi;assistant: call_1;"


@pytest.mark.parametrize("content", [{}, {"content": None}])
@pytest.mark.parametrize("shape", NOTHING)
def test_a_call_needs_no_content(in_transformers, shape, content):
    messages = [{"role": "assistant", "tool_calls": [CALL], **content}]
    source = "{# of a template that knows tools #}{% for m in messages %}{{ " + shape + " }}{% endfor %}"
    assert render_chat(tokenizer_with(source), messages, add_generation_prompt=False) == NOTHING[shape]
    try:
        expected = in_transformers.apply_chat_template(messages, chat_template=source, tokenize=False)
    except jinja2.UndefinedError:
        return  # transformers cannot render it
    assert expected == NOTHING[shape]


@pytest.mark.parametrize("arguments", ["not json", "[1, 2]"])
def test_tool_arguments_that_are_no_object_stay_as_they_are(arguments):
    call = {"id": "c", "function": {"name": "f", "arguments": arguments}}
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "tool_calls": [call]}]
    assert arguments in render_chat(tokenizer_with(QWEN3), messages)


BAD = [
    ([], "messages must be a list"),
    ("hello", "messages must be a list"),
    ({"role": "user"}, "messages must be a list"),
    (["hello"], r"messages\[0\] must be an object"),
    ([{"content": "x"}], r"messages\[0\]\.role must be a string"),
    ([{"role": 3, "content": "x"}], r"messages\[0\]\.role must be a string"),
    ([{"role": "user", "content": 3}], r"messages\[0\]\.content must be a string, null or a list of parts"),
    (
        [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}],
        "'image_url'; this model reads text only",
    ),
    ([{"role": "user", "content": [{"text": "x"}]}], r"messages\[0\]\.content\[0\] must be an object such as"),
    ([{"role": "user", "content": [{"type": "text", "text": 3}]}], r"content\[0\]\.text must be a string"),
    ([{"role": "user", "content": "x", "tool_calls": "f"}], r"messages\[0\]\.tool_calls must be a list"),
    ([{"role": "assistant", "tool_calls": [None]}], r"messages\[0\]\.tool_calls must be a list of objects"),
    (
        [{"role": "assistant", "tool_calls": [{"function": None}]}],
        r"tool_calls must hold calls such as .*, got \{'func",
    ),
    ([{"role": "assistant", "tool_calls": [{"function": {"name": 5}}]}], r"tool_calls must hold calls"),
    ([{"role": "assistant", "content": "x", "function_call": "f"}], r"messages\[0\]\.function_call must hold calls"),
    ([{"role": "user"}], r"messages\[0\]\.content is required"),
    ([{"role": "assistant", "content": None}], r"messages\[0\]\.content is required"),
]


@pytest.mark.parametrize(("messages", "sentence"), BAD)
def test_bad_messages(messages, sentence):
    with pytest.raises(BadRequest, match=sentence) as caught:
        render_chat(tokenizer_with(CHATML), messages)
    assert caught.value.param == "messages"


CALLED = [
    {"role": "user", "content": "Weather?"},
    {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": '{"a": 1}'}}]},
    {"role": "tool", "content": "12"},
]


def test_what_was_called_is_told_without_tools_to_a_template_that_knows_none():
    alone, beside = (render_chat(tokenizer_with(CHATML), CALLED, tools=tools) for tools in (None, TOOLS))
    assert '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>' in alone
    assert "<tool_response>\n12\n</tool_response>" in alone
    assert beside.endswith(alone[alone.index("Weather?") :])  # the next turn finds it in the cache


@pytest.mark.parametrize("source", [CHATML, QWEN3])
@pytest.mark.parametrize("old", [{"function_call": {"name": "f", "arguments": '{"a": 1}'}},
                                 {"tool_calls": [{"name": "f", "arguments": {"a": 1}}]}])  # fmt: skip
def test_older_forms_of_a_call_are_told_alike(source, old):
    user, assistant, result = CALLED
    new = [user, {**assistant, "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]}, result]
    tokenizer = tokenizer_with(source)
    assert render_chat(tokenizer, [user, {"role": "assistant", **old}, result]) == render_chat(tokenizer, new)


def test_the_templates_own_sentence_is_passed_on():
    messages = [{"role": "assistant", "content": "a"}]
    with pytest.raises(BadRequest, match="Conversation roles must alternate"):
        render_chat(tokenizer_with(GEMMA), messages)


def test_no_template():
    with pytest.raises(BadRequest, match=r"no chat template.*send a prompt to /v1/completions"):
        render_chat(tokenizer_with(), CHATS["one"])


def test_a_template_that_is_not_jinja():
    with pytest.raises(BadRequest, match="chat template"):
        render_chat(tokenizer_with("{% for %}"), CHATS["one"])


@pytest.mark.parametrize("source", ["{{ messages.append(1) }}", "{{ ''.__class__.__mro__ }}", "{{ 1 / 0 }}"])
def test_templates_run_in_a_sandbox(source):
    with pytest.raises(BadRequest, match="chat template"):
        render_chat(tokenizer_with(source), CHATS["one"])


@pytest.mark.parametrize("name", ["messages", "tools", "add_generation_prompt"])
def test_further_variables_cannot_replace_the_requests(name):
    with pytest.raises(BadRequest, match=f"must not hold '{name}'"):
        render_chat(tokenizer_with(CHATML), CHATS["one"], chat_template_kwargs={name: []})


def test_a_message_is_either_continued_or_answered():
    with pytest.raises(BadRequest, match="either continued or answered"):
        render_chat(tokenizer_with(CHATML), CHATS["one"], continue_final_message=True)


def test_nothing_to_continue():
    last = {"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": {}}}]}
    with pytest.raises(BadRequest, match="needs a last message with a text content"):
        render_chat(
            tokenizer_with("{# tool #}" + CHATML), [last], add_generation_prompt=False, continue_final_message=True
        )


def test_a_template_that_drops_the_last_message():
    source = "{{ messages[0].content }}"
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    with pytest.raises(BadRequest, match="changes the last message"):
        render_chat(tokenizer_with(source), messages, add_generation_prompt=False, continue_final_message=True)


@pytest.mark.parametrize("source", [*TEMPLATES.values(), *READS.values(), DEEPSEEK, HERMES, GLM])
def test_usual_templates_are_rendered_in_place(source):
    tokenizer = tokenizer_with(source)
    messages = [{"role": "user", "content": "hello"}]
    assert render_chat(tokenizer, messages) == render_chat(tokenizer, messages, quickly=True)
    with pytest.raises(NotQuick):
        render_chat(tokenizer, [{"role": "user", "content": "hello" * 10_000}], quickly=True)


@pytest.mark.parametrize("source", [*READS.values(), DEEPSEEK, HERMES, GLM])
def test_a_long_chat_is_rendered_alike_in_its_process(source):
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}

    def chat(size: int) -> str:
        messages = [
            {"role": "user", "content": "hello" * size},
            {"role": "assistant", "content": "", "tool_calls": [call]},
        ]
        return render_chat(tokenizer_with(source), messages)

    assert chat(10_000).replace("hello" * 10_000, "hello" * 10) == chat(10)
