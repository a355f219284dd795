"""`EngineConfig`: every setting of one engine, with its unit and its default."""

from __future__ import annotations

import dataclasses
import difflib
import re
from dataclasses import dataclass
from typing import Any, Literal, Self

from octavo.errors import ConfigError
from octavo.fairness import SchedulingPolicy

DType = Literal["auto", "float32", "bfloat16", "float16"]
KVCacheDType = Literal["auto", "float32", "bfloat16", "int8", "fp8"]
LoadFormat = Literal["auto", "dummy"]
Runner = Literal["auto", "transformers"]
Activations = Literal["auto", "float32", "int16", "int8"]


@dataclass(slots=True, kw_only=True)
class EngineConfig:
    """Settings of one engine (one shard).

    Attributes:
        dtype: of weights that are not quantised, activations and KV cache. "auto" is the checkpoint's own on a GPU and
            float32 on a CPU. Weights that are quantised stay as they are. Named, "float32" is exact.
        activations: what the input of a matrix product is rounded to on the native CPU runner. "float32": not at all.
            "int8": for integer codes to 8 bits in groups of 32, for bfloat16 weights to bfloat16, else not. "int16": as
            that, and what it leaves once more, which answers as float32 does and takes a third of its time
            (docs/quantization.md). "auto" is what `dtype` says: "int16" with auto, "float32" with float32, "int8" with
            bfloat16.
        kv_cache_dtype: of keys and values. "auto" is the type that `dtype` computes in; "int8" and "fp8" (e4m3) take 8
            bits and a scale per position and head. "float32" and "bfloat16" are for the native CPU runner; "fp8" is for
            GPUs of compute capability 8.9 or more (and the torch runner on a CPU, slowly).
        quantization: None keeps the checkpoint's weights as they are.
        load_format: "auto" reads the checkpoint; "dummy" takes random weights (torch runner only): it times a model of
            which only the config is available.
        runner: "auto" runs the families of docs/models.md; "transformers" runs a model that is not among them with
            transformers' own code over this engine's cache, which is slower, or refuses it.
        max_model_len: most tokens of one sequence, prompt and output; None takes the model's own limit, and for an
            encoder the one that its makers say for texts, where that is lower.
        max_num_seqs: most sequences in one step; an encoder's steps are bounded by max_num_batched_tokens alone.
        max_num_batched_tokens: tokens in one step; a longer prompt is computed in chunks. Every running stream gets its
            token, and prefill at least one block, even where that exceeds this limit. An encoder computes a longer text
            in a step of its own.
        target_itl: most seconds between two tokens of a running stream. Prefill chunks are shortened until the cost
            model predicts no more; None means every step may use all of max_num_batched_tokens.
        max_num_queued_requests: requests that may wait beyond those that can start at once; one more is refused with
            `Overloaded`.
        scheduling_policy: which waiting request runs next: "fcfs", the one that came first; "priority", of the lowest
            `priority` the one whose deadline comes first, without deadlines the one that came first; "fair", the same,
            but tenants share the machine by their weights, in seconds (docs/fairness.md).
        block_size: tokens per KV block.
        kv_cache_bytes: size of the KV pool; None takes 1 GiB on a CPU, and on a GPU what `gpu_memory_utilization`
            leaves after the weights and the largest step, which is run once and measured.
        gpu_memory_utilization: share of a GPU's memory the engine may use.
        enable_prefix_caching: reuse the KV blocks of equal prefixes.
        disk_cache_bytes: size of a file, one per shard, that takes the KV blocks which the pool has no room for, and
            what it holds when the engine ends (docs/tiers.md). They are read where that is sooner than computing them,
            after a restart as well. None: there is no file. Not for ranks, encoders, random weights and rehearsals.
        host_cache_bytes: of the host's memory, that take the same blocks, in front of the file if there is one. They
            are for GPUs, whose memory is smaller: on a CPU a larger kv_cache_bytes does the same, and copies nothing.
        disk_cache_path: the folder of these files, in which only its user may write. None: kv/ in the cache folder.
        share_kv_cache: give KV blocks to other shards of the model, and fetch them from there where a router knows that
            they have more of a prompt, and where that is sooner than computing it (docs/kv_sharing.md). Every shard has
            a port for it. Not for ranks, encoders, random weights, rehearsals and `LLM`.
        async_scheduling: plan and prepare a step while the previous one runs. A stop string is then noticed one step
            late, and the surplus token is discarded. None means true on a GPU and false on a CPU, whose cores are busy
            computing the step.
        speculation: guess tokens from what a sequence, and recent answers in its cache namespace, said before, and
            verify several in one step. No token changes. How many are guessed follows from what they cost and how often
            they were right, and mostly that is none (docs/speculation.md). None means true for the native CPU runner
            without `async_scheduling`: elsewhere the last bits of a token's logits depend on what is computed with it.
            {draft: SOURCE} has a smaller model of the same tokenizer guess as well; its keys and values take their part
            of kv_cache_bytes.
        enforce_eager: run decode steps on a GPU without CUDA graphs.
        batch_invariant: make a token's logits on a GPU bitwise independent of the other sequences in its step, of the
            chunks its prompt was cut into and of what the cache held. Every sum then has one fixed order, which makes
            matrix products slower. Not available with several ranks or with bitsandbytes. The native CPU runner always
            works this way.
        lora_bytes: memory of LoRA adapters, beside which one more may be loading; those that no request uses make room
            for others. Without adapters nothing is taken.
        threads: CPU threads; None takes one per core that the process may use, by its affinity and its control group's
            quota.
        tensor_parallel_size: ranks that share the model.
        device: "auto" is "cuda" where there is one, else "cpu".
        rehearsal: a profile to simulate in place of the model (see `octavo.rehearsal.simulated`): the name of a
            built-in one or the path of a YAML file. Only the model's tokenizer is read then.
        rehearsal_speed: speed of the simulated machine relative to its profile; at 0.2 every step takes five times as
            long. A list holds one speed per shard, by rank; shards beyond its end run at 1.
        record: a folder in which the scheduler writes what it sees and decides, for `octavo replay` (docs/replay.md):
            no text and no token, but when requests came, how long they were and the hashes of their blocks.
    """

    dtype: DType = "auto"
    activations: Activations = "auto"
    kv_cache_dtype: KVCacheDType = "auto"
    quantization: str | None = None
    load_format: LoadFormat = "auto"
    runner: Runner = "auto"
    max_model_len: int | None = None
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 1024
    target_itl: float | None = None
    max_num_queued_requests: int = 4096
    scheduling_policy: SchedulingPolicy = "priority"
    block_size: int = 16
    kv_cache_bytes: int | None = None
    gpu_memory_utilization: float = 0.9
    enable_prefix_caching: bool = True
    disk_cache_bytes: int | None = None
    host_cache_bytes: int | None = None
    disk_cache_path: str | None = None
    share_kv_cache: bool = False
    async_scheduling: bool | None = None
    speculation: bool | dict[str, str] | None = None
    enforce_eager: bool = False
    batch_invariant: bool = False
    lora_bytes: int = 2**28
    threads: int | None = None
    tensor_parallel_size: int = 1
    device: str = "auto"
    rehearsal: str | None = None
    rehearsal_speed: float | list[float] = 1.0
    record: str | None = None

    def __post_init__(self) -> None:
        at_least_one = ("max_model_len", "max_num_seqs", "max_num_batched_tokens", "max_num_queued_requests",
                        "block_size", "kv_cache_bytes", "disk_cache_bytes", "host_cache_bytes", "lora_bytes", "threads",
                        "tensor_parallel_size")  # fmt: skip
        for name in at_least_one:
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ConfigError(f"{name} must be a whole number of at least 1, got {value!r}")
            if value is not None and value >= (most := 1 << (63 if name.endswith("bytes") else 31)):
                raise ConfigError(f"{name} must be below {most}")
        if self.dtype not in ("auto", "float32", "bfloat16", "float16"):
            raise ConfigError(f"dtype must be auto, float32, bfloat16 or float16, got {self.dtype!r}")
        if self.activations not in ("auto", "float32", "int16", "int8"):
            raise ConfigError(f"activations must be auto, float32, int16 or int8, got {self.activations!r}")
        if self.kv_cache_dtype not in ("auto", "float32", "bfloat16", "int8", "fp8"):
            raise ConfigError(
                f"kv_cache_dtype must be auto, float32, bfloat16, int8 or fp8, got {self.kv_cache_dtype!r}"
            )
        if self.load_format not in ("auto", "dummy"):
            raise ConfigError(f"load_format must be auto or dummy, got {self.load_format!r}")
        if self.runner not in ("auto", "transformers"):
            raise ConfigError(
                f"runner must be auto or transformers, got {self.runner!r}: it is whose code runs a model; what that "
                "does its checkpoint says"
            )
        if self.scheduling_policy not in ("fcfs", "priority", "fair"):
            raise ConfigError(f"scheduling_policy must be fcfs, priority or fair, got {self.scheduling_policy!r}")
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise ConfigError(f"device must be auto, cpu, cuda or cuda:NUMBER, got {self.device!r}")
        self._check_speculation()
        is_random = self.load_format == "dummy" or self.rehearsal is not None
        for name in ("disk_cache_bytes", "host_cache_bytes"):
            alone = self.tensor_parallel_size == 1 and self.enable_prefix_caching and not is_random
            if getattr(self, name) and not alone:
                raise ConfigError(f"{name} is for a checkpoint in one process with a prefix cache: leave it off")
        if not isinstance(self.share_kv_cache, bool):
            raise ConfigError(f"share_kv_cache must be true or false, got {self.share_kv_cache!r}")
        if self.share_kv_cache and (is_random or self.tensor_parallel_size > 1 or not self.enable_prefix_caching):
            raise ConfigError("share_kv_cache is for a checkpoint in one process with a prefix cache: leave it off")
        if self.target_itl is not None and not self.target_itl > 0:
            raise ConfigError(f"target_itl must be more than 0 seconds, got {self.target_itl!r}")
        if not 0 < self.gpu_memory_utilization <= 1:
            raise ConfigError(f"gpu_memory_utilization must be in (0, 1], got {self.gpu_memory_utilization!r}")
        speeds = self.rehearsal_speed if isinstance(self.rehearsal_speed, list) else [self.rehearsal_speed]
        if not all(speed > 0 for speed in speeds):
            raise ConfigError(f"rehearsal_speed must be more than 0, got {self.rehearsal_speed!r}")

    def _check_speculation(self) -> None:
        found = self.speculation
        if isinstance(found, dict):
            for key in found:
                if key != "draft":
                    raise ConfigError(unknown_key(str(key), ["draft"], "setting of speculation"))
            if not isinstance(found.get("draft"), str) or not found["draft"]:
                raise ConfigError(f"speculation.draft must be the source of a model, got {found.get('draft')!r}")
        elif not isinstance(found, bool | None):
            raise ConfigError(f"speculation must be true, false, null or {{draft: SOURCE}}, got {found!r}")

    @property
    def has_tier(self) -> bool:
        """Whether blocks go on to memory of the host, or a file."""
        return bool(self.disk_cache_bytes or self.host_cache_bytes)

    @property
    def draft(self) -> str | None:
        """The source of the draft model, if there is to be one."""
        return self.speculation["draft"] if isinstance(self.speculation, dict) else None

    def speed_of_shard(self, rank: int) -> float:
        """The `rehearsal_speed` of one shard."""
        if not isinstance(self.rehearsal_speed, list):
            return self.rehearsal_speed
        return self.rehearsal_speed[rank] if rank < len(self.rehearsal_speed) else 1.0

    @classmethod
    def from_settings(cls, settings: dict[str, Any]) -> Self:
        """Build from keyword settings.

        Raises:
            ConfigError: for a key that does not exist, naming the nearest that does.
        """
        names = [f.name for f in dataclasses.fields(cls)]
        for key in settings:
            if key not in names:
                raise ConfigError(unknown_key(key, names))
        return cls(**settings)


def unknown_key(key: str, valid: list[str], where: str = "setting") -> str:
    """The sentence for an unknown key: names it and the nearest valid one."""
    near = difflib.get_close_matches(key, valid, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"valid ones are {', '.join(sorted(valid))}"
    return f"unknown {where} {key!r}: {hint}"
