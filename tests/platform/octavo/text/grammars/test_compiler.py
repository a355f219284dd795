from __future__ import annotations

import ctypes
import gc
import json
import random
import threading
from typing import ClassVar

import llguidance
import numpy as np
import pytest
from llguidance import LLMatcher, LLParserLimits

from octavo.constraint import Grammar, StructuredOutputs
from octavo.engine.constrained import RequestRules
from octavo.errors import BadRequest, Overloaded
from octavo.request import SamplingParams
from octavo.text.grammars import compiler as module
from octavo.text.grammars import sources
from octavo.text.grammars.compiler import Compiler, told
from octavo.text.grammars.cost import MAX_LIGHT
from octavo.text.grammars.tokens import Vocabulary


@pytest.fixture(scope="module")
def vocabulary(byte_level):
    return Vocabulary(byte_level, byte_level.vocab_size)


@pytest.fixture
def compiler(vocabulary):
    return Compiler(vocabulary)


def schema(of, **fields) -> Grammar:
    return Grammar(source=json.dumps({"grammars": [{"json_schema": of}]}), **fields)


def test_a_grammar_is_compiled_once(compiler):
    grammar = Grammar(source="start: /[a-z]+/")
    assert compiler.find(grammar) is None
    matcher = compiler.compile(grammar)
    assert compiler.compile(Grammar(source="start: /[a-z]+/", again=True)) is matcher


def test_copies_go_their_own_way(compiler, byte_level):
    matcher = compiler.compile(Grammar(source='start: "ab" | "cd"'))
    one, other = matcher.deep_copy(), matcher.deep_copy()
    assert one.consume_tokens(byte_level.encode("a", add_special_tokens=False))
    assert other.consume_tokens(byte_level.encode("c", add_special_tokens=False))
    assert not matcher.is_error()


def test_what_one_sequence_failed_of_other_requests_do_not_share(compiler, byte_level, monkeypatch):
    few = LLParserLimits(max_lexer_states=100, verbose_errors=False)
    monkeypatch.setattr(module, "limits", lambda: few)
    monkeypatch.setattr(module, "light_limits", lambda: few)
    grammar = Grammar(source="start: /(a|b)*a(a|b){12}c/")
    text = "".join(random.Random(1).choices("ab", k=300))
    matcher, letters = compiler.compile(grammar), byte_level.encode(text, add_special_tokens=False)
    hostile = matcher.deep_copy()
    assert not all(hostile.compute_bitmask() and hostile.consume_token(token) for token in letters)
    assert "too many states" in hostile.get_error()
    copy = matcher.deep_copy()
    copy.compute_bitmask()
    assert copy.is_error()  # copies do share
    for _ in range(2):
        compiler.discard(grammar)
    one, other = compiler.compile(grammar), compiler.compile(grammar)
    assert one is not other
    assert compiler.find(grammar) is None
    assert one.compute_bitmask() == other.compute_bitmask()
    assert not one.is_error()


def test_only_so_many_failures_are_remembered(compiler, monkeypatch):
    monkeypatch.setattr(module, "APART", 2)
    grammars = [Grammar(source=f'start: "b{i}"') for i in range(3)]
    for grammar in grammars:
        compiler.discard(grammar)
        compiler.compile(grammar)
    assert [compiler.find(grammar) is not None for grammar in grammars] == [False, False, False]
    compiler.compile(grammars[0])
    assert compiler.find(grammars[0]) is not None


@pytest.mark.parametrize(
    ("grammar", "sentence"),
    [
        (Grammar(source="start: foo(", param="grammar"), r"^grammar: Expected token[^|]* \(line 1, column 12\)$"),
        (Grammar(source="start: <|nope|>"), r"unknown special token: \"<\|nope\|>\"( .line|$)"),
        (schema({"type": "strin"}, param="response_format"), "^response_format: .*strin"),
        (schema({"type": "array", "contains": {}}), "contains"),
        (schema({"type": "string", "pattern": "(?=a)b"}), "look-around"),
        (schema(False), "schema is false"),
        (Grammar(source='{"grammars": 5}'), "expected a sequence"),
        (Grammar(source=""), "^structured_outputs: "),
    ],
)
def test_what_is_wrong_is_told_in_a_line(compiler, grammar, sentence):
    with pytest.raises(BadRequest, match=sentence) as raised:
        compiler.compile(grammar)
    assert raised.value.param == grammar.param
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 400


def test_of_a_schema_only_what_is_wrong_is_told(compiler):
    grammar = sources.grammar(StructuredOutputs(json={"type": "object", "properties": None}, param="guided_json"))
    with pytest.raises(BadRequest) as raised:
        compiler.compile(grammar)
    assert str(raised.value) == "guided_json.properties: failed to compile JSON schema: properties must be an object"


def test_a_message_loses_what_is_not_for_the_client():
    assert told("at 3(7): bad \n token\n<state>\nsecret\n</state>") == "bad token (line 3, column 7)"
    assert told("x" * 1000).endswith("...")


