"""Matrices quantised by the bitsandbytes package, which is imported only where one is made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from octavo.errors import ConfigError

_OUTLIER = 6.0
"""Columns of activations with a larger value are multiplied in float16 (LLM.int8, Dettmers et al. 2022)."""

_NF4_GROUP = 64


@dataclass(frozen=True, slots=True)
class Int8Matrix:
    """LLM.int8: rows of int8 codes; activations are quantised too, row by row, except columns with outliers."""

    codes: Tensor  # [n, k] int8
    scale: Tensor  # [n] float32, the largest magnitude of each row

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales."""
        return self.codes.nbytes + self.scale.nbytes

    def multiply(self, x: Tensor) -> Tensor:
        """[R, k] -> [R, n] of `x`'s type."""
        package = _package()
        state = package.MatmulLtState()
        state.CB, state.SCB = self.codes, self.scale
        state.threshold, state.has_fp16_weights, state.is_training = _OUTLIER, False, False
        result: Tensor = package.matmul(x.half(), self.codes, state=state)
        return result.to(x.dtype)


@dataclass(frozen=True, slots=True)
class Nf4Matrix:
    """QLoRA's 4-bit normal floats (Dettmers et al. 2023) in groups of 64."""

    codes: Tensor
    state: Any

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales."""
        return self.codes.nbytes + int(self.state.absmax.nbytes)

    def multiply(self, x: Tensor) -> Tensor:
        """[R, k] -> [R, n] of `x`'s type."""
        if x.device.type == "cuda":
            return _package().matmul_4bit(x, self.codes.t(), self.state)  # type: ignore[no-any-return]
        return F.linear(x, _package().functional.dequantize_4bit(self.codes, self.state).to(x.dtype))


def quantize(weight: Tensor, kind: str) -> Int8Matrix | Nf4Matrix:
    """Quantise a [n, k] matrix on its device.

    Raises:
        ConfigError: bitsandbytes is not installed.
    """
    functional = _package().functional
    if kind == "bitsandbytes-int8":
        codes, scale, _ = functional.int8_vectorwise_quant(weight.half())
        return Int8Matrix(codes, scale)
    codes, state = functional.quantize_4bit(weight.float().contiguous(), blocksize=_NF4_GROUP, quant_type="nf4")
    return Nf4Matrix(codes, state)


def _package() -> Any:
    try:
        import bitsandbytes
    except ImportError as error:
        raise ConfigError(f"quantization needs the bitsandbytes package: {error}") from error
    return bitsandbytes
