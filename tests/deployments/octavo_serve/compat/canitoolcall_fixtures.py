"""Runs the fixtures of canitoolcall (PyPI; 0.1.1 has 469) against the parser, and says what share passes, by family.

    pip download --no-deps canitoolcall==0.1.1 && unzip -d FOLDER canitoolcall-*.whl
    PYTHONPATH=FOLDER python tests/deployments/octavo_serve/compat/canitoolcall_fixtures.py [PATTERN]

The fixtures name tokenizers of many gigabytes of models, which are not needed: which of an output's markers are
tokens is worked out from the ids beside it (see `with_marks`), and all else is cut into pieces of characters, which is
finer than tokens. PATTERN shows what is wrong with the fixtures whose ids match it.
"""

from __future__ import annotations

import collections
import fnmatch
import random
import re
import sys
from collections.abc import Sequence
from functools import cache
from typing import Any

from canitoolcall.checks import case_status, run_checks
from canitoolcall.fixtures import load_fixtures
from canitoolcall.results import Observation, ParsedToolCall, ParseResult
from canitoolcall.runner import family_for

from octavo.text.responses.bound import BoundTemplate
from octavo.text.responses.families import builtin
from octavo.text.responses.parser import ResponseParser, properties
from octavo.text.responses.patterns import marked

TEMPLATES = {
    "Qwen/Qwen3-Coder*": "qwen3_xml",
    "Qwen/Qwen3.[5-9]*": "qwen3_xml",
    "Qwen/Qwen3-*": "hermes",
    "zai-org/*": "glm",
    "openai/*": "gpt_oss",
    "moonshotai/Kimi-K2*": "kimi_k2",
    "moonshotai/Kimi-K3*": "kimi_k3",
    "google/gemma*": "gemma",
    "mistralai/Mistral-7B-Instruct-v0.3": "mistral_v3",
    "mistralai/*": "mistral",
    "deepseek-ai/DeepSeek-V3-0324": "deepseek_r1",
    "deepseek-ai/DeepSeek-V3.1": "deepseek_v31",
    "deepseek-ai/*": "deepseek_dsml",
    "meta-llama/Llama-3*": "llama3_json",
    "meta-llama/Llama-4*": "pythonic",
}
PLAIN = {"<function=", "</function>", "<parameter=", "</parameter>"}
"""Markers that are no tokens."""
MORE = {
    "glm": ["<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"],
    "gemma4": ['<|"|>', "<|tool_call>", "<tool_call|>", "<|channel>", "<channel|>"],
    "deepseek": ["｜DSML｜"],
}
"""Tokens that a family does not list among its markers."""


@cache
def template(name: str, tokens: tuple[str, ...]) -> BoundTemplate:
    return BoundTemplate(builtin(name), {token: number for number, token in enumerate(tokens)})


def ids_of_markers(fixtures: Sequence[Any], markers: Sequence[str]) -> dict[tuple[str, str], int]:
    """(model, marker) -> token id: one that is there as often as the marker is spelled, and at the same places."""
    found: dict[tuple[str, str], int] = {}
    for model in {fixture.models[0] for fixture in fixtures}:
        own = [fixture for fixture in fixtures if fixture.models[0] == model and fixture.output_token_ids]
        scores = []
        for marker in markers:
            votes: collections.Counter[int] = collections.Counter()
            for fixture in own:
                ids, text = fixture.output_token_ids, fixture.raw_output
                spelled = [found.start() / len(text) for found in re.finditer(re.escape(marker), text)]
                places = collections.defaultdict(list)
                for place, token in enumerate(ids):
                    places[token].append(place / len(ids))
                for token, at in places.items():
                    if len(at) == len(spelled):
                        votes[token] += 1 - max(abs(a - b) for a, b in zip(at, spelled, strict=True))
                    elif len(at) > len(spelled):
                        votes[token] -= 3
            scores += [(score, marker, token) for token, score in votes.items() if score > 0]
        taken: set[int] = set()
        for _, marker, token in sorted(scores, reverse=True):
            if (model, marker) not in found and token not in taken:
                found[model, marker] = token
                taken.add(token)
    return found


