"""Octavo's kernels: one folder per op, with its reference, its Triton kernel and (later) its C++ side by side."""
