"""LoRA (Hu et al. 2021): what an adapter adds to a matrix's product, for rows that are all of one adapter.

In torch everywhere; the native decoder has code of its own (`cpu.h`), which `packed.py` lays matrices out for.
"""
