"""Hostile schemas, grammars and tools by the seed: what `hostile_schemas` sends.

`attack(rng, model)` draws what is wrong, then the field and the protocol that carry it. Most are refused; what is taken
generates a few tokens at most, so that others wait for its grammar and not for its length.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

from hostile_requests import Attack, post, to_json

Draw = Callable[[random.Random], Any]

MAX_TOKENS = 4
MAX_PROMPT = 1500
"""Characters of a request's tools: a prompt holds them, and a long prompt is what any client may ask for."""
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def attack(rng: random.Random, model: str) -> Attack:
    """One request, whole, in a connection of its own."""
    kind = rng.choice(list(_KINDS))
    path, body = _KINDS[kind](rng, model)
    body |= {"stream": rng.random() < 0.3}
    text = body.pop("raw", None)
    return Attack(kind, [post(path, to_json(body) if text is None else text)])


def ordinary(rng: random.Random, model: str) -> Attack:
    """One request that nothing is wrong with; a third of them have a prompt as long as that of tools."""
    length = MAX_PROMPT if rng.random() < 0.3 else 20
    words = " ".join(rng.choice(("say", "tell", "what", "is", "the", "sea")) for _ in range(length // 4))
    body = _chat(model) | {"messages": [{"role": "user", "content": words}], "stream": rng.random() < 0.3}
    return Attack("ordinary", [post("/v1/chat/completions", to_json(body))])


# ── where it is put ──


def _chat(model: str) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "Say it."}], "max_tokens": MAX_TOKENS}


def _in_schema(rng: random.Random, model: str, schema: Any) -> tuple[str, dict[str, Any]]:
    """A request whose answer is to fit the schema."""
    named = {"name": "answer", "schema": schema, "strict": rng.random() < 0.3}
    chat, text = _chat(model), {"model": model, "prompt": "Say it.", "max_tokens": MAX_TOKENS}
    return rng.choice(
        (
            ("/v1/chat/completions", chat | {"response_format": {"type": "json_schema", "json_schema": named}}),
            ("/v1/chat/completions", chat | {"structured_outputs": {"json": schema}, "n": rng.choice((1, 1, 4, 16))}),
            ("/v1/completions", text | {"guided_json": schema}),
            ("/v1/completions", text | {"json_schema": json.dumps(schema)}),
            (
                "/v1/responses",
                {
                    "model": model,
                    "input": "Say it.",
                    "max_output_tokens": 16,
                    "store": rng.random() < 0.5,
                    "text": {"format": {"type": "json_schema", **named}},
                },
            ),
            ("/v1/messages", chat | {"output_config": {"format": {"type": "json_schema", "schema": schema}}}),
            *(_in_tools(rng, model, schema) if len(json.dumps(schema)) <= MAX_PROMPT else ()),
        )
    )


