"""What a chat's answer must keep to reaches the engine in the form in which the model writes."""

from __future__ import annotations

from typing import Any

import pytest
from llguidance import LLMatcher, LLTokenizer
from tokenizers import AddedToken, decoders, pre_tokenizers
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE

from octavo.constraint import StructuredOutputs, Thinking
from octavo.errors import BadRequest
from octavo.request import SamplingParams
from octavo.text.parts import TokenizerParts
from octavo.text.tokenizer import Tokenizer
from octavo_serve.api.chats import Chat, Message
from octavo_serve.api.constraining import callable_tools, constrain, constrains
from octavo_serve.api.model import Defaults, ServedModel
from octavo_serve.api.reading import template_for

NUMBER = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
LOOK_UP = {"type": "function", "function": {"name": "look_up", "parameters": NUMBER}}
NOW = {"type": "function", "function": {"name": "now"}}
WANTED = StructuredOutputs(json=NUMBER, param="response_format.json_schema.schema")
CALL = '<tool_call>\n{"name": "look_up", "arguments": {"n": 1}}\n</tool_call>'
NOW_CALL = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'


def _tokenizer(source: str) -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Backend(BPE({char: number for number, char in enumerate(alphabet)}, []))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    backend.add_special_tokens(["<|im_end|>"])
    markers = ["<think>", "</think>", "<tool_call>", "</tool_call>"]
    backend.add_tokens([AddedToken(marker, special=False) for marker in markers if marker in source])
    return Tokenizer(TokenizerParts(backend, frozenset([256]), None, {}, {"default": source}))


THINKS = _tokenizer("{{ tools }}<think></think><tool_call></tool_call>")
PLAIN = _tokenizer("{{ messages }}")


def served(tokenizer: Tokenizer = THINKS, **defaults: Any) -> ServedModel:
    return ServedModel("m", 0, tokenizer, None, Defaults(**defaults))  # type: ignore[arg-type]  # unused


def made(chat: Chat, model: ServedModel | None = None, prompt: str = "", **params: Any) -> SamplingParams:
    model = model or served()
    return constrain(SamplingParams(**params), chat, model, template_for(chat, model), prompt)


def chat(*tools: Any, **options: Any) -> Chat:
    return Chat(messages=[Message(role="user", content="Hi")], tools=list(tools) or None, **options)


def accepts(tokenizer: Tokenizer, params: SamplingParams, text: str) -> bool:
    assert params.grammar is not None
    trie = LLTokenizer(tokenizer.to_json(), n_vocab=tokenizer.vocab_size, eos_token=[256])
    matcher, ids = LLMatcher(trie, params.grammar.source), tokenizer.encode(text, add_special_tokens=False)
    assert not matcher.is_error(), matcher.get_error()
    return matcher.try_consume_tokens(ids) == len(ids) and bool(matcher.is_accepting())


def test_a_required_call_is_one_of_those_that_may_be_called() -> None:
    params = made(chat(LOOK_UP, NOW, must_call=True))
    assert all(accepts(THINKS, params, text) for text in (CALL, f"{CALL}\n{NOW_CALL}", f"<think>Hm.</think>\n\n{CALL}"))
    assert not any(accepts(THINKS, params, text) for text in ("Hi.", CALL.replace("1", '"x"')))
    one = made(chat(LOOK_UP, NOW, must_call=True, one_call=True, callable_tools=frozenset(["now"])))
    assert accepts(THINKS, one, NOW_CALL)
    assert not any(accepts(THINKS, one, text) for text in (CALL, f"{NOW_CALL}\n{NOW_CALL}"))
    assert [tool.name for tool in callable_tools(chat(LOOK_UP, NOW, callable_tools=frozenset(["now"])))] == ["now"]


@pytest.mark.parametrize("tokenizer", [THINKS, PLAIN], ids=["tokens", "default form"])
def test_a_call_that_the_model_begins_is_completed_by_its_schema(tokenizer: Tokenizer) -> None:
    params = made(chat(LOOK_UP), served(tokenizer))
    assert params.grammar is not None
    tokens, texts = params.grammar.after_tokens, params.grammar.after_texts
    known = tokenizer.added_tokens.get("<tool_call>")
    assert (tokens, texts) == (((), ("<tool_call>",)) if known is None else ((known,), ()))
    assert params.grammar.again
    assert accepts(tokenizer, params, CALL.removeprefix("<tool_call>"))
    assert not accepts(tokenizer, params, NOW_CALL.removeprefix("<tool_call>"))


