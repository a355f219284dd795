"""Converts weights to the packed layout and back; `formats.h` describes its bytes.

GGUF's blocks hold one row's codes and scales; the packed layout puts sixteen rows side by side, so that one vector
instruction works on sixteen outputs. Nothing is rounded: codes and scales are moved, bit for bit. A packed matrix has
GGUF's size, except for Q3_K (4 % more, because its 6-bit scales become bytes) and the padding of rows to sixteen.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from octavo_kernels.linear.formats import FLOATS, GROUP, GROUPED, LANES, Array, Grouped

CHUNK_VALUES = 1 << 19
"""Weights packed at a time: the temporary arrays stay in cache."""


def packed_shape(name: str, n: int, k: int) -> tuple[int, int, int]:
    """[blocks of sixteen rows, units of columns, bytes] of a packed matrix."""
    if name in FLOATS:
        return -(-n // LANES), -(-k // GROUP), LANES * GROUP * np.dtype(FLOATS[name]).itemsize
    return -(-n // LANES), k // GROUPED[name].unit, GROUPED[name].packed_bytes


def pack_blocks(blocks: Array, name: str, out: Array) -> None:
    """Pack GGUF's rows [N, bytes] uint8 into `out`, which has the packed shape."""
    form = GROUPED[name]
    rows = blocks.reshape(len(blocks), -1, form.block_bytes)
    step = max(1, CHUNK_VALUES // (rows.shape[1] * form.unit * LANES)) * LANES

    def pack(start: int) -> None:
        codes, stored = form.split(_padded(rows[start : start + step]))
        parts = [*map(_side_by_side, stored), _planes(codes, form.bits)]
        np.concatenate(parts, axis=2, out=out[start // LANES : (start + step) // LANES])

    with ThreadPoolExecutor(2) as pool:  # numpy lets other threads run
        list(pool.map(pack, range(0, len(rows), step)))


def pack_floats(values: Array, name: str, out: Array) -> None:
    """Pack rows [N, K] in one of `FLOATS` into `out`, which has the packed shape."""
    units = out.shape[1]
    step = max(1, CHUNK_VALUES // (units * GROUP * LANES))
    padded = np.zeros((step * LANES, units * GROUP), values.dtype)
    for block in range(0, len(out), step):
        rows = values[block * LANES : (block + step) * LANES]
        padded[: len(rows), : values.shape[1]] = rows
        padded[len(rows) :] = 0
        words = padded.view(np.uint32) if name == "BF16" else padded  # keeps pairs of columns together
        target = out[block : block + step]
        target[...] = _side_by_side(words.reshape(len(words), units, -1))[: len(target)]


def unpack_floats(data: Array, name: str, n: int, k: int) -> Array:
    """The inverse of `pack_floats`: [N, K]."""
    rows = _apart(data, np.uint32 if name == "BF16" else FLOATS[name]).reshape(data.shape[0] * LANES, -1)
    return rows.view(FLOATS[name])[:n, :k]


def unpack_blocks(data: Array, name: str, n: int) -> tuple[Array, Array, Array | None]:
    """The inverse of `pack_blocks`, as far as it is needed.

    Returns:
        Codes [N, K] uint8, scales and minima [N, K / columns that share them] float32.
    """
    form = GROUPED[name]
    stored, start = [], 0
    for kind, count in form.stored:
        end = start + LANES * count * np.dtype(kind).itemsize
        stored.append(_apart(data[:, :, start:end], kind))
        start = end
    codes = form.codes(_codes(data[:, :, start:], form))
    scale, minimum = form.scales(stored)
    return codes[:n], _flat(scale)[:n], None if minimum is None else _flat(minimum)[:n]


def _flat(x: Array) -> Array:
    return x.reshape(len(x), -1)


def _padded(rows: Array) -> Array:
    missing = -len(rows) % LANES
    return np.pad(rows, ((0, missing), (0, 0), (0, 0))) if missing else rows


def _side_by_side(items: Array) -> Array:
    """[rows, units, items] to bytes [blocks, units, bytes]: an item of sixteen rows, then the next item."""
    rows, units, count = items.shape
    lanes = items.reshape(rows // LANES, LANES, units, count).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(lanes).view(np.uint8).reshape(rows // LANES, units, -1)


def _apart(data: Array, kind: Any) -> Array:
    """The inverse of `_side_by_side`."""
    blocks, units, _ = data.shape
    lanes = np.ascontiguousarray(data).view(kind).reshape(blocks, units, -1, LANES)
    return np.ascontiguousarray(lanes.transpose(0, 3, 1, 2)).reshape(blocks * LANES, units, -1)


PARTS = {2: [(0, 2)], 3: [(0, 2), (2, 1)], 4: [(0, 4)], 5: [(0, 4), (4, 1)], 6: [(0, 4), (4, 2)], 8: [(0, 8)]}
"""Bits of a code -> its parts (lowest bit, width), in the order of their planes."""


def _planes(codes: Array, bits: int) -> Array:
    """Codes [rows, units, columns] as planes [blocks, units, bytes], group by group."""
    rows, units, columns = codes.shape
    words = np.ascontiguousarray(codes).view(np.uint32)  # four columns: one step
    steps = _side_by_side(words).reshape(rows // LANES, units, columns // GROUP, 8, 64)
    planes = [_plane((steps >> np.uint8(low)) & np.uint8((1 << width) - 1), width) for low, width in PARTS[bits]]
    return np.concatenate(planes, axis=3).reshape(rows // LANES, units, -1)


def _plane(steps: Array, width: int) -> Array:
    """Parts of `width` bits: plane p holds steps p, p + width, ..., lowest bits first."""
    out = steps[..., :width, :].copy()
    for i in range(1, 8 // width):
        out |= steps[..., i * width : (i + 1) * width, :] << np.uint8(i * width)
    return out


def _codes(planes: Array, form: Grouped) -> Array:
    """The inverse of `_planes`: [rows, K]."""
    blocks, units, _ = planes.shape
    rest = planes.reshape(blocks, units, form.unit // GROUP, form.bits, 64)
    steps = np.zeros((*rest.shape[:3], 8, 64), np.uint8)
    for low, width in PARTS[form.bits]:
        mask = np.uint8((1 << width) - 1)
        for i in range(8 // width):
            part = (rest[..., :width, :] >> np.uint8(i * width)) & mask
            steps[..., i * width : (i + 1) * width, :] |= part << np.uint8(low)
        rest = rest[..., width:, :]
    words = _apart(steps.reshape(blocks, units, -1), np.uint32)
    return words.view(np.uint8).reshape(blocks * LANES, -1)
