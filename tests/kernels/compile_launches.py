"""Compiles the Triton kernels that a test file launches, for a GPU that need not be there.

    python tests/kernels/compile_launches.py FILE COMPUTE_CAPABILITY [NAME...]

FILE is a test file with `LAUNCHES: dict[str, Callable[[], object]]`, each of which calls a launcher of some `gpu.py`
with CPU tensors. The launchers run as they would on that GPU, with the types, divisibilities and constants that Triton
would see there; only the last step, the launch, is left out. The last line of output is JSON: the name of every launch
-> what each of its kernels takes.

The tests do this through the fixture `compile_launches`, in a process of its own because Triton cannot interpret and
compile in one.
"""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

SHARED_MEMORY = {80: 163 * 1024, 86: 99 * 1024, 89: 99 * 1024, 90: 227 * 1024}
"""Bytes that a program may take, by compute capability (CUDA C++ Programming Guide)."""
CUOBJDUMP = Path("backends/nvidia/bin/cuobjdump")  # in Triton's package


class Compiled(NamedTuple):
    """What one kernel takes on the GPU it was compiled for."""

    kernel: str
    warps: int
    registers: int  # per thread
    spilled: int  # bytes of stack per thread: registers that had no room
    shared: int  # bytes of shared memory per program
    matrix: str  # "wgmma" or "mma" where it uses the matrix unit, else ""
    async_copies: int  # sites in the code that load ahead into shared memory


class _Gpu:
    """As much of a Triton driver as compiling asks for."""

    def __init__(self, capability: int) -> None:
        self._capability = capability

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self._capability, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def load_launches(path: Path) -> dict[str, Callable[[], object]]:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module.LAUNCHES  # type: ignore[no-any-return]


def compile_instead_of_launching(capability: int) -> list[Compiled]:
    """From now on a launch compiles, and appends to the result."""
    import triton
    from triton.runtime.jit import JITFunction

    from octavo_kernels import dispatch

    traits = dispatch.GpuTraits(divmod(capability, 10), 132, SHARED_MEMORY[capability])
    dispatch.gpu_traits = lambda device: traits

    triton.runtime.driver.set_active(_Gpu(capability))
    run, done = JITFunction.run, []

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        done.append(describe(run(self, *args, grid=grid, warmup=True, **kwargs)))

    JITFunction.run = compile_only
    return done


def describe(binary: Any) -> Compiled:
    usage = _resource_usage(binary.asm["cubin"])
    dots = {"wgmma": "ttng.warp_group_dot ", "mma": "tt.dot "}
    matrix = next((name for name, op in dots.items() if op in binary.asm["ttgir"]), "")
    copies = binary.asm["ttgir"].count("ttg.async_copy_global_to_local ")
    meta = binary.metadata
    return Compiled(meta.name, meta.num_warps, usage["REG"], usage["STACK"], meta.shared, matrix, copies)


def _resource_usage(cubin: bytes) -> dict[str, int]:
    import triton

    tool = Path(triton.__file__).parent / CUOBJDUMP
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(cubin)
        done = subprocess.run([tool, "-res-usage", file.name], check=True, capture_output=True, text=True)
    return {name: int(value) for name, value in re.findall(r"(REG|STACK):(\d+)", done.stdout)}


def main(file: str, capability: str, *names: str) -> None:
    launches = load_launches(Path(file))
    done = compile_instead_of_launching(int(capability))
    found = {}
    for name in names or launches:
        done.clear()
        launches[name]()
        found[name] = list(done)
    print(json.dumps(found))  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
