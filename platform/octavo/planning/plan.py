"""The plan: what fits on which machines, with how much room for keys and values, at what best speed and price."""

from __future__ import annotations

from dataclasses import dataclass, replace

from octavo.config import EngineConfig
from octavo.errors import ConfigError
from octavo.kvcache.state_room import divide
from octavo.layer_groups import ONE_GROUP, LayerGroups, layer_groups
from octavo.planning.machines import Machine
from octavo.planning.memory import DTYPE_BYTES, Holding, find_quantization, legal_ranks
from octavo.planning.roofline import Roofline
from octavo.planning.shape import Shape

RULE_SHARE = 0.8
"""Share of memory for weights in the 80/20 rule of sizing guides; the rest is for the KV cache and everything else."""

_DEFAULTS = EngineConfig()


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What to plan for.

    Attributes:
        dtype: "auto" is float32 on a CPU and the checkpoint's own (or bfloat16) on a GPU.
        quantization: see `memory.find_quantization`; "auto" is the engine's behaviour: a GGUF file's own blocks on a
            CPU, weights in `dtype` elsewhere.
        kv_dtype: "auto" is the model's.
        tensor_parallel: ranks; None finds the fewest.
        max_model_len: tokens of the longest sequence; None is the model's own limit.
        concurrency: sequences of that length that must fit at once.
        input_tokens, output_tokens: of a typical request, for rates and money.
        max_num_seqs, max_num_batched_tokens, gpu_memory_utilization, block_size: as in `EngineConfig`.
    """

    dtype: str = "auto"
    quantization: str = "auto"
    kv_dtype: str = "auto"
    tensor_parallel: int | None = None
    max_model_len: int | None = None
    concurrency: int = 1
    input_tokens: int = 512
    output_tokens: int = 128
    max_num_seqs: int = _DEFAULTS.max_num_seqs
    max_num_batched_tokens: int = _DEFAULTS.max_num_batched_tokens
    gpu_memory_utilization: float = _DEFAULTS.gpu_memory_utilization
    block_size: int = _DEFAULTS.block_size

    def __post_init__(self) -> None:
        counts = ("max_model_len", "tensor_parallel", "concurrency", "input_tokens", "output_tokens", "max_num_seqs",
                  "max_num_batched_tokens", "block_size")  # fmt: skip
        for name in counts:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        if not 0 < self.gpu_memory_utilization <= 1:
            raise ConfigError(f"gpu_memory_utilization must be in (0, 1], got {self.gpu_memory_utilization}")
        _check_type("dtype", self.dtype, ["auto", "float32", "bfloat16", "float16"])
        _check_type("kv_dtype", self.kv_dtype, ["auto", *DTYPE_BYTES])


def _check_type(name: str, value: str, valid: list[str]) -> None:
    if value not in valid:
        raise ConfigError(f"{name} must be one of {', '.join(valid)}, got {value!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Memory of one rank, and how many tokens its KV cache holds.

    Attributes:
        share: share of the machine's memory that the weights take.
        kv_room: bytes for keys and values: utilization x memory - overhead - weights, but never the memory that
            activations need.
        kv_tokens: tokens that fit into `kv_room`, in whole blocks; where layers have windows, those of sequences of the
            longest length asked for.
        states: of recurrent layers, which take their part of `kv_room` as in the engine; a sequence has two.
        longest_context: most tokens of a single sequence, up to the length asked for.
        full_length: sequences of the longest length asked for that fit at once.
        typical: requests of the typical length that fit at once.

    Encoders keep no keys and values: `kv_room` is what is left over, and the last two are texts of one step.
    """

    weights: float
    activations: float
    overhead: int
    kv_per_token: int
    share: float
    kv_room: float
    kv_tokens: int
    states: int
    longest_context: int
    full_length: int
    typical: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Upper bounds from the roofline, in tokens per second of the whole group of ranks.

    Attributes:
        texts: prompts a second of which only a vector is wanted, in full steps.
        batch: sequences at once in `decode_batch` and `output`, or texts in a step of a model that generates none.
        decode_alone, decode_batch: None for a model that generates no text.
        output: tokens generated in steady state by typical requests, their prefill included; None as before.
        dollars_per_million: price of a million output tokens, or of a million prompt tokens where there are none; None
            without a price.
        tokens_per_dollar: tokens generated (or read) per dollar; None without a price.
    """

    prefill: float
    texts: float
    decode_alone: float | None
    batch: int
    decode_batch: float | None
    output: float | None
    dollars_per_million: float | None
    tokens_per_dollar: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """One model on one kind of machine.

    Attributes:
        ranks: number of devices: as asked for, or the fewest that suffice (or the most that were tried).
        fits: whether `concurrency` sequences of the longest length fit.
        rule_ranks: the fewest devices that satisfy the 80/20 rule; None if none do.
        rule: "agrees", "too lax" (it accepts fewer devices than the KV cache needs) or "too strict".
        rates: None if the weights do not fit.
    """

    machine: str
    dtype: str
    kv_dtype: str
    ranks: int
    fits: bool
    memory: Memory
    rule_ranks: int | None
    rule: str
    rates: Rates | None


def plan(shape: Shape, machine: Machine, wanted: Wanted, price: float | None = None) -> Fit:
    """Fit a model to a machine.

    Args:
        price: dollars per device and hour.

    Raises:
        ConfigError: a quantization or a number of ranks that does not suit the model.
    """
    groups = _groups(shape, machine, wanted)
    needed = 1 if shape.encoder else wanted.concurrency
    fitting = [ranks for ranks in groups if _memory(shape, machine, wanted, ranks).full_length >= needed]
    ranks = fitting[0] if fitting else groups[-1]
    memory = _memory(shape, machine, wanted, ranks)
    content = [n for n in groups if _memory(shape, machine, wanted, n).share <= RULE_SHARE]
    rule_ranks = content[0] if content else None
    holding = hold(shape, machine, wanted, ranks)
    return Fit(
        machine=machine.name,
        dtype=holding.dtype,
        kv_dtype=holding.kv_dtype,
        ranks=ranks,
        fits=bool(fitting),
        memory=memory,
        rule_ranks=rule_ranks,
        rule=_judge(rule_ranks, ranks if fitting else None),
        rates=_rates(Roofline(holding, machine), memory, wanted, price),
    )


def hold(shape: Shape, machine: Machine, wanted: Wanted, ranks: int) -> Holding:
    """The types in which this machine would hold the model."""
    dtype = wanted.dtype
    if dtype == "auto":
        own = shape.dtype if shape.dtype in DTYPE_BYTES else "bfloat16"
        dtype = "float32" if machine.is_cpu else own
        if dtype == "bfloat16" and machine.rate("bfloat16") is None:
            dtype = "float16"  # V100 and T4 have no bfloat16
    name = wanted.quantization
    if name == "auto":
        name = "gguf" if shape.stored_bits else "none"
    quantization = find_quantization(name, shape)
    if quantization is not None and not machine.is_cpu:
        # The torch runner dequantises the embedding
        quantization = replace(quantization, roles=tuple(r for r in quantization.roles if r != "embedding"))
    return Holding(
        shape=shape,
        dtype=dtype,
        weight_dtype=_weight_dtype(shape, machine, dtype),
        quantization=quantization,
        kv_dtype=dtype if wanted.kv_dtype == "auto" else wanted.kv_dtype,
        ranks=ranks,
    )


def _weight_dtype(shape: Shape, machine: Machine, dtype: str) -> str:
    """The type of weights: the CPU engine keeps a checkpoint's 16-bit weights; elsewhere it is that of activations."""
    own = shape.dtype if shape.dtype in DTYPE_BYTES else dtype
    return own if machine.is_cpu and DTYPE_BYTES[own] < DTYPE_BYTES[dtype] else dtype


