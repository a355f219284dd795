"""Matrices that are stored stacked."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from octavo.models.weights.fused import fused_names, gguf_entries
from octavo.models.weights.gguf_file import read_rows


@pytest.mark.parametrize(
    ("name", "family", "parts"),
    [
        ("layers.3.attn.Wqkv.weight", "modernbert", ["attn.q", "attn.k", "attn.v"]),
        ("layers.3.mlp.Wi.bias", "modernbert", ["mlp.gate", "mlp.up"]),
        ("layers.3.attn.Wqkv.weight", "nomic_bert", ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
        ("layers.3.attn.Wo.weight", "modernbert", []),
    ],
)
def test_names(name, family, parts):
    assert fused_names(name, family) == [f"layers.3.{part}.{name.rpartition('.')[2]}" for part in parts]


def test_rows_of_a_gguf_file_go_to_their_parts(tmp_path):
    values = np.random.default_rng(0).standard_normal((96, 64)).astype(np.float32)
    bias = values[:, 0].copy()
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "nomic-bert")
    writer.add_tensor("blk.0.attn_qkv.weight", gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0),
                      raw_dtype=gguf.GGMLQuantizationType.Q8_0)  # fmt: skip
    writer.add_tensor("blk.0.attn_qkv.bias", bias)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    entries = gguf_entries(tmp_path / "m.gguf", "nomic_bert")
    for i, part in enumerate("qkv"):
        rows = np.concatenate([chunk.numpy() for chunk in read_rows(entries[f"blk.0.attn_{part}.weight"])])
        np.testing.assert_allclose(rows, values[32 * i : 32 * i + 32], atol=0.02)
        (vector,) = read_rows(entries[f"blk.0.attn_{part}.bias"])
        assert np.array_equal(vector.numpy(), bias[32 * i : 32 * i + 32])
