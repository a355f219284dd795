"""How fast each op is, beside what the machine can do and what torch does.

    python -m octavo_kernels.bench                      on a GPU if there is one, else what runs on the CPU
    python -m octavo_kernels.bench --op paged_attention,linear --out results

First the ceilings are measured: copying a large tensor (GB/s) and multiplying large matrices (TFLOP/s). A case says how
many bytes it must move and how many operations it must do; the larger of the two times at the ceilings is the least it
can take, and `of_ceiling` is that over what it took. An op and its rival run in turns, so that a neighbour on the
machine slows both alike; medians are printed, and as JSON in the last line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from octavo_kernels.activation import silu_mul
from octavo_kernels.fixed_linear import fixed_linear
from octavo_kernels.kv_cache import KVScales
from octavo_kernels.kv_store import kv_store
from octavo_kernels.linear import PackedWeight, linear
from octavo_kernels.linear.blocks import BlockWeight
from octavo_kernels.linear.formats import GROUPED
from octavo_kernels.linear.grouped import quantize_float8, quantize_grouped
from octavo_kernels.linear.quantized import QuantizedWeight, quantized_linear
from octavo_kernels.moe import moe, route
from octavo_kernels.moe.reference import moe as moe_in_torch
from octavo_kernels.native.library import library, use_cpu
from octavo_kernels.paged_attention import PagedBatch, paged_attention
from octavo_kernels.qkv_rope_store import qkv_rope_store
from octavo_kernels.rms_norm import add_rms_norm
from octavo_kernels.rotary import rotary_
from octavo_kernels.sampling import sample_tensors

BLOCK = 16  # tokens per KV block


@dataclass(frozen=True, slots=True)
class Size:
    """What the cases are like: an 8B Llama's layers on a GPU, something smaller on a CPU, next to nothing in tests."""

    hidden: int
    inner: int
    heads: tuple[int, int]
    dim: int
    rows: tuple[int, ...]  # of activations: decoding ones, and a chunk of prompts
    decodes: tuple[tuple[int, int], ...]  # (sequences, context) of attention
    prefill: int  # tokens of a prompt
    copy_bytes: int
    matmul: int


SIZES = {
    "gpu": Size(4096, 14336, (32, 8), 128, (1, 16, 64, 256, 2048), ((1, 8192), (64, 2048), (256, 1024)), 8192,
                2**30, 8192),
    "cpu": Size(2048, 4096, (16, 4), 64, (1, 16, 64, 512), ((1, 4096), (16, 1024)), 512, 2**27, 1024),
    "tiny": Size(64, 96, (4, 2), 16, (1, 8), ((1, 40), (3, 20)), 24, 2**16, 64),
}  # fmt: skip


