"""Packed tensors in one file: what was written is mapped, and nothing else is taken for it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from octavo.models.packed_file import Damaged, read_packed, write_packed
from octavo_kernels.linear import PackedWeight
from octavo_kernels.native.library import use


@pytest.fixture(autouse=True)
def in_numpy():
    """Checksums in numpy: nothing is compiled."""
    with use(None):
        yield


@pytest.fixture
def parts():
    values = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
    return {
        (None, "embedding", "weight"): PackedWeight.from_tensor(values),
        (0, "attention_norm", "weight"): np.arange(5, dtype=np.float32),
        (1, "rotary", "table"): np.random.default_rng(0).random((3000, 4), np.float32),  # several pages
        (2, "q", "weight"): PackedWeight.from_tensor(values.bfloat16()),
    }


def test_what_was_written_is_read(tmp_path, parts):
    file = tmp_path / "a.packed"
    write_packed(file, iter(parts.items()))
    found = read_packed(file)
    assert list(found) == list(parts)
    for part, packed in parts.items():
        if isinstance(packed, PackedWeight):
            assert (found[part].format, found[part].n, found[part].k) == (packed.format, packed.n, packed.k)
            np.testing.assert_array_equal(found[part].data, packed.data)
        else:
            np.testing.assert_array_equal(found[part], packed)
            assert not found[part].flags.writeable
    assert [path.name for path in tmp_path.iterdir()] == ["a.packed"]
    assert file.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("place", [0, 100, -70, -1])
def test_one_changed_byte_is_noticed(tmp_path, parts, place):
    file = tmp_path / "a.packed"
    write_packed(file, parts.items())
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    other = tmp_path / "b.packed"
    other.write_bytes(data)
    with pytest.raises(Damaged):
        read_packed(other)


@pytest.mark.parametrize("size", [0, 10, 64, -1, -64, -65])
def test_a_file_cut_short_is_noticed(tmp_path, parts, size):
    file = tmp_path / "a.packed"
    write_packed(file, parts.items())
    other = tmp_path / "b.packed"
    other.write_bytes(file.read_bytes()[:size])
    with pytest.raises(Damaged):
        read_packed(other)


def test_a_write_that_fails_leaves_nothing(tmp_path, parts):
    def broken():
        yield from list(parts.items())[:1]
        raise RuntimeError("the checkpoint is damaged")

    with pytest.raises(RuntimeError):
        write_packed(tmp_path / "a.packed", broken())
    assert list(tmp_path.iterdir()) == []
