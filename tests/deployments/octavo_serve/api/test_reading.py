"""A stage tells reasoning and calls from content: the same in every cut, with every token counted once."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE

from octavo.request import SamplingParams, SequenceUpdate
from octavo.text.output import SequenceText
from octavo.text.parts import TokenizerParts
from octavo.text.tokenizer import Tokenizer
from octavo_serve.api.chats import Chat, Message
from octavo_serve.api.model import Defaults, ServedModel
from octavo_serve.api.pieces import CallPart, Piece, Whole
from octavo_serve.api.reading import Reading, template_for
from octavo_serve.api.reading import reading_of as read_by

LOOK_UP = {"type": "function", "function": {"name": "look_up", "parameters": {"properties": {}}}}
MARKERS = ["<think>", "</think>", "<tool_call>", "</tool_call>"]
CALL = '<tool_call>{"name": "look_up", "arguments": {"a": 1}}</tool_call>'


def letters(source: str = "{{ tools }}<think><tool_call>", markers: list[str] = MARKERS) -> Tokenizer:
    """A tokenizer of the markers and single characters: every text has one spelling in tokens."""
    backend = Backend(BPE({chr(c): number for number, c in enumerate([10, *range(32, 127)])}, []))
    backend.decoder = decoders.Fuse()
    backend.add_tokens([AddedToken(marker, special=False, normalized=False) for marker in markers])
    return Tokenizer(TokenizerParts(backend, frozenset(), None, {}, {"default": source}))


TOKENIZER = letters()


def served(tokenizer: Tokenizer = TOKENIZER, name: str = "auto") -> ServedModel:
    return ServedModel("m", 0, tokenizer, None, Defaults(response_template=name))  # type: ignore[arg-type]  # unused


def reading_of(chat: Chat, model: ServedModel, prompt: str) -> Reading | None:
    return read_by(chat, template_for(chat, model), prompt)


def chat(tools: list[Any] | None = None, **options: Any) -> Chat:
    return Chat(messages=[Message(role="user", content="Hi")], tools=tools, **options)


def read(reading: Reading, text: str, cuts: list[int], finish: str = "stop", tokenizer: Tokenizer = TOKENIZER) -> Whole:
    """The message of a text that the model emits token by token, in pieces that end at the cuts."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    sequence = SequenceText(tokenizer, SamplingParams(), marks=reading.marks)
    stage, whole, ends = reading.stage(), Whole(), sorted({cut % (len(ids) + 1) for cut in cuts} | {len(ids)})
    for begin, end in zip([0, *ends], ends, strict=False):
        last = end == len(ids)
        update = SequenceUpdate("r", 0, ids[begin:end], finish_reason="length" if last else None)
        piece = Piece(0, sequence.push(update), ids[begin:end], None, finish if last else None)
        piece.lengths = sequence.lengths[begin:end]
        whole.add(stage(piece))
    assert whole.tokens == len(ids)
    return whole


def reading(tools: list[Any] | None = None, prompt: str = "", **options: Any) -> Reading:
    found = reading_of(chat(tools, **options), served(), prompt)
    assert found is not None
    return found


@given(st.lists(st.integers(0, 10**6), max_size=40))
@settings(max_examples=50)
def test_every_cut_gives_the_same_message_and_the_exact_tokens(cuts: list[int]) -> None:
    whole = read(reading([LOOK_UP]), "<think>Hm.</think>\nYes." + CALL + CALL, cuts)
    (piece,) = whole.choices()
    assert (piece.reasoning, piece.text, piece.finish_reason) == ("Hm.", "Yes.", "tool_calls")
    assert [(call.index, call.name, json.loads(call.arguments)) for call in piece.calls] == [
        (0, "look_up", {"a": 1}),
        (1, "look_up", {"a": 1}),
    ]
    assert whole.reasoning_tokens == len("Hm.")
    assert len({call.id for call in piece.calls}) == 2


@given(st.lists(st.integers(0, 10**6), max_size=40))
@settings(max_examples=25)
def test_where_markers_are_text_every_cut_counts_the_same(cuts: list[int]) -> None:
    plain = letters(markers=[])
    reading = reading_of(chat(), served(plain, "hermes"), "")
    assert reading is not None
    whole = read(reading, "<think>Hm.</think>\nYes.", cuts, tokenizer=plain)
    (piece,) = whole.choices()
    assert (piece.reasoning, piece.text) == ("Hm.", "Yes.")
    assert whole.reasoning_tokens == len("Hm.</think>")