NESTED: dict = {"type": "integer"}
for _ in range(60):
    NESTED = {"type": "object", "properties": {"a": NESTED}, "required": ["a"]}

PATTERNS = {f"p{i}": {"type": "string", "pattern": "^a{1,50}b*$"} for i in range(2000)}
PRODUCT = [{"anyOf": [{"properties": {f"p{i}{j}": {"const": j}}} for j in range(6)]} for i in range(8)]
HOSTILE = {
    "a chain of rules": "\n".join([*(f'r{i}: r{i + 1} r{i + 1} | "a"' for i in range(3000)), 'r3000: "b"\nstart: r0']),
    "parentheses": "start: " + "(" * 60_000 + '"a"' + ")" * 60_000,
    "parentheses in an expression": "start: /" + "(" * 60_000 + "a" + ")" * 60_000 + "/",
    "many choices": "start: " + " | ".join(f'"{i:05d}x"' for i in range(15_000)),
    "a chain of terminals": "\n".join([*(f'T{i}: T{i + 1} "x"' for i in range(12_000)), 'T12000: "b"', "start: T0"]),
    "doubling terminals": "\n".join([*(f"T{i}: T{i + 1} T{i + 1}" for i in range(40)), 'T40: "b"', "start: T0"]),
    "a long text of terminals": "\n".join([*(f"T{i}: T{i + 1} T{i + 1}" for i in range(20)), 'T20: "b"', "start: T0"]),
    "a long expression": "start: /" + "a?" * 60_000 + "/",
    "repeated repetition": "start: /((a|b){1,1000}){1,1000}/",
    "many patterns": schema({"properties": PATTERNS}),
    "schemas of all of them": schema({"allOf": PRODUCT}),
    "a long pattern": schema({"type": "string", "pattern": "a?" * 60_000}),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_grammars_are_refused_or_run(compiler, name):
    source = HOSTILE[name]
    grammar = source if isinstance(source, Grammar) else Grammar(source=source)
    try:
        matcher = compiler.compile(grammar)
    except BadRequest:
        return
    assert not matcher.is_error()


def test_old_grammars_are_forgotten(compiler, monkeypatch):
    monkeypatch.setattr(module, "CACHED_BYTES", 3 * 2**16 + 2**14)
    monkeypatch.setattr(module, "_BYTES_PER_SECOND", 0)
    grammars = [Grammar(source=f'start: "a{i}"') for i in range(5)]
    for grammar in grammars:
        compiler.compile(grammar)
    assert [compiler.find(grammar) is not None for grammar in grammars] == [False, False, True, True, True]


class Heap(ctypes.Structure):
    """glibc's `mallinfo2`."""

    _names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_: ClassVar = [(name, ctypes.c_size_t) for name in _names.split()]


def in_use() -> int:
    """Bytes that malloc has given out."""
    mallinfo = ctypes.CDLL(None).mallinfo2
    mallinfo.restype = Heap
    heap = mallinfo()
    return int(heap.uordblks + heap.hblkhd)


LARGE = {
    "constants": [{"const": letter * 10_000} for letter in "abc"],
    "values": [{"enum": [f"{i:x}{j}" for j in range(3000)]} for i in range(3)],
    "remainders": [{"properties": {"a": {"multipleOf": 9973 + i}, "b": {"multipleOf": 9974 + i}}} for i in range(3)],
    "properties": [{"properties": {f"{i}{j}": {"type": ["string", "null"]} for j in range(300)}} for i in range(3)],
}  # fmt: skip


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="needs glibc")
@pytest.mark.parametrize("name", LARGE)
def test_kept_grammars_have_about_the_bytes_that_are_counted(compiler, name):
    for of in LARGE[name]:
        compiler.compile(schema(of))
    assert len(compiler._kept) == 3
    gc.collect()  # what other tests have left
    counted, before = compiler._bytes, in_use()
    compiler._kept.clear()
    assert before - in_use() <= 2 * counted


def test_a_grammar_is_forgotten_whose_masks_find_ever_more(compiler, byte_level):
    grammar = Grammar(source="start: /(a|b)*a(a|b){9}c/")
    rules = RequestRules.of(
        SamplingParams(grammar=grammar), compiler, compiler.compile(grammar), [], compiler.vocabulary.size
    )
    constraint, output, kept = rules.constraint(), [0], [compiler._bytes]
    choose = random.Random(1)
    mask = np.zeros(rules.words, np.uint32)
    for _ in range(500):
        constraint.make_mask(mask.ctypes.data, mask.nbytes)
        output.append(byte_level.encode(choose.choice("ab"), add_special_tokens=False)[0])
        constraint.push(output, 1)
        kept.append(compiler._bytes)
    assert constraint.error is None
    assert kept == sorted(kept)
    assert kept[-1] > kept[0]
    compiler.grew(grammar, module.LARGEST / module._BYTES_PER_SECOND)
    assert compiler.find(grammar) is None
    assert compiler._bytes == 0
    compiler.grew(grammar, 1.0)  # it runs on, and counts no more
    assert compiler._bytes == 0


