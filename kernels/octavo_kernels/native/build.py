"""Compiles the ops' C++ into one shared library per instruction set, once, outside the package.

A library's folder is named by a hash of the sources, the flags and the compiler's version, so a changed source or
compiler makes a new one. Several processes may start at once: one compiles under a file lock, the others wait and find
the library; it appears by an atomic rename.

A container's image brings its libraries instead of a compiler: `python -m octavo_kernels.native.build FOLDER LEVEL ...`
makes them, and `OCTAVO_KERNELS=FOLDER` names them. They are taken while sources and flags are the same.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from octavo_kernels.native.cache import lock, own_file, with_cache

logger = logging.getLogger(__name__)

ROOT = Path(__file__).parents[1]

_COMMON = ("-O3", "-std=c++17", "-fPIC", "-pthread", "-fvisibility=hidden", "-ffp-contract=off", "-fno-math-errno",
           "-fno-trapping-math", "-Wall", "-Wextra", "-Wno-psabi", "-Wno-ignored-attributes",
           "-Wno-uninitialized", "-Wno-maybe-uninitialized")  # fmt: skip
_AVX2 = ("-mavx2", "-mfma", "-mf16c", "-mbmi2")
_AVX512 = (*_AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vbmi", "-mavx512vnni",
           "-mavx512bf16", "-mprefer-vector-width=512")  # fmt: skip

LEVELS: dict[str, tuple[str, ...]] = {
    "portable": (),
    "avx2": _AVX2,
    "avx512": _AVX512,
    "amx": (*_AVX512, "-mamx-tile", "-mamx-int8", "-mamx-bf16"),
    "amx-emulated": _AVX512,
}
"""Instruction sets, lowest first, and their compiler flags. A level's index is OCTAVO_ISA in the sources. The last one
is for tests: AMX emulated with AVX-512."""


class BuildError(Exception):
    """The library could not be compiled; the message says why."""


class NoCompiler(BuildError):
    """There is no C++ compiler."""


def library_path(level: str) -> Path:
    """The compiled library of one of `LEVELS`; built if it does not exist yet.

    Raises:
        BuildError: there is no C++ compiler (`NoCompiler`), or it refuses the sources.
    """
    if (library := brought(level)) is not None:
        return library
    compiler, flags = find_compiler(), _flags(level)
    place = Path("native") / _key(_version(compiler), flags) / f"octavo-{level}.so"
    try:
        return with_cache(lambda folder: _built(compiler, flags, folder / place))
    except OSError as error:
        raise BuildError(f"there is no place for the compiled CPU kernels: {error}") from error


def prebuild(folder: Path, levels: Sequence[str]) -> None:
    """Compile libraries of these instruction sets, which this CPU need not have, into a folder for `OCTAVO_KERNELS`.

    Raises:
        BuildError: as `library_path`.
    """
    for level in levels:
        _built(find_compiler(), _flags(level), _prebuilt(folder, level))


def brought(level: str) -> Path | None:
    """The library of this instruction set that `OCTAVO_KERNELS` names, if there is one that fits the sources."""
    folder = os.environ.get("OCTAVO_KERNELS")
    return library if folder and own_file(library := _prebuilt(Path(folder), level)) else None


def _prebuilt(folder: Path, level: str) -> Path:
    return folder / _key("prebuilt", _flags(level)) / f"octavo-{level}.so"


def _flags(level: str) -> tuple[str, ...]:
    return *_COMMON, *LEVELS[level], f"-DOCTAVO_ISA={list(LEVELS).index(level)}", f"-I{ROOT}"


def _built(compiler: str, flags: tuple[str, ...], library: Path) -> Path:
    if not own_file(library):
        library.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
        with lock(library.parent / "lock"):
            if not own_file(library):
                _build(compiler, flags, library)
    return library


@functools.cache
def find_compiler() -> str:
    """The C++ compiler: $CXX, else the first of g++, clang++ and c++ that is installed.

    Raises:
        NoCompiler: there is none.
    """
    names = [own] if (own := os.environ.get("CXX")) else ["g++", "clang++", "c++"]
    for name in names:
        if found := shutil.which(name):
            return found
    raise NoCompiler(f"there is no C++ compiler ({', '.join(names)} not found)")


def sources() -> list[Path]:
    """Every C++ file of the ops."""
    return sorted(ROOT.glob("*/*.cpp"))


def _key(version: str, flags: tuple[str, ...]) -> str:
    digest = hashlib.sha256(version.encode())
    digest.update("\0".join(flag for flag in flags if not flag.startswith("-I")).encode())
    for file in [*sources(), *sorted(ROOT.glob("*/*.h"))]:
        digest.update(f"\0{file.relative_to(ROOT)}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:16]


@functools.cache
def _version(compiler: str) -> str:
    return _run([compiler, "--version"])


def _build(compiler: str, flags: tuple[str, ...], library: Path) -> None:
    begin = time.perf_counter()
    logger.info("compiling the CPU kernels (once): %s", library)
    with tempfile.TemporaryDirectory(dir=library.parent) as folder, ThreadPoolExecutor(2) as pool:
        objects = [Path(folder) / f"{source.parent.name}-{source.stem}.o" for source in sources()]
        commands = [
            [compiler, *flags, "-c", str(source), "-o", str(target)]
            for source, target in zip(sources(), objects, strict=True)
        ]
        list(pool.map(_run, commands))
        linked = Path(folder) / library.name
        _run([compiler, "-shared", "-pthread", *map(str, objects), "-o", str(linked)])
        linked.chmod(0o755)  # independent of the umask: a file that others can write is not loaded
        linked.rename(library)
    logger.info("compiled the CPU kernels in %.1f s", time.perf_counter() - begin)


def _run(command: list[str]) -> str:
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise BuildError(f"{command[0]} does not run: {error}") from error
    if result.returncode and os.strerror(errno.ENOSPC) in result.stderr:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # another folder may have room
    if result.returncode:
        raise BuildError(f"{' '.join(command)} failed:\n{result.stderr.strip()}")
    return result.stdout


if __name__ == "__main__":
    prebuild(Path(sys.argv[1]), sys.argv[2:])
