"""Filling a model from stored tensors: what does not fit is named before a row is read; rows go where they belong."""

from __future__ import annotations

import pytest
import torch

from octavo.errors import ModelError
from octavo.models.load import load_model
from octavo.source import resolve_source


def load(folder):
    return load_model(resolve_source(str(folder)))


def drop(tensors):
    del tensors["model.layers.1.mlp.up_proj.weight"], tensors["model.norm.weight"]


def add(tensors):
    tensors["model.layers.0.self_attn.q_proj.scale"] = torch.zeros(64)


def reshape(tensors):
    tensors["model.layers.2.self_attn.k_proj.weight"] = torch.zeros(64, 32)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (drop, r"lacks norm\.weight, layers\.1\.mlp\.up_proj\.weight"),
        (add, r"does not have: layers\.0\.self_attn\.q_proj\.scale"),
        (reshape, r"layers\.2\.self_attn\.k_proj\.weight is \[64, 32\] instead of \[64, 64\]"),
        (dict.clear, r"lacks .* and \d+ more"),
    ],
    ids=["missing", "unexpected", "wrong shape", "empty"],
)
def test_tensors_that_do_not_fit_are_named(copy, change, named):
    with pytest.raises(ModelError, match=named):
        load(copy("llama2", change))
