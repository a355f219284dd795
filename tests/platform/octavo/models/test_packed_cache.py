"""Packed weights on disk: found again, shared, made anew when the checkpoint changed or the file is damaged."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from octavo.errors import ModelError
from octavo.models import packed_cache
from octavo.models.packed import load_packed
from octavo.source import Source, resolve_source
from octavo_kernels.linear import PackedWeight
from octavo_kernels.native.library import use


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache that takes small models too; checksums in numpy, or the library would be compiled into it."""
    monkeypatch.setenv("OCTAVO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(packed_cache, "SMALLEST", 0)
    with use(None):
        yield tmp_path / "cache" / "packed"


@pytest.fixture
def source(tiny_model, tmp_path) -> Source:
    return resolve_source(str(shutil.copytree(tiny_model("llama_biases"), tmp_path / "model")))


@pytest.fixture
def packings(monkeypatch):
    """How often each source was packed."""
    from octavo.models import packing

    counts, pack = [], packing.pack

    def counted(source, *args, **kwargs):
        counts.append(source.path)
        return pack(source, *args, **kwargs)

    monkeypatch.setattr(packing, "pack", counted)
    return counts


def content(model):
    """Every array of a model, in order."""
    arrays = [model.embedding.data, model.head.weight.data, model.final_norm]
    for layer in model.layers:
        for name in type(layer).__slots__:
            value = getattr(layer, name)
            arrays += [value.weight.data, value.bias] if hasattr(value, "weight") else [value]
    return [array for array in arrays if isinstance(array, np.ndarray)]


def same(a, b) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(content(a), content(b), strict=True))


def files(cache: Path) -> list[Path]:
    return sorted(cache.glob("*.packed"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_second_start_maps_what_the_first_packed(cache, source, packings, monkeypatch, dtype):
    _, first = load_packed(source, dtype=dtype)
    _, second = load_packed(source, dtype=dtype)
    monkeypatch.setattr(packed_cache, "SMALLEST", 1 << 40)
    _, in_memory = load_packed(source, dtype=dtype)
    assert same(first, second)
    assert same(first, in_memory)
    assert len(packings) == 2
    assert not any(array.flags.writeable for array in content(second))
    assert all(array.ctypes.data % 64 == 0 for array in content(second))


def test_rounded_weights_are_another_file(cache, source):
    formats = [load_packed(source, dtype=dtype)[1].embedding.format for dtype in ("float32", "bfloat16", "float32")]
    assert formats == ["F32", "BF16", "F32"]
    assert len(files(cache)) == 2


def test_a_gguf_file_of_integers_is_one_for_both(cache, tiny_model, write_gguf, tmp_path, packings):
    source = resolve_source(str(write_gguf(tiny_model("llama3"), tmp_path / "tiny.gguf", "Q8_0")))
    for dtype in ("float32", "bfloat16"):
        load_packed(source, dtype=dtype)
    assert len(packings) == 1


def test_a_changed_checkpoint_is_packed_anew(cache, source, packings):
    _, before = load_packed(source, dtype="float32")
    weights = next(source.path.glob("*.safetensors"))
    times, content = weights.stat(), bytearray(weights.read_bytes())
    content[-2] ^= 1
    weights.write_bytes(content)
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))  # size and time of modification tell nothing
    _, after = load_packed(source, dtype="float32")
    assert len(packings) == 2
    assert not same(before, after)


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "zeroed"])
def test_damaged_files_are_noticed_and_made_anew(cache, source, packings, caplog, damage):
    _, before = load_packed(source, dtype="float32")
    (file,) = files(cache)
    data = file.read_bytes()
    middle = len(data) // 2
    file.unlink()  # a mapped file that shrinks would end this process
    file.write_bytes(
        {
            "cut": data[:-100],
            "empty": b"",
            "flipped": data[:middle] + bytes([data[middle] ^ 4]) + data[middle + 1 :],
            "zeroed": data[: middle - 2048] + bytes(4096) + data[middle + 2048 :],
        }[damage]
    )
    _, after = load_packed(source, dtype="float32")
    assert "is damaged" in caplog.text
    assert same(before, after)
    assert len(packings) == 2
    load_packed(source, dtype="float32")
    assert len(packings) == 2


def test_a_packing_that_fails_leaves_nothing(cache, source):
    weights = next(source.path.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes().replace(b'"F32"', b'"I32"'))
    with pytest.raises(ModelError, match="codes without scales"):
        load_packed(source, dtype="float32")
    assert [file.suffix for file in cache.iterdir()] == [".lock"]


def test_without_a_place_to_write_weights_stay_in_memory(tmp_path, source, monkeypatch, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("OCTAVO_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(packed_cache, "SMALLEST", 0)
    _, model = load_packed(source, dtype="float32")
    assert isinstance(model.embedding, PackedWeight)
    assert "not kept on disk" in caplog.text


def test_a_full_disk_is_not_filled(cache, source, monkeypatch, caplog):
    monkeypatch.setattr(packed_cache.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 100, 0))
    load_packed(source, dtype="float32")
    assert "has room for 0.0 GB" in caplog.text
    assert not files(cache)


def test_old_files_go_when_another_is_written(cache, source, tiny_model):
    cache.mkdir(parents=True)
    days = {"other-00000000-1": 31, "other-00000000-2": 29}
    ours = packed_cache._place(source, "stored")
    days |= {f"{ours}-old": 3, f"{ours}-older": 4}
    for name, age in days.items():
        (cache / f"{name}.packed").write_bytes(b"x")
        os.utime(cache / f"{name}.packed", times=(time.time() - age * 86_400,) * 2)
    load_packed(source, dtype="float32")
    kept = {file.stem for file in files(cache)}
    assert {"other-00000000-2", f"{ours}-old"} < kept
    assert len(kept) == 3


def _load(source: Source, folder: str, report) -> None:
    os.environ["OCTAVO_CACHE"] = folder
    packed_cache.SMALLEST = 0
    from octavo.models import packing

    packed, pack = [], packing.pack
    packing.pack = lambda *args, **kwargs: (packed.append(1), pack(*args, **kwargs))[1]
    with use(None):  # the checksum in numpy: nothing to compile
        _, model = load_packed(source, dtype="float32")
    report.put((len(packed), float(model.final_norm.sum())))


@pytest.mark.slow
def test_of_several_starts_at_once_one_packs(cache, source):
    context = multiprocessing.get_context("spawn")
    report = context.Queue()
    starts = [context.Process(target=_load, args=(source, str(cache.parent), report)) for _ in range(3)]
    for start in starts:
        start.start()
    results = [report.get(timeout=120) for _ in starts]
    for start in starts:
        start.join(60)
    assert sum(packed for packed, _ in results) == 1
    assert len({total for _, total in results}) == 1
    assert len(files(cache)) == 1
