"""Families against transformers: tiny random checkpoints, ragged steps in chunks over a cache, on both runners;
torch's also on two ranks, and the same from GGUF files."""

from __future__ import annotations

import json
import math
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, is_dataclass, replace
from itertools import pairwise
from threading import Barrier

import gguf
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from octavo.models.families.reading import spec_from_config
from octavo.models.load import load_model
from octavo.models.packed import load_packed
from octavo.models.parallel import TPGroup, share_of
from octavo.models.source_spec import read_share
from octavo.models.weights.layout import slots
from octavo.planning.shape import shape_of
from octavo.source import resolve_source
from octavo_kernels.decoder import NativeDecoder, PackedKV, PackedStates
from octavo_kernels.linear.formats import Precision
from octavo_kernels.native.library import library

COMMON = {
    "vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "bos_token_id": 256, "eos_token_id": 258,
    "pad_token_id": 256,
}  # fmt: skip
LONG = {
    "rope_type": "longrope", "rope_theta": 1e4, "partial_rotary_factor": 0.5, "short_factor": [1.0, 1.1, 1.3, 1.7],
    "long_factor": [1.0, 2.0, 5.0, 9.0], "original_max_position_embeddings": 4,
}  # fmt: skip
WINDOWS = {"sliding_window": 12, "num_hidden_layers": 5}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32}
ALIKE = {"num_key_value_heads": 4}
NARROW = {"head_dim": 24}
LATENT = ALIKE | {
    "q_lora_rank": 24, "kv_lora_rank": 32, "qk_nope_head_dim": 32, "qk_rope_head_dim": 8, "v_head_dim": 16,
}  # fmt: skip
EXPERTS = {
    "n_routed_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 40, "n_group": 4, "topk_group": 2,
    "n_shared_experts": 2, "first_k_dense_replace": 1, "routed_scaling_factor": 1.5,
}  # fmt: skip
MSCALE = {"rope_parameters": YARN | {"mscale": 0.8, "mscale_all_dim": 0.8}}

BIASES = ("correction_bias", "expert_bias")
"""Ends of the names of what is added to choose experts."""

DELTA = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 24}

MAMBA = {
    "num_hidden_layers": 4, "layer_types": ["linear_attention"] * 2 + ["full_attention", "linear_attention"],
    "mamba_n_heads": 8, "mamba_d_state": 12, "attention_multiplier": 0.3, "residual_multiplier": 0.7,
}  # fmt: skip

