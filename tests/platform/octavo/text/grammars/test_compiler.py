from __future__ import annotations

import json
import random
import threading

import pytest
from llguidance import LLParserLimits

from octavo.constraint import Grammar
from octavo.errors import BadRequest, Overloaded
from octavo.text.grammars import compiler as module
from octavo.text.grammars.compiler import Compiler, told
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
        (Grammar(source="start: foo(", param="grammar"), r"^grammar: Expected token"),
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


def test_few_threads_and_a_short_queue(compiler, monkeypatch):
    monkeypatch.setattr(module, "QUEUED", 3)
    begin, done, many = threading.Event(), [], threading.Event()
    make, running = compiler._make, []

    def slowly(grammar):
        running.append(grammar)
        if len(running) == module.THREADS:
            many.set()
        assert begin.wait(60)
        return make(grammar)

    monkeypatch.setattr(compiler, "_make", slowly)
    ended = threading.Event()

    def take(result):
        done.append(result)
        if len(done) == module.THREADS + 3:
            ended.set()

    for i in range(module.THREADS):
        compiler.submit(Grammar(source=f'start: "t{i}"'), take)
    assert many.wait(60)
    for i in range(3):
        compiler.submit(Grammar(source=f'start: "q{i}"'), take)
    with pytest.raises(Overloaded, match="3 grammars wait"):
        compiler.submit(Grammar(source='start: "x"'), take)
    assert len(running) == module.THREADS
    begin.set()
    assert ended.wait(60)


def test_idle_threads_end_and_come_again(compiler, monkeypatch):
    monkeypatch.setattr(module, "IDLE", 0.001)
    for i in range(3):
        compiler.compile(Grammar(source=f'start: "again{i}"'))
        for thread in list(compiler._threads):
            thread.join(60)
        assert not compiler._threads
