"""A decoder driven by hand over a paged cache, and transformers beside it."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from octavo.execution.state_storage import StateStorage
from octavo.models.decoder import Decoder
from octavo.models.step_context import KVCache, StepContext
from octavo.step import StateRows
from octavo_kernels.paged_attention import PagedBatch

BLOCK = 4


class PagedRun:
    """Sequences that grow by ragged steps; their blocks are scattered over a cache that starts as NaN."""

    def __init__(self, decoder: Decoder, num_sequences: int, max_tokens: int, seed: int = 0) -> None:
        self.decoder = decoder
        self.computed = [0] * num_sequences
        spec, per_sequence = decoder.spec, -(-max_tokens // BLOCK)
        num_blocks = num_sequences * per_sequence + 5
        blocks = np.random.default_rng(seed).permutation(num_blocks)[: num_sequences * per_sequence]
        self.tables = blocks.reshape(num_sequences, per_sequence).astype(np.int32)
        shape = (num_blocks, BLOCK, spec.num_kv_heads, spec.head_dim)

        def cache() -> torch.Tensor:
            return torch.full(shape, torch.nan, dtype=decoder.dtype, device=decoder.device)

        self.kv = [KVCache(*([cache()] * 2 if spec.latent else (cache(), cache()))) for _ in range(spec.num_layers)]
        self.states: StateStorage | None = None
        if spec.recurrence is not None:
            self.states = StateStorage(spec, num_sequences, decoder.dtype, str(decoder.device))

    def step(self, chunks: dict[int, list[int]]) -> dict[int, torch.Tensor]:
        """Sequence -> its next tokens, in any order; gives each one's logits [n, V]."""
        rows = list(chunks)
        for row in rows:
            self.computed[row] += len(chunks[row])
        lens = [len(chunks[row]) for row in rows]
        starts = np.concatenate(([0], np.cumsum(lens))).astype(np.int32)
        contexts = np.array([self.computed[row] for row in rows], np.int32)
        layout = PagedBatch.build(starts, contexts, self.tables[rows], BLOCK, self.decoder.device)
        tokens = torch.tensor([token for row in rows for token in chunks[row]], device=self.decoder.device)
        logits = self.decoder.logits(self.decoder.forward(tokens, self.context(layout, rows, lens))).cpu()
        return dict(zip(rows, logits.split(lens), strict=True))

    def context(self, layout: PagedBatch, rows: list[int], lens: list[int]) -> StepContext:
        """Of a step with `lens` tokens of the sequences `rows`."""
        if self.states is None:
            return StepContext(layout, self.kv)
        source = [row if self.computed[row] > count else -1 for row, count in zip(rows, lens, strict=True)]
        states = StateRows(*(np.array(x, np.int32) for x in (source, np.cumsum(lens) - 1, rows)))
        return StepContext(layout, self.kv, states=self.states.step(states, len(rows)))

    def all_logits(self, sequences: list[list[int]], seed: int = 0) -> list[torch.Tensor]:
        """Logits at every position, computed in steps of random chunks from a random choice of sequences."""
        random, parts = np.random.default_rng(seed), [[] for _ in sequences]
        while left := [i for i, tokens in enumerate(sequences) if self.computed[i] < len(tokens)]:
            chosen = random.permutation(left)[: random.integers(1, len(left) + 1)].tolist()
            ends = {i: self.computed[i] + int(random.choice([1, 1, 3, 16])) for i in chosen}
            for i, logits in self.step({i: sequences[i][self.computed[i] : ends[i]] for i in chosen}).items():
                parts[i].append(logits)
        return [torch.cat(part) for part in parts]

    def greedy(self, prompts: list[list[int]], num_tokens: int) -> list[list[int]]:
        """`num_tokens` greedy tokens after each prompt, all in one batch."""
        chunks = dict(enumerate(prompts))
        outputs: list[list[int]] = [[] for _ in prompts]
        for _ in range(num_tokens):
            for i, logits in self.step(chunks).items():
                outputs[i].append(int(logits[-1].argmax()))
            chunks = {i: output[-1:] for i, output in enumerate(outputs)}
        return outputs


