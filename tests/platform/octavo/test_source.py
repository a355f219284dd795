import json
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
