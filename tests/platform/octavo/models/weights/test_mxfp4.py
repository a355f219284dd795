"""Experts of four-bit floats, as gpt-oss is published."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from safetensors.torch import load_file, save_file

from octavo.errors import ModelError
from octavo.models.load import load_model
from octavo.models.packed import load_packed
from octavo.models.weights.mxfp4 import as_gguf, join_mxfp4
from octavo.models.weights.stored import StoredTensor
from octavo.source import resolve_source

KIND = GGMLQuantizationType.MXFP4


def as_published(blocks):
    """GGUF's blocks [rows, bytes] as codes and scales: the definition once more, one code at a time."""
    units = blocks.reshape(len(blocks), -1, 17)
    codes = [[[u[1 + i % 16] >> 4 * (i // 16) & 15 for i in range(32)] for u in row] for row in units]
    pairs = np.array(codes, np.uint8).reshape(*units.shape[:2], 16, 2)
    return pairs[..., 0] | pairs[..., 1] << np.uint8(4), units[..., 0].copy()


@pytest.fixture(scope="module")
def rounded(tiny_model, tmp_path_factory):
    """Two folders of one model: with four-bit experts, and with their values."""
    published, plain = (tmp_path_factory.mktemp(name) / "m" for name in ("published", "plain"))
    for folder in (published, plain):
        shutil.copytree(tiny_model("gpt_oss"), folder)
    values, coded = load_file(plain / "model.safetensors"), {}
    for name in list(values):
        if re.search(r"experts\.\w+_proj$", name):
            rows = values.pop(name).mT.contiguous()  # [experts, rows, columns]
            blocks = quantize(rows.flatten(0, 1).numpy(), KIND)
            values[name] = torch.from_numpy(dequantize(blocks, KIND)).view(rows.shape).mT.contiguous()
            codes, scales = as_published(blocks)
            coded[f"{name}_blocks"] = torch.from_numpy(codes).view(*rows.shape[:2], -1, 16)
            coded[f"{name}_scales"] = torch.from_numpy(scales).view(*rows.shape[:2], -1)
        else:
            coded[name] = values[name]
    save_file(values, plain / "model.safetensors", metadata={"format": "pt"})
    save_file(coded, published / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((published / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    (published / "config.json").write_text(json.dumps(config))
    return published, plain


def test_four_bit_experts_compute_as_their_values(rounded, paged_run, reference, sequences):
    published, plain = (load_model(resolve_source(str(folder))) for folder in rounded)
    assert published.weights.layers[0].experts.nbytes < plain.weights.layers[0].experts.nbytes / 4
    expected = reference(rounded[1])
    for tokens, logits in zip(sequences, paged_run(published, len(sequences), 80).all_logits(sequences), strict=True):
        torch.testing.assert_close(logits, expected.logits(tokens), atol=1e-4, rtol=0)


def test_packed_experts_hold_the_same_bits(rounded):
    (_, packed), (_, plain) = (load_packed(resolve_source(str(folder)), dtype="float32") for folder in rounded)
    for ours, theirs in zip(packed.layers, plain.layers, strict=True):
        for a, b in zip(ours.mixture.experts, theirs.mixture.experts, strict=True):
            for coded, values in zip(a.weights, b.weights, strict=True):
                assert coded.format == "MXFP4"
                every = torch.arange(coded.n)
                assert torch.equal(coded.rows(every), values.rows(every))


def test_codes_in_ggufs_order():
    blocks = np.random.default_rng(0).integers(0, 256, (6, 2 * 17), np.uint8)
    assert np.array_equal(as_gguf(*as_published(blocks)), blocks)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"a_blocks": (2, 3, 2, 16)}, "lacks a_scales"),
        ({"a_scales": (2, 3, 2)}, "lacks a_blocks"),
        ({"a_blocks": (2, 3, 2, 16), "a_scales": (2, 3, 1)}, "no MXFP4"),
    ],
)
def test_what_is_incomplete_is_named(tensors, message):
    stored = [
        StoredTensor(name, shape, 1, lambda rows, columns: iter(()), dtype="U8") for name, shape in tensors.items()
    ]
    with pytest.raises(ModelError, match=message):
        join_mxfp4(stored)
