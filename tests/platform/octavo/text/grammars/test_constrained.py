from __future__ import annotations

from octavo.constraint import StructuredOutputs
from octavo.request import SamplingParams
from octavo.text.grammars.constrained import bad_token_ids, constrained, is_constrained
from octavo.text.parts import TokenizerParts
from octavo.text.tokenizer import Tokenizer


def test_parameters_get_their_grammar_and_keep_all_else(byte_level: Tokenizer) -> None:
    given = SamplingParams(seed=3, structured_outputs=StructuredOutputs(regex="a", param="guided_regex"))
    made = constrained(given, byte_level)
    assert made.grammar is not None
    assert (made.grammar.param, made.seed, made.structured_outputs) == ("guided_regex", 3, None)
    assert given.grammar is None  # it may be shared by other requests
    assert is_constrained(given)
    assert not is_constrained(constrained(SamplingParams(bad_words=["dog"]), byte_level))
    assert not is_constrained(SamplingParams())


def test_bad_words_are_tokens_at_a_beginning_and_after_a_space(byte_level: Tokenizer) -> None:
    found = bad_token_ids(byte_level, ["dog", " fox", "\n"])
    texts = [byte_level.decode(ids) for ids in found]
    assert texts[0] == "dog"
    assert {"fox", " fox"} & set(texts)
    assert all(text.strip() in ("dog", "fox", "") for text in texts)
    assert all(found)


def test_a_chat_s_answer_may_come_behind_thinking(byte_level: Tokenizer) -> None:
    wanted = StructuredOutputs(regex="[0-9]")
    parts = TokenizerParts(byte_level._backend, byte_level.eos_token_ids, None, {}, {"default": "<think>"})
    thinks = Tokenizer(parts)
    made = {
        chat: constrained(SamplingParams(structured_outputs=wanted), thinks, chat).grammar
        for chat in (None, "Hi", "<|im_start|>assistant\n<think>")
    }
    assert [grammar and "<think>" in grammar.source for grammar in made.values()] == [False, True, False]
    assert [grammar and grammar.after_texts for grammar in made.values()] == [(), (), ()]
