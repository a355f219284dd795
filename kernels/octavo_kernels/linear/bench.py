"""Cases of quantised and batch-invariant products."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from octavo_kernels.fixed_linear import fixed_linear
from octavo_kernels.linear import PackedWeight, linear
from octavo_kernels.linear.blocks import BlockWeight
from octavo_kernels.linear.formats import GROUPED
from octavo_kernels.linear.grouped import quantize_float8, quantize_grouped
from octavo_kernels.linear.quantized import QuantizedWeight, quantized_linear
from octavo_kernels.native.library import use_cpu
from octavo_kernels.timing import Bench, Case, noise


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
    """A random matrix in one of GGUF's formats."""
    size = GROUPED[name].block_bytes * k // GROUPED[name].unit
    # any bytes are valid codes; below 60 no float16 is infinite
    stored = np.random.default_rng(0).integers(0, 60, (n, size), np.uint8)
    return BlockWeight.from_blocks(stored, name).to(torch.device("cuda"))


def _packed(name: str, n: int, k: int) -> _Product:
    """A random matrix in the native engine's packed layout."""
    weight = PackedWeight.empty(name, n, k)
    # any bytes are valid codes; below 60 no float16 is infinite
    weight.data[:] = np.random.default_rng(0).integers(0, 60, weight.data.shape, np.uint8)
    return _Product(name, weight.data.nbytes, lambda x: linear(x, weight))


def _linear_case(bench: Bench, weight: Tensor, rows: int, product: _Product) -> Case:
    n, k = weight.shape
    x, invariant = noise(bench, rows, k), product.invariant
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


def cases(bench: Bench) -> Iterator[Case]:
    """Quantised products beside the plain one (cuBLAS on a GPU)."""
    k, n = bench.size.hidden, bench.size.inner
    weight = noise(bench, n, k)
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
