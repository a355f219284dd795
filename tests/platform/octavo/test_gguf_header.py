"""Metadata and tensor directory against `gguf`'s own reader, and damaged files."""

import os
import struct

import gguf
import numpy as np
import pytest

from octavo.errors import ModelError
from octavo.gguf_header import read_directory, read_metadata, split_files

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
    with pytest.raises(ModelError, match=r"model\.gguf is damaged"):
        read_directory(file)
    if 0 <= size < 1000:
        with pytest.raises(ModelError, match=r"model\.gguf is damaged"):
            read_metadata(file)


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"PK" + bytes(100))
    with pytest.raises(ModelError, match="magic"):
        read_metadata(path)


def header(*, keys=(), tensors=(), num_keys=None, num_tensors=None, end=bytes(256)):
    """A file's bytes: keys are (name, type, packed value), tensors (name, sizes, type, offset)."""
    text = struct.pack("<4sIQQ", b"GGUF", 3, num_tensors or len(tensors), num_keys or len(keys))
    for name, kind, value in keys:
        text += struct.pack("<Q", len(name)) + name + struct.pack("<I", kind) + value
    for name, sizes, kind, offset in tensors:
        text += (
            struct.pack("<Q", len(name)) + name + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, kind, offset)
        )
    return text + end


U32, STRING, ARRAY, HUGE = 4, 8, 9, 2**63
DAMAGED = {
    "alignment 0": header(keys=[(b"general.alignment", U32, struct.pack("<I", 0))]),
    "alignment 3": header(keys=[(b"general.alignment", U32, struct.pack("<I", 3))]),
    "alignment text": header(keys=[(b"general.alignment", STRING, struct.pack("<Q1s", 1, b"8"))]),
    "unknown type": header(keys=[(b"a", 77, b"1234")]),
    "array of arrays": header(keys=[(b"a", ARRAY, struct.pack("<IQ", ARRAY, 1))]),
    "array beyond the end": header(keys=[(b"a", ARRAY, struct.pack("<IQ", U32, 1 << 23))]),
    "huge array": header(keys=[(b"a", ARRAY, struct.pack("<IQ", STRING, HUGE))]),
    "huge string": header(keys=[(b"a", STRING, struct.pack("<Q", HUGE))]),
    "huge number of keys": header(num_keys=HUGE, end=bytes(4096)),
    "huge number of tensors": header(num_tensors=HUGE, end=bytes(4096)),
    "no dimensions": header(tensors=[(b"a", (), 0, 0)]),
    "an empty dimension": header(tensors=[(b"a", (0,), 0, 0)]),
    "many dimensions": header(tensors=[(b"a", (1,) * 9, 0, 0)]),
    "huge dimensions": header(tensors=[(b"a", (HUGE, HUGE), 0, 0)]),
    "beyond the end": header(tensors=[(b"a", (4,), 0, HUGE)]),
    "one over the other": header(tensors=[(b"a", (4,), 0, 0), (b"b", (4,), 0, 0)]),
    "one name": header(tensors=[(b"a", (4,), 0, 0), (b"a", (4,), 0, 32)]),
    "unknown format": header(tensors=[(b"a", (4,), 999, 0)]),
    "version 1": struct.pack("<4sIQQ", b"GGUF", 1, 0, 0),
    "big-endian": struct.pack(">4sIQQ", b"GGUF", 3, 0, 0),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_header_is_refused_at_once(tmp_path, name):
    path = tmp_path / "model.gguf"
    path.write_bytes(DAMAGED[name])
    with pytest.raises(ModelError, match=r"model\.gguf is damaged"):
        read_directory(path)


def test_what_is_no_file_is_refused(tmp_path):
    (tmp_path / "loop.gguf").symlink_to(tmp_path / "loop.gguf")
    (tmp_path / "folder.gguf").mkdir()
    os.mkfifo(tmp_path / "pipe.gguf")
    for name in ("loop", "folder", "pipe", "absent"):
        for read in (read_metadata, read_directory):
            with pytest.raises(ModelError, match=name):
                read(tmp_path / f"{name}.gguf")


@pytest.fixture
def split(tmp_path):
    """The three files of a split model, each with tensors of its own."""
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama", split_max_tensors=2)
    writer.add_uint32("llama.block_count", 1)
    for i in range(5):
        writer.add_tensor(f"tensor{i}", np.full((2, 8), i, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(tmp_path.glob("*.gguf"))


def test_any_file_of_a_split_model_stands_for_all(split):
    assert [file.name for file in split] == [f"model-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    for file in split:
        assert read_metadata(file)["llama.block_count"] == 1
        entries = read_directory(file)
        assert [entry.file for entry in entries.values()] == [split[0]] * 2 + [split[1]] * 2 + [split[2]]
        assert list(entries) == [f"tensor{i}" for i in range(5)]
        assert split_files(file) == split


def test_missing_parts_of_a_split_model_are_named(split):
    split[0].unlink()
    with pytest.raises(ModelError, match=r"in 3 files; missing are model-00001-of-00003\.gguf"):
        read_metadata(split[1])
    split[1].rename(split[1].with_name("renamed.gguf"))
    with pytest.raises(ModelError, match=r"not called NAME-00001-of-00003\.gguf"):
        read_directory(split[1].with_name("renamed.gguf"))


def test_parts_that_are_mixed_up_are_named(split):
    second = split[1].read_bytes()
    split[1].write_bytes(split[2].read_bytes())
    with pytest.raises(ModelError, match="part 2 of it is part 3 of 3"):
        read_directory(split[0])
    split[1].write_bytes(second.replace(b"tensor2", b"tensor0"))
    with pytest.raises(ModelError, match="two parts of it hold tensor0"):
        read_directory(split[0])