def _in_tools(rng: random.Random, model: str, schema: Any) -> list[tuple[str, dict[str, Any]]]:
    count = min(rng.choice((1, 1, 3, 20)), max(1, MAX_PROMPT // len(json.dumps(schema))))
    functions = [{"name": f"f{i}", "parameters": schema, "strict": rng.random() < 0.2} for i in range(count)]
    chosen = rng.choice(("auto", "required"))
    tools = [{"type": "function", "function": function} for function in functions]
    inputs = [{"name": f"f{i}", "input_schema": schema} for i in range(count)]
    flat = [{"type": "function", **function} for function in functions]
    return [
        ("/v1/chat/completions", _chat(model) | {"tools": tools, "tool_choice": chosen}),
        ("/v1/messages", _chat(model) | {"tools": inputs, "tool_choice": {"type": rng.choice(("auto", "any"))}}),
        (
            "/v1/responses",
            {"model": model, "input": "Say it.", "tools": flat, "tool_choice": chosen, "max_output_tokens": 16},
        ),
    ]


def _in_grammar(rng: random.Random, model: str, text: str) -> tuple[str, dict[str, Any]]:
    custom = {"type": "grammar", "grammar": {"syntax": "lark", "definition": text}}
    flat = {"type": "grammar", "syntax": "lark", "definition": text}
    tag = {
        "type": "structural_tag",
        "format": {"type": "tag", "begin": "<a>", "end": "</a>", "content": {"type": "grammar", "grammar": text}},
    }
    return rng.choice(
        (
            ("/v1/chat/completions", _chat(model) | {"structured_outputs": {"grammar": text}}),
            ("/v1/chat/completions", _chat(model) | {"grammar": text, "n": rng.choice((1, 1, 4, 16))}),
            ("/v1/completions", {"model": model, "prompt": "a", "max_tokens": MAX_TOKENS, "guided_grammar": text}),
            ("/v1/chat/completions", _chat(model) | {"response_format": tag}),
            (
                "/v1/chat/completions",
                _chat(model)
                | {"tools": [{"type": "custom", "custom": {"name": "f", "format": custom}}], "tool_choice": "required"},
            ),
            (
                "/v1/responses",
                {
                    "model": model,
                    "input": "Say it.",
                    "tools": [{"type": "custom", "name": "f", "format": flat}],
                    "tool_choice": "required",
                    "max_output_tokens": 16,
                },
            ),
        )
    )


def _in_regex(rng: random.Random, model: str, pattern: str) -> tuple[str, dict[str, Any]]:
    if rng.random() < 0.4:
        return _in_schema(rng, model, {"type": "string", "pattern": f"^(?:{pattern})$"})
    body = {"model": model, "prompt": "a", "max_tokens": MAX_TOKENS}
    return rng.choice(
        (
            ("/v1/completions", body | {"guided_regex": pattern}),
            ("/v1/chat/completions", _chat(model) | {"structured_outputs": {"regex": pattern}}),
            ("/v1/completions", body | {"structured_outputs": {"regex": pattern}, "n": 4}),
        )
    )


def _schema_of(draw: Draw) -> Callable[[random.Random, str], tuple[str, dict[str, Any]]]:
    return lambda rng, model: _in_schema(rng, model, draw(rng))


def _grammar_of(draw: Draw) -> Callable[[random.Random, str], tuple[str, dict[str, Any]]]:
    return lambda rng, model: _in_grammar(rng, model, draw(rng))


def _regex_of(draw: Draw) -> Callable[[random.Random, str], tuple[str, dict[str, Any]]]:
    return lambda rng, model: _in_regex(rng, model, draw(rng))


# ── schemas ──


def _chain(rng: random.Random) -> Any:
    """References in a row or a ring, with something around each."""
    count = rng.choice((1, 10, 300, 1500))
    around: Callable[[Any], Any] = rng.choice(
        (
            lambda inner: inner,
            lambda inner: {"type": "array", "items": inner},
            lambda inner: {"type": "object", "properties": {"b": inner}, "required": ["b"]},
            lambda inner: {"anyOf": [inner, {"type": "null"}]},
            lambda inner: {"allOf": [inner, {"type": "object"}]},
            lambda inner: {"oneOf": [inner, {"type": "null"}]},
            lambda inner: {"anyOf": [inner, {"items": inner}, {"properties": {"x": inner}}]},
        )
    )
    found = {f"a{i}": around({"$ref": f"#/$defs/a{i + 1}"}) for i in range(count)}
    last = rng.choice(({"type": "string"}, {"$ref": "#/$defs/a0"}, {"$ref": "#"}, {"$ref": "#/$defs/nowhere"}))
    return {"$ref": "#/$defs/a0", "$defs": found | {f"a{count}": last}}


def _deep(rng: random.Random) -> Any:
    schema: Any = {"type": rng.choice(("integer", "string", "null"))}
    for _ in range(rng.choice((5, 25, 60, 99))):
        key = rng.choice(("allOf", "anyOf", "oneOf", "items", "properties"))
        other = {"type": "string", "pattern": f".*{rng.choice(LETTERS)}.*"}
        schema = {
            key: {"a": schema, "b": other} if key == "properties" else schema if key == "items" else [schema, other]
        }
    return schema


def _product(rng: random.Random) -> Any:
    """allOf of anyOf: llguidance multiplies them out."""
    wide, high = rng.choice(((2, 6), (6, 8), (20, 3), (3, 20)))
    parts = [
        [{"properties": {f"p{i}{j}": {"const": j}}, "required": [f"p{i}{j}"]} for j in range(wide)] for i in range(high)
    ]
    return {"allOf": [{rng.choice(("anyOf", "oneOf")): part} for part in parts]}


def _values(rng: random.Random) -> Any:
    return rng.choice(
        (
            lambda: {"enum": [f"{rng.getrandbits(40):x}" for _ in range(rng.choice((100, 3000, 9000)))]},
            lambda: {"enum": [{"a": [i, str(i), None]} for i in range(3000)]},
            lambda: {"const": rng.choice(LETTERS) * rng.choice((100, 10_000, 100_000))},
            lambda: {"const": [["x" * 50] * 30] * 60},
            lambda: {"enum": ["a" * i for i in range(1, 400)]},
            lambda: {"type": "integer", "multipleOf": rng.choice((7, 9973, 32_749, 99_991, 999_999_937, 1e-9))},
            lambda: {"allOf": [{"type": "integer", "multipleOf": p} for p in rng.sample((7, 31, 89, 97, 83, 101), 3)]},
            lambda: {"properties": {f"k{i}": {"multipleOf": 9973 + i} for i in range(rng.choice((2, 100)))}},
            lambda: {"type": "number", "minimum": -rng.random() * 1e-300, "maximum": rng.random() * 1e300},
            lambda: {
                "type": "string",
                "minLength": rng.choice((1, 50_000, 2**40)),
                "maxLength": rng.choice((0, 2**31)),
            },
        )
    )()


def _objects(rng: random.Random) -> Any:
    count = rng.choice((10, 300, 1500))
    return rng.choice(
        (
            lambda: {"properties": {f"key_{i}": {"type": ["string", "number", "null"]} for i in range(count)}},
            lambda: {"required": [f"r{i}" for i in range(count)]},
            lambda: {"properties": {f"p{i}": {"pattern": "^a{1,50}b*$"} for i in range(count)}},
            lambda: {"patternProperties": {f"^{a}.*{a}$": {"type": "integer"} for a in LETTERS}},
            lambda: {"patternProperties": {f".*{a}.*": {} for a in LETTERS}, "additionalProperties": False},
            lambda: {"minProperties": count, "maxProperties": 10 * count},
            lambda: {"type": "array", "minItems": count, "maxItems": 10**6, "items": {"type": "array", "minItems": 99}},
            lambda: {"prefixItems": [{"enum": list(range(20))}] * count},
            lambda: {"properties": {"a": False}, "required": ["a"]},
            lambda: {"properties": {"a\ud800": {"const": "\udfff"}}},
            lambda: {"properties": {"a\u0000\u202e": {"pattern": "\u0000"}}, "x-guidance": {"lenient": 5}},
            lambda: {
                "anyOf": [
                    {"properties": {f"p{j}": {"pattern": f"^[a-z]{{1,{i + j + 1}}}$"} for j in range(5)}}
                    for i in range(60)
                ]
            },
        )
    )()


def _patterns(rng: random.Random) -> Any:
    """Expressions that all have to hold."""
    lengths = rng.sample((2, 3, 5, 7, 11, 13, 17), rng.randrange(2, 7))
    return rng.choice(
        (
            lambda: {"type": "string", "allOf": [{"pattern": f".*{a}.*"} for a in LETTERS[: rng.randrange(2, 14)]]},
            lambda: {"type": "string", "allOf": [{"pattern": f"^([a-z ]{{{n}}})*$"} for n in lengths]},
            lambda: {"type": "string", "format": "uri", "pattern": ".*a.*b.*", "maxLength": 5000},
            lambda: {"type": "string", "pattern": rng.choice(LETTERS) + ".{30}" + rng.choice(LETTERS)},
        )
    )()


# ── expressions ──

_REGEXES = (
    "^(a+)+$",
    "(a|b|c|d|e){1,1000}",
    "(x{1000}){1000}",
    "(x{1,100}){1,100}",
    ".{1,1000}",
    "(a|b)*a(a|b){12}",
    r"(.|\n)*a(.|\n){20}b.*",
    "[a-z ]*e[a-z ]{14}t[a-z ]*",
    "(a?){500}a{500}",
    "(?i)(straße|ǆ){1,99}",
    r"[^\x00-\x{10FFFF}]",
    r"\p{L}{1,200}",
    r"(\w+\s?)*$",
    "(?=a)b",
    r"(a)\1",
    "[",
    "(((((",
    "a{99999999999}",
    "",
    "$^",
    r"\b\b\b",
    "(?:)*",
    "(.*a){25}",
    "((a{1,9}){1,9}){1,9}",
    r"[\s\S]*[\s\S]*[\s\S]*x",
    "x*" * 1000,
    "(" * 300 + "a" + ")*" * 300,
    "\ud800",
)


def _regex(rng: random.Random) -> str:
    if rng.random() < 0.6:
        return rng.choice(_REGEXES)
    parts = ("a", "b", ".", "[a-z ]", "(a|bb)", r"\w", "(ab?)", "[^x]")
    repeats = ("", "*", "+", "?", "{3}", "{2,9}", "{0,40}", "{100}")
    text = "".join(rng.choice(parts) + rng.choice(repeats) for _ in range(rng.randrange(1, 14)))
    return f"({text}){rng.choice(repeats)}" if rng.random() < 0.5 else text


# ── grammars ──


def _lark(rng: random.Random) -> str:
    count = rng.choice((5, 60, 250, 3000))
    letter, number = rng.choice(LETTERS), rng.randrange(6, 16)
    return rng.choice(
        (
            lambda: 'start: e\ne: e e | "a" | "b" | "ab"\n',
            lambda: f"start: e\ne: e e e | e e | /[{letter}-z]+/ | /[a-z ]/\n",
            lambda: (
                f"start: e*\ne: {' | '.join(f'T{i}' for i in range(count))}\n"
                + "".join(f"T{i}: /[a-z]{{0,{i}}}{letter}[a-z ]*/\n" for i in range(count))
            ),
            lambda: (
                "start: r0\n"
                + "".join(f'r{i}: r{i + 1} r{i + 1} | "{letter}"\n' for i in range(count))
                + f'r{count}: "b"\n'
            ),
            lambda: (
                "start: r0\n" + "".join(f"r{i}: r{i + 1}? r{i + 1}?\n" for i in range(count)) + f"r{count}: /[a-z ]/\n"
            ),
            lambda: 'start: p\np: "a" p "a" | "b" p "b" | /[ab ]/ p /[ab ]/ | ""\n',
            lambda: (
                "start: T\nT: " + " & ".join(f"/([a-z ]{{{n}}})*/" for n in rng.sample((2, 3, 5, 7, 11, 13), 4)) + "\n"
            ),
            lambda: f"start: T\nT: /.*/ & ~/.*foo.*/ & ~/(?s:.*){letter}.{{{number}}}z(?s:.*)/\n",
            lambda: f'start: (lz "x")*\nlz[lazy]: /(?s:.*){letter}.{{{number}}}b/\n',
            lambda: "start: " + "(" * count + '"a"' + ")*" * count + "\n",
            lambda: (
                "start: T0\n" + "".join(f"T{i}: T{i + 1} T{i + 1}\n" for i in range(min(count, 250))) + 'T250: "b"\n'
            ),
            lambda: "start: s\ns: s\n",
            lambda: 'start: s\ns: s "a"\n',
            lambda: 'start: "a" start\n',
            lambda: "start: /[^\\x00-\\x{10FFFF}]/\n",
            lambda: f'start: "{letter * rng.choice((50, 5000, 60_000))}"\n',
            lambda: f"start: /{letter}*/ /{letter}*/ /{letter}*/ /{letter}*/\n",
            lambda: "start: " + "%lark { start: " * count + '"a"' + " }" * count + "\n",
            lambda: 'start: %json {"items":' + '{"items":' * count + "true" + "}" * count + "}\n",
            lambda: 'start: "' + "\ud800" + '"\n',
            lambda: f"start: <[{rng.choice((0, 1, 2, 10**9))}]>*\n",
            lambda: "start: <|im_end|>+\n",
        )
    )()


def _gbnf(rng: random.Random) -> str:
    count = rng.choice((3, 40, 250, 400))
    return rng.choice(
        (
            lambda: 'root ::= root "a" | root root | "b"',
            lambda: (
                "root ::= r0\n"
                + "".join(f'r{i} ::= r{i + 1} r{i + 1} | "a"\n' for i in range(count))
                + f'r{count} ::= "b"'
            ),
            lambda: "root ::= " + "(" * count + '"a"' + ")*" * count,
            lambda: "root ::= " + " | ".join(f'"{rng.getrandbits(30):x}"' for _ in range(10 * count)),
            lambda: "root ::= [^\\x00-\\U0010FFFF]",
            lambda: "root ::= " + "[a-z]{1,9999}" * 9,
            lambda: "root ::= " + "a" * 30_000,
            lambda: 'root ::= ("a" | "b")* "a" ("a" | "b"){12}',
        )
    )()


# ── others ──


def _tags(rng: random.Random, model: str) -> tuple[str, dict[str, Any]]:
    count = rng.choice((1, 30, 1024, 1025))
    content = rng.choice(({"type": "any_text"}, {"type": "json_schema", "json_schema": _deep(rng)}))
    tags = [
        {"type": "tag", "begin": f"<t{i}>", "content": content, "end": rng.choice(("", "</t>"))} for i in range(count)
    ]
    form: Any = rng.choice(
        (
            {"type": "triggered_tags", "triggers": [f"<t{i}" for i in range(10)], "tags": tags},
            {"type": "tags_with_separator", "tags": tags, "separator": rng.choice(("", ","))},
            {"type": "or", "elements": tags},
            {"type": "sequence", "elements": tags},
        )
    )
    for _ in range(rng.choice((0, 3, 55))):
        form = {"type": "sequence", "elements": [form]}
    return "/v1/chat/completions", _chat(model) | {"response_format": {"type": "structural_tag", "format": form}}


def _tokens(rng: random.Random, model: str) -> tuple[str, dict[str, Any]]:
    extra: dict[str, Any] = rng.choice(
        (
            {"allowed_token_ids": rng.choice(([], [0], [2], [10**9], [-1], [5] * 16_384, list(range(16_385))))},
            {
                "bad_words": [
                    rng.choice(("", " ", "a", "\ud800", "the " * 500)) for _ in range(rng.choice((1, 256, 257)))
                ]
            },
            {"bad_words": [f"w{i}" for i in range(256)], "allowed_token_ids": [28, 29, 30], "n": 16},
            {"structured_outputs": {"regex": "a"}, "allowed_token_ids": [5]},
            {"structured_outputs": {"choice": [f"option {i} of many" for i in range(rng.choice((1, 4096, 4097)))]}},
            {"structured_outputs": {"choice": ["a" * i for i in range(1, 500)]}, "min_tokens": 3},
            {"structured_outputs": {"json": {}, "regex": "a"}},
            {"thinking_token_budget": rng.choice((0, 1, 2**40)), "reasoning_effort": "low"},
        )
    )
    return "/v1/completions", {"model": model, "prompt": "a", "max_tokens": MAX_TOKENS} | extra


def _many_tools(rng: random.Random, model: str) -> tuple[str, dict[str, Any]]:
    count = rng.choice((128, 1024, 1025))
    one: Any = {"type": "object", "properties": {f"p{i}": {"type": "string", "maxLength": i} for i in range(8)}}
    tools = [
        {"type": "function", "function": {"name": f"f{rng.getrandbits(50):x}", "parameters": one}} for _ in range(count)
    ]
    return "/v1/chat/completions", _chat(model) | {
        "tools": tools,
        "tool_choice": rng.choice(("auto", "required", "none")),
    }


def _broken(rng: random.Random, model: str) -> tuple[str, dict[str, Any]]:
    """A body of a megabyte, invalid UTF-8, or JSON nested in text."""
    whole = to_json(
        _chat(model) | {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": "@"}}}
    )
    inner: bytes = rng.choice(
        (
            b'"\xff\xfe\xed\xa0\x80"',
            b'{"enum":[' + b",".join(b'"%d"' % i for i in range(120_000)) + b"]}",
            b'{"anyOf":[' * 5000 + b"1" + b"]}" * 5000,
            b'{"items":' * 62 + b"{}" + b"}" * 62,
            json.dumps(json.dumps({"pattern": "a" * 400_000})).encode(),
            b'{"description":"' + b"x" * 10**6 + b'"}',
            b'{"minimum":1e999,"maximum":' + b"9" * 4500 + b"}",
        )
    )
    return "/v1/chat/completions", {"raw": whole.replace(b'"@"', inner)}


_KINDS: dict[str, Callable[[random.Random, str], tuple[str, dict[str, Any]]]] = {
    "references": _schema_of(_chain),
    "deep": _schema_of(_deep),
    "product": _schema_of(_product),
    "values": _schema_of(_values),
    "objects": _schema_of(_objects),
    "patterns": _schema_of(_patterns),
    "expression": _regex_of(_regex),
    "lark": _grammar_of(_lark),
    "gbnf": _grammar_of(_gbnf),
    "structural tag": _tags,
    "tokens": _tokens,
    "many tools": _many_tools,
    "broken": _broken,
}