def test_an_answer_comes_after_the_thinking_or_is_a_call() -> None:
    params = made(chat(LOOK_UP), structured_outputs=WANTED)
    assert params.structured_outputs is None
    assert all(accepts(THINKS, params, text) for text in ('{"n": 1}', CALL, '<think>Hm.</think>{"n": 1}'))
    assert not accepts(THINKS, params, "Hi.")
    plain = made(chat(), served(PLAIN), structured_outputs=WANTED)
    assert accepts(PLAIN, plain, '{"n": 1}')
    assert plain.grammar is not None
    assert plain.grammar.param == WANTED.param


def test_a_schema_that_cannot_be_followed_harms_no_other_tool_unless_it_is_strict() -> None:
    far = {"type": "object", "properties": {"n": {"$ref": "https://example.com/n"}}}
    odd: dict[str, Any] = {"type": "function", "function": {"name": "odd", "parameters": far}}
    params = made(chat(LOOK_UP, odd, must_call=True))
    assert accepts(THINKS, params, CALL.replace("look_up", "odd"))
    assert not accepts(THINKS, params, CALL.replace("1", '"x"'))
    odd["function"]["strict"] = True
    with pytest.raises(BadRequest, match="registry") as caught:
        made(chat(LOOK_UP, odd, must_call=True))
    assert caught.value.param == "tools.1.function.parameters.properties.n.$ref"


def test_a_budget_is_asked_for_or_an_effort_s_share() -> None:
    begin, end = (THINKS.added_tokens[marker] for marker in ("<think>", "</think>"))
    assert made(chat(thinking_budget=9)).thinking == Thinking(budget=9, open_tokens=(begin,), close=(end,))
    assert made(chat(thinking_budget=0), prompt="<think>\n").thinking is not None
    low = chat(reasoning={"reasoning_effort": "low"})
    for params, budget in ((made(low, max_tokens=400), 100), (made(low, served(max_tokens=40), max_tokens=None), 10)):
        assert params.thinking is not None
        assert params.thinking.budget == budget
    assert made(chat(reasoning={"enable_thinking": True})).thinking is None


def test_where_the_prompt_has_begun_the_thinking_a_budget_counts_from_there() -> None:
    anchor = "<|im_start|>assistant\n"
    opened = made(chat(thinking_budget=3), prompt=f"{anchor}<think>\n").thinking
    assert opened is not None
    assert opened.open_tokens == ()
    assert made(chat(thinking_budget=3), prompt=f"{anchor}<think>\n\n</think>\n\n").thinking is None


def test_what_a_model_cannot_do_is_refused() -> None:
    with pytest.raises(BadRequest, match="does not think") as caught:
        made(chat(thinking_budget=9, thinking_param="thinking.budget_tokens"), served(PLAIN))
    assert caught.value.param == "thinking.budget_tokens"
    with pytest.raises(BadRequest, match="none can be forced"):
        made(chat(NOW, must_call=True), served(response_template="none"))
    with pytest.raises(BadRequest, match="no tools to call"):
        made(chat(must_call=True))
    assert made(chat(thinking_budget=9, must_think=False), served(PLAIN)).thinking is None
    tools = chat(NOW, must_call=True, thinking_budget=9, must_think=False)
    assert made(tools, served(PLAIN)).grammar is not None


def test_what_asks_for_nothing_costs_nothing() -> None:
    assert not constrains(SamplingParams(), chat())
    assert not constrains(SamplingParams(), None)
    assert constrains(SamplingParams(bad_words=["a"]), None)
    assert made(chat(), bad_words=["a"]).bad_token_ids
    assert constrain(SamplingParams(structured_outputs=WANTED), None, served(), None, "").grammar is not None


def test_the_same_tools_make_a_grammar_once() -> None:
    first = made(chat(NOW, LOOK_UP)).grammar
    assert first is not None
    assert made(chat(NOW, LOOK_UP)).grammar is first
    assert made(chat(NOW, LOOK_UP, one_call=True)).grammar is not first
    assert made(chat(LOOK_UP, NOW)).grammar is not first
    assert made(chat(NOW, LOOK_UP), served(PLAIN)).grammar is not first
