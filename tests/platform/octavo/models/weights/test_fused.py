"""Matrices that are stored stacked."""

from __future__ import annotations

from dataclasses import replace

import gguf
import numpy as np
import pytest

from octavo.errors import ModelError
from octavo.models.families.reading import spec_from_config
from octavo.models.families.record import GGUF_PARTS, GGUF_STACKS, Stack
from octavo.models.weights.fused import gguf_entries, some_of, stacked_rows, total_rows
from octavo.models.weights.gguf_file import read_rows
from octavo.models.weights.names import Naming

QKV, GATED = Stack(("q", "k", "v")), Stack(("gate", "up"))
SPEC = spec_from_config({"model_type": "llama", "hidden_size": 64, "intermediate_size": 40, "num_hidden_layers": 1,
                         "num_attention_heads": 4, "num_key_value_heads": 2})  # fmt: skip


def test_rows_of_each_part():
    assert stacked_rows(QKV, SPEC) == {"q": [range(64)], "k": [range(64, 96)], "v": [range(96, 128)]}
    assert stacked_rows(GATED, SPEC) == {"gate": [range(40)], "up": [range(40, 80)]}
    grouped = stacked_rows(replace(QKV, grouped=True), SPEC)
    assert grouped["q"] == [range(32), range(64, 96)]
    assert grouped["v"] == [range(48, 64), range(112, 128)]
    assert total_rows(grouped) == 128


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (range(64), [range(32), range(64, 96)]),
        (range(16, 48), [range(16, 32), range(64, 80)]),
        (range(40, 41), [range(72, 73)]),
    ],
)
def test_a_rank_s_rows_of_a_part(wanted, found):
    assert list(some_of([range(32), range(64, 96)], wanted)) == found


def test_names():
    naming = Naming("layers.{}.", {"q": "attn.q", "k": "attn.k", "v": "attn.v"}, {"attn.Wqkv": QKV})
    parts = [("q", "layers.3.attn.q.bias"), ("k", "layers.3.attn.k.bias"), ("v", "layers.3.attn.v.bias")]
    assert naming.stack_of("layers.3.attn.Wqkv.bias") == (parts, QKV)
    assert naming.stack_of("layers.3.attn.Wo.weight") is None
    assert naming.stack_of("layers.3.cross_attn.Wqkv.weight") is None


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
    naming = Naming("blk.{}.", GGUF_PARTS, GGUF_STACKS)
    entries = gguf_entries(tmp_path / "m.gguf", naming, replace(SPEC, num_heads=2))
    for i, part in enumerate("qkv"):
        rows = np.concatenate([chunk.numpy() for chunk in read_rows(entries[f"blk.0.attn_{part}.weight"])])
        np.testing.assert_allclose(rows, values[32 * i : 32 * i + 32], atol=0.02)
        (vector,) = read_rows(entries[f"blk.0.attn_{part}.bias"])
        assert np.array_equal(vector.numpy(), bias[32 * i : 32 * i + 32])
    with pytest.raises(ModelError, match="96 rows instead of 128"):
        gguf_entries(tmp_path / "m.gguf", naming, SPEC)
