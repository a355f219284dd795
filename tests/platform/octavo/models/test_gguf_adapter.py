"""llama.cpp's adapters: the same change as PEFT's of the same weights."""

from __future__ import annotations

import json

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file

from octavo.errors import ModelError
from octavo.models.adapters import find_adapter, read_adapter
from octavo.models.parallel import share_of
from octavo.models.source_spec import read_spec
from octavo.source import resolve_source


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def convert(folder, file, architecture, invocation=(), **metadata):
    """As convert_lora_to_gguf.py: B's rows of Llama's q and k are permuted as the model's own."""
    writer = gguf.GGUFWriter(file, architecture)
    for key, value in ({"general.type": "adapter", "adapter.type": "lora"} | metadata).items():
        writer.add_string(key, value)
    writer.add_float32("adapter.lora.alpha", 12.0)
    if invocation:
        writer.add_array("adapter.alora.invocation_tokens", invocation)
    config = json.loads((folder.base / "config.json").read_text())
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    kind = next(kind for kind, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(kind, config["num_hidden_layers"])
    for name, values in load_file(folder / "adapter_model.safetensors").items():
        module, half, _ = name.removeprefix("base_model.model.").rsplit(".", 2)
        if architecture == "llama" and half == "lora_B" and module.endswith(("q_proj", "k_proj")):
            heads = values.reshape(-1, 2, head_dim // 2, values.shape[1])
            values = np.ascontiguousarray(heads.swapaxes(1, 2)).reshape(values.shape)
        writer.add_tensor(f"{names.get_name(module)}.weight.{half.lower()}", values)
    finish(writer)
    return file


@pytest.mark.parametrize(("name", "architecture"), [("llama3", "llama"), ("gemma3", "gemma3")])
def test_it_is_what_peft_stores(make_adapter, tmp_path, name, architecture):
    folder = make_adapter(name)
    file = convert(folder, tmp_path / "adapter.gguf", architecture)
    share = share_of(read_spec(resolve_source(str(folder.base))))
    theirs, ours = read_adapter(folder, share), read_adapter(file, share, find_adapter("a", file).digest)
    assert ours.keys() == theirs.keys()
    for place, low in theirs.items():
        np.testing.assert_array_equal(ours[place].a, low.a)
        np.testing.assert_allclose(ours[place].b, low.b, rtol=1e-6)


def test_stacked_matrices_are_taken_apart(make_adapter, tmp_path):
    """As llama.cpp's converter leaves those of Phi 3: what goes into one matrix shares an A."""
    folder, file = make_adapter("gemma3"), tmp_path / "adapter.gguf"
    writer = gguf.GGUFWriter(file, "gemma3")
    writer.add_string("general.type", "adapter")
    writer.add_string("adapter.type", "lora")
    tensors, share = (
        load_file(folder / "adapter_model.safetensors"),
        share_of(read_spec(resolve_source(str(folder.base)))),
    )
    stem = "base_model.model.model.layers.2.self_attn.{}_proj.lora_{}.weight"
    rows = [tensors[stem.format(part, "B")] for part in "qkv"]
    writer.add_tensor("blk.2.attn_qkv.weight.lora_a", tensors[stem.format("q", "A")])
    writer.add_tensor("blk.2.attn_qkv.weight.lora_b", np.concatenate(rows))
    finish(writer)
    found = read_adapter(file, share)
    assert list(found) == [(2, "q"), (2, "k"), (2, "v")]
    for low, b in zip(found.values(), rows, strict=True):
        np.testing.assert_array_equal(low.b, b)
        np.testing.assert_array_equal(low.a, tensors[stem.format("q", "A")])


def test_it_says_where_it_begins(make_adapter, tmp_path):
    folder = make_adapter("llama3", alora_invocation_tokens=[7, 8])
    late = convert(folder, tmp_path / "late.gguf", "llama", invocation=[7, 8])
    whole = convert(folder, tmp_path / "whole.gguf", "llama")
    assert [find_adapter("a", path).invocation for path in (folder, late, whole)] == [(7, 8), (7, 8), ()]


def test_what_is_no_adapter_of_this_model_is_refused(make_adapter, tiny_model, write_gguf, tmp_path):
    folder = make_adapter("llama3")
    share = share_of(read_spec(resolve_source(str(folder.base))))
    other = share_of(read_spec(resolve_source(str(tiny_model("llama_biases")))))
    with pytest.raises(ModelError, match="no LoRA adapter"):
        read_adapter(write_gguf(folder.base, tmp_path / "model.gguf"), share)
    with pytest.raises(ModelError, match="no LoRA adapter"):
        read_adapter(convert(folder, tmp_path / "a.gguf", "llama", **{"adapter.type": "control"}), share)
    with pytest.raises(ModelError, match="it was made for another model"):
        read_adapter(convert(folder, tmp_path / "b.gguf", "llama"), other)
    (tmp_path / "c.gguf").write_bytes(b"GGUF" + b"\0" * 50)
    with pytest.raises(ModelError):
        read_adapter(tmp_path / "c.gguf", share)
    with pytest.raises(ModelError, match="is no file"):
        find_adapter("d", tmp_path / "d.gguf")
