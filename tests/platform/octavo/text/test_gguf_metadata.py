from __future__ import annotations

from pathlib import Path

import pytest

from octavo.errors import ModelError
from octavo.source import open_gguf
from octavo.text.gguf_metadata import read_metadata


def test_every_key_reads_as_the_gguf_package_reads_it(write_gguf, tiny_tokenizer_dir):
    path = write_gguf(tiny_tokenizer_dir, "llama", "gpt2", pre="smollm", bos_token_id=1, add_bos_token=True).path
    fields = open_gguf(path).fields
    assert read_metadata(path) == {k: field.contents() for k, field in fields.items() if not k.startswith("GGUF.")}


def test_every_type_of_value(tmp_path):
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(tmp_path / "all.gguf", "llama")
    values = {
        "uint8": 200, "int8": -3, "uint16": 60_000, "int16": -300, "uint32": 4_000_000_000, "int32": -70_000,
        "float32": 0.5, "bool": True, "string": "zwölf", "uint64": 2**63, "int64": -(2**40), "float64": 0.1,
    }  # fmt: skip
    for kind, value in values.items():
        getattr(writer, f"add_{kind}")(f"a.{kind}", value)
    writer.add_array("a.strings", ["x", "", "ü"])
    writer.add_array("a.numbers", [1, -2, 3])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    metadata = read_metadata(tmp_path / "all.gguf")
    assert {kind: metadata[f"a.{kind}"] for kind in values} == values
    assert metadata["a.strings"] == ["x", "", "ü"]
    assert metadata["a.numbers"] == [1, -2, 3]


@pytest.mark.parametrize("cut", [0, 3, 20, 60, 5000, 400_000])
def test_a_file_cut_off_in_its_metadata_is_an_error(smollm2_source, tmp_path, cut):
    path = tmp_path / "cut.gguf"
    with Path(smollm2_source.path).open("rb") as whole:
        path.write_bytes(whole.read(cut))
    with pytest.raises(ModelError, match=r"cut\.gguf is not a readable GGUF file"):
        read_metadata(path)


def test_something_else_is_an_error(tmp_path):
    path = tmp_path / "other.gguf"
    path.write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(ModelError, match="magic"):
        read_metadata(path)
