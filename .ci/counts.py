"""Instructions of fixed steps of the native kernels, counted under valgrind and held against counts.json.

    .venv/bin/python .ci/counts.py            exit code 1 if a step takes 3 % more instructions than it did, or less
    .venv/bin/python .ci/counts.py --write    what it takes now is from now on what it should

A count does not depend on what else the machine does, so a kernel that became slower is seen where clocks see nothing.
It depends on the compiler, which counts.json names, and on the instruction set. Valgrind knows AVX2 and nothing above
it: the counts are of the AVX2 kernels, on one thread, also where a CPU has AVX-512 or AMX. Their kernels share the
loops and differ in the vectors (`linear/vector.h`); what only they have (`native/amx.h`) no count covers. Instructions
are not time either: what waits for memory counts nothing more.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from octavo_kernels.decoder import NativeDecoder, PackedKV, PackedModel
    from octavo_kernels.linear import PackedWeight
    from octavo_kernels.native.library import Library

LEVEL = "avx2"
BOUND = 0.03
FILE = Path(__file__).with_name("counts.json")
HIDDEN, INNER, HEADS, KV_HEADS, HEAD_DIM, VOCAB, LAYERS = 512, 1536, 8, 2, 64, 4096, 2
BLOCK, CONTEXT = 16, 256

Step = Callable[[], object]
Counts = dict[str, int]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="keep what is counted as what should be")
    parser.add_argument("--steps", metavar="LIBRARY", help=argparse.SUPPRESS)  # inside valgrind
    given = parser.parse_args()
    if given.steps:
        run_steps(Path(given.steps))
        return
    if missing := what_is_missing():
        print(f"Nothing was counted: {missing}.")
        return
    found = {"compiler": compiler(), "level": LEVEL, "instructions": count()}
    if given.write:
        FILE.write_text(json.dumps(found, indent=1) + "\n")
    expected = json.loads(FILE.read_text())
    if expected["compiler"] != found["compiler"]:
        print(f"Not compared: {FILE.name} has the counts of {expected['compiler']}, this is {found['compiler']}.")
        return
    faults = differences(expected["instructions"], found["instructions"])
    print(table(expected["instructions"], found["instructions"]))
    print("\n".join(faults) or f"All within {BOUND:.0%} of {FILE.name}.")
    sys.exit(1 if faults else 0)


# ---- comparing ----------------------------------------------------------------------------------------------------


def differences(expected: Counts, found: Counts) -> list[str]:
    """A sentence for each step that takes more than it should, or less, or that only one side has."""
    said = [f"{name}: only {side} has it" for side, name in _alone(expected, found)]
    for name in expected.keys() & found.keys():
        change = found[name] / expected[name] - 1
        if change > BOUND:
            said.append(f"{name}: {change:+.1%} instructions: it became slower; or --write them, and say why")
        elif change < -BOUND:
            said.append(f"{name}: {change:+.1%} instructions: it became faster, so --write them")
    return sorted(said)


def _alone(expected: Counts, found: Counts) -> Iterator[tuple[str, str]]:
    yield from ((FILE.name, name) for name in expected.keys() - found.keys())
    yield from (("this run", name) for name in found.keys() - expected.keys())


def table(expected: Counts, found: Counts) -> str:
    lines = [f"{'instructions':>32} {'expected':>14} {'found':>14}"]
    for name in found:
        before = expected.get(name)
        change = "" if before is None else f"{found[name] / before - 1:+8.2%}"
        lines.append(f"{name:>32} {before or 0:>14,} {found[name]:>14,} {change}")
    return "\n".join(lines)


# ---- counting -----------------------------------------------------------------------------------------------------


def what_is_missing() -> str | None:
    """Why nothing can be counted here."""
    from octavo_kernels.native.library import supported_levels

    if shutil.which("valgrind") is None:
        return "there is no valgrind (apt-get install valgrind)"
    if LEVEL not in supported_levels():
        return f"this CPU has no {LEVEL}"
    return None


def compiler() -> str:
    """The first line of what the kernels' compiler says of itself."""
    from octavo_kernels.native.build import find_compiler

    said = subprocess.run([find_compiler(), "--version"], capture_output=True, text=True, check=True).stdout
    return said.splitlines()[0]


