"""The native library: how it is built and chosen, its threads, and every op's C++ against its reference."""

from __future__ import annotations

import importlib
import itertools
import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo_kernels.native import build, trust
from octavo_kernels.native import library as library_module
from octavo_kernels.native.build import NoCompiler
from octavo_kernels.native.library import Library, library, supported_levels, use
from octavo_kernels.paged_attention import PagedBatch
from octavo_kernels.paged_attention import cpu as attention
from octavo_kernels.paged_attention import reference as attention_reference

TYPES = [torch.float32, torch.bfloat16]
CLOSE = {torch.float32: {"atol": 2e-6, "rtol": 2e-6}, torch.bfloat16: {"atol": 1e-3, "rtol": 1.6e-2}}


@pytest.fixture(scope="module", params=supported_levels())
def native(request: pytest.FixtureRequest) -> Iterator[Library]:
    """The library of each instruction set that this CPU has, in use."""
    try:
        found = Library(request.param)
    except NoCompiler:
        pytest.skip("no C++ compiler")
    with use(found):
        yield found


def op(name: str) -> tuple[object, object]:
    return tuple(importlib.import_module(f"octavo_kernels.{name}.{kind}") for kind in ("cpu", "reference"))


# ---- the library ----------------------------------------------------------------------------------------------------


def test_the_chosen_level_can_be_lowered_but_not_raised() -> None:
    code = "from octavo_kernels.native.library import library; n = library(); print(n and n.level)"

    def choose(level: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"OCTAVO_CPU_ISA": level}
        return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)

    assert choose("reference").stdout.strip() == "None"
    assert "supports reference, portable" in choose("avx4096").stderr


def test_processes_that_start_at_once_compile_once(tmp_path, monkeypatch) -> None:
    """Two processes and one empty cache: one compiler run each for two small sources, one library in the end."""
    compiler, log = tmp_path / "compiler", tmp_path / "log"
    try:
        real = build.find_compiler()
    except NoCompiler:
        pytest.skip("no C++ compiler")
    compiler.write_text(f'#!/bin/sh\necho "$@" >> {log}\nexec {real} "$@"\n')
    compiler.chmod(0o755)
    for name in ("a", "b"):
        (tmp_path / "src" / name).mkdir(parents=True)
        (tmp_path / "src" / name / "cpu.cpp").write_text(f'extern "C" int f_{name}() {{ return 7; }}\n')
    code = (
        "from pathlib import Path; from octavo_kernels.native import build; "
        f"build.ROOT = Path({str(tmp_path / 'src')!r}); print(build.library_path('portable'))"
    )
    environment = os.environ | {"OCTAVO_CACHE": str(tmp_path / "cache"), "CXX": str(compiler)}
    both = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    paths = {child.communicate()[0].strip() for child in both}
    assert len(paths) == 1
    assert sum("-shared" in line for line in log.read_text().splitlines()) == 1


def test_a_missing_compiler_is_named(monkeypatch) -> None:
    build.find_compiler.cache_clear()
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(NoCompiler, match="no-such-compiler not found"):
        build.find_compiler()
    build.find_compiler.cache_clear()


def test_a_library_that_was_brought_needs_no_compiler(tmp_path, monkeypatch) -> None:
    """It is taken while the sources are those it was compiled from; a changed one needs the compiler."""
    source = tmp_path / "src" / "op" / "cpu.cpp"
    source.parent.mkdir(parents=True)
    source.write_text('extern "C" int f() { return 7; }\n')
    monkeypatch.setattr(build, "ROOT", tmp_path / "src")
    monkeypatch.setenv("OCTAVO_KERNELS", str(tmp_path / "brought"))
    try:
        build.prebuild(tmp_path / "brought", ["portable"])
    except NoCompiler:
        pytest.skip("no C++ compiler")
    monkeypatch.setattr(build, "find_compiler", lambda: pytest.fail("it looked for a compiler"))
    assert build.library_path("portable").is_relative_to(tmp_path / "brought")
    source.write_text('extern "C" int f() { return 8; }\n')
    with pytest.raises(pytest.fail.Exception):
        build.library_path("portable")