def test_reasoning_that_the_prompt_opened_and_that_does_not_end() -> None:
    opened = reading(prompt="<|im_start|>assistant\n<think>")
    whole = read(opened, "Hm. Hm.", [3], "length")
    (piece,) = whole.choices()
    assert (piece.reasoning, piece.text, piece.finish_reason, whole.reasoning_tokens) == ("Hm. Hm.", "", "length", 7)


def test_calls_are_content_where_no_tool_was_offered() -> None:
    (piece,) = read(reading(), "<think>x</think>" + CALL, []).choices()
    assert (piece.text, piece.calls, piece.finish_reason) == (CALL, (), "stop")


def test_only_the_first_call_where_only_one_is_wanted() -> None:
    (piece,) = read(reading([LOOK_UP], one_call=True), CALL + CALL, []).choices()
    assert len(piece.calls) == 1


def test_a_call_that_was_cut_is_none() -> None:
    (piece,) = read(reading([LOOK_UP]), CALL[:-20], [], "length").choices()
    assert (piece.text, piece.calls, piece.finish_reason) == (CALL[:-20], (), "length")


def test_a_long_call_s_arguments_go_on_as_they_come() -> None:
    read = reading([LOOK_UP])
    opening = TOKENIZER.added_tokens["<tool_call>"]
    stage, text = read.stage(), read.marks[opening] + '{"name": "look_up", "arguments": {"a": "' + "x" * 600
    begun = list(stage(Piece(0, text, [opening, 1], lengths=[1, len(text) - 1])))
    assert (begun[0].calls[0].name, begun[0].calls[0].arguments[:7]) == ("look_up", '{"a": "')
    assert next(iter(stage(Piece(0, "y", [1], lengths=[1])))).calls == [CallPart(0, arguments="y")]


@pytest.mark.parametrize(
    ("source", "tools", "name", "reads"),
    [
        ("plain", None, "auto", False),
        ("plain", [LOOK_UP], "auto", True),
        ("plain", [LOOK_UP], "none", False),
        ("{{ tools }}<tool_call>", None, "auto", False),
        ("{{ tools }}<tool_call><think>", None, "auto", True),
        ("{{ tools }}<tool_call><think>", None, "none", False),
        ("{{ tools }}", [LOOK_UP], "auto", False),
        ("{{ tools }}", [LOOK_UP], "mistral", True),
    ],
)
def test_an_answer_is_read_only_where_there_is_something_to_tell(
    source: str, tools: list[Any] | None, name: str, reads: bool
) -> None:
    backend = Backend(BPE())
    model = served(Tokenizer(TokenizerParts(backend, frozenset(), None, {}, {"default": source})), name)
    assert (reading_of(chat(tools), model, "") is not None) == reads


def test_a_service_s_plain_chat_has_no_stage(service: Any) -> None:
    from octavo_serve.api.body import parse
    from octavo_serve.surfaces.chat.schemas import ChatRequest
    from octavo_serve.surfaces.chat.surface import CHAT

    body = {"messages": [{"role": "user", "content": "Hello"}]}
    plain = asyncio.run(service.job(CHAT.ask(parse(ChatRequest, body), service.limits)))
    assert (plain.stage, plain.marks) == (None, None)
    with_tools = asyncio.run(service.job(CHAT.ask(parse(ChatRequest, body | {"tools": [LOOK_UP]}), service.limits)))
    assert with_tools.stage is not None


@pytest.mark.parametrize("stop", ["</think>", "g</think>\nan", "ought", "<think>"])
def test_a_stop_string_may_hold_a_marker(stop: str) -> None:
    reading = reading_of(chat(), served(), "")
    assert reading is not None
    ids = TOKENIZER.encode("<think>thought g</think>\nanswer", add_special_tokens=False)
    plain = SequenceText(TOKENIZER, SamplingParams(stop=[stop]))
    marked = SequenceText(TOKENIZER, SamplingParams(stop=[stop]), marks=reading.marks)
    for token_id in ids:
        plain.push(SequenceUpdate("r", 0, [token_id]))
        marked.push(SequenceUpdate("r", 0, [token_id]))
    assert plain.stopped == marked.stopped
    assert (plain.stop_reason, plain.token_ids) == (marked.stop_reason, marked.token_ids)