@dataclass(slots=True)
class Case:
    """One op on one shape.

    Attributes:
        run: does it once.
        moved: bytes that must be read and written at least.
        operations: floating-point operations, two for a multiplication with its addition.
        rivals: other ways to the same result.
    """

    op: str
    shape: str
    run: Callable[[], object]
    moved: int
    operations: int = 0
    rivals: dict[str, Callable[[], object]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Measured:
    """Medians over the rounds."""

    op: str
    shape: str
    microseconds: float
    gb_per_s: float
    tflop_per_s: float
    of_ceiling: float
    rivals: dict[str, float]  # microseconds


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What the machine can do."""

    gb_per_s: float
    tflop_per_s: float


class Bench:
    """Times cases on one device.

    Args:
        rounds: how often each is timed.
    """

    def __init__(self, device: str, rounds: int, size: Size, dtype: torch.dtype) -> None:
        self.device, self.rounds, self.size, self.dtype = device, rounds, size, dtype
        # Larger than any cache: written between two runs, it sends everything else out.
        self._flush = torch.empty(size.copy_bytes // 4, dtype=torch.uint8, device=device)

    def ceilings(self) -> Ceilings:
        """Bandwidth of a copy (read and written bytes), and rate of a product of square matrices of the cases' type."""
        source = torch.empty(self.size.copy_bytes, dtype=torch.uint8, device=self.device)
        target, n = torch.empty_like(source), self.size.matmul
        a, b = (torch.randn(n, n, device=self.device, dtype=self.dtype) for _ in range(2))
        copy, product = self._best([lambda: target.copy_(source), lambda: a @ b])
        return Ceilings(2 * source.nbytes / copy / 1e9, 2 * n**3 / product / 1e12)

    def measure(self, case: Case, ceilings: Ceilings) -> Measured:
        own, *others = self._medians([case.run, *case.rivals.values()])
        least = max(case.moved / ceilings.gb_per_s / 1e9, case.operations / ceilings.tflop_per_s / 1e12)
        return Measured(
            op=case.op,
            shape=case.shape,
            microseconds=own * 1e6,
            gb_per_s=case.moved / own / 1e9,
            tflop_per_s=case.operations / own / 1e12,
            of_ceiling=least / own,
            rivals={name: seconds * 1e6 for name, seconds in zip(case.rivals, others, strict=True)},
        )

    def _medians(self, runs: list[Callable[[], object]]) -> list[float]:
        return [statistics.median(column) for column in zip(*self._rounds(runs), strict=True)]

    def _best(self, runs: list[Callable[[], object]]) -> list[float]:
        return [min(column) for column in zip(*self._rounds(runs), strict=True)]

    def _rounds(self, runs: list[Callable[[], object]]) -> list[list[float]]:
        for run in runs:  # compiles, packs, allocates
            run()
        return [[self._seconds(run) for run in runs] for _ in range(self.rounds)]

    def _seconds(self, run: Callable[[], object]) -> float:
        self._flush.zero_()
        if self.device == "cpu":
            begin = time.perf_counter()
            run()
            return time.perf_counter() - begin
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        # half a millisecond in which the launches queue up: the GPU never waits for them
        torch.cuda._sleep(1_000_000)  # type: ignore[no-untyped-call]
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        return float(start.elapsed_time(end)) / 1e3


# ---- the cases ------------------------------------------------------------------------------------------------------


def _add_rms_norm(bench: Bench, rows: int) -> Case:
    hidden = bench.size.hidden
    x, residual = _noise(bench, rows, hidden), _noise(bench, rows, hidden)
    weight = torch.ones(hidden, device=bench.device)
    return Case(
        "add_rms_norm",
        f"{rows} x {hidden}",
        lambda: add_rms_norm(x, residual, weight, 1e-5),
        4 * x.nbytes,
        rivals={"torch": lambda: F.rms_norm(x + residual, (hidden,), weight.to(x.dtype), 1e-5)},
    )


def _silu_mul(bench: Bench, rows: int) -> Case:
    inner = bench.size.inner
    x = _noise(bench, rows, 2 * inner)
    return Case(
        "silu_mul",
        f"{rows} x {2 * inner}",
        lambda: silu_mul(x),
        x.nbytes * 3 // 2,
        rivals={"torch": lambda: F.silu(x[:, :inner]) * x[:, inner:]},
    )


def _rotary(bench: Bench, rows: int) -> Case:
    (heads, kv_heads), dim = bench.size.heads, bench.size.dim
    table, positions = torch.randn(rows, dim, device=bench.device), torch.arange(rows, device=bench.device)
    q, k = _noise(bench, rows, heads, dim), _noise(bench, rows, kv_heads, dim)
    return Case("rotary", f"{rows} tokens", lambda: rotary_(q, k, positions, table), 2 * (q.nbytes + k.nbytes))


def _kv_store(bench: Bench, rows: int) -> Case:
    (_, kv_heads), dim = bench.size.heads, bench.size.dim
    k, v = _noise(bench, rows, kv_heads, dim), _noise(bench, rows, kv_heads, dim)
    caches = [_noise(bench, -(-rows // BLOCK), BLOCK, kv_heads, dim) for _ in range(2)]
    slots = torch.randperm(rows, device=bench.device)
    return Case("kv_store", f"{rows} tokens", lambda: kv_store(k, v, caches[0], caches[1], slots), 4 * k.nbytes)


def _qkv_rope_store(bench: Bench, rows: int) -> Case:
    (heads, kv_heads), dim = bench.size.heads, bench.size.dim
    table, positions = torch.randn(rows, dim, device=bench.device), torch.arange(rows, device=bench.device)
    qkv = _noise(bench, rows, (heads + 2 * kv_heads) * dim)
    k, v = (_noise(bench, -(-rows // BLOCK), BLOCK, kv_heads, dim) for _ in range(2))
    return Case(
        "qkv_rope_store",
        f"{rows} tokens",
        lambda: qkv_rope_store(qkv, k, v, positions, positions, cos_sin=table),
        2 * qkv.nbytes,
    )


def _attention(bench: Bench) -> Iterator[Case]:
    for sequences, context in bench.size.decodes:
        yield _attention_case(bench, sequences, 1, context)
    for codes in (torch.int8, torch.float8_e4m3fn):
        yield _attention_case(bench, sequences, 1, context, codes)
    yield _attention_case(bench, 1, bench.size.prefill, bench.size.prefill)
    yield _attention_case(bench, 4, bench.size.prefill // 4, bench.size.prefill // 2)


def _attention_case(bench: Bench, sequences: int, queries: int, context: int, codes: torch.dtype | None = None) -> Case:
    """`queries` tokens at the end of each context; torch has K and V in one piece, which paged caches have not."""
    (heads, kv_heads), dim = bench.size.heads, bench.size.dim
    blocks = -(-context // BLOCK)
    q = _noise(bench, sequences * queries, heads, dim)
    k, v = (_noise(bench, sequences * blocks, BLOCK, kv_heads, dim) for _ in range(2))
    tables = np.random.default_rng(0).permutation(sequences * blocks).reshape(sequences, blocks)
    layout = np.arange(sequences + 1) * queries, np.full(sequences, context), tables, BLOCK, bench.device
    batch, invariant = PagedBatch.build(*layout), PagedBatch.build(*layout, split_keys=512)
    dense_q = q.view(sequences, queries, heads, dim).transpose(1, 2)
    dense_k, dense_v = (x.view(sequences, -1, kv_heads, dim)[:, :context].transpose(1, 2).contiguous() for x in (k, v))
    mask = torch.ones(queries, context, dtype=torch.bool, device=bench.device).tril(context - queries)
    kind: dict[str, Any] = {"is_causal": True} if queries == context else {} if queries == 1 else {"attn_mask": mask}
    seen = sequences * (queries * context - queries * (queries - 1) // 2)
    scales: KVScales | None = None
    if codes is not None:
        k, v = ((10 * x).to(codes) for x in (k, v))
        tenths = torch.full(k.shape[:3], 0.1, device=bench.device)
        scales = tenths, tenths
    rivals: dict[str, Callable[[], object]] = {
        "torch_sdpa": lambda: F.scaled_dot_product_attention(dense_q, dense_k, dense_v, enable_gqa=True, **kind)
    }
    if bench.device != "cpu":  # where it costs nothing
        rivals["batch_invariant"] = lambda: paged_attention(q, k, v, invariant, scale=dim**-0.5, kv_scales=scales)
    return Case(
        "paged_attention",
        f"{sequences} x {queries} of {context}" + (f", {str(codes).removeprefix('torch.')}" if codes else ""),
        lambda: paged_attention(q, k, v, batch, scale=dim**-0.5, kv_scales=scales),
        2 * q.nbytes + 2 * sequences * context * kv_heads * (dim * k.element_size() + 4 * (codes is not None)),
        4 * seen * heads * dim,
        rivals,
    )


def _linears(bench: Bench) -> Iterator[Case]:
    """Quantised products beside the plain one, which is cuBLAS on a GPU."""
    k, n = bench.size.hidden, bench.size.inner
    weight = _noise(bench, n, k)
    products = [
        _Product("fixed", weight.nbytes, lambda x: fixed_linear(x, weight)),
        _grouped("int8", quantize_grouped(weight, 8, k, symmetric=True)),
        _grouped("int4", quantize_grouped(weight, 4, min(128, k), symmetric=False)),
        _grouped("fp8", quantize_float8(weight)),
    ]
    if bench.device != "cpu":
        products += [_grouped(name, _blocks(name, n, k)) for name in ("Q4_0", "Q4_K", "Q6_K")]
    if bench.device == "cpu" and use_cpu():
        products += [_packed(name, n, k) for name in ("Q4_1", "Q8_0", "BF16")]
    for product in products:
        for rows in bench.size.rows:
            yield _linear_case(bench, weight, rows, product)


class _Product(NamedTuple):
    """A matrix in some format."""

    name: str
    nbytes: int
    multiply: Callable[[Tensor], Tensor]
    invariant: Callable[[Tensor], Tensor] | None = None  # the same with one tile for any number of rows


def _grouped(name: str, weight: QuantizedWeight) -> _Product:
    return _Product(
        name,
        weight.nbytes,
        lambda x: quantized_linear(x, weight),
        lambda x: quantized_linear(x, weight, batch_invariant=True),
    )


def _blocks(name: str, n: int, k: int) -> BlockWeight:
    """One of GGUF's formats."""
    size = GROUPED[name].block_bytes * k // GROUPED[name].unit
    # any bytes are codes; below 60 no float is infinite
    stored = np.random.default_rng(0).integers(0, 60, (n, size), np.uint8)
    return BlockWeight.from_blocks(stored, name).to(torch.device("cuda"))


def _packed(name: str, n: int, k: int) -> _Product:
    """As the native engine has it: one of GGUF's formats."""
    weight = PackedWeight.empty(name, n, k)
    # any bytes are codes; below 60 no float is infinite
    weight.data[:] = np.random.default_rng(0).integers(0, 60, weight.data.shape, np.uint8)
    return _Product(name, weight.data.nbytes, lambda x: linear(x, weight, exact=False))


def _linear_case(bench: Bench, weight: Tensor, rows: int, product: _Product) -> Case:
    n, k = weight.shape
    x, invariant = _noise(bench, rows, k), product.invariant
    rivals: dict[str, Callable[[], object]] = {"torch_linear": lambda: F.linear(x, weight)}
    if bench.device != "cpu" and invariant is not None:
        rivals["batch_invariant"] = lambda: invariant(x)
    return Case(
        f"linear_{product.name}",
        f"{rows} x {k} -> {n}",
        lambda: product.multiply(x),
        product.nbytes + rows * (n + k) * x.element_size(),
        2 * rows * n * k,
        rivals,
    )


_EXPERTS, _CHOSEN = 32, 4


def _moe(bench: Bench, rows: int) -> Case:
    """Gated MLPs of an eighth of the width, four of 32 for each token, beside one after the other in torch."""
    hidden, inner = bench.size.hidden, bench.size.inner // 8
    x, scores = _noise(bench, rows, hidden), _noise(bench, rows, _EXPERTS)
    gate_up, down = _noise(bench, _EXPERTS * 2 * inner, hidden), _noise(bench, _EXPERTS * hidden, inner)
    shares, experts = route(scores, _CHOSEN, normalise=True)
    touched = len(set(experts.flatten().tolist()))
    return Case(
        "moe",
        f"{rows} x {hidden}, {_CHOSEN} of {_EXPERTS} experts of {inner}",
        lambda: moe(x, shares, experts, gate_up, down, _EXPERTS),
        2 * x.nbytes + (gate_up.nbytes + down.nbytes) * touched // _EXPERTS,
        6 * rows * _CHOSEN * hidden * inner,
        {"torch": lambda: moe_in_torch(x, shares, experts, gate_up, down, _EXPERTS)},
    )


def _sampling(bench: Bench) -> Iterator[Case]:
    """Top-p over a large vocabulary on a GPU, beside sorting it; the CPU's sampler takes arrays."""
    for rows in bench.size.rows if bench.device != "cpu" else ():
        logits = torch.randn(rows, 128_256, device=bench.device) * 3
        ones, numbers = torch.ones(rows, device=bench.device), torch.arange(rows, device=bench.device)
        columns = (ones, torch.zeros_like(numbers, dtype=torch.int32), 0.9 * ones, 0 * ones, numbers, numbers)
        yield Case(
            "sampling",
            f"{rows} x 128256, top_p",
            partial(sample_tensors, logits, numbers, *columns),
            logits.nbytes,
            rivals={"torch_sort": partial(_sorted_top_p, logits)},
        )


def _sorted_top_p(logits: Tensor) -> Tensor:
    values, order = logits.softmax(-1).sort(dim=-1, descending=True)
    kept = values.masked_fill(values.cumsum(-1) - values >= 0.9, 0)
    return order.gather(-1, kept.multinomial(1))


def _for_all_rows(case: Callable[[Bench, int], Case]) -> Callable[[Bench], Iterator[Case]]:
    return lambda bench: (case(bench, rows) for rows in bench.size.rows)


CASES: dict[str, Callable[[Bench], Iterator[Case]]] = {
    "rms_norm": _for_all_rows(_add_rms_norm),
    "activation": _for_all_rows(_silu_mul),
    "rotary": _for_all_rows(_rotary),
    "kv_store": _for_all_rows(_kv_store),
    "qkv_rope_store": _for_all_rows(_qkv_rope_store),
    "paged_attention": _attention,
    "linear": _linears,
    "moe": _for_all_rows(_moe),
    "sampling": _sampling,
}
"""By op."""


def _noise(bench: Bench, *shape: int) -> Tensor:
    return torch.randn(shape, device=bench.device, dtype=bench.dtype)


# ---- the command ----------------------------------------------------------------------------------------------------


def run(ops: list[str], device: str, size: Size, rounds: int, seconds: float) -> dict[str, Any]:
    """Measure ops until the time is up; a case that fails is reported, and the others go on."""
    begin = time.monotonic()
    bench = Bench(device, rounds, size, torch.float32 if device == "cpu" else torch.bfloat16)
    ceilings = bench.ceilings()
    sys.stdout.write(
        f"{_machine(device)}: copying {ceilings.gb_per_s:.1f} GB/s, products {ceilings.tflop_per_s:.2f} TFLOP/s\n"
    )
    results: list[dict[str, Any]] = []
    for op in ops:
        for case in _guarded(op, CASES[op](bench), results):
            if time.monotonic() - begin > seconds:
                results.append({"op": op, "shape": case.shape, "error": "the time is up"})
                break
            try:
                found = bench.measure(case, ceilings)
            except Exception as error:  # whatever one kernel has, the others are to be measured
                results.append({"op": case.op, "shape": case.shape, "error": repr(error)})
                sys.stdout.write(f"{case.op} {case.shape}: {error!r}\n")
                continue
            results.append(asdict(found))
            sys.stdout.write(_line(found))
    return {"machine": _machine(device), "torch": torch.__version__, "ceilings": asdict(ceilings), "results": results}


def _guarded(op: str, cases: Iterator[Case], results: list[dict[str, Any]]) -> Iterator[Case]:
    try:
        yield from cases
    except Exception as error:
        results.append({"op": op, "shape": "", "error": repr(error)})
        sys.stdout.write(f"{op}: {error!r}\n")


def _line(found: Measured) -> str:
    rivals = ", ".join(f"{name} {us:.1f} us" for name, us in found.rivals.items())
    return (
        f"{found.op:16} {found.shape:24} {found.microseconds:10.1f} us {found.gb_per_s:8.1f} GB/s "
        f"{found.tflop_per_s:8.2f} TFLOP/s {found.of_ceiling:6.1%} of the ceiling  {rivals}\n"
    )


def _machine(device: str) -> str:
    if device != "cpu":
        return torch.cuda.get_device_name()
    native = library()
    return f"CPU, {torch.get_num_threads()} threads, {native.level if native else 'no native library'}"


def main(arguments: list[str] | None = None) -> None:
    """Print a line for each case, and everything as JSON in the last one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--op", default=",".join(CASES), help=f"some of {', '.join(CASES)}")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tiny", action="store_true", help="shapes that take no time: for a test of this file")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, help="of a CPU")
    parser.add_argument("--seconds", type=float, default=300, help="after which no new case begins")
    parser.add_argument("--out", type=Path, help="a folder for kernels.json")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
        if native := library():
            native.set_threads(options.threads)
    size = SIZES["tiny" if options.tiny else "cpu" if options.device == "cpu" else "gpu"]
    report = json.dumps(run(options.op.split(","), options.device, size, options.rounds, options.seconds))
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "kernels.json").write_text(report)
    sys.stdout.write(report + "\n")


if __name__ == "__main__":
    main()
