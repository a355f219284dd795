from dataclasses import replace

import pytest

from octavo.config import EngineConfig
from octavo.errors import ConfigError
from octavo.execution.capacity import groups_of, num_positions
from octavo.execution.local import load_local
from octavo.models.source_spec import read_spec
from octavo.source import resolve_source
from octavo_kernels.native.library import library, use

BLOCK = 2**14


@pytest.mark.parametrize(
    ("settings", "positions"),
    [
        ({}, 64 * 16),  # what 2**20 bytes hold
        ({"kv_cache_bytes": 2**16}, 4 * 16),
        ({"kv_cache_bytes": 1}, 16),  # refused later, with its own sentence
        ({"kv_cache_bytes": 2**40}, 2**20),
        ({"max_model_len": 40}, 40),
        ({"max_model_len": 4000}, 64 * 16),
        ({"max_model_len": 2**21}, 2**21),  # refused where the model is loaded
    ],
    ids=str,
)
def test_a_rotary_table_has_no_more_positions_than_there_can_be_keys_for(tiny_model, settings, positions):
    spec = replace(read_spec(resolve_source(str(tiny_model("llama3")))), max_position_embeddings=2**20)
    config = EngineConfig(**settings)
    assert num_positions(spec, config, 2**20, BLOCK, groups_of(spec, config)) == positions


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("gemma3", {"host_cache_bytes": 2**20}, True),
        ("gemma3", {"share_kv_cache": True}, True),
        ("gemma3", {}, False),
        ("gemma3", {"host_cache_bytes": 2**20, "max_model_len": 8}, False),  # the window holds all of any text
        ("llama3", {"host_cache_bytes": 2**20}, False),
    ],
)
def test_windows_that_give_nothing_back_are_told_at_the_start(tiny_model, caplog, name, settings, said):
    load_local(resolve_source(str(tiny_model(name))), EngineConfig(kv_cache_bytes=2**20, **settings))
    assert ("layers with a window keep all of a text" in caplog.text) is said


@pytest.mark.parametrize("native", [True, False])
def test_tables_shrink_with_the_cache_on_either_runner(tiny_model, native):
    source = resolve_source(str(tiny_model("llama3")))
    with use(library() if native else None):
        executor = load_local(source, EngineConfig(kv_cache_bytes=2**15))
        parts = executor.parts
        rows = len(parts._model.layers[0].rotary) if native else parts._decoder.num_positions
        slots = executor.num_blocks * executor.block_size
        executor.close()
        assert slots <= rows < executor.spec.max_position_embeddings
        with pytest.raises(ConfigError, match="the model holds at most"):
            load_local(source, EngineConfig(kv_cache_bytes=2**15, max_model_len=10**6))
