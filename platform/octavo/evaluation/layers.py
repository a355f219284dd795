"""Finds the part of a model that differs most from the reference, by giving each part the reference's input.

An error that passes from layer to layer grows, which hides where it began. So each layer of both models gets the
residual stream that the reference has before that layer, and only the layer's own output is compared:

    error = |y - y_ref| / |y_ref - x|        x: the reference's input, y and y_ref: the outputs; Frobenius norms

The embedding and the head are compared as |y - y_ref| / |y_ref|.
"""

from __future__ import annotations

import torch
from torch import Tensor

from octavo.execution.parts import Parts

EMBEDDING, HEAD = "the embedding", "the head"


def layer_errors(model: Parts, reference: Parts, tokens: list[int]) -> dict[str, float]:
    """Relative error of each part over one sequence: "the embedding", "layer 0", ..., "the head"."""
    ids = torch.tensor(tokens)
    hidden = reference.embed(ids)
    errors = {EMBEDDING: _relative(model.embed(ids), hidden, hidden)}
    for index in range(reference.spec.num_layers):
        wanted = reference.layer(index, hidden)
        errors[f"layer {index}"] = _relative(model.layer(index, hidden), wanted, wanted - hidden)
        hidden = wanted
    wanted = reference.head(hidden)
    errors[HEAD] = _relative(model.head(hidden), wanted, wanted)
    return errors


def _relative(ours: Tensor, wanted: Tensor, change: Tensor) -> float:
    error = ((ours - wanted).norm() / change.norm()).item()
    return error if error == error else float("inf")  # NaN counts as the largest error


def worst(errors: dict[str, float]) -> str:
    """Names the part with the largest error, with its value and the median for comparison."""
    name = max(errors, key=lambda part: errors[part])
    usual = sorted(errors.values())[len(errors) // 2]
    return f"{name} differs most: relative error {errors[name]:.3g}, where the median part has {usual:.3g}"
