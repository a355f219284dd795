"""Encoders in GGUF files, written as llama.cpp's converter does, against the safetensors they were written from."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from octavo.errors import ModelError
from octavo.models.encoder import Encoder, Texts
from octavo.models.head import read_head
from octavo.models.load import load_encoder
from octavo.models.packing import pack
from octavo.models.parallel import share_of
from octavo.models.pooling_facts import read_pooling
from octavo.models.source_spec import read_spec
from octavo.source import Source, resolve_source

ARCHITECTURES = {
    "bert": gguf.MODEL_ARCH.BERT,
    "roberta": gguf.MODEL_ARCH.BERT,
    "nomic_bert": gguf.MODEL_ARCH.NOMIC_BERT,
}


def write_encoder(folder: Path, file: Path, quant: str = "F32", **more) -> Source:
    """`more`: metadata of the architecture."""
    config = json.loads((folder / "config.json").read_text())
    architecture, kind = ARCHITECTURES[config["model_type"]], gguf.GGMLQuantizationType[quant]
    writer = gguf.GGUFWriter(file, gguf.MODEL_ARCH_NAMES[architecture])
    offset = 2 if config["model_type"] == "roberta" else 0
    writer.add_context_length(config["max_position_embeddings"] - offset)
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_layer_norm_eps(config["layer_norm_eps"])
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.CLS)
    if architecture is gguf.MODEL_ARCH.NOMIC_BERT:
        writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    for key, value in more.items():
        writer.add_array(f"{gguf.MODEL_ARCH_NAMES[architecture]}.{key}", value)
    names = gguf.get_tensor_name_map(architecture, config["num_hidden_layers"])
    for key, values in load_file(folder / "model.safetensors").items():
        key = key.removeprefix("roberta.")
        if "pooler" in key:
            continue
        if "position_embeddings" in key:
            values = values[offset:].copy()
        stored = names.get_name(key, try_suffixes=(".weight", ".bias"))
        if values.ndim == 1 or quant == "F32" or "token_types" in stored or "position" in stored:
            writer.add_tensor(stored, values)
        else:
            writer.add_tensor(stored, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return resolve_source(str(file))


def states(encoder: Encoder) -> torch.Tensor:
    tokens = torch.from_numpy(np.random.default_rng(1).integers(5, 300, 90))
    return encoder.forward(tokens, Texts([0, 60, 90], [None, None]))


@pytest.mark.parametrize("name", ["bert", "roberta", "nomic_bert"])
def test_states_are_those_of_the_safetensors(tiny_encoder, tmp_path, name):
    source = write_encoder(tiny_encoder(name), tmp_path / "m.gguf")
    theirs, ours = load_encoder(resolve_source(str(tiny_encoder(name)))), load_encoder(source)
    assert torch.equal(states(ours), states(theirs))
    assert ours.spec.max_position_embeddings == (130 if name != "nomic_bert" else theirs.spec.max_position_embeddings)
    assert read_pooling(source, ours.spec).method == "cls"


@pytest.mark.parametrize("name", ["bert", "nomic_bert"])
def test_blocks_are_packed_as_they_are_stored(tiny_encoder, tmp_path, name):
    source = write_encoder(tiny_encoder(name), tmp_path / "m.gguf", "Q8_0")
    spec, whole = read_spec(source), states(load_encoder(resolve_source(str(tiny_encoder(name)))))
    error = (states(load_encoder(source)) - whole).norm() / whole.norm()
    assert 0 < error < 0.03
    assert torch.allclose(states(load_encoder(source, keep_blocks=True)), states(load_encoder(source)), atol=1e-4)
    packed = dict(pack(source, share_of(spec), half=False, rounding=None, table_positions=8, progress=False))
    assert packed[2, "k", "weight"].format == "Q8_0"
    assert packed[None, "type_embedding", "weight"].dtype == np.float32


def test_a_rankers_head(tiny_encoder, tmp_path):
    folder = tiny_encoder("roberta", classes=2)
    source = write_encoder(folder, tmp_path / "m.gguf", **{"classifier.output_labels": ["no", "yes"]})
    original = resolve_source(str(folder))
    x = np.random.default_rng(0).standard_normal((2, 64), np.float32)
    ours, theirs = (read_head(each, read_spec(each)) for each in (source, original))
    assert np.array_equal(ours(x), theirs(x))
    assert torch.equal(states(load_encoder(source)), states(load_encoder(original)))
    info = read_pooling(source, read_spec(source))
    assert (info.tasks, info.method, info.labels) == (("classify",), "cls", ("no", "yes"))


def test_a_causal_encoder_is_refused(tiny_encoder, tmp_path):
    file = write_encoder(tiny_encoder("bert"), tmp_path / "m.gguf").path
    content = file.read_bytes()
    key = b"bert.attention.causal"
    place = content.index(key) + len(key) + 4
    file.write_bytes(content[:place] + b"\x01" + content[place + 1 :])
    with pytest.raises(ModelError, match=r"bert.attention.causal is set"):
        read_spec(resolve_source(str(file)))
