"""The table of machines, and this one."""

import os

import pytest

from octavo.errors import ConfigError
from octavo.planning.machines import MACHINES, find_machine, this_cpu


@pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES)
def test_figures_are_of_the_right_order(machine):
    """A factor of 1000 or 8 in the table would show here."""
    assert 10 * 2**30 < machine.memory < 300 * 2**30
    assert 2e11 < machine.bandwidth < 1e13
    assert machine.rates["float32"] < machine.rates["float16"] < 3e15
    assert machine.link < machine.bandwidth
    assert machine.source


def test_eight_bit_rates_are_at_least_twice_those_of_sixteen():
    for machine in MACHINES.values():
        for kind in {"fp8", "int8"} & machine.rates.keys():
            assert machine.rates[kind] >= 1.99 * machine.rates["float16"]


def test_rates_are_dense():
    """Headlines of H100 (1979), L4 (242) and MI300X (2615) are for sparse matrices."""
    dense = {"h100": 989.5e12, "l4": 121e12, "mi300x": 1307.4e12, "a100-80gb": 312e12}
    assert {name: MACHINES[name].rate("bfloat16") for name in dense} == dense


def test_machines_without_bfloat16():
    assert [name for name, machine in MACHINES.items() if machine.rate("bfloat16") is None] == ["t4", "v100-32gb"]


def test_this_cpu_is_measured():
    machine = this_cpu()
    assert machine.is_cpu
    assert 2**28 < machine.memory <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 1e8 < machine.bandwidth < 2e12
    assert all(1e8 < rate < 1e15 for rate in machine.rates.values())


def test_names():
    assert find_machine("H100") is MACHINES["h100"]
    with pytest.raises(ConfigError, match="did you mean 'a100-80gb'"):
        find_machine("a100-80g")
