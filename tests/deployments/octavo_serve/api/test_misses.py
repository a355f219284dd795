"""Why a prefix was not found: twelve causes and more, on a real tokenizer and chat template."""

from __future__ import annotations

from typing import Any

import pytest

from octavo.block_hash import Origin, hash_chain
from octavo.request import Adapter, Request
from octavo.text.chat import render_chat
from octavo.text.tokenizer import Tokenizer
from octavo_serve.api.chats import Chat, Message
from octavo_serve.api.known_prompts import KnownPrompt, in_common
from octavo_serve.api.misses import REASONS, SENTENCES, Found, goes_on_alike, miss_of, shown

SIZE = 16
RULES = "You answer in one sentence, politely, and you never speak about anything but the weather of the day. "
ASKS = {"role": "user", "content": "What is the weather like in Paris today, and should I take an umbrella with me?"}
TOOLS = [
    {"type": "function", "function": {"name": name, "description": f"Says {name} of a town.", "parameters": {}}}
    for name in ("rain", "wind", "sunshine")
]


@pytest.fixture
def asked(tokenizer: Tokenizer) -> Any:
    """A prompt as a gateway knows it, computed on shard "a" unless something else is said."""

    def make(
        messages: Any, tools: Any = None, salt: str = "", adapter: str = "", answer: Any = "", began: float = 1.0
    ) -> KnownPrompt:
        chat = (
            Chat(messages=[Message(**each) for each in messages], tools=tools) if isinstance(messages, list) else None
        )
        text = messages if chat is None else render_chat(tokenizer, messages, tools=tools, add_generation_prompt=True)
        ids = tokenizer.encode(text, add_special_tokens=False)
        used = Adapter(adapter, adapter, "") if adapter else None
        root, _ = Origin.of("m", used, salt, ids)
        request = Request(
            request_id="r",
            prompt_token_ids=ids,
            cache_salt=salt,
            adapter=used,
            block_hashes=hash_chain(root, ids, SIZE),
        )
        prompt = KnownPrompt.of(request, "", "m", chat, 0.0)
        prompt.tokens.extend(tokenizer.encode(answer, add_special_tokens=False) if isinstance(answer, str) else answer)
        prompt.shard, prompt.began = "a", began
        return prompt

    return make


@pytest.fixture
def why(tokenizer: Tokenizer) -> Any:
    def ask(now: KnownPrompt, near: KnownPrompt | None, cached: Any = None, shards: Any = None, **more: Any) -> Any:
        """Why not all was found that the two have in common, or `cached` tokens."""
        cached = (0 if near is None else in_common(now, near) // SIZE * SIZE) if cached is None else cached
        shards = {"a": set(), "b": set()} if shards is None else shards
        found = Found(cached, "a", 5.0, SIZE, more.pop("everything", False))
        return miss_of(now, near, found, shards, tokenizer, **more)

    return ask


def system(text: str, *rest: Any) -> list[Any]:
    return [{"role": "system", "content": text}, ASKS, *rest]


def test_all_reasons_have_a_sentence() -> None:
    assert set(SENTENCES) == set(REASONS)


def test_what_cannot_be_cached(asked: Any, why: Any) -> None:
    assert why(asked("Hello"), None).reason == "short"
    now = asked(system(RULES))
    assert why(now, None, everything=True).reason == "prompt_logprobs"
    assert why(now, None).reason == "new"
    assert why(now, now, (now.num_prompt - 1) // SIZE * SIZE) is None


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (f"The time is 12:01:07. {RULES}", f"The time is 12:03:44. {RULES}"),
        (f"x-billing-header: cc=2.1; cch=00a1f;\n{RULES}", f"x-billing-header: cc=2.1; cch=9b7;\n{RULES}"),
    ],
)
def test_a_header_that_changes(asked: Any, why: Any, first: str, second: str) -> None:
    miss = why(asked(system(first)), asked(system(second)))
    assert (miss.reason, miss.message) == ("header", 0)


