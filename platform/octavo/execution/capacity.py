"""How many KV blocks a model gets, and for how many positions it needs rotary tables."""

from __future__ import annotations

from octavo.config import EngineConfig
from octavo.errors import ModelError
from octavo.execution.executor import States
from octavo.kvcache.state_room import divide
from octavo.layer_groups import LayerGroups, layer_groups
from octavo.models.parallel import TPGroup
from octavo.models.spec import ModelSpec

CPU_KV_BYTES = 2**30
"""Of the KV cache on a CPU, where the config gives none."""


def groups_of(spec: ModelSpec, config: EngineConfig) -> LayerGroups:
    """The groups of a model's layers that attend; one beside recurrent layers, and where blocks go to a disk or
    to other shards, which take them with all layers."""
    return _groups(spec, config, whole=config.has_tier or config.share_kv_cache)


def keeps_left_windows(spec: ModelSpec, config: EngineConfig) -> bool:
    """Whether layers keep what left their windows for the sake of blocks that go elsewhere alone."""
    return groups_of(spec, config).windowed < _groups(spec, config, whole=False).windowed


def _groups(spec: ModelSpec, config: EngineConfig, *, whole: bool) -> LayerGroups:
    longest = min(config.max_model_len or spec.max_position_embeddings, spec.max_position_embeddings)
    whole = whole or spec.recurrence is not None
    windows = [None if whole else spec.windows[layer] for layer in spec.attention_layers]
    return layer_groups(windows, longest, config.max_num_batched_tokens)


def num_kv_blocks(config: EngineConfig, block: int, group: TPGroup) -> int:
    """KV blocks of `block` bytes that fit into `config.kv_cache_bytes`, or into a CPU's default.

    All ranks have a part of every block, so the one with the least room decides.

    Raises:
        ModelError: not even one fits.
    """
    wanted = CPU_KV_BYTES if config.kv_cache_bytes is None else config.kv_cache_bytes
    if wanted < block:
        raise ModelError(f"the KV cache gets {wanted} bytes but one block of {config.block_size} tokens takes {block}")
    return group.smallest(wanted // block)


def state_bytes(spec: ModelSpec, itemsize: int) -> int:
    """Bytes of one sequence's state over all layers; 0 for a model without recurrent layers.

    Args:
        itemsize: of the model's type.
    """
    if spec.recurrence is None:
        return 0
    return len(spec.recurrent) * sum(part.num_bytes(itemsize) for part in spec.recurrence.state)


def kv_room(config: EngineConfig, block: int, state: int, group: TPGroup) -> tuple[int, States | None]:
    """KV blocks of `block` bytes, and with them states of `state` bytes; 0: the model has none.

    Raises:
        ModelError: too little fits.
    """
    if not state:
        return num_kv_blocks(config, block, group), None
    wanted = CPU_KV_BYTES if config.kv_cache_bytes is None else config.kv_cache_bytes
    room = divide(wanted, block, state, config.max_num_seqs)
    if room.states < LEAST_STATES or room.blocks < 1:
        raise ModelError(
            f"the KV cache gets {wanted} bytes, half of which are for {LEAST_STATES} states or more of recurrent "
            f"layers, of {state} bytes each, beside blocks of {block}: raise kv_cache_bytes"
        )
    return room.blocks, States(room.states, room.interval, state)


LEAST_STATES = 4
"""One sequence in two of its steps."""


def num_positions(spec: ModelSpec, config: EngineConfig, room: int, block: int, groups: LayerGroups) -> int:
    """Positions that need a rotary table: no more than there can be keys for.

    For all positions of a model of a million tokens a table takes 0.5 GB, next to a KV cache of a few thousand.

    Args:
        room: bytes of the KV cache where the config gives none, or more.
        block: bytes of a KV block, or fewer.
        groups: of its layers.
    """
    wanted = config.max_model_len or spec.max_position_embeddings
    if wanted > spec.max_position_embeddings:
        return wanted  # whoever loads the model refuses it
    blocks = max(groups.count, (config.kv_cache_bytes or room) // block)
    return min(wanted, groups.most_tokens(blocks, config.block_size))