def count() -> Counts:
    """Instructions of each step. The library is compiled first, outside of valgrind."""
    from octavo_kernels.native.build import find_compiler, library_path

    library_path(LEVEL)
    with tempfile.TemporaryDirectory() as folder:
        marks = Path(folder) / "marks.so"
        command = [find_compiler(), "-shared", "-fPIC", "-O1", "-x", "c++", "-", "-o", str(marks)]
        subprocess.run(command, input=MARKS, text=True, check=True)
        valgrind = ["valgrind", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={folder}/counts"]
        subprocess.run(
            [*valgrind, sys.executable, __file__, "--steps", str(marks)], check=True, stderr=subprocess.DEVNULL
        )
        return dict(sorted(read(file) for file in Path(folder).glob("counts.*")))


MARKS = """
#include <valgrind/callgrind.h>
extern "C" void begin() { CALLGRIND_START_INSTRUMENTATION; CALLGRIND_ZERO_STATS; }
extern "C" void end(const char* name) { CALLGRIND_DUMP_STATS_AT(name); CALLGRIND_STOP_INSTRUMENTATION; }
"""
"""Requests to valgrind, which are no-ops elsewhere."""


def read(file: Path) -> tuple[str, int]:
    """Name and instructions of one dump."""
    text = file.read_text()
    name, total = re.search(r"Client Request: (.*)", text), re.search(r"^(?:summary|totals): (\d+)", text, re.MULTILINE)
    if name is None or total is None:
        raise SystemExit(f"{file} is no dump of callgrind")
    return name[1], int(total[1])


def run_steps(marks: Path) -> None:
    """Inside valgrind: every step once to make room and once counted."""
    import ctypes

    from octavo_kernels.native.library import Library

    library, marker = Library(LEVEL), ctypes.CDLL(str(marks))
    library.set_threads(1)
    for name, step in steps(library):
        step()
        marker.begin()
        step()
        marker.end(name.encode())


# ---- the steps ----------------------------------------------------------------------------------------------------


def steps(library: Library) -> Iterator[tuple[str, Step]]:
    """What is counted: whole steps of a small decoder in each kind of arithmetic, and what comes after them."""
    for name, format_, precision, kv in (
        ("bf16", "BF16", "FAST", "bfloat16"),
        ("Q8_0", "Q8_0", "FAST", "int8"),
        ("Q4_1", "Q4_1", "FAST", "bfloat16"),
        ("Q4_1 exact", "Q4_1", "EXACT", "float32"),
        ("Q4_1 twice", "Q4_1", "TWICE", "float32"),
        ("Q4_K", "Q4_K", "FAST", "bfloat16"),
    ):
        decoder = make_decoder(library, format_, precision, kv)
        yield f"{name}, 32 tokens of a prompt", lambda decoder=decoder: prefill(decoder, 32)
        yield f"{name}, 1 sequence", lambda decoder=decoder: decode(decoder, 1)
        yield f"{name}, 8 sequences", lambda decoder=decoder: decode(decoder, 8)
    yield from after_decoder(library)


def prefill(decoder: NativeDecoder, tokens: int) -> None:
    ids = np.arange(tokens, dtype=np.int32)
    _run(decoder, ids, [0, tokens], [tokens])


def decode(decoder: NativeDecoder, sequences: int) -> None:
    """One token each, after a context that nobody wrote: attention's instructions do not depend on values."""
    _run(decoder, np.arange(sequences, dtype=np.int32), list(range(sequences + 1)), [CONTEXT] * sequences)


def _run(decoder: NativeDecoder, ids: np.ndarray, starts: list[int], contexts: list[int]) -> None:
    blocks = CONTEXT // BLOCK
    tables = np.arange(len(contexts) * blocks, dtype=np.int32).reshape(len(contexts), blocks)
    last = np.array(starts[1:], np.int64) - 1
    decoder.step(ids, np.array(starts, np.int32), np.array(contexts, np.int32), tables, last, whole=False)


def after_decoder(library: Library) -> Iterator[tuple[str, Step]]:
    rng, rows, vocab = np.random.default_rng(1), 4, 32000
    logits = rng.normal(size=(rows, vocab)).astype(np.float32)
    order, tokens, found = np.arange(rows), np.zeros(rows, np.int64), np.empty(rows, np.int64)
    norms, ones = np.empty(rows, np.float32), np.ones(rows, np.float32)
    for name, temperature, top_k, top_p in (
        ("greedy", 0.0, 0, 1.0),
        ("top-k 50", 1.0, 50, 1.0),
        ("top-p", 1.0, 0, 0.9),
    ):
        knobs = ones * np.float32(temperature), np.full(rows, top_k, np.int32), ones * np.float32(top_p), 0 * ones
        seeds = np.arange(rows, dtype=np.uint64), order, np.full(rows, -1, np.int32), None, 0
        arguments = logits, vocab, rows, order, *knobs, *seeds, found
        yield f"sampling, {name}", lambda arguments=arguments: library.call("sample", *arguments)
    log_norms = logits, vocab, rows, order, tokens, norms, found
    yield "log probabilities", lambda: library.call("log_norms", *log_norms)


# ---- a small decoder ----------------------------------------------------------------------------------------------


def make_decoder(library: Library, format_: str, precision: str, kv: str) -> NativeDecoder:
    from octavo_kernels.decoder import NativeDecoder, PackedKV
    from octavo_kernels.linear.formats import Precision

    cache: PackedKV = PackedKV(LAYERS, 8 * CONTEXT // BLOCK, BLOCK, KV_HEADS, HEAD_DIM, kv)  # type: ignore[arg-type]
    return NativeDecoder(library, make_model(format_), cache, precision=Precision[precision])


def make_model(format_: str) -> PackedModel:
    from octavo_kernels.decoder import PackedLayer, PackedLinear, PackedModel

    rng = np.random.default_rng(0)

    def linear(n: int, k: int = HIDDEN) -> PackedLinear:
        return PackedLinear(matrix(rng, format_, n, k))

    norm = np.ones(HIDDEN, np.float32)
    angles = np.outer(np.arange(CONTEXT), 10000 ** (-np.arange(HEAD_DIM // 2) / (HEAD_DIM // 2)))
    rotary = np.concatenate([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    layers = [
        PackedLayer(
            *(linear(HEADS * HEAD_DIM), linear(KV_HEADS * HEAD_DIM), linear(KV_HEADS * HEAD_DIM)),
            *(linear(HIDDEN, HEADS * HEAD_DIM), linear(INNER), linear(INNER), linear(HIDDEN, INNER)),
            *(norm, norm, None, None, None, None, rotary, None),
        )
        for _ in range(LAYERS)
    ]
    head = linear(VOCAB)
    return PackedModel(
        *(head.weight, head, norm, layers, HEADS, KV_HEADS, HEAD_DIM, "silu", False, None),
        *(1e-5, HEAD_DIM**-0.5, None, None, 1.0),
    )


def matrix(rng: np.random.Generator, format_: str, n: int, k: int) -> PackedWeight:
    """Random codes under small scales, or small floats."""
    from octavo_kernels.linear import PackedWeight
    from octavo_kernels.linear.formats import GROUPED
    from octavo_kernels.linear.pack import pack_floats

    if format_ == "BF16":
        packed = PackedWeight.empty(format_, n, k)
        values = rng.normal(scale=0.02, size=(n, k)).astype(np.float32)
        pack_floats((values.view(np.uint32) >> 16).astype(np.uint16), format_, packed.data)
        return packed
    form = GROUPED[format_]
    blocks = rng.integers(0, 256, (n, k // form.unit, form.block_bytes), dtype=np.uint8)
    floats = {"Q8_0": 1, "Q4_1": 2, "Q4_K": 2}[format_]
    blocks[..., : 2 * floats] = np.full(floats, 0.001, np.float16).view(np.uint8)
    return PackedWeight.from_blocks(blocks.reshape(n, -1), format_)


if __name__ == "__main__":
    main()
