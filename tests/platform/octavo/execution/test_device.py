"""Which device a setting means, found out without torch where that is possible."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from octavo.errors import ConfigError
from octavo.execution.device import find_device


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU there is one")
@pytest.mark.parametrize("name", ["cuda", "cuda:0"])
def test_a_gpu_that_is_not_there_is_named(name):
    with pytest.raises(ConfigError, match=f"device is {name!r} but torch sees no CUDA device"):
        find_device(name)


def test_a_cpu_is_a_cpu():
    assert find_device("cpu") == "cpu"


def test_without_a_gpu_nothing_asks_torch():
    code = "import sys; from octavo.execution.device import *; print(find_device('auto'), 'torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], env={"CUDA_VISIBLE_DEVICES": ""}, capture_output=True, text=True
    )
    assert done.stdout.split() == ["cpu", "False"], done.stderr
