"""Which files hold a directory's weights, and what lies where in them, without torch."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import safe_open, save_file

from octavo.errors import ModelError
from octavo.safetensors_header import BITS, read_header, weight_files

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn,
}  # fmt: skip


def test_a_header_equals_the_librarys(tmp_path):
    file = tmp_path / "a.safetensors"
    tensors = {name: torch.zeros(3, 5 + i).to(dtype) for i, (name, dtype) in enumerate(DTYPES.items())}
    save_file(tensors, file, metadata={"format": "pt"})
    entries = read_header(file)
    with safe_open(file, "pt") as theirs:
        assert entries.keys() == set(theirs.keys()) == DTYPES.keys()
    for name, entry in entries.items():
        assert (entry.name, entry.dtype, entry.shape) == (name, name, tuple(tensors[name].shape))
        assert entry.num_bytes == tensors[name].nbytes == tensors[name].numel() * BITS[name] // 8
    assert max(entry.offset + entry.num_bytes for entry in entries.values()) == file.stat().st_size


def test_a_whole_file_wins_over_an_index_beside_it(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model("llama2"), tmp_path / "model")
    stale = {"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(stale))
    assert weight_files(folder) == [folder / "model.safetensors"]


def test_a_shard_that_is_missing_without_an_index_is_named(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model("llama2"), tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00003.safetensors")
    with pytest.raises(ModelError, match=r"lacks model-00002-of-00003\.safetensors, model-00003-of-00003.safetensors"):
        [read_header(file) for file in weight_files(folder)]


@pytest.mark.parametrize("name", ["../model/model.safetensors", "/etc/passwd", "sub/model.safetensors", "a.bin", ".."])
def test_an_index_names_files_of_its_folder_only(tiny_model, tmp_path, name):
    folder = shutil.copytree(tiny_model("llama2"), tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"model.norm.weight": name}}))
    with pytest.raises(ModelError, match=r"names .* which is no \.safetensors file of its folder"):
        [read_header(file) for file in weight_files(folder)]


def test_pickles_are_refused_with_the_reason(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model("llama2"), tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin is a pickle, which can run code"):
        [read_header(file) for file in weight_files(folder)]


def test_a_pointer_of_git_lfs_is_called_one(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model("llama2"), tmp_path / "model")
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(ModelError, match="git lfs pull"):
        [read_header(file) for file in weight_files(folder)]