def test_what_does_not_compile_says_why(tmp_path, monkeypatch) -> None:
    (tmp_path / "op").mkdir()
    (tmp_path / "op" / "cpu.cpp").write_text("int broken( {\n")
    monkeypatch.setattr(build, "ROOT", tmp_path)
    monkeypatch.setenv("OCTAVO_CACHE", str(tmp_path / "cache"))
    try:
        build.find_compiler()
    except NoCompiler:
        pytest.skip("no C++ compiler")
    with pytest.raises(build.BuildError, match="error"):
        build.library_path("portable")


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ("return 0;", None),
        ('return "the attention";', "the attention"),
        ("__builtin_trap();", "Illegal instruction|Trace|Aborted|Sanitizer"),
        ("return *(const char* const*)8;", "Segmentation fault|Sanitizer"),
    ],
)
def test_a_library_is_tried_once_in_a_process_of_its_own(tmp_path, body: str, found: str | None) -> None:
    """Wrong results and crashes end the child; the verdict is kept, and the next process reads it."""
    source, tried, file = tmp_path / "a.cpp", tmp_path / "tried", tmp_path / "a.so"
    source.write_text(
        f'''#include <cstdio>
        extern "C" const char* octavo_prepare() {{ fclose(fopen("{tried}", "a+")); return 0; }}
        extern "C" const char* octavo_self_test() {{ {body} }}'''
    )
    try:
        subprocess.run([build.find_compiler(), "-shared", "-fPIC", source, "-o", file], check=True)
    except NoCompiler:
        pytest.skip("no C++ compiler")
    for first in (True, False):
        if found is None:
            trust.check(file)
        else:
            with pytest.raises(build.BuildError, match=found):
                trust.check(file)
        assert tried.exists() == first
        tried.unlink(missing_ok=True)


def test_what_fails_its_test_is_replaced_by_the_next_lower_set_with_one_warning(tmp_path, monkeypatch) -> None:
    levels = supported_levels()
    try:
        best = build.library_path(levels[-1])
    except NoCompiler:
        pytest.skip("no C++ compiler")

    def check(file) -> None:
        if file == best:
            raise build.BuildError("fails its self-test on this CPU (Illegal instruction)")

    monkeypatch.setattr(library_module, "check", check)
    library_module._best.cache_clear()
    with pytest.warns(UserWarning, match="slower kernels than it could: fails its self-test") as warned:
        chosen = library_module._best()
    library_module._best.cache_clear()
    assert len(warned) == 1
    assert (chosen and chosen.level) == (levels[-2] if len(levels) > 1 else None)


@pytest.mark.parametrize("kept", [True, False])
def test_amx_needs_a_kernel_that_keeps_its_registers(monkeypatch, kept: bool) -> None:
    flags = set().union(*library_module._CPU_FLAGS.values())
    monkeypatch.setattr(library_module, "cpu_flags", lambda: flags)
    monkeypatch.setattr(library_module, "_kernel_keeps_tiles", lambda: kept)
    assert supported_levels()[-1] == ("amx" if kept else "avx512")


def test_none_can_be_in_use() -> None:
    with use(None):
        assert library() is None


def test_threads_survive_a_fork_and_a_thousand_regions(native: Library) -> None:
    """A child has none of its parent's threads: it must start its own, not wait for them."""
    cpu, reference = op("rms_norm")
    x, weight = torch.randn(64, 512), torch.rand(512)
    native.set_threads(3)
    expected = reference.rms_norm(x, weight, 1e-5)
    for _ in range(1000):
        out = cpu.rms_norm(x, weight, 1e-5)
    torch.testing.assert_close(out, expected)
    child = os.fork()
    if child == 0:
        same = torch.equal(cpu.rms_norm(x, weight, 1e-5), out)
        os._exit(0 if same else 1)
    assert os.waitpid(child, 0)[1] == 0
    native.set_threads(2)


def test_cpu_tensors_go_to_it_but_for_float16(native: Library) -> None:
    public = importlib.import_module("octavo_kernels.rms_norm").rms_norm
    cpu, reference = op("rms_norm")
    x, weight = torch.randn(5, 1000), torch.rand(1000)
    assert torch.equal(public(x, weight, 1e-5), cpu.rms_norm(x, weight, 1e-5))
    assert torch.equal(public(x.half(), weight, 1e-5), reference.rms_norm(x.half(), weight, 1e-5))


# ---- the small ops --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (5, 64), (2, 100), (40, 576), (4, 3, 24)], ids=str)
def test_rms_norm(native: Library, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    cpu, reference = op("rms_norm")
    x, residual, weight = torch.randn(shape).to(dtype) * 3, torch.randn(shape).to(dtype), torch.rand(shape[-1]) * 2
    torch.testing.assert_close(cpu.rms_norm(x, weight, 1e-5), reference.rms_norm(x, weight, 1e-5), **CLOSE[dtype])
    ours, theirs = (m.add_rms_norm(x, residual, weight, 1e-5) for m in (cpu, reference))
    torch.testing.assert_close(ours, theirs, **CLOSE[dtype])


def test_rms_norm_takes_heads_of_a_fused_projection(native: Library) -> None:
    cpu, reference = op("rms_norm")
    q, weight = torch.randn(6, 5 * 16)[:, 16:64].view(6, 3, 16), torch.rand(16)
    torch.testing.assert_close(cpu.rms_norm(q, weight, 1e-5), reference.rms_norm(q, weight, 1e-5))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("dim", "rotary_dim"), [(64, 64), (24, 24), (80, 32), (6, 2)])