CASES = {
    "mpt_clipped": ("Mpt", ALIKE | {"intermediate_size": 256, "max_seq_len": 128, "attn_config": {"clip_qkv": 0.6}}),
    "ministral": ("Ministral", WINDOWS | NARROW | {"layer_types": ["sliding_attention", "full_attention"] * 2
                  + ["sliding_attention"], "hidden_act": "relu"}),
    "ministral3": ("Ministral3", NARROW | {"hidden_act": "gelu", "rope_parameters": YARN | {"mscale": 1.0,
                   "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.7, "original_max_position_embeddings": 8}}),
    "seed_oss": ("SeedOss", NARROW),
    "internlm3": ("InternLM3", NARROW | {"attention_bias": True, "mlp_bias": True}),
    "arcee": ("Arcee", {}),
    "nemotron": ("Nemotron", {}),
    "ernie4_5": ("Ernie4_5", NARROW | {"use_bias": True}),
    "phi": ("Phi", ALIKE),
    "phi3": ("Phi3", {"sliding_window": 20, "original_max_position_embeddings": 128}),
    "phi3_long": ("Phi3", {"rope_parameters": LONG, "original_max_position_embeddings": 4}),
    "glm": ("Glm", NARROW),
    "glm4": ("Glm4", NARROW),
    "olmo": ("Olmo", {"clip_qkv": 0.6}),
    "olmo2": ("Olmo2", {}),
    "olmo3": ("Olmo3", WINDOWS | {"rope_parameters": {"full_attention": YARN, "sliding_attention": {
                  "rope_type": "default", "rope_theta": 1e4}}}),
    "granite": ("Granite", {"embedding_multiplier": 3.0, "attention_multiplier": 0.3, "residual_multiplier": 0.7,
                            "logits_scaling": 0.5}),
    "smollm3": ("SmolLM3", {"num_hidden_layers": 5}),
    "cohere": ("Cohere", {"logit_scale": 0.25}),
    "cohere2": ("Cohere2", WINDOWS | {"logit_scale": 0.25}),
    "exaone4": ("Exaone4", {"sliding_window": None, "layer_types": ["full_attention"] * 3}),
    "exaone4_windows": ("Exaone4", WINDOWS),
    "stablelm": ("StableLm", {"use_qkv_bias": True}),
    "stablelm_parallel": ("StableLm", {"use_parallel_residual": True}),
    "gpt2": ("GPT2", ALIKE | {"n_inner": 96}),
    "gptj": ("GPTJ", ALIKE | {"rotary_dim": 8, "n_inner": 96}),
    "gpt_neox": ("GPTNeoX", ALIKE),
    "gpt_neox_serial": ("GPTNeoX", ALIKE | {"use_parallel_residual": False}),
    "starcoder2": ("Starcoder2", {}),
    "gpt_bigcode": ("GPTBigCode", {"n_inner": 96}),
    "bloom": ("Bloom", {"hidden_size": 72, "num_attention_heads": 6, "num_key_value_heads": 6,
                        "intermediate_size": 288, "pad_token_id": 3}),
    "falcon_7b": ("Falcon", ALIKE),
    "falcon_40b": ("Falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon_11b": ("Falcon", {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1}),
    "falcon_1b": ("Falcon", ALIKE | {"alibi": True, "bias": True, "multi_query": False, "parallel_attn": False}),
    "opt": ("OPT", ALIKE | {"ffn_dim": 96, "word_embed_proj_dim": 64}),
    "olmoe": ("Olmoe", {"num_experts": 6, "num_experts_per_tok": 3, "num_key_value_heads": 4}),
    "flex_olmo": ("FlexOlmo", {"num_experts": 6, "num_experts_per_tok": 3, "num_key_value_heads": 4}),
    "dots1": ("Dots1", {"n_routed_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 40, "n_group": 4,
              "topk_group": 2, "n_shared_experts": 2, "first_k_dense_replace": 1, "routed_scaling_factor": 1.5}),
    "deepseek_v2": ("DeepseekV2", LATENT | EXPERTS | {"topk_method": "group_limited_greedy"}),
    "deepseek_v2_lite": ("DeepseekV2", LATENT | EXPERTS | MSCALE | {"q_lora_rank": None, "n_group": 1}),
    "deepseek_v3": ("DeepseekV3", LATENT | EXPERTS | MSCALE),
    "moonlight": ("DeepseekV3", LATENT | EXPERTS | {"q_lora_rank": None, "n_group": 1, "topk_group": 1}),
    "glm4_moe_lite": ("Glm4MoeLite", LATENT | EXPERTS | {"n_group": 1, "topk_group": 1, "rms_norm_eps": 1e-3}),
    "minicpm3": ("MiniCPM3", LATENT | {"scale_emb": 3, "scale_depth": 1.1, "dim_model_base": 16, "v_head_dim": None,
                 "attention_bias": True, "rope_parameters": YARN | {"mscale": 0.9, "mscale_all_dim": 0.8}}),
    "youtu": ("Youtu", LATENT | {"pad_token_id": None, "qk_nope_head_dim": 20}),
    "ernie4_5_moe": ("Ernie4_5_Moe", {"moe_num_experts": 6, "moe_k": 3, "moe_intermediate_size": 40}),
    "granitemoe": ("GraniteMoe", {"attention_multiplier": 0.3, "logits_scaling": 0.5, "num_local_experts": 5}),
    "lfm2": ("Lfm2", {"num_hidden_layers": 5, "full_attn_idxs": [2, 4], "conv_bias": True}),
    "qwen3_5": ("Qwen3_5Text", DELTA | {"num_hidden_layers": 5, "head_dim": 16}),
    "qwen3_next": ("Qwen3Next", DELTA | {"num_hidden_layers": 4, "num_experts": 6, "num_experts_per_tok": 3,
                   "moe_intermediate_size": 40, "shared_expert_intermediate_size": 24, "head_dim": 24}),
    "qwen3_5_moe": ("Qwen3_5MoeText", DELTA | {"num_hidden_layers": 4, "num_experts": 6, "num_experts_per_tok": 3,
                   "moe_intermediate_size": 40, "shared_expert_intermediate_size": 24, "head_dim": 24}),
    "lfm2_moe": ("Lfm2Moe", {"num_hidden_layers": 4, "layer_types": ["conv", "full_attention", "conv", "conv"],
                 "num_dense_layers": 1, "num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 40,
                 "routed_scaling_factor": 1.5}),
    "lfm2_wider": ("Lfm2", {"num_hidden_layers": 4, "full_attn_idxs": [1], "conv_L_cache": 5, "block_multiple_of": 8}),
    "granite4": ("GraniteMoeHybrid", MAMBA | {"num_local_experts": 5, "shared_intermediate_size": 40}),
    "granite4_dense": ("GraniteMoeHybrid", MAMBA | {"num_local_experts": 0, "shared_intermediate_size": 96,
                       "mamba_n_groups": 2, "position_embedding_type": "rope", "mamba_proj_bias": True}),
    "granitemoeshared": ("GraniteMoeShared", {"attention_multiplier": 0.3, "residual_multiplier": 0.7,
                         "num_local_experts": 5, "shared_intermediate_size": 40}),
}  # fmt: skip
"""Name -> the prefix of its transformers classes and how its config differs from `COMMON`."""

GGUF = {
    "mpt_clipped": "mpt",
    "seed_oss": "seed_oss", "internlm3": "llama", "arcee": "arcee", "nemotron": "nemotron", "ernie4_5": "ernie4_5",
    "phi": "phi2", "phi3": "phi3", "phi3_long": "phi3", "glm": "chatglm", "glm4": "glm4", "olmo": "olmo",
    "olmo2": "olmo2", "olmo3": "olmo2", "granite": "granite", "smollm3": "smollm3", "cohere": "command-r",
    "cohere2": "cohere2", "exaone4": "exaone4", "exaone4_windows": "exaone4", "stablelm": "stablelm",
    "stablelm_parallel": "stablelm", "gpt2": "gpt2", "gpt_neox": "gptneox", "gpt_neox_serial": "gptneox",
    "starcoder2": "starcoder2", "gpt_bigcode": "starcoder", "bloom": "bloom", "falcon_40b": "falcon",
    "falcon_11b": "falcon", "olmoe": "olmoe", "granitemoe": "granitemoe", "granitemoeshared": "granitemoe",
    "dots1": "dots1", "ernie4_5_moe": "ernie4_5-moe", "deepseek_v2": "deepseek2", "deepseek_v2_lite": "deepseek2",
    "deepseek_v3": "deepseek2", "moonlight": "deepseek2", "glm4_moe_lite": "deepseek2", "youtu": "deepseek2",
    "lfm2_wider": "lfm2", "lfm2_moe": "lfm2moe", "qwen3_next": "qwen3next", "qwen3_5": "qwen35",
    "qwen3_5_moe": "qwen35moe", "granite4": "granitehybrid", "granite4_dense": "granitehybrid",
}  # fmt: skip
"""Of those that llama.cpp's converter knows, the architecture."""

TILED = {"qwen35", "qwen35moe"}
"""Architectures whose files have the value heads of delta nets in another order."""

WHOLE = {
    "olmo2",
    "olmo3",
    "olmoe",
    "flex_olmo",
    "lfm2",
    "lfm2_moe",
    "lfm2_wider",
    "qwen3_5",
    "qwen3_5_moe",
    "qwen3_next",
    "granite4",
    "granite4_dense",
}
"""Those that one rank alone runs."""


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    """The name of a case and its folder."""
    import transformers

    prefix, differences = CASES[request.param]
    config = getattr(transformers, f"{prefix}Config")(**COMMON | differences)
    folder = tmp_path_factory.mktemp(request.param)
    model = transformers.AutoModelForCausalLM.from_config(config)
    randomize(model)
    model.save_pretrained(folder)
    return request.param, folder


def randomize(model):
    """Norms, biases and matrices that tell right from wrong, and logits that are large enough to."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if weight.ndim == 1:
                weight.add_(0.3 * noise)
            else:
                wide = any(part in name for part in ("embed", "wte", "wpe"))
                weight.copy_(noise * (1.0 if wide else weight.shape[-1] ** -0.5))
        for name, buffer in model.named_buffers():
            if name.endswith(BIASES):
                buffer.copy_(0.2 * torch.randn(buffer.shape, generator=generator))


class Threads(TPGroup):
    """Ranks that are threads of one process."""

    def __init__(self, rank, slots, barrier):
        self.rank, self.size, self.slots, self.barrier = rank, len(slots), slots, barrier

    def all_reduce(self, x):
        self.slots[self.rank] = x
        self.barrier.wait(60)
        total = torch.stack(self.slots).sum(0)
        self.barrier.wait(60)
        return x.copy_(total)


def on_ranks(size, run):
    """`run(group)` of every rank, whose logits are of a part of the vocabulary each -> logits."""
    slots, barrier = [None] * size, Barrier(size)
    with ThreadPoolExecutor(size) as pool:
        parts = pool.map(run, [Threads(rank, slots, barrier) for rank in range(size)])
        return [torch.cat(logits, 1) for logits in zip(*parts, strict=True)]


def native_logits(source, sequences, cuts=(0, 1, 3, 40, 80)):
    """Of all sequences, whose chunks between these positions run together."""
    spec, model = load_packed(source, dtype="float32")
    tables = np.random.default_rng(0).permutation(len(sequences) * 5).astype(np.int32).reshape(-1, 5)
    heads = spec.num_kv_heads, spec.head_dim, "float32", spec.kv_parts
    kv = PackedKV(len(spec.attention_layers), tables.size, 16, *heads)
    states = PackedStates(model, len(sequences))
    kv._data[:] = 0xFF  # NaN, wherever nothing was stored
    states._data[:] = np.nan
    decoder = NativeDecoder(library(), model, kv, precision=Precision.EXACT, states=states)
    found = [[] for _ in sequences]
    for begin, end in pairwise(cuts):
        rows = [i for i, tokens in enumerate(sequences) if len(tokens) > begin]
        chunks = [sequences[i][begin:end] for i in rows]
        starts = np.cumsum([0, *map(len, chunks)]).astype(np.int32)
        contexts = np.array([begin + len(chunk) for chunk in chunks], np.int32)
        tokens = np.array([token for chunk in chunks for token in chunk], np.int32)
        use = np.array([i if begin else -1 for i in rows]), starts[1:] - 1, np.array(rows)
        logits = decoder.step(tokens, starts, contexts, tables[rows], np.arange(len(tokens)), states=use)
        for i, (first, last) in zip(rows, pairwise(starts), strict=True):
            found[i].append(torch.from_numpy(logits[first:last].copy()))
    return [torch.cat(parts) for parts in found]


def test_it_computes_what_transformers_does(case, paged_run, reference, sequences):
    name, folder = case
    # transformers' eager attention adds Falcon's ALiBi twice
    source = resolve_source(str(folder))
    expected = reference(folder, attn_implementation="sdpa" if name == "falcon_1b" else "eager")
    theirs = [expected.logits(tokens) for tokens in sequences]
    assert theirs[0].std() > 0.5  # logits so small that anything would agree prove nothing

    def of_rank(group):
        decoder = load_model(source, share=read_share(source, group), group=group)
        return paged_run(decoder, 2, 80).all_logits(sequences[2:4])

    decoder = load_model(source)
    assert_close(paged_run(decoder, len(sequences), 80).all_logits(sequences), theirs)
    if name not in WHOLE:
        assert_close(on_ranks(2, of_rank), theirs[2:4])
    if library() is not None:
        ours = native_logits(source, sequences)
        assert_close(ours, theirs)
        assert torch.equal(native_logits(source, sequences[:1], (0, 80))[0], ours[0])
    prompts = [tokens[:20] for tokens in sequences[2:]]
    greedy = paged_run(decoder, len(prompts), 40).greedy(prompts, 6)
    assert greedy == [expected.greedy(prompt, 6) for prompt in prompts]


def assert_close(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=0)


def test_it_is_planned_with_as_many_parameters(case, reference):
    _, folder = case
    config = json.loads((folder / "config.json").read_text())
    model = reference(folder).model
    biases = sum(buffer.numel() for name, buffer in model.named_buffers() if name.endswith(BIASES))
    assert shape_of(config).parameters == model.num_parameters() + biases
    assert spec_from_config(config).family == config["model_type"]


RENAMED = {
    "internlm2": ("model.", "model.layers.", {
        "embed_tokens": "tok_embeddings", "lm_head": "output", "input_layernorm": "attention_norm",
        "self_attn.o_proj": "attention.wo", "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "feed_forward.w1",
        "mlp.up_proj": "feed_forward.w3", "mlp.down_proj": "feed_forward.w2"}, {}),
    "exaone": ("transformer.", "transformer.h.", {
        "embed_tokens": "wte", "model.norm": "model.ln_f", "input_layernorm": "ln_1",
        "post_attention_layernorm": "ln_2", "self_attn.o_proj": "attn.attention.out_proj",
        "self_attn": "attn.attention", "mlp.gate_proj": "mlp.c_fc_0", "mlp.up_proj": "mlp.c_fc_1",
        "mlp.down_proj": "mlp.c_proj"},
        {"num_layers": 3, "num_hidden_layers": None, "layer_norm_epsilon": 1e-6, "activation_function": "silu"}),
}  # fmt: skip
"""Families whose code is not in transformers -> prefixes of the model and its layers, and what differs from names and
config of Llama."""


@pytest.mark.parametrize("name", RENAMED)
def test_llamas_by_other_names(name, tiny_model, tmp_path, paged_run, reference, sequences):
    model, layers, others, changes = RENAMED[name]
    config = json.loads((tiny_model("llama3") / "config.json").read_text()) | {"model_type": name} | changes
    (tmp_path / "config.json").write_text(json.dumps(config))
    tensors = load_file(tiny_model("llama3") / "model.safetensors")
    tensors = grouped(tensors) if name == "internlm2" else tensors
    for usual, other in others.items():
        tensors = {stored.replace(usual, other): values for stored, values in tensors.items()}
    tensors = {stored.replace("model.layers.", layers): values for stored, values in tensors.items()}
    save_file({re.sub(r"^model\.", model, stored): values for stored, values in tensors.items()},
              tmp_path / "model.safetensors")  # fmt: skip
    ours = paged_run(load_model(resolve_source(str(tmp_path))), len(sequences), 80).all_logits(sequences)
    assert_close(ours, [reference(tiny_model("llama3")).logits(tokens) for tokens in sequences])


def grouped(tensors):
    """With the rows of two query heads, a key head and a value head beside each other."""
    found = dict(tensors)
    for layer in range(3):
        stem = f"model.layers.{layer}."
        q, k, v = (found.pop(f"{stem}self_attn.{part}_proj.weight").reshape(2, -1, 16, 64) for part in "qkv")
        found[f"{stem}attention.wqkv.weight"] = np.concatenate([q, k, v], 1).reshape(-1, 64)
    return found


def test_a_gguf_file_holds_the_same(case, tmp_path):
    name, folder = case
    if GGUF.get(name) in {None} | TILED or name == "granite4":
        pytest.skip("llama.cpp's converter does not know it, or moves heads, or what nothing rotates")
    write_gguf(folder, tmp_path / "m.gguf", GGUF[name])
    wanted, found = (load_model(resolve_source(str(path))) for path in (folder, tmp_path / "m.gguf"))
    alike = {"norm_eps": wanted.spec.norm_eps, "family": wanted.spec.family}
    assert rounded(replace(found.spec, **alike)) == rounded(wanted.spec)
    places = [slots(decoder.weights, share_of(decoder.spec)) for decoder in (wanted, found)]
    for one, other in zip(*places, strict=True):
        torch.testing.assert_close(other.target, one.target, rtol=0, atol=0, msg=f"{one.layer} {one.part} {one.kind}")


def test_recurrent_layers_of_gguf_files(case, tmp_path, paged_run, sequences):
    name, folder = case
    if name not in GGUF or "linear_attention" not in json.loads((folder / "config.json").read_text()).get(
        "layer_types", ()
    ):
        pytest.skip("it has no delta net and no state space")
    write_gguf(folder, tmp_path / "m.gguf", GGUF[name])
    write_gguf(folder, tmp_path / "q.gguf", GGUF[name], quant="Q8_0")
    whole, quantised = (resolve_source(str(tmp_path / file)) for file in ("m.gguf", "q.gguf"))
    assert load_model(whole).spec.recurrence.tiled is (GGUF[name] in TILED)
    theirs = paged_run(load_model(resolve_source(str(folder))), len(sequences), 80).all_logits(sequences)
    assert_close(paged_run(load_model(whole), len(sequences), 80).all_logits(sequences), theirs)
    if library() is not None:
        theirs = paged_run(load_model(quantised), len(sequences), 80).all_logits(sequences)
        assert_close(native_logits(quantised, sequences), theirs)


def test_latent_attention_of_older_gguf_files(case, tmp_path, paged_run, sequences):
    name, folder = case
    if GGUF.get(name) != "deepseek2":
        pytest.skip("its attention is not latent")
    loaded = []
    for heads_apart in (True, False):
        write_gguf(folder, tmp_path / "m.gguf", "deepseek2", heads_apart=heads_apart)
        loaded.append(load_model(resolve_source(str(tmp_path / "m.gguf"))))
        write_gguf(folder, tmp_path / "q.gguf", "deepseek2", heads_apart=heads_apart, quant="Q8_0")
        source = resolve_source(str(tmp_path / "q.gguf"))
        theirs = paged_run(load_model(source), len(sequences), 80).all_logits(sequences)
        assert_close(native_logits(source, sequences), theirs)
    places = [slots(decoder.weights, share_of(decoder.spec)) for decoder in loaded]
    assert loaded[0].spec == loaded[1].spec
    assert all(torch.equal(one.target, other.target) for one, other in zip(*places, strict=True))


def rounded(value):
    """Floats of a spec as a file keeps them, in float32."""
    if isinstance(value, float):
        return float(np.float32(value))
    if isinstance(value, tuple):
        return tuple(map(rounded, value))
    return {f.name: rounded(getattr(value, f.name)) for f in fields(value)} if is_dataclass(value) else value


def write_gguf(folder, file, architecture, *, heads_apart=True, quant=None):
    """As llama.cpp's converter writes the case.

    Args:
        quant: of matrices but routers, whose rows can be cut into its blocks.
        heads_apart: what makes keys and values of latents, as since April 2025, instead of in one matrix.
    """
    from transformers import AutoConfig

    config, writer = AutoConfig.from_pretrained(folder), gguf.GGUFWriter(file, architecture)
    write_settings(writer, config, architecture)
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(258)
    kind = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == architecture)
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    tensors = with_experts_apart(load_file(folder / "model.safetensors"))
    if architecture == "deepseek2":
        write_latent(writer, config, heads_apart)
        tensors = with_heads_apart(tensors, config) if heads_apart else tensors
    if architecture == "granitehybrid":
        write_state_spaces(writer, config)
        tensors = with_state_spaces(tensors, config)
    elif "linear_attention" in (getattr(config, "layer_types", None) or ()):
        write_delta_nets(writer, config)
        tensors = with_delta_nets(tensors, config, architecture)
    for name, values in tensors.items():
        values = values.T.copy() if name.endswith(TRANSPOSED) and architecture == "gpt2" else values
        name = name.removeprefix("transformer.") if architecture == "bloom" else name
        stored = names.get_name(name, try_suffixes=(".weight", ".bias")) or name
        values = converted(values, stored, config, architecture)
        exact = values.ndim == 1 or values.shape[-1] % 32 or "ffn_gate_inp" in stored or stored.endswith("_norm.weight")
        if quant is None or exact:
            writer.add_tensor(stored, values)
        else:
            form = gguf.GGMLQuantizationType[quant]
            writer.add_tensor(stored, gguf.quants.quantize(values, form), raw_dtype=form)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def with_experts_apart(tensors):
    """Gates beside what they gate, and all experts' matrices in one tensor."""
    found, mixture = {}, any("exp" in name or "block_sparse_moe" in name for name in tensors)
    for name, values in tensors.items():
        words, kind = name.split("."), "_shexp" if "shared_mlp" in name else "_exps"
        if name.endswith("input_linear.weight"):
            for part, half in zip(("gate", "up"), np.split(values, 2, axis=-2), strict=True):
                found[f"blk.{words[2]}.ffn_{part}{kind if mixture else ''}.weight"] = half.copy()
        elif name.endswith("shared_mlp.output_linear.weight") and not mixture:
            found[f"blk.{words[2]}.ffn_down.weight"] = values
        elif ".experts." in name:
            part = words[-2].removesuffix("_proj")
            part = {"w1": "gate", "w2": "down", "w3": "up"}.get(part, part)
            found.setdefault(f"blk.{words[2]}.ffn_{part}_exps.weight", []).append((int(words[5]), values))
        else:
            name = name.replace("feed_forward.expert_bias", "feed_forward.expert_bias.bias")
            found[name.replace("e_score_correction_bias", "e_score_correction.bias")] = (
                values[0] if "moe_statics" in name else values
            )
    return {k: np.stack([x for _, x in sorted(v, key=lambda pair: pair[0])]) if isinstance(v, list) else v
            for k, v in found.items()}  # fmt: skip


def write_latent(writer, config, heads_apart):
    rotated, keys = config.qk_rope_head_dim, config.qk_nope_head_dim + config.qk_rope_head_dim
    lengths = (config.kv_lora_rank + rotated, config.kv_lora_rank) if heads_apart else (keys, config.v_head_dim)
    for add, value in zip((writer.add_key_length, writer.add_value_length), lengths, strict=True):
        add(value)
    if heads_apart:
        writer.add_key_length_mla(keys)
        writer.add_value_length_mla(config.v_head_dim)
    writer.add_kv_lora_rank(config.kv_lora_rank)
    if config.q_lora_rank is not None:
        writer.add_q_lora_rank(config.q_lora_rank)
    if config.model_type != "youtu":
        kind = "SOFTMAX" if config.model_type == "deepseek_v2" else "SIGMOID"
        writer.add_expert_gating_func(gguf.ExpertGatingFuncType[kind])
    if scale := config.rope_parameters.get("mscale_all_dim"):
        writer.add_rope_scaling_yarn_log_mul(0.1 * scale)


def with_heads_apart(tensors, config):
    """What makes keys of latents, transposed, beside what makes values."""
    found = {}
    for name, values in tensors.items():
        if not name.endswith("kv_b_proj.weight"):
            found[name] = values
            continue
        heads = values.reshape(config.num_attention_heads, -1, config.kv_lora_rank)
        keys, values = np.split(heads, [config.qk_nope_head_dim], axis=1)
        found[name.replace("kv_b_proj", "k_b_proj")] = keys.swapaxes(1, 2).copy()
        found[name.replace("kv_b_proj", "v_b_proj")] = values.copy()
    return found


def write_delta_nets(writer, config):
    writer.add_ssm_conv_kernel(config.linear_conv_kernel_dim)
    writer.add_ssm_state_size(config.linear_key_head_dim)
    writer.add_ssm_group_count(config.linear_num_key_heads)
    writer.add_ssm_time_step_rank(config.linear_num_value_heads)
    writer.add_ssm_inner_size(config.linear_value_head_dim * config.linear_num_value_heads)
    writer.add_expert_shared_feed_forward_length(getattr(config, "shared_expert_intermediate_size", 0))


def with_delta_nets(tensors, config, architecture):
    """As `Qwen3NextModel` and `_LinearAttentionVReorderBase` in llama.cpp's conversion/qwen.py write them."""
    heads, values = config.linear_num_key_heads, config.linear_num_value_heads * config.linear_value_head_dim
    keys, found = heads * config.linear_key_head_dim, {}

    def moved(x):
        grouped = x.reshape(heads, config.linear_num_value_heads // heads, -1, *x.shape[1:])
        return grouped.swapaxes(0, 1).reshape(x.shape) if architecture in TILED else x

    for name, x in tensors.items():
        part = name.rpartition("linear_attn.")[2] if "linear_attn" in name else ""
        if name.endswith("norm.weight") and not part:
            x = x + 1
        elif name.endswith("shared_expert_gate.weight"):
            x = x[0]
        elif part == "in_proj_qkvz.weight":
            sizes = np.cumsum([keys, keys, values]) // heads
            q, k, v, z = (y.reshape(-1, x.shape[1]) for y in np.split(x.reshape(heads, -1, x.shape[1]), sizes, 1))
            found[name.replace("qkvz", "qkv")], found[name.replace("qkvz", "z")] = np.concatenate([q, k, v]), z
            continue
        elif part in ("conv1d.weight", "in_proj_qkv.weight"):
            x = x.squeeze(1) if part == "conv1d.weight" else x
            x = np.concatenate([x[: 2 * keys], moved(x[2 * keys :])])
        elif part == "out_proj.weight":
            x = moved(x.T).T.copy()
        elif part in ("A_log", "dt_bias", "in_proj_z.weight", "in_proj_a.weight", "in_proj_b.weight"):
            x = moved(-torch.from_numpy(x).exp().numpy() if part == "A_log" else x)
        found[name.replace("dt_bias", "dt_proj.bias")] = np.ascontiguousarray(x)
    return found


def write_state_spaces(writer, config):
    """Whether there is rotation stands where llama.cpp looks for it; its converter asks the model's class."""
    writer.add_ssm_conv_kernel(config.mamba_d_conv)
    writer.add_ssm_state_size(config.mamba_d_state)
    writer.add_ssm_group_count(config.mamba_n_groups)
    writer.add_ssm_time_step_rank(config.mamba_n_heads)
    writer.add_ssm_inner_size(config.mamba_expand * config.hidden_size)
    writer.add_rope_scaling_finetuned(config.position_embedding_type == "rope")


def with_state_spaces(tensors, config):
    """As `Mamba2Model` in llama.cpp's conversion/mamba.py writes them."""
    found = {}
    for name, x in tensors.items():
        if name.endswith("A_log"):
            x = -torch.from_numpy(x).exp().numpy()
        elif name.endswith("conv1d.weight"):
            x = x.squeeze(1)
        elif name.endswith("mamba.norm.weight"):
            x = x.reshape(config.mamba_n_groups, -1)
        x = x.reshape(-1, 1) if name.endswith(("A_log", "mamba.D")) else x
        found[name.replace("dt_bias", "dt_proj.bias")] = x
    return found


TRANSPOSED = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
SORTED = {"bloom", "gptneox", "falcon"}  # whose stacked rows the converter sorts into queries, keys and values
# whose halves of a head become neighbours
PERMUTED = {"llama", "olmo", "granite", "granitemoe", "granitehybrid", "smollm3", "arcee"}


def converted(values, stored, config, architecture):
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_kv_heads", None) or getattr(config, "num_key_value_heads", None) or heads
    if architecture in SORTED and "attn_qkv" in stored:
        groups = values.reshape(kv_heads, heads // kv_heads + 2, -1, *values.shape[1:])
        parts = groups[:, :-2], groups[:, -2:-1], groups[:, -1:]
        return np.concatenate([part.reshape(-1, *values.shape[1:]) for part in parts])
    if architecture in PERMUTED and (".attn_q." in stored or ".attn_k." in stored):
        count = heads if ".attn_q." in stored else kv_heads
        split = values.reshape(count, 2, len(values) // count // 2, *values.shape[1:])
        return split.swapaxes(1, 2).reshape(values.shape)
    if "shortconv.conv" in stored:
        return values.squeeze(1)
    return values + 1 if architecture == "nemotron" and stored.endswith("norm.weight") else values


def write_settings(writer, config, architecture):
    def given(*names):
        return next((value for name in names if (value := getattr(config, name, None)) is not None), None)

    heads, rope = config.num_attention_heads, getattr(config, "rope_parameters", None) or {}
    head_dim = given("head_dim") or config.hidden_size // heads
    rope = rope.get("full_attention", rope)
    settings = {
        writer.add_context_length: given("max_position_embeddings", "max_seq_len") or 128,
        writer.add_embedding_length: config.hidden_size,
        writer.add_block_count: config.num_hidden_layers,
        writer.add_feed_forward_length: given("n_inner", "ffn_hidden_size", "intermediate_size") or 4 * 72,
        writer.add_head_count: heads,
        writer.add_head_count_kv: 1 if architecture == "starcoder" else given("num_kv_heads", "num_key_value_heads"),
        writer.add_key_length: given("head_dim"),
        writer.add_value_length: given("head_dim"),
        writer.add_layer_norm_rms_eps: given("rms_norm_eps"),
        writer.add_layer_norm_eps: given("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps"),
        writer.add_rope_freq_base: rope.get("rope_theta"),
        writer.add_rope_dimension_count: int(rope.get("partial_rotary_factor", 1.0) * head_dim) if rope else None,
        writer.add_sliding_window: given("sliding_window"),
        writer.add_logit_scale: given("logit_scale", "logits_scaling"),
        writer.add_attention_scale: given("attention_multiplier"),
        writer.add_embedding_scale: given("embedding_multiplier"),
        writer.add_residual_scale: given("residual_multiplier"),
        writer.add_clamp_kqv: given("clip_qkv") or getattr(given("attn_config"), "clip_qkv", None),
        writer.add_max_alibi_bias: getattr(given("attn_config"), "alibi_bias_max", None),
        writer.add_parallel_residual: given("use_parallel_residual"),
        writer.add_expert_count: given("num_local_experts", "num_experts"),
        writer.add_expert_used_count: given("num_experts_per_tok"),
        writer.add_expert_shared_feed_forward_length: given("shared_intermediate_size"),
        writer.add_expert_feed_forward_length: given("moe_intermediate_size"),
        writer.add_expert_shared_count: given("n_shared_experts", "moe_num_shared_experts"),
        writer.add_expert_weights_scale: given("routed_scaling_factor"),
        writer.add_expert_weights_norm: given("norm_topk_prob"),
        writer.add_expert_group_count: given("n_group"),
        writer.add_expert_group_used_count: given("topk_group"),
        writer.add_leading_dense_block_count: given("first_k_dense_replace", "moe_layer_start_index"),
    }
    if architecture == "granitehybrid":
        kinds = [config.num_key_value_heads if kind == "full_attention" else 0 for kind in config.layer_types]
        settings[writer.add_head_count_kv] = kinds
    if architecture.startswith("lfm2"):
        kinds = [config.num_key_value_heads if kind != "conv" else 0 for kind in config.layer_types]
        settings |= {writer.add_head_count_kv: kinds, writer.add_shortconv_l_cache: config.conv_L_cache}
        settings[writer.add_leading_dense_block_count] = given("num_dense_layers")
        if architecture == "lfm2":
            settings[writer.add_feed_forward_length] = 64  # int(96 * 2 / 3), a multiple of 8
    if architecture == "deepseek2":
        settings |= {writer.add_head_count_kv: 1, writer.add_key_length: None, writer.add_value_length: None}
        settings[writer.add_rope_dimension_count] = config.qk_rope_head_dim
    if architecture == "olmo":
        settings[writer.add_layer_norm_eps] = 1e-5
    for add, value in settings.items():
        if value is not None:
            add(value)
    if architecture in ("exaone4", "olmo2", "cohere2") and given("sliding_window"):
        writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in config.layer_types])
    if rope.get("rope_type") == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if "long_factor" in rope:
        writer.add_rope_scaling_orig_ctx_len(4)
        writer.add_rope_scaling_attn_factors((1 + math.log(32) / math.log(4)) ** 0.5)
        for length in ("short", "long"):
            writer.add_tensor(f"rope_factors_{length}.weight", np.array(rope[f"{length}_factor"], np.float32))
