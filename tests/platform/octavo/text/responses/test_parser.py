"""Every family's answers, in every way to cut them: the same message, and no text is lost."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.text.responses.bound import BoundTemplate
from octavo.text.responses.families import NAMES, builtin
from octavo.text.responses.parser import HOLD, ResponseParser, properties
from octavo.text.responses.patterns import marked

TOOLS = [
    {"name": "look_up", "parameters": {"properties": {"what": {"type": "string"}, "n": {"type": "integer"}}}},
    {"name": "now"},
]
CALLS = [("look_up", {"what": 'caf\u00e9 "b" </x> {', "n": 3}), ("now", {})]

WRITTEN = {
    "hermes": "<think>\nHm.\n</think>\n\nSo:\n<tool_call>\n{A}\n</tool_call>\n<tool_call>\n{B}\n</tool_call>",
    "qwen2_coder": "So:\n```json\n{A}\n```\n<tool_call>\n{B}\n</tool_call>",
    "qwen3_xml": "<think>\nHm.\n</think>\n\nSo:\n<tool_call>\n<function=look_up>\n<parameter=what>\n{W}\n</parameter>\n"
    "<parameter=n>\n3\n</parameter>\n</function>\n</tool_call>\n<tool_call>\n<function=now>\n</function>\n</tool_call>",
    "llama3_json": "So:<|python_tag|>{A}; {B}",
    "pythonic": "<|python_start|>[look_up(what='caf\u00e9 \"b\" </x> {{', n=3), now()]<|python_end|>",
    "mistral_v3": "So:[TOOL_CALLS] [{A}, {B}]",
    "mistral": "[THINK]Hm.[/THINK]So:[TOOL_CALLS]look_up[ARGS]{a}[TOOL_CALLS]now[ARGS]{{}}",
    "deepseek_r1": "<think>\nHm.\n</think>\n\nSo:<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>"
    "look_up\n"
    "```json\n{a}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n```json\n{{}}\n```"
    "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    "deepseek_v31": "<think>Hm.</think>So:<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>look_up<｜tool▁sep｜>{a}"
    "<｜tool▁call▁end｜><｜tool▁call▁begin｜>now<｜tool▁sep｜>{{}}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    "deepseek_dsml": '<think>Hm.</think>So:\n\n<｜DSML｜function_calls>\n<｜DSML｜invoke name="look_up">\n'
    '<｜DSML｜parameter name="what" string="true">{W}</｜DSML｜parameter>\n'
    '<｜DSML｜parameter name="n" string="false">3</｜DSML｜parameter>\n</｜DSML｜invoke>\n'
    '<｜DSML｜invoke name="now">\n</｜DSML｜invoke>\n</｜DSML｜function_calls>',
    "glm": "\n<think>Hm.</think>\nSo:\n<tool_call>look_up\n<arg_key>what</arg_key>\n<arg_value>{W}</arg_value>\n"
    "<arg_key>n</arg_key>\n<arg_value>3</arg_value>\n</tool_call>\n<tool_call>now\n</tool_call>",
    "kimi_k2": "<think>Hm.</think>So:<|tool_calls_section_begin|><|tool_call_begin|>functions.look_up:0"
    "<|tool_call_argument_begin|>{a}<|tool_call_end|><|tool_call_begin|>functions.now:1<|tool_call_argument_begin|>{{}}"
    "<|tool_call_end|><|tool_calls_section_end|>",
    "kimi_k3": "<|open|>think<|sep|>Hm.<|close|>think<|sep|><|open|>response<|sep|>So:<|close|>response<|sep|>"
    '<|open|>tools<|sep|><|open|>call tool="look_up" index="1"<|sep|><|open|>argument key="what" type="string"<|sep|>'
    '{W}<|close|>argument<|sep|><|open|>argument key="n" type="number"<|sep|>3<|close|>argument<|sep|>'
    "<|close|>call<|sep|>"
    '<|open|>call tool="now" index="2"<|sep|><|close|>call<|sep|><|close|>tools<|sep|><|close|>message<|sep|>',
    "gemma": '<|channel>thought\nHm.\n<channel|>So:<|tool_call>call:look_up{{n:3,what:<|"|>{W}<|"|>}}<tool_call|>'
    "<|tool_call>call:now{{}}<tool_call|>",
    "gpt_oss": "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary<|message|>So:<|end|>"
    "<|start|>assistant<|channel|>commentary to=functions.look_up <|constrain|>json<|message|>{a}<|call|>"
    "<|start|>assistant to=functions.now<|channel|>commentary<|message|>{{}}",
    "granite": "<think>Hm.</think>So:<|tool_call|>[{A}, {B}]",
    "phi4": "<think>Hm.</think>So:<|tool_call|>[{A}, {B}]<|/tool_call|>",
}  # fmt: skip
MARKERS = {
    name: sorted({m for text in builtin(name).texts for m in (text,) if len(m) > 2 and m[0] in "<[" and m[-1] in ">]"})
    for name in NAMES
}


def written(name: str) -> str:
    """What a model of the family writes for one thought, a word and CALLS."""
    a, b = ({"name": function, "arguments": arguments} for function, arguments in CALLS)
    values = {"A": json.dumps(a), "B": json.dumps(b), "a": json.dumps(a["arguments"]), "W": CALLS[0][1]["what"]}
    return WRITTEN[name].format(**values)


@dataclass
class Message:
    content: str = ""
    reasoning: str = ""
    calls: list[list[str]] = field(default_factory=list)

    @property
    def parsed(self) -> list[tuple[str, Any]]:
        return [(name, json.loads(arguments)) for name, _, arguments in self.calls]


@cache
def bound(name: str, *, tokens: bool) -> BoundTemplate:
    return BoundTemplate(builtin(name), {text: number for number, text in enumerate(MARKERS[name])} if tokens else {})


def read(
    name: str, pieces: Sequence[str], *, tokens: bool = True, prompt: str = "", cut: bool = False, **options: Any
) -> Message:
    parser = ResponseParser(bound(name, tokens=tokens), properties(TOOLS), prompt, **options)
    message = Message()
    for part in [*(part for piece in pieces for part in parser.push(piece)), *parser.finish(cut=cut)]:
        if part.kind == "content":
            message.content += part.text
        elif part.kind == "reasoning":
            message.reasoning += part.text
        elif part.kind == "call":
            assert part.index == len(message.calls)
            message.calls.append([part.text, part.id, ""])
        else:
            message.calls[part.index][2] += part.text
    return message


def in_tokens(name: str, text: str) -> str:
    return marked(text, {text: mark for mark, text in bound(name, tokens=True).names.items()})


def cut_up(text: str, cuts: Sequence[int]) -> list[str]:
    ends = sorted({cut % (len(text) + 1) for cut in cuts} | {len(text)})
    return [text[a:b] for a, b in zip([0, *ends], ends, strict=False)]


@pytest.mark.parametrize("tokens", [True, False], ids=["tokens", "texts"])
@pytest.mark.parametrize("name", NAMES)
def test_a_message_of_each_family_in_every_cut(name: str, tokens: bool) -> None:
    text = in_tokens(name, written(name)) if tokens else written(name)
    whole = read(name, [text], tokens=tokens)
    assert whole.parsed == CALLS
    assert whole.content == ("So:" if "So:" in written(name) else "")
    assert whole.reasoning == ("Hm." if "Hm." in written(name) else "")
    assert read(name, list(text), tokens=tokens) == whole
    for size in range(2, 30):
        assert read(name, [text[i : i + size] for i in range(0, len(text), size)], tokens=tokens) == whole


def pieces_of(name: str) -> st.SearchStrategy[str]:
    """Anything a model may emit: markers whole and broken, JSON and its ends, spaces, in any order."""
    text = written(name)
    bits = [
        *MARKERS[name],
        *(text[i : i + 9] for i in range(0, len(text), 7)),
        "{",
        "}",
        '"',
        "\\",
        "\n",
        " ",
        "a",
        "<",
    ]
    long = st.sampled_from(["x" * HOLD, " " * 1200, '{"name": "now", "arguments": {"a": "'])
    return st.lists(st.sampled_from(bits) | long, max_size=24).map("".join)


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
@settings(max_examples=30)
def test_whatever_comes_every_cut_says_the_same(name: str, data: st.DataObject) -> None:
    text = data.draw(pieces_of(name))
    text = in_tokens(name, text) if data.draw(st.booleans()) else text
    cut = data.draw(st.booleans())
    whole = read(name, [text], cut=cut)
    assert read(name, cut_up(text, data.draw(st.lists(st.integers(0, 10**6), max_size=30))), cut=cut) == whole
    assert read(name, list(text), cut=cut) == whole


@pytest.mark.parametrize("name", NAMES)
@given(text=st.text("abc .,\n\t{}\"'", max_size=80))
@settings(max_examples=30)
def test_text_without_a_delimiter_is_as_it_was(name: str, text: str) -> None:
    assert read(name, list(text)) == Message(content=text)


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>not JSON</tool_call> and on", '<tool_call>{"name": "now", "arguments": [1]}</tool_call>',
        '<tool_call>{"arguments": {}}</tool_call>', '<tool_call>{"name": "now", "arguments": {}',
        '<tool_call>{"name": "now", "arguments": NaN}</tool_call>', "<tool_call>" + "[" * 100_000 + "</tool_call>",
        "a <tool_cal", "a </tool_call>",
    ],
)  # fmt: skip
def test_what_is_no_call_is_content(text: str) -> None:
    assert read("hermes", [text], tokens=False) == Message(content=text)


@pytest.mark.parametrize(
    "body",
    [
        "[now(", "[now(a=)]", "[now(a=1/0)]", "[now(a=b)]", "[now(1)]", "[now()() ]", "[now(a=1e999)]", "[now(**x)",
        "[now(a={1:2}.x)]", "[now(a=" + "[" * 300, "[now(a=" + "(" * 99 + ")]", "[now(a='\\d')", "[now(a=" + "-" * 9999,
    ],
)  # fmt: skip
@pytest.mark.parametrize("rest", ["", "<|python_end|> and on"])
def test_python_that_is_no_call_is_content(body: str, rest: str) -> None:
    text = "<|python_start|>" + body + rest
    assert read("pythonic", [text], tokens=False) == Message(content=text)


def test_a_backslash_in_python_s_form_is_the_model_s_affair() -> None:
    assert read("pythonic", ["[look_up(what='\\d')]"]).parsed == [("look_up", {"what": "\\d"})]


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
@settings(max_examples=40)
def test_a_spoilt_message_raises_nothing(name: str, data: st.DataObject) -> None:
    text = in_tokens(name, written(name))
    begin = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(begin, min(len(text), begin + 6)))
    read(name, [text[:begin] + data.draw(st.text("\"'\\{}[](),:=<1e\0", max_size=3)) + text[end:]])


def test_a_long_call_goes_on_as_it_comes_and_is_a_call_when_it_is_cut() -> None:
    parser = ResponseParser(bound("hermes", tokens=False), properties(TOOLS), new_id=lambda: "id")
    begun = '<tool_call>\n{"name": "look_up", "arguments": {"what": "' + "x" * HOLD
    parts = parser.push(begun)
    assert [(part.kind, part.id) for part in parts] == [("call", "id"), ("arguments", "")]
    assert [part.text for part in parser.push('\\"y')] == ['\\"y']
    assert parser.push('"}')[0].text == '"}'
    assert parser.push("}\n</tool_call>") == parser.finish(cut=True) == []
    cut = read("hermes", [begun], tokens=False, cut=True)
    assert (cut.content, cut.calls[0][2][:10]) == ("", '{"what": "')


def test_a_marker_that_is_only_spelled_is_text() -> None:
    """In a string, or in a sentence: it is the token that counts."""
    call = json.dumps({"name": "look_up", "arguments": {"what": "</tool_call>"}})
    text = "Write <tool_call>: " + in_tokens("hermes", "<tool_call>") + call + in_tokens("hermes", "</tool_call>")
    message = read("hermes", list(text))
    assert (message.content, message.parsed) == ("Write <tool_call>:", [("look_up", {"what": "</tool_call>"})])


def test_a_prompt_may_have_opened_the_reasoning() -> None:
    prompt = "<|im_start|>assistant\n</think>old<|im_end|>\n<|im_start|>assistant\n"
    assert read("hermes", ["Hm.\n</think>\n\nYes."], prompt=prompt + "<think>\n", tokens=False) == Message(
        "Yes.", "Hm."
    )
    assert read("hermes", ["Yes."], prompt=prompt + "<think>\n\n</think>\n\n", tokens=False) == Message("Yes.")
    assert read("hermes", ["<think>Hm.</think>Yes."], prompt=prompt, tokens=False) == Message("Yes.", "Hm.")


@pytest.mark.parametrize("inside", ["'", "\\\\", '\\"', "'\\\"", "</tool_call>", "{'\\\"}"])
def test_what_stands_in_a_string_ends_nothing(inside: str) -> None:
    text = f'<tool_call>{{"name": "look_up", "arguments": {{"what": "{inside}"}}}}</tool_call> and'
    message = read("hermes", list(text), tokens=False)
    assert message.parsed == [("look_up", {"what": json.loads(f'"{inside}"')})]
    assert message.content == "and"


def test_one_call_only() -> None:
    assert [name for name, _, _ in read("hermes", [written("hermes")], tokens=False, one_call=True).calls] == [
        "look_up"
    ]


def test_a_model_s_own_id_is_kept() -> None:
    calls = read("kimi_k2", [in_tokens("kimi_k2", written("kimi_k2"))]).calls
    assert [call[1] for call in calls] == ["functions.look_up:0", "functions.now:1"]


def test_a_bare_form_is_a_call_only_of_a_tool_that_there_is() -> None:
    text = '{"name": "Bob", "parameters": {"age": 3}}'
    assert read("llama3_json", list(text)) == Message(content=text)
    assert read("pythonic", list("[print(1)]")) == Message(content="[print(1)]")


def test_time_is_linear_in_what_a_model_emits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted in calls of the matcher, one token at a time."""
    from octavo.text.responses import patterns

    counts = [0]
    match = patterns.Pattern.match

    def counted(*args: Any, **options: Any) -> Any:
        counts[0] += 1
        return match(*args, **options)

    monkeypatch.setattr(patterns.Pattern, "match", counted)
    for name in NAMES:
        for bit in ["<", "<tool_call>", '{"', "[TOOL_CALLS]", " ", "<|channel|>", "\\"]:
            seen = []
            for size in (100, 400):
                counts[0] = 0
                read(name, [in_tokens(name, bit)] * size)
                seen.append(counts[0])
            assert seen[1] <= 6 * seen[0] + 600, (name, bit, seen)


def test_json_between_fences_is_a_call_only_of_a_tool() -> None:
    text = '```json\n{"name": "Tom", "arguments": {}}\n```'
    assert read("qwen2_coder", list(text), tokens=False) == Message(text)
    message = read("qwen2_coder", list(text.replace("Tom", "now")), tokens=False)
    assert (message.content, message.parsed) == ("", [("now", {})])
