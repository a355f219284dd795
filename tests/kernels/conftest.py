"""Triton without a GPU: the kernels' tests run in its interpreter, and compiled where there is a CUDA device."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch

from octavo_kernels.native.library import use

HAS_CUDA = torch.cuda.is_available()

if importlib.util.find_spec("hypothesis") is None:  # as on a borrowed GPU: the other tests of a file still run
    _absent = MagicMock()
    _absent.given = lambda *_, **__: pytest.mark.skip(reason="needs hypothesis")
    _absent.settings = lambda *_, **__: lambda test: test
    sys.modules |= {"hypothesis": _absent, "hypothesis.strategies": _absent.strategies}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`-k gpu` finds every test of a Triton kernel, whatever its name."""
    for item in items:
        if "gpu" in getattr(item, "fixturenames", ()):
            item.extra_keyword_matches.add("gpu")


@pytest.fixture(scope="module")
def device() -> str:
    return "cuda" if HAS_CUDA else "cpu"


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tensors this small gain nothing from threads, which spin while another process has their core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", autouse=True)
def _no_native_library() -> Iterator[None]:
    """The ops run their references unless a test asks for a native library by name."""
    with use(None):
        yield


@pytest.fixture(scope="session")
def interpreted() -> Iterator[dict[str, ModuleType]]:
    """Triton's modules as they load for the interpreter, kept from one test file to the next."""
    modules: dict[str, ModuleType] = {}
    yield modules
    sys.modules.update(modules)  # the interpreter's own shutdown unloads them without complaints


@pytest.fixture(scope="module")
def gpu(interpreted: dict[str, ModuleType]) -> Iterator[Callable[[str], ModuleType]]:
    """`gpu(op)` is the op's Triton back end."""
    with pytest.MonkeyPatch.context() as patch:
        if HAS_CUDA:
            # Triton 3.9 warns (an error here) until this says what it does anyway.
            patch.setenv("TRITON_DEFAULT_FP_FUSION", "1")
            yield _back_end
            return
        # Triton decides between compiler and interpreter while its modules load. Another test may have loaded it
        # already (transformers does), and none should find it interpreting: swap its modules for the time being.
        patch.setenv("TRITON_INTERPRET", "1")
        outside = _take_triton()
        sys.modules.update(interpreted)
        with np.errstate(over="ignore"):  # exp(100) is inf, as on a GPU
            yield _back_end
        interpreted.update(_take_triton())
        sys.modules.update(outside)


@pytest.fixture(scope="module")
def row_by_row() -> Iterator[None]:
    """The interpreter multiplies matrices with NumPy, whose rows' last bits depend on where in the matrix they are."""

    def matmul(a: np.ndarray, b: np.ndarray, dtype: Any = None) -> np.ndarray:
        return np.einsum("ik,kj->ij", a.astype(dtype), b.astype(dtype))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np, "matmul", matmul)
        yield


def _back_end(op: str) -> ModuleType:
    return importlib.import_module(f"octavo_kernels.{op}.gpu")


def _take_triton() -> dict[str, ModuleType]:
    """Remove Triton and what is decorated with it from the loaded modules; its C++ part loads only once."""
    names = [
        name
        for name in sys.modules
        if (name.split(".")[0] == "triton" and not name.startswith("triton._C"))
        or (name.startswith("octavo_kernels.") and name.endswith(".gpu"))
    ]  # fmt: skip
    return {name: sys.modules.pop(name) for name in names}


@pytest.fixture
def compile_launches(tmp_path: Path) -> Callable[..., dict[str, list[Any]]]:
    """`compile_launches(__file__, 90)`: the `LAUNCHES` of a test file compiled for compute capability 9.0.

    -> by name, what each launched kernel takes (`Compiled` in compile_launches.py): registers, what of them
    spilled, and shared memory. More arguments name the launches that are wanted.
    """
    fields = ("kernel", "warps", "registers", "spilled", "shared", "matrix", "async_copies")
    # Triton 3.9 warns until FP_FUSION says what it does anyway.
    settings = {"TRITON_CACHE_DIR": str(tmp_path), "TRITON_DEFAULT_FP_FUSION": "1", "TRITON_INTERPRET": "0"}
    environment = os.environ | settings

    def compiled(file: str, capability: int, *names: str) -> dict[str, list[Any]]:
        script = Path(__file__).with_name("compile_launches.py")
        command = [sys.executable, str(script), file, str(capability), *names]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        launches = json.loads(done.stdout.splitlines()[-1])
        return {
            name: [SimpleNamespace(**dict(zip(fields, kernel, strict=True))) for kernel in kernels]
            for name, kernels in launches.items()
        }

    return compiled
