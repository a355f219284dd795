"""A real model's blocks on a real disk."""

from __future__ import annotations

import pytest

from octavo import LLM, SamplingParams
from octavo.config import EngineConfig
from octavo.engine import arrivals
from octavo.errors import ConfigError

PROMPT = list(range(30, 130))
GREEDY = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)


@pytest.fixture(autouse=True)
def worth_it(monkeypatch):
    monkeypatch.setattr(arrivals, "compute_seconds", lambda *_: float("inf"))


@pytest.fixture
def load(tiny_model, tmp_path):
    """Loads a model with a file in the test's folder; all are closed in the end."""
    loaded = []

    def make(name="llama3", **settings):
        settings = {
            "disk_cache_bytes": 2**22,
            "disk_cache_path": str(tmp_path / "kv"),
            "kv_cache_bytes": 2**21,
        } | settings
        loaded.append(LLM(str(tiny_model(name)), progress=False, **settings))
        return loaded[-1]

    make.end = lambda: loaded.pop().close()
    yield make
    while loaded:
        make.end()


def ask(llm, prompt=PROMPT):
    """Its tokens, and how many of the prompt were there."""
    (output,) = llm.generate([prompt], GREEDY, use_tqdm=False)
    return list(output.outputs[0].token_ids), output.num_cached_tokens


KINDS = {
    "native": {},
    "native int8": {"kv_cache_dtype": "int8"},
    "native ahead": {"async_scheduling": True, "dtype": "bfloat16"},
    "native latent": {"name": "latent"},
    "torch": {"dtype": "float16"},
    "torch latent": {"name": "latent", "dtype": "float16"},
    "torch int8": {"dtype": "float16", "kv_cache_dtype": "int8"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_outlive_an_engine(load, kind):
    first = load(**KINDS[kind])
    said = ask(first)
    assert said[1] == 0
    load.end()
    assert ask(load(**KINDS[kind])) == (said[0], 96)


def test_other_forms_have_other_files(load, tmp_path):
    """Blocks of float32 are no use to bfloat16, nor those of one model to another, and shards do not share a file."""
    for settings in ({}, {"dtype": "bfloat16"}, {"name": "llama2"}, {}):
        assert ask(load(**settings))[1] == 0
    names = [file.name for file in (tmp_path / "kv").iterdir()]
    assert len({name.split("-")[1] for name in names}) == 3
    assert sum(name.endswith("-1.kv") for name in names) == 1


def test_a_changed_checkpoint_begins_anew(load, tiny_model, tmp_path):
    first = load()
    ask(first)
    load.end()
    old = set((tmp_path / "kv").iterdir())
    (tiny_model("llama3") / "config.json").touch()
    assert ask(load())[1] == 0
    new = set((tmp_path / "kv").iterdir())
    assert (len(old), len(new)) == (1, 1), "what is of no use any more has gone"
    assert not old & new


def test_files_that_somebody_has_open_and_of_other_models_and_types_stay(load, tiny_model, tmp_path):
    load()
    load(dtype="bfloat16")
    load(name="llama2")
    load.end()
    load.end()
    before = set((tmp_path / "kv").iterdir())
    (tiny_model("llama3") / "config.json").touch()
    load()
    assert set((tmp_path / "kv").iterdir()) > before
    assert len(before) == 3


def test_a_flipped_byte_and_a_short_file_are_computed(load, tmp_path):
    first = load()
    said, _ = ask(first)
    load.end()
    (file,) = (tmp_path / "kv").iterdir()
    content = file.read_bytes().rstrip(b"\0")  # the prompt's first block comes last
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    again = load()
    assert ask(again) == (said, 0)
    assert again.engine.stats().tier.failures["checksum"] == 1


@pytest.mark.parametrize(
    "settings",
    [{"disk_cache_bytes": 100}, {"disk_cache_path": "/proc/nowhere"}, {"tensor_parallel_size": 2},
     {"enable_prefix_caching": False}, {"load_format": "dummy"}],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_is_said(load, settings):
    with pytest.raises(ConfigError, match="disk_cache"):
        load(**settings)


def test_a_folder_that_others_may_write_in_is_refused(load, tmp_path):
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(ConfigError, match=r"others may write in .*: set disk_cache_path"):
        load(disk_cache_path=str(tmp_path / "open"))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "latent" not in kind])
def test_blocks_come_back_from_the_hosts_memory(load, kind):
    """The pool has room for one prompt, the host for both."""
    small = {"disk_cache_bytes": None, "host_cache_bytes": 2**21, "max_model_len": 128}
    llm = load(**small | KINDS[kind] | {"kv_cache_bytes": block_bytes(kind) * 9})
    other = [*reversed(PROMPT)]
    said = ask(llm), ask(llm, other)
    while llm.engine.has_chores:
        llm.engine.do_chores()
    assert (ask(llm)[0], ask(llm, other)[0]) == (said[0][0], said[1][0])
    assert llm.engine.stats().tier.came > 0


def block_bytes(kind):
    """Of a block of 16 tokens, 3 layers, 2 heads of 16 values, for keys and for values."""
    value = {"native": 4, "native int8": 1.25, "native ahead": 2, "torch": 2, "torch int8": 1.25}[kind]
    return int(16 * 3 * 2 * 2 * 16 * value)


def test_a_host_that_has_no_room_is_refused(load):
    with pytest.raises(ConfigError, match="host_cache_bytes holds no block"):
        load(host_cache_bytes=100)
    with pytest.raises(ConfigError, match="host_cache_bytes is for a checkpoint"):
        EngineConfig(tensor_parallel_size=2, host_cache_bytes=2**20)


def test_encoders_have_no_blocks(tiny_encoder):
    with pytest.raises(ConfigError, match="disk_cache_bytes"):
        LLM(str(tiny_encoder("bert")), progress=False, disk_cache_bytes=2**20)


def test_a_rehearsal_has_no_blocks():
    with pytest.raises(ConfigError, match="disk_cache_bytes"):
        EngineConfig(rehearsal="llama-8b-h100", disk_cache_bytes=2**30)