def test_rotary(native: Library, dim: int, rotary_dim: int, dtype: torch.dtype) -> None:
    cpu, reference = op("rotary")
    qkv, positions, table = torch.randn(9, 5 * dim).to(dtype), torch.randint(0, 50, (9,)), torch.randn(50, rotary_dim)
    heads = [x.clone().view(9, 5, dim) for x in (qkv, qkv)]
    for x, module in zip(heads, (cpu, reference), strict=True):
        module.rotary_(x[:, :3], x[:, 3:4], positions, table)
    torch.testing.assert_close(*heads, **CLOSE[dtype])
    assert torch.equal(heads[0][:, 4], qkv.view(9, 5, dim)[:, 4])


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", ["silu_mul", "gelu_mul"])
@pytest.mark.parametrize("inner", [1, 17, 96, 1000])
def test_activation(native: Library, name: str, inner: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    cpu, reference = op("activation")
    x = torch.cat([torch.randn(7, 2 * inner) * 5, torch.full((1, 2 * inner), -200.0)]).to(dtype)
    torch.testing.assert_close(getattr(cpu, name)(x), getattr(reference, name)(x), **CLOSE[dtype])


def test_activation_knows_the_extremes(native: Library) -> None:
    cpu, _ = op("activation")
    gate = torch.tensor([[0.0, 1e30, -1e30, torch.inf, torch.nan, -90.0, 3e-39]])
    out = cpu.silu_mul(torch.cat([gate, torch.ones(1, 7)], dim=1))[0]
    assert out[:4].tolist() == [0, gate[0, 1], 0, torch.inf]
    assert out[4].isnan()
    assert -1e-30 < out[5] <= 0


def test_kv_store(native: Library) -> None:
    cpu, reference = op("kv_store")
    k, v = torch.randn(2, 6, 5 * 8)[..., 8:32].view(2, 6, 3, 8)
    slots = torch.tensor([3, 17, 0, 9, 19, 4])
    caches = [torch.randn(5, 4, 3, 8) for _ in range(2)]
    ours, theirs = ([c.clone() for c in caches] for _ in range(2))
    cpu.kv_store(k, v, *ours, slots)
    reference.kv_store(k, v, *theirs, slots)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


# ---- attention ------------------------------------------------------------------------------------------------------

Cache = tuple[torch.Tensor, torch.Tensor, np.ndarray]


def make_cache(contexts: list[int], heads: int, dim: int, block: int, dtype: torch.dtype, seed: int) -> Cache:
    """Keys, values and block tables of sequences over scattered blocks; all other slots hold NaN."""
    generator = torch.Generator().manual_seed(seed)
    per_sequence = -(-max(contexts) // block)
    blocks = torch.randperm(len(contexts) * per_sequence + 2, generator=generator)
    tables = blocks[: len(contexts) * per_sequence].view(len(contexts), per_sequence).numpy().astype(np.int32)
    k, v = torch.full((2, len(blocks) * block, heads, dim), torch.nan)
    for table, context in zip(tables, contexts, strict=True):
        slots = [int(table[p // block]) * block + p % block for p in range(context)]
        k[slots], v[slots] = torch.randn(2, context, heads, dim, generator=generator)
    k, v = (x.view(-1, block, heads, dim).to(dtype) for x in (k, v))
    return k, v, tables


def attend(
    module: object, queries: list[torch.Tensor], contexts: list[int], cache: Cache, block: int, **kind: object
) -> torch.Tensor:
    """The last len(queries[s]) tokens of each sequence's first contexts[s]."""
    starts = np.cumsum([0] + [len(q) for q in queries])
    batch = PagedBatch.build(starts, np.array(contexts), cache[2], block)
    q = torch.cat(queries)
    if kind.pop("alibi", False):
        kind["alibi_slopes"] = 2 ** -torch.linspace(0, 8, q.shape[1])
    if kind.pop("sinks", False):
        kind["sinks"] = torch.linspace(-4, 8, q.shape[1])
    return module.paged_attention(q, *cache[:2], batch, scale=q.shape[2] ** -0.5, **kind)


KINDS = [{}, {"window": 1}, {"window": 12}, {"window": 300}, {"softcap": 5.0}, {"window": 100, "softcap": 2.0},
         {"alibi": True}, {"alibi": True, "window": 270, "softcap": 5.0},
         {"sinks": True, "window": 270}]  # fmt: skip


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "block"), [(9, 3, 64, 16), (4, 2, 24, 4), (8, 1, 80, 16), (2, 2, 7, 5)]
)
def test_attention(
    native: Library, heads: int, kv_heads: int, dim: int, block: int, kind: dict[str, float], dtype: torch.dtype
) -> None:
    lens, contexts = [1, 5, 33, 1, 100, 2], [300, 70, 33, 600, 290, 257]
    cache = make_cache(contexts, kv_heads, dim, block, dtype, seed=dim)
    queries = [torch.randn(n, heads, dim).to(dtype) for n in lens]
    ours = attend(attention, queries, contexts, cache, block, **kind)
    exact = (cache[0].float(), cache[1].float(), cache[2])
    theirs = attend(attention_reference, [q.float() for q in queries], contexts, exact, block, **kind)
    torch.testing.assert_close(ours.float(), theirs, rtol=0, atol=3e-6 if dtype == torch.float32 else 3e-2)


@settings(max_examples=15, deadline=None)
@given(
    contexts=st.lists(st.integers(1, 700), min_size=1, max_size=5),
    window=st.sampled_from([None, 5, 270]),
    threads=st.integers(1, 3),
    dtype=st.sampled_from(TYPES),
    data=st.data(),
)
def test_a_row_of_attention_has_the_same_bits_in_any_step(native, contexts, window, threads, dtype, data) -> None:
    """Token by token and alone, against ragged chunks in one batch on other threads."""
    cache = make_cache(contexts, 2, 24, 16, dtype, seed=len(contexts))
    lens = [data.draw(st.integers(1, min(c, 40))) for c in contexts]
    queries = [torch.randn(n, 6, 24).to(dtype) for n in lens]
    native.set_threads(threads)
    together = attend(attention, queries, contexts, cache, 16, window=window).split(lens)
    native.set_threads(2)
    for s, (length, context) in enumerate(zip(lens, contexts, strict=True)):
        for i in {0, length // 2, length - 1}:
            own = (*cache[:2], cache[2][s : s + 1])
            alone = attend(attention, [queries[s][i : i + 1]], [context - length + i + 1], own, 16, window=window)
            assert torch.equal(alone[0], together[s][i])


def test_sequences_that_share_blocks_read_them_once_and_see_the_same(native: Library) -> None:
    """Forty sequences with one prefix of 512 tokens: grouped by the planner, and as if each were alone."""
    cache = make_cache([600], 2, 64, 16, torch.bfloat16, seed=0)
    tables = np.repeat(cache[2], 40, axis=0)
    queries = [torch.randn(1, 6, 64).bfloat16() for _ in range(40)]
    contexts = [600 - i for i in range(40)]
    together = attend(attention, queries, contexts, (*cache[:2], tables), 16)
    alone = [attend(attention, [q], [c], cache, 16) for q, c in zip(queries, contexts, strict=True)]
    assert torch.equal(together, torch.cat(alone))


def test_the_number_of_threads_may_change_while_a_step_begins(native: Library) -> None:
    """Memory is laid out per thread before the threads start: they must not become more in between."""
    cache = make_cache([600], 2, 64, 16, torch.float32, seed=0)
    query, done = torch.randn(40, 6, 64), threading.Event()

    def toggle() -> None:
        for number in itertools.cycle((1, 7, 2, 5)):
            if done.is_set():
                return
            native.set_threads(number)

    expected = attend(attention, [query], [600], cache, 16)
    thread = threading.Thread(target=toggle)
    thread.start()
    same = [torch.equal(attend(attention, [query], [600], cache, 16), expected) for _ in range(100)]
    done.set()
    thread.join()
    native.set_threads(2)
    assert all(same)


def test_one_sequence_with_nan_harms_no_other(native: Library) -> None:
    cache = make_cache([40, 300], 2, 24, 16, torch.float32, seed=0)
    queries = [torch.randn(3, 4, 24), torch.randn(1, 4, 24)]
    clean = attend(attention, queries, [40, 300], cache, 16)
    queries[0][1] = torch.nan
    out = attend(attention, queries, [40, 300], cache, 16)
    assert out[1].isnan().all()
    assert torch.equal(out[[0, 2, 3]], clean[[0, 2, 3]])
