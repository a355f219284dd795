"""Chooses an instruction set, loads and tests its library, and calls its functions.

`OCTAVO_CPU_ISA=portable|avx2|avx512|amx` chooses a lower instruction set than the CPU has; `OCTAVO_CPU_ISA=reference`
uses no library but the plain PyTorch kernels.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from octavo_kernels.native.build import BuildError, NoCompiler, library_path
from octavo_kernels.native.cores import available_cores
from octavo_kernels.native.trust import check, cpu_flags

if TYPE_CHECKING:
    from torch import Tensor  # takes 1.2 s, which a process with a packed model saves

    Argument = Tensor | np.ndarray[Any, Any] | int | float | None

logger = logging.getLogger(__name__)

_TYPES = {"torch.float32": 0, "torch.bfloat16": 1}
"""Types that the native ops support, and their codes in the C interface."""

_CPU_FLAGS = {
    "portable": set(),
    "avx2": {"avx2", "fma", "f16c", "bmi2"},
    "avx512": {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512vbmi", "avx512_vnni", "avx512_bf16"},
    "amx": {"amx_tile", "amx_int8", "amx_bf16"},
}  # in addition to those of the level below

_override: list[Library | None] = []

_finding = threading.Lock()
"""Serialises the set-up: a second thread would otherwise set the number of threads again at any time."""


class Library:
    """One compiled library.

    Attributes:
        level: its instruction set, one of `build.LEVELS`.

    Raises:
        BuildError: on construction, when it cannot be compiled or loaded, or fails its own test on this CPU.
    """

    def __init__(self, level: str) -> None:
        self.level = level
        self._path = path = library_path(level)
        check(path)
        try:
            self._handle = ctypes.CDLL(str(path))
        except OSError as error:
            raise BuildError(f"the CPU kernels ({level}) cannot be loaded: {error}") from error
        self._handle.octavo_prepare.restype = ctypes.c_char_p
        if refused := self._handle.octavo_prepare():
            raise BuildError(f"the CPU kernels ({level}) cannot be used: {refused.decode()}")
        self.set_threads(available_cores())

    def call(self, function: str, *args: Argument) -> int:
        """Call `octavo_FUNCTION`. Arrays and tensors go as pointers, int as int64, float as float."""
        native = self._handle[f"octavo_{function}"]
        native.restype = ctypes.c_int64
        return int(native(*map(_argument, args)))

    def digest(self) -> str:
        """Names the code: its results have the same bits wherever this is the same."""
        return hashlib.sha256(self._path.read_bytes()).hexdigest()[:16]

    def set_threads(self, threads: int) -> None:
        """How many threads every function runs on."""
        self.call("set_threads", threads)

    @property
    def threads(self) -> int:
        """How many threads every function runs on."""
        return self.call("get_threads")


def library() -> Library | None:
    """The library for this CPU, compiled on first use; None, after one warning, if there cannot be one."""
    if _override:
        return _override[-1]
    with _finding:
        return _best()


def call(function: str, *args: Argument) -> int:
    """`Library.call` of the library that `library()` is, where there is one (see `use_cpu`)."""
    native = library()
    if native is None:
        raise BuildError("the CPU kernels are not there")
    return native.call(function, *args)


@contextmanager
def use(chosen: Library | None) -> Iterator[None]:
    """Make `library()` return this one inside the block, for tests and comparisons."""
    _override.append(chosen)
    try:
        yield
    finally:
        _override.pop()


def supported_levels() -> list[str]:
    """The instruction sets that this CPU has and the operating system allows, lowest first."""
    flags, levels = cpu_flags(), []
    for level, needed in _CPU_FLAGS.items():
        if not needed <= flags or (level == "amx" and not _kernel_keeps_tiles()):
            break
        levels.append(level)
    return levels


def use_cpu(*tensors: Tensor) -> bool:
    """Whether the native library runs an op on these tensors: they are on the CPU, of a supported type, and it
    exists."""
    return all(x.device.type == "cpu" and str(x.dtype) in _TYPES for x in tensors) and library() is not None


def type_code(x: Tensor) -> int:
    """The code of a tensor's type in the C interface."""
    return _TYPES[str(x.dtype)]


@functools.cache
def _best() -> Library | None:
    for level in reversed(_allowed_levels()):
        try:
            return Library(level)
        except NoCompiler as error:
            warnings.warn(f"the CPU runs the plain PyTorch kernels, slowly: {error}", stacklevel=4)
            return None
        except BuildError as error:
            warnings.warn(f"the CPU runs slower kernels than it could: {error}", stacklevel=4)
    return None


def _allowed_levels() -> list[str]:
    levels, wanted = supported_levels(), os.environ.get("OCTAVO_CPU_ISA")
    if wanted is None:
        return levels
    if wanted == "reference":
        return []
    if wanted not in levels:
        raise ValueError(f"OCTAVO_CPU_ISA is {wanted!r}, but this CPU supports reference, {', '.join(levels)}")
    return levels[: levels.index(wanted) + 1]


def _kernel_keeps_tiles() -> bool:
    """Whether a process may request AMX's registers: on Linux since 5.16, unless a sandbox forbids it."""
    arch_prctl, get_supported, tile_data = 158, 0x1021, 18
    features = ctypes.c_uint64()
    done = ctypes.CDLL(None).syscall(arch_prctl, get_supported, ctypes.byref(features))
    return done == 0 and bool(features.value >> tile_data & 1)


def _argument(value: Argument) -> Any:
    if isinstance(value, np.ndarray):
        return ctypes.c_void_p(value.ctypes.data)
    if isinstance(value, float):
        return ctypes.c_float(value)
    if isinstance(value, int | np.integer):
        return ctypes.c_int64(int(value))
    return ctypes.c_void_p(None if value is None else value.data_ptr())
