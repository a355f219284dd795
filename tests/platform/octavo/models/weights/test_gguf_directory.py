"""The tensor directory against `gguf`'s own reader, and damaged files."""

import gguf
import numpy as np
import pytest

from octavo.errors import ModelError
from octavo.models.weights.gguf_directory import read_directory


@pytest.fixture
def file(tmp_path):
    """A file with every kind of metadata before its tensors, and an alignment of its own."""
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_custom_alignment(128)
    writer.add_array("tokens", ["a", "", "längere"] * 50)
    writer.add_array("scores", [0.5, 1.5, -2.0])
    writer.add_array("flags", [True, False, True])
    for kind in ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "uint64", "int64", "float64"):
        getattr(writer, f"add_{kind}")(kind, 3)
    writer.add_bool("bool", True)
    writer.add_tensor("vector", np.arange(5, dtype=np.float32))
    writer.add_tensor("half", np.ones((3, 7), np.float16))
    blocks = gguf.quants.quantize(np.ones((4, 64), np.float32), gguf.GGMLQuantizationType.Q5_1)
    writer.add_tensor("blocks", blocks, raw_dtype=gguf.GGMLQuantizationType.Q5_1)
    writer.add_tensor("deep", np.ones((2, 3, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_equals_ggufs_reader(file):
    entries = list(read_directory(file).values())
    tensors = gguf.GGUFReader(file).tensors
    assert [entry.name for entry in entries] == ["vector", "half", "blocks", "deep"]
    for entry, tensor in zip(entries, tensors, strict=True):
        assert entry.name == tensor.name
        assert entry.shape == tuple(reversed(tensor.shape.tolist()))
        assert entry.format == tensor.tensor_type.name
        assert (entry.offset, entry.num_bytes) == (tensor.data_offset, tensor.n_bytes)


@pytest.mark.parametrize("size", [0, 3, 10, 60, 300, 2000, -40])
def test_a_file_cut_off_anywhere_is_refused(file, size):
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(ModelError, match=r"model\.gguf is not a readable GGUF file"):
        read_directory(file)


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"PK" + bytes(100))
    with pytest.raises(ModelError, match="magic"):
        read_directory(path)
