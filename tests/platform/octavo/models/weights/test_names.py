"""What the formats call a tensor: each place has a name of its own, in every family."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from octavo.models.parallel import share_of
from octavo.models.source_spec import read_spec
from octavo.models.weights.layout import allocate, slots
from octavo.models.weights.names import Turned, gguf_naming, halves_order, hf_naming, plain_name
from octavo.source import resolve_source


def names_of(folder, naming):
    spec = read_spec(resolve_source(str(folder)))
    places = slots(allocate(spec, torch.float32, torch.device("meta")), share_of(spec))
    return [naming(spec).stored_name(slot) for slot in places]


def test_no_two_places_share_a_name_and_all_are_in_the_checkpoint(tiny_model, tiny_name):
    from safetensors import safe_open

    names = names_of(tiny_model(tiny_name), hf_naming)
    assert len(set(names)) == len(names)
    with safe_open(tiny_model(tiny_name) / "model.safetensors", "pt") as file:
        stored = {plain_name(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    fused = [name for name in names if name not in stored]
    assert not fused or hf_naming(read_spec(resolve_source(str(tiny_model(tiny_name))))).stacks, fused


@pytest.mark.parametrize("name", ["llama2", "gemma3", "qwen3"])
def test_ggufs_names_are_as_many(tiny_model, name):
    ours = names_of(tiny_model(name), gguf_naming)
    assert len(set(ours)) == len(ours) == len(names_of(tiny_model(name), hf_naming))
    assert {"token_embd.weight", "output_norm.weight", "blk.0.attn_q.weight", "blk.2.ffn_down.weight"} <= set(ours)


@pytest.mark.parametrize(
    "wrapped",
    ["layers.0.a", "model.layers.0.a", "language_model.model.layers.0.a", "model.language_model.layers.0.a",
     "transformer.layers.0.a"],
)  # fmt: skip
def test_what_wraps_the_text_model_is_taken_off(wrapped):
    assert plain_name(wrapped) == "layers.0.a"


@given(st.integers(1, 4), st.integers(1, 8), st.integers(0, 3))
def test_neighbouring_rows_go_to_the_two_halves_of_their_head(heads, half, rest):
    size = 2 * half + rest
    order = halves_order(heads * size, Turned(size, 0, 2 * half)).tolist()
    assert sorted(order) == list(range(heads * size))
    for row, stored in enumerate(order):
        head, place = divmod(stored, size)
        assert row == head * size + (place // 2 + (place % 2) * half if place < 2 * half else place)
