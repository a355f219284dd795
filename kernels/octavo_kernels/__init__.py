"""Octavo's kernels: one folder per op, with its back ends side by side.

    OP/__init__.py    the public function: checks shapes and picks the back end
    OP/reference.py   the maths in plain PyTorch: specification, oracle and fallback, on any device
    OP/gpu.py         Triton: the device function and its launcher, imported only for CUDA tensors
    OP/cpu.cpp        C++, compiled on first use (`native/`); OP/cpu.py calls it for float32 and bfloat16 CPU tensors
    OP/bench.py       its cases for `python -m octavo_kernels.bench`, which `timing.py` times

Every back end of an op has the public function's signature, so a test forces one by importing it. All are for
inference: they take float32, bfloat16 or float16, compute in float32 and know no gradients.
"""