@pytest.fixture(scope="session")
def paged_run() -> type[PagedRun]:
    return PagedRun


class Reference:
    """transformers' own model of a checkpoint, in float32 with eager attention."""

    def __init__(self, folder: Path, **options: Any) -> None:
        from transformers import AutoModelForCausalLM

        options = {"attn_implementation": "eager", "dtype": torch.float32} | options
        self.model = AutoModelForCausalLM.from_pretrained(folder, **options).eval()

    @torch.no_grad()
    def logits(self, tokens: list[int]) -> torch.Tensor:
        return self.model(torch.tensor([tokens])).logits[0].float()

    @torch.no_grad()
    def greedy(self, prompt: list[int], num_tokens: int) -> list[int]:
        result = self.model(torch.tensor([prompt]), use_cache=True)
        tokens = [int(result.logits[0, -1].argmax())]
        while len(tokens) < num_tokens:
            result = self.model(torch.tensor([tokens[-1:]]), past_key_values=result.past_key_values, use_cache=True)
            tokens.append(int(result.logits[0, -1].argmax()))
        return tokens


@pytest.fixture(scope="session")
def reference() -> type[Reference]:
    return Reference


@pytest.fixture(scope="session")
def sequences() -> list[list[int]]:
    """Token ids below 256 of several lengths, one of a single token."""
    random = np.random.default_rng(1)
    return [random.integers(0, 256, length).tolist() for length in (70, 1, 33, 16, 5)]


_GGUF_ARCHITECTURES = {"gemma3_text": "gemma3", "mistral": "llama", "mixtral": "llama", "qwen2_moe": "qwen2moe",
                       "qwen3_moe": "qwen3moe", "gpt_oss": "gpt-oss", "glm4_moe": "glm4moe"}  # fmt: skip


def _write_metadata(writer: Any, config: dict[str, Any], head_dim: int) -> None:
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    rope = config["rope_parameters"]
    writer.add_rope_dimension_count(int(head_dim * rope.get("partial_rotary_factor", 1)))
    writer.add_vocab_size(config["vocab_size"])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    if config["model_type"] in ("mistral", "gemma2", "gemma3_text", "gpt_oss"):
        writer.add_sliding_window(config["sliding_window"])
    if config["model_type"] in ("gemma2", "gemma3_text"):
        writer.add_attention_scale(config["query_pre_attn_scalar"] ** -0.5)
    if config["model_type"] == "gemma2":
        writer.add_attn_logit_softcapping(config["attn_logit_softcapping"])
        writer.add_final_logit_softcapping(config["final_logit_softcapping"])
    if config["model_type"] == "gemma3_text":
        writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in config["layer_types"]])
        writer.add_rope_freq_base_swa(config["rope_parameters"]["sliding_attention"]["rope_theta"])


def _write_mixture(writer: Any, config: dict[str, Any]) -> None:
    experts = config.get("num_local_experts") or config.get("num_experts") or config.get("n_routed_experts")
    if not experts:
        return
    writer.add_expert_count(experts)
    writer.add_expert_used_count(config["num_experts_per_tok"])
    if inner := config.get("moe_intermediate_size"):
        writer.add_expert_feed_forward_length(inner)
    if shared := config.get("shared_expert_intermediate_size"):
        writer.add_expert_shared_feed_forward_length(shared)
    if dense := config.get("first_k_dense_replace"):
        writer.add_leading_dense_block_count(dense)
        writer.add_expert_shared_count(config["n_shared_experts"])
        writer.add_expert_weights_scale(config["routed_scaling_factor"])
        writer.add_expert_weights_norm(config["norm_topk_prob"])
        writer.add_expert_group_count(config["n_group"])
        writer.add_expert_group_used_count(config["topk_group"])


