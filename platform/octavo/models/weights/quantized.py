"""Linear layers of the torch decoder whose matrices are quantised."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from octavo.errors import ConfigError, ModelError
from octavo.models.quantization import Rounding
from octavo.models.step_context import StepContext
from octavo.models.weights import bitsandbytes
from octavo.models.weights.bitsandbytes import Int8Matrix, Nf4Matrix
from octavo_kernels.fixed_linear import fixed_linear
from octavo_kernels.linear.grouped import GroupedWeight, quantize_float8, quantize_grouped
from octavo_kernels.linear.quantized import QuantizedWeight, joined, quantized_linear

Matrix = Tensor | QuantizedWeight | Int8Matrix | Nf4Matrix
"""[n, k]; a checkpoint may leave some unquantised."""


@dataclass(slots=True)
class QuantizedLinear:
    """y = x W^T + b, where W is several matrices stacked by rows: q, k and v, or gate and up."""

    parts: list[Matrix]
    bias: Tensor | None  # [out]
    one_order: bool = False  # one order of summation for any number of rows; not for bitsandbytes

    @classmethod
    def of(cls, parts: list[Matrix], bias: Tensor | None) -> QuantizedLinear:
        """Build a layer; parts of one kind are joined into a single matrix, which takes one product instead of
        several."""
        if all(isinstance(part, Tensor) for part in parts):
            return cls([torch.cat(parts)], bias)  # type: ignore[arg-type]
        if all(isinstance(part, QuantizedWeight) for part in parts):
            whole = joined(parts)  # type: ignore[arg-type]
            return cls(parts if whole is None else [whole], bias)
        return cls(parts, bias)

    @property
    def nbytes(self) -> int:
        """Bytes of the matrices."""
        return sum(part.nbytes for part in self.parts)

    def __call__(self, x: Tensor, context: StepContext) -> Tensor:
        """As `Linear`."""
        return self.multiply(x)

    def multiply(self, x: Tensor) -> Tensor:
        """As `Linear.multiply`."""
        if len(self.parts) == 1 and isinstance(self.parts[0], QuantizedWeight):
            return quantized_linear(x, self.parts[0], self.bias, batch_invariant=self.one_order)
        products = [_multiply(x, part, one_order=self.one_order) for part in self.parts]
        y = products[0] if len(products) == 1 else torch.cat(products, dim=-1)
        return y if self.bias is None else y + self.bias


def stacked(parts: list[Matrix], layer: int) -> Tensor | QuantizedWeight:
    """Stack the experts' matrices by rows.

    Raises:
        ModelError: they are quantised in different ways, or in one that cannot be stacked; the message names `layer`.
    """
    (whole, *others) = QuantizedLinear.of(parts, None).parts
    if others or not isinstance(whole, Tensor | QuantizedWeight):
        raise ModelError(f"the experts of layer {layer} are quantised in ways that cannot be put together: run them "
                         "unquantised, or quantised to int8, int4 or fp8")  # fmt: skip
    return whole


def round_matrix(weight: Tensor, rounding: Rounding, name: str) -> Matrix:
    """Quantise [n, k], on its device.

    Raises:
        ConfigError: the columns are no multiple of the group; the message names the matrix `name`.
    """
    if rounding.kind == "fp8":
        return quantize_float8(weight)
    if rounding.kind != "int":
        return bitsandbytes.quantize(weight, rounding.kind)
    return round_grouped(weight, rounding, name)


def round_grouped(weight: Tensor, rounding: Rounding, name: str) -> GroupedWeight:
    """As `round_matrix`, to integer codes with scales."""
    columns = weight.shape[1]
    group = rounding.group or columns
    if columns % group:
        raise ConfigError(f"{name} has {columns} columns, no multiple of the quantization's group of {group}")
    return quantize_grouped(weight, rounding.bits, group, symmetric=rounding.symmetric)


def _multiply(x: Tensor, matrix: Matrix, *, one_order: bool) -> Tensor:
    if isinstance(matrix, Tensor):
        return (fixed_linear if one_order else F.linear)(x, matrix)
    if isinstance(matrix, QuantizedWeight):
        return quantized_linear(x, matrix, batch_invariant=one_order)
    return matrix.multiply(x)
