"""The native CPU library: every op's C++ compiled on first use into one shared library per instruction set.

cache.py      the folder for what is made once, and whether it is safe to load from
build.py      finds the compiler and the sources, compiles, caches
trust.py      runs a new library's self-test in a process of its own and remembers the verdict
library.py    picks the instruction set, loads, calls
common.h      what every source includes: vectors, bf16, exp, the thread pool's interface
amx.h         tile instructions, and their emulation for tests
cpu.cpp       the thread pool and the list of self-tests
"""