def longest(shape: Shape, wanted: Wanted) -> int:
    """Tokens of the longest sequence to plan for."""
    return min(wanted.max_model_len or shape.max_positions, shape.max_positions)


def _groups(shape: Shape, machine: Machine, wanted: Wanted) -> list[int]:
    """Numbers of ranks to try."""
    if wanted.tensor_parallel is None:
        sizes = [2**i for i in range(machine.most.bit_length()) if 2**i <= machine.most]
        return [ranks for ranks in sizes if legal_ranks(shape, ranks)]
    if not legal_ranks(shape, wanted.tensor_parallel):
        raise ConfigError(
            f"tensor_parallel is {wanted.tensor_parallel}, but {shape.num_heads} query heads and "
            f"{shape.num_kv_heads} key-value heads cannot be shared evenly by as many ranks"
        )
    return [wanted.tensor_parallel]


def _memory(shape: Shape, machine: Machine, wanted: Wanted, ranks: int) -> Memory:
    holding = hold(shape, machine, wanted, ranks)
    limit = longest(shape, wanted)
    weights = holding.weight_bytes()
    activations = holding.activation_bytes(wanted.max_num_batched_tokens, wanted.max_num_seqs, limit)
    # As in the engine: the KV cache gets what utilization leaves after the weights; steps use the remaining memory.
    usable = min(wanted.gpu_memory_utilization * machine.memory, machine.memory - activations)
    room = max(0.0, usable - machine.overhead - weights)
    per_token, size = holding.kv_bytes_per_token(), wanted.block_size
    groups = groups_of(shape, wanted)
    block = _block_bytes(holding, wanted, groups)
    # an encoder's texts need room in a step alone; one that is longer than a step's tokens runs by itself
    blocks, states = -(-max(wanted.max_num_batched_tokens, limit) * (room > 0) // size), 0
    if not shape.encoder:
        blocks = int(room / block)
    most = blocks
    if state := holding.state_bytes():
        divided = divide(int(room), block, state, wanted.max_num_seqs)
        blocks, states, most = divided.blocks, divided.states, divided.states // 2
    typical = wanted.input_tokens + (wanted.output_tokens if shape.generates else 0)
    full = min(most, groups.sequences(blocks, limit, size))
    alone = min(limit, groups.most_tokens(blocks, size))
    return Memory(
        weights=weights,
        activations=activations,
        overhead=machine.overhead,
        kv_per_token=per_token,
        share=weights / machine.memory,
        kv_room=room,
        kv_tokens=0 if shape.encoder else max(alone, full * limit) if groups.windowed else blocks * size,
        states=states,
        longest_context=alone,
        full_length=full,
        typical=min(most, groups.sequences(blocks, typical, size)),
    )


def groups_of(shape: Shape, wanted: Wanted) -> LayerGroups:
    """The groups of layers that the engine makes; encoders keep nothing."""
    if shape.encoder:
        return ONE_GROUP
    return layer_groups(shape.windows, longest(shape, wanted), wanted.max_num_batched_tokens)


def kv_bytes(holding: Holding, wanted: Wanted, tokens: int) -> int:
    """Bytes of keys and values that a rank keeps of a sequence while it is decoded."""
    groups = replace(groups_of(holding.shape, wanted), step=1)
    return groups.held(tokens, wanted.block_size) * _block_bytes(holding, wanted, groups)


def _block_bytes(holding: Holding, wanted: Wanted, groups: LayerGroups) -> int:
    return holding.kv_bytes_per_token() * wanted.block_size * groups.depth // len(holding.shape.windows)


def _judge(rule: int | None, needed: int | None) -> str:
    """Compare the 80/20 rule with the exact sum of all parts."""
    if rule == needed:
        return "agrees"
    return "too lax" if needed is None or (rule is not None and rule < needed) else "too strict"


def _rates(roofline: Roofline, memory: Memory, wanted: Wanted, price: float | None) -> Rates | None:
    if memory.typical < 1:
        return None
    batch = min(memory.typical, wanted.max_num_seqs)
    prompt, answer = wanted.input_tokens, wanted.output_tokens
    texts = max(1, wanted.max_num_batched_tokens // prompt)
    texts_rate = texts / roofline.texts_seconds(texts, prompt)
    hourly = None if price is None else price * roofline.holding.ranks
    if not roofline.holding.shape.generates:
        return Rates(
            prefill=texts_rate * prompt,
            texts=texts_rate,
            decode_alone=None,
            batch=texts,
            decode_batch=None,
            output=None,
            **_money(hourly, texts_rate * prompt),
        )
    prefill = roofline.prefill_seconds(prompt, wanted.max_num_batched_tokens)
    context = prompt + (answer + 1) / 2  # mean over the answer
    step = roofline.decode_seconds(batch, context)
    output = batch * answer / (batch * prefill + answer * step)
    return Rates(
        prefill=prompt / prefill,
        texts=texts_rate,
        decode_alone=1 / roofline.decode_seconds(1, context),
        batch=batch,
        decode_batch=batch / step,
        output=output,
        **_money(hourly, output),
    )


def _money(hourly: float | None, rate: float) -> dict[str, float | None]:
    """Of tokens that come at `rate` (1/s) from devices that cost `hourly` dollars an hour together."""
    return {
        "dollars_per_million": None if hourly is None else hourly / 3600 / rate * 1e6,
        "tokens_per_dollar": None if not hourly else rate * 3600 / hourly,
    }
