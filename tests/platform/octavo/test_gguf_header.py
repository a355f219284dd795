"""Metadata and tensor directory against `gguf`'s own reader, and damaged files."""

import gguf
import numpy as np
import pytest

from octavo.errors import ModelError
from octavo.gguf_header import read_directory, read_metadata

VALUES = {
    "uint8": 200, "int8": -3, "uint16": 60_000, "int16": -300, "uint32": 4_000_000_000, "int32": -70_000,
    "float32": 0.5, "bool": True, "string": "zwölf", "uint64": 2**63, "int64": -(2**40), "float64": 0.1,
}  # fmt: skip


@pytest.fixture
def file(tmp_path):
    """A file with every kind of metadata before its tensors, and an alignment of its own."""
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_custom_alignment(128)
    writer.add_array("tokens", ["a", "", "längere"] * 50)
    writer.add_array("scores", [0.5, 1.5, -2.0])
    writer.add_array("flags", [True, False, True])
    for kind, value in VALUES.items():
        getattr(writer, f"add_{kind}")(kind, value)
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


def test_metadata_equals_ggufs_reader(file):
    fields = gguf.GGUFReader(file).fields
    metadata = read_metadata(file)
    assert metadata == {key: field.contents() for key, field in fields.items() if not key.startswith("GGUF.")}
    assert {kind: metadata[kind] for kind in VALUES} == VALUES


def test_tensors_equal_ggufs_reader(file):
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
    if 0 <= size < 1000:
        with pytest.raises(ModelError, match=r"model\.gguf is not a readable GGUF file"):
            read_metadata(file)


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"PK" + bytes(100))
    with pytest.raises(ModelError, match="magic"):
        read_metadata(path)