def _with_stacked_experts(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """One tensor of all experts' matrices in place of theirs, under the names that the converter gives them."""
    found: dict[str, Any] = {}
    for key, values in tensors.items():
        key = key.replace("e_score_correction_bias", "e_score_correction.bias")
        if one := re.fullmatch(r"(.+\.experts)\.(gate_up|down)_proj(_bias)?", key):
            rows, kind = values if one[3] else values.swapaxes(1, 2), ".bias" if one[3] else ".weight"
            parts = (
                {"gate_proj": rows[:, ::2], "up_proj": rows[:, 1::2]} if one[2] == "gate_up" else {"down_proj": rows}
            )
            found |= {f"{one[1]}.{part}{kind}": np.ascontiguousarray(x) for part, x in parts.items()}
        elif one := re.fullmatch(r"model\.(layers\.\d+\.)(.+)\.experts\.(\d+)\.(.+)", key):
            prefix = f"{one[1]}feed_forward" if one[2] == "block_sparse_moe" else f"model.{one[1]}mlp"
            found.setdefault(f"{prefix}.experts.{one[4]}", {})[int(one[3])] = values
        else:
            found[key] = values.squeeze() if key.endswith(".shared_expert_gate.weight") else values
    return {key: np.stack([x[i] for i in range(len(x))]) if isinstance(x, dict) else x for key, x in found.items()}


def _write_rope(writer: Any, rope: dict[str, Any], head_dim: int) -> None:
    import gguf

    rope = rope.get("full_attention", rope)
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if rope["rope_type"] == "llama3":
        writer.add_tensor("rope_freqs.weight", _llama3_factors(rope, head_dim))


def _llama3_factors(rope: dict[str, Any], head_dim: int) -> np.ndarray:
    """As llama.cpp's converter computes them (LlamaModel.generate_extra_tensors)."""
    factors = []
    for exponent in np.arange(0, head_dim, 2) / head_dim:
        wavelength = 2 * np.pi * rope["rope_theta"] ** exponent
        turns = rope["original_max_position_embeddings"] / wavelength
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        smooth = np.clip((turns - low) / (high - low), 0, 1)
        factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(factors, np.float32)


def _permute(rows: np.ndarray, heads: int) -> np.ndarray:
    """LlamaModel.permute of llama.cpp's convert_hf_to_gguf.py: halves of a head become neighbours."""
    split = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return split.swapaxes(1, 2).reshape(rows.shape)


def write_gguf(folder: Path, file: Path, quant: str = "F32", **options: Any) -> Path:
    """Write a safetensors directory as GGUF, as llama.cpp's converter does; matrices are of block format `quant`.

    `options` are those of gguf's writer.
    """
    import json

    import gguf
    from safetensors.numpy import load_file

    config = json.loads((folder / "config.json").read_text())
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    name = _GGUF_ARCHITECTURES.get(config["model_type"], config["model_type"])
    writer = gguf.GGUFWriter(file, name, **options)
    _write_metadata(writer, config, head_dim)
    _write_rope(writer, config["rope_parameters"], head_dim)
    _write_mixture(writer, config)
    kind = gguf.GGMLQuantizationType[quant]
    architecture = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == name)
    names = gguf.get_tensor_name_map(architecture, config["num_hidden_layers"])
    for key, values in _with_stacked_experts(load_file(folder / "model.safetensors")).items():
        stored = names.get_name(key, try_suffixes=(".weight", ".bias"))
        stored += "" if stored.endswith((".weight", ".bias")) else ".weight"
        if name == "llama" and (".q_proj." in key or ".k_proj." in key):
            heads = config["num_attention_heads" if ".q_proj." in key else "num_key_value_heads"]
            values = _permute(values, heads)
        if name.startswith("gemma") and key.endswith("norm.weight"):
            values = values + 1
        if values.ndim == 1 or quant == "F32" or "ffn_gate_inp" in stored or stored.endswith("bias"):
            writer.add_tensor(stored, values)
        else:
            writer.add_tensor(stored, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.fixture(scope="session", name="write_gguf")
def _write_gguf() -> Any:
    return write_gguf


@pytest.fixture
def copy(tiny_model, tmp_path):
    """A copy of a tiny model whose tensors a test may change: `copy(name, change)`."""

    def make(name, change):
        folder = tmp_path / name
        shutil.copytree(tiny_model(name), folder)
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    return make
