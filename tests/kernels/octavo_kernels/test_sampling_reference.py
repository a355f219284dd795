"""The random numbers of sampling: known answers, and rows that do not know each other."""

import numpy as np
import pytest

from octavo_kernels.sampling.reference import philox, uniform

F = 0xFFFFFFFF


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [  # the known answers published with Random123 (kat_vectors, philox4x32-10)
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([F] * 4, [F] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_known_answers(counter, key, words):
    found = philox(np.array(counter, np.uint64)[:, None], np.array(key, np.uint64)[:, None])
    assert found[:, 0].tolist() == words


def test_rows_do_not_know_each_other_and_look_uniform():
    seeds = np.arange(20_000, dtype=np.uint64)
    positions = np.full(20_000, 3, np.int64)
    all_at_once = uniform(seeds, positions)
    assert all_at_once[1234] == uniform(seeds[1234:1235], positions[:1])[0]
    assert abs(all_at_once.mean() - 0.5) < 0.01
    assert abs(np.corrcoef(all_at_once[:-1], all_at_once[1:])[0, 1]) < 0.03
    assert all_at_once.min() >= 0
    assert all_at_once.max() < 1