def with_marks(fixture: Any, ids: dict[tuple[str, str], int], names: dict[str, str]) -> str:
    """The output with marks where its markers are tokens."""
    text, marks = fixture.raw_output, {name: mark for mark, name in names.items()}
    known = {token: marker for (model, marker), token in ids.items() if model == fixture.models[0] and marker in marks}
    places = [(found.start(), found[0]) for found in re.finditer("|".join(map(re.escape, marks)) or "(?!)", text)]
    tokens = [(i, known[token]) for i, token in enumerate(fixture.output_token_ids or ()) if token in known]
    spelled = [marker for _, marker in places]
    if spelled == [marker for _, marker in tokens] or not tokens:
        return marked(text, marks)
    chosen = _aligned(places, tokens, len(text) / max(1, len(fixture.output_token_ids)))
    if not chosen:
        return marked(text, marks)
    pieces, end = [], 0
    for place in chosen:
        begin, marker = places[place]
        pieces += [text[end:begin], marks[marker]]
        end = begin + len(marker)
    return "".join([*pieces, text[end:]])


def _aligned(places: list[tuple[int, str]], tokens: list[tuple[int, str]], size: float) -> list[int]:
    """Which of the places the tokens are: those nearest to where tokens of the mean size would put them."""
    costs: dict[int, tuple[float, list[int]]] = {-1: (0.0, [])}
    for number, marker in tokens:
        following = {}
        for place, (at, spelled) in enumerate(places):
            before = [way for last, way in costs.items() if last < place]
            if spelled == marker and before:
                following[place] = min((cost + abs(at - number * size), [*way, place]) for cost, way in before)
        costs = following
    return min(costs.values())[1] if costs else []


def parsed(fixture: Any, bound: BoundTemplate, prompt: str, pieces: Sequence[str]) -> ParseResult:
    tools = [tool["function"] for tool in fixture.tools]
    parser = ResponseParser(bound, properties(tools), prompt)
    parts = [part for piece in pieces for part in parser.push(piece)]
    parts += parser.finish(cut="truncated" in fixture.tags)
    calls: list[list[str]] = []
    for part in parts:
        if part.kind == "call":
            calls.append([part.text, ""])
        elif part.kind == "arguments":
            calls[-1][1] += part.text
    texts = {kind: "".join(p.text for p in parts if p.kind == kind) or None for kind in ("content", "reasoning")}
    return ParseResult(texts["content"], texts["reasoning"], tuple(ParsedToolCall(*call) for call in calls))


def split(text: str, most: int, seed: int) -> list[str]:
    draw, pieces = random.Random(seed), []
    while text:
        size = draw.randint(1, most)
        pieces.append(text[:size])
        text = text[size:]
    return pieces


def main(pattern: str = "") -> None:
    fixtures = load_fixtures()
    passed: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for slug in sorted({fixture.family for fixture in fixtures}):
        own = [fixture for fixture in fixtures if fixture.family == slug]
        family = family_for(own[0])
        markers = [m for m in [*family.markers, *MORE.get(slug, [])] if m not in PLAIN]
        if slug == "deepseek":
            markers = [m for m in markers if "DSML" not in m or m == "｜DSML｜"]
        ids = ids_of_markers(own, markers)
        for fixture in own:
            model = fixture.models[0]
            name = next(name for models, name in TEMPLATES.items() if fnmatch.fnmatch(model, models))
            bound = template(name, tuple(sorted(m for m in markers if (model, m) in ids or m in fixture.raw_output)))
            text = with_marks(fixture, ids, dict(bound.names))
            reference = next((r for r in family.reference_models if r.repo == model), None)
            default = reference.default_generation_prompt if reference is not None else None
            prompt = fixture.generation_prompt or default or ""
            splits = {"one": [text], "char:0": list(text), **{f"rand:{i}:8": split(text, 8, i) for i in range(1, 6)}}
            whole = parsed(fixture, bound, prompt, [text])
            seen = Observation(whole, {name: parsed(fixture, bound, prompt, cut) for name, cut in splits.items()})
            rows = run_checks(fixture, family, seen)
            status = case_status(rows).value
            passed[slug][status] += 1
            if pattern and fnmatch.fnmatch(fixture.id, pattern) and status != "pass":
                wrong = {(row.check, row.detail) for row in rows if row.status.value == status}
                print(f"{status} {fixture.id} [{name}]\n  marked {text!r:.600}\n  got {whole}"[:1900])
                print(*(f"  {check}: {detail}" for check, detail in sorted(wrong, key=str)[:3]), sep="\n")
    total = sum(passed.values(), collections.Counter())
    for slug, counts in [*passed.items(), ("all", total)]:
        print(f"{slug:14}{sum(counts.values()):5}  {dict(counts)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