def test_what_is_too_large_is_not_kept(compiler, monkeypatch):
    monkeypatch.setattr(module, "LARGEST", 2**16)
    grammar = Grammar(source='start: "a"')
    assert not compiler.compile(grammar).is_error()
    assert compiler.find(grammar) is None
    assert compiler._bytes == 0


LONG = {
    "a long text": Grammar(source="start: /a/ // " + "x" * MAX_LIGHT),
    "many states": schema({"type": "integer", "multipleOf": 2003}),
    "more fuel": schema({"required": [f"name_{i}" for i in range(1000)]}),
    "an error": Grammar(source="start: b"),
}
"""What is not compiled in the quick lane."""


@pytest.fixture
def within(compiler, monkeypatch):
    """Limits that grammars were compiled within, and an event that those in the slow lane wait for once they begin."""
    made, let_go, make = [], threading.Event(), compiler._make

    def watched(grammar, limits):
        made.append(limits)
        assert limits is module.light_limits() or let_go.wait(60)
        return make(grammar, limits)

    monkeypatch.setattr(compiler, "_make", watched)
    yield made, let_go
    let_go.set()


@pytest.mark.parametrize("name", LONG)
def test_what_takes_long_delays_nothing_light(compiler, within, name):
    made, let_go = within
    ended, results = threading.Event(), []
    compiler.submit(LONG[name], lambda result: (results.append(result), ended.set()))
    compiler.compile(Grammar(source='start: "light"'))
    assert not results
    let_go.set()
    assert ended.wait(60)
    assert module.limits() in made
    assert isinstance(results[0], BadRequest) is (name == "an error")


def test_light_grammars_take_the_quick_lane_alone(compiler, within):
    compiler.compile(schema({"properties": {"a": {"type": "string", "pattern": "^[a-z]{1,20}$"}}, "required": ["a"]}))
    assert within[0] == [module.light_limits()]


def test_only_so_many_that_take_long_may_wait(compiler, within):
    made, let_go = within
    compiler._slow._places = 0
    with pytest.raises(Overloaded, match="grammars that take long to compile wait; at most 0 may"):
        compiler.compile(LONG["many states"])
    with pytest.raises(Overloaded, match="take long"):
        compiler.compile(LONG["a long text"])
    compiler.compile(Grammar(source='start: "light"'))
    assert made == [module.light_limits()] * 2
    assert not let_go.is_set()


def test_what_is_kept_has_made_its_first_mask(compiler, monkeypatch):
    """Copies have it, and the text that is forced, so that the engine's thread does none of that work."""
    done = []

    class Watched:
        def __init__(self, *args, **named):
            self._matcher = LLMatcher(*args, **named)

        def __getattr__(self, name):
            done.append(name)
            return getattr(self._matcher, name)

    with monkeypatch.context() as patched:
        patched.setattr(llguidance, "LLMatcher", Watched)
        kept = compiler.compile(Grammar(source='start: "abcd" /[a-z]+/'))
    assert [name for name in done if name.startswith("compute")] == ["compute_bitmask", "compute_ff_tokens"]
    assert kept._matcher.deep_copy().compute_ff_tokens()


@pytest.mark.parametrize("source", ['start: "abcd" /[a-z]+/', 'start: /[a-z]+/ "x"'])
def test_a_first_mask_that_is_made_changes_nothing(compiler, vocabulary, source):
    kept, fresh = compiler.compile(Grammar(source=source)).deep_copy(), LLMatcher(vocabulary.trie(), source)
    for _ in range(3):
        forced, mask = fresh.compute_ff_tokens(), fresh.compute_bitmask()
        assert (kept.compute_ff_tokens(), kept.compute_bitmask()) == (forced, mask)
        token = next(i for i in range(8 * len(mask)) if mask[i // 8] >> i % 8 & 1)
        assert kept.consume_token(token)
        assert fresh.consume_token(token)


SAME = [
    {"type": "object", "properties": {"a": {"type": "string", "maxLength": 9}, "b": {"type": "integer"}}},
    {"type": "array", "items": {"anyOf": [{"enum": ["x", "yy"]}, {"type": "number", "multipleOf": 7}]}},
    {"type": "string", "pattern": "^[a-z]+(-[0-9]{2})*$"},
]


@pytest.mark.parametrize("of", SAME)
def test_fuel_changes_no_matcher(compiler, of):
    quick, slow = (compiler._make(schema(of), limits) for limits in (module.light_limits(), module.limits()))
    choose = random.Random(1)
    for _ in range(60):
        mask = quick.compute_bitmask()
        assert mask == slow.compute_bitmask()
        assert quick.compute_ff_tokens() == slow.compute_ff_tokens()
        token = choose.choice([i for i in range(8 * len(mask)) if mask[i // 8] >> i % 8 & 1])
        assert quick.consume_token(token)
        assert slow.consume_token(token)
        if quick.is_stopped():
            break
    assert quick.is_stopped() == slow.is_stopped()
