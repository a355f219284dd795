"""The native CPU library: every op's `cpu.cpp` compiled on first use into one shared library per instruction set.

build.py      finds the compiler and the sources, compiles, caches
library.py    picks the instruction set, loads, self-tests, calls
common.h      what every `cpu.cpp` includes: vectors, bf16, exp, the thread pool's interface
cpu.cpp       the thread pool and the self-test
"""