def test_a_header_of_a_plain_text(asked: Any, why: Any) -> None:
    assert why(asked(f"12:01 {RULES * 3}"), asked(f"12:44 {RULES * 3}")).reason == "header"


def test_another_system_prompt_and_another_question(asked: Any, why: Any) -> None:
    near = asked(system(RULES))
    others = "Write Python without any comment, and say nothing else, whatever you are asked about the program."
    assert why(asked(system(others)), near).reason == "system"
    question = {"role": "user", "content": "Will it snow?"}
    assert why(asked([*system(RULES)[:1], question]), near).reason == "new"


def test_tools(asked: Any, why: Any) -> None:
    near = asked(system(RULES), TOOLS)
    assert why(asked(system(RULES), TOOLS[::-1]), near).reason == "tools_order"
    assert why(asked(system(RULES), TOOLS[1:]), near).reason == "tools"


def test_a_history_that_was_changed(asked: Any, why: Any) -> None:
    answer, more = {"role": "assistant", "content": "It rains."}, {"role": "user", "content": "And tomorrow?"}
    near = asked(system(RULES, answer, more))
    shorter = {"role": "user", "content": "Weather?"}
    miss = why(asked([*system(RULES)[:1], shorter, answer, more]), near, 16)
    assert (miss.reason, miss.message) == ("history", 1)


def test_thinking_that_the_template_drops(asked: Any, why: Any) -> None:
    near = asked(system(RULES), answer="<think>It is November, so it rains.</think>It rains.<|im_end|>\n")
    now = asked(system(RULES, {"role": "assistant", "content": "It rains."}, ASKS))
    miss = why(now, near, near.num_prompt // SIZE * SIZE, opens_reasoning=lambda: ["<think>"])
    assert (miss.reason, miss.message) == ("thinking", 2)


def test_an_answer_that_is_cut_into_other_tokens(asked: Any, why: Any, tokenizer: Tokenizer) -> None:
    said = [token for piece in ("It", " ra", "ins", ".") for token in tokenizer.encode(piece, add_special_tokens=False)]
    near = asked(system(RULES), answer=said)
    now = asked(system(RULES, {"role": "assistant", "content": "It rains."}, ASKS))
    assert now.tokens[near.num_prompt :][:2] != near.tokens[near.num_prompt :][:2]
    assert why(now, near, near.num_prompt // SIZE * SIZE).reason == "retokenised"


def test_an_answer_that_came_back_otherwise(asked: Any, why: Any) -> None:
    near = asked(system(RULES), answer="It rains, and you should take one.<|im_end|>\n")
    now = asked(system(RULES, {"role": "assistant", "content": "No idea at all."}, ASKS))
    assert why(now, near, near.num_prompt // SIZE * SIZE).reason == "answer"


def test_blocks_that_are_not_there(asked: Any, why: Any) -> None:
    near, now = asked(system(RULES)), asked(system(RULES))
    assert why(now, near, 0).reason == "evicted"
    assert why(now, near, SIZE, {"a": {now.chain[0]}, "b": set(now.chain)}).reason == "other_shard"
    assert why(now, near, 0, {"b": set()}).reason == "shard_gone"
    assert why(now, asked(system(RULES), began=6.0), 0).reason == "concurrent"
    assert why(now, asked(system(RULES), salt="x"), 0).reason == "namespace"
    assert why(now, asked(system(RULES), adapter="sql"), 0).reason == "adapter"


def test_both_sides_of_a_difference_are_shown(asked: Any, tokenizer: Tokenizer) -> None:
    near, now = asked(f"{RULES}It is Monday. {RULES}"), asked(f"{RULES}It is Friday. {RULES}")
    common = next(i for i, (a, b) in enumerate(zip(now.tokens, near.tokens, strict=False)) if a != b)
    before, then, since = shown(now, near, common, tokenizer)
    assert before.endswith("It is")
    assert (then.split()[0], since.split()[0]) == ("Monday.", "Friday.")
    assert goes_on_alike(now, near, common)
