"""Dense families against transformers: tiny random checkpoints, ragged steps in chunks over a cache, on both runners;
torch's also on two ranks."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from threading import Barrier

import numpy as np
import pytest
import torch

from octavo.models.families.reading import spec_from_config
from octavo.models.load import load_model
from octavo.models.packed import load_packed
from octavo.models.parallel import TPGroup
from octavo.models.source_spec import read_share
from octavo.planning.shape import shape_of
from octavo.source import resolve_source
from octavo_kernels.decoder import NativeDecoder, PackedKV
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

CASES = {
    "ministral": ("Ministral", WINDOWS | NARROW | {"layer_types": ["sliding_attention", "full_attention"] * 2
                  + ["sliding_attention"]}),
    "seed_oss": ("SeedOss", NARROW),
    "internlm3": ("InternLM3", NARROW | {"attention_bias": True, "mlp_bias": True}),
    "arcee": ("Arcee", {}),
    "nemotron": ("Nemotron", {}),
    "ernie4_5": ("Ernie4_5", NARROW | {"use_bias": True}),
    "phi": ("Phi", {}),
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
    "smollm3": ("SmolLM3", {"no_rope_layer_interval": 2}),
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
    "starcoder2": ("Starcoder2", {"sliding_window": 12}),
    "gpt_bigcode": ("GPTBigCode", {"n_inner": 96}),
    "bloom": ("Bloom", {"hidden_size": 72, "num_attention_heads": 6, "num_key_value_heads": 6,
                        "intermediate_size": 288, "pad_token_id": 3}),
    "falcon_7b": ("Falcon", ALIKE),
    "falcon_40b": ("Falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon_11b": ("Falcon", {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1}),
    "falcon_1b": ("Falcon", ALIKE | {"alibi": True, "bias": True, "multi_query": False, "parallel_attn": False}),
    "opt": ("OPT", ALIKE | {"ffn_dim": 96, "word_embed_proj_dim": 64}),
}  # fmt: skip
"""Name -> the prefix of its transformers classes and how its config differs from `COMMON`."""

WHOLE = {"olmo2", "olmo3"}
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
        parts = pool.map(run, [Threads(rank, slots, barrier) if size > 1 else TPGroup() for rank in range(size)])
        return [torch.cat(logits, 1) for logits in zip(*parts, strict=True)]


def native_logits(source, sequences):
    """Of all sequences, whose chunks run together: one, two, many and the rest."""
    spec, model = load_packed(source, dtype="float32")
    tables = np.random.default_rng(0).permutation(len(sequences) * 5).astype(np.int32).reshape(-1, 5)
    kv = PackedKV(spec.num_layers, tables.size, 16, spec.num_kv_heads, spec.head_dim, "float32")
    kv._data[:] = 0xFF  # NaN, wherever nothing was stored
    decoder = NativeDecoder(library(), model, kv, exact=True)
    found = [[] for _ in sequences]
    for begin, end in pairwise((0, 1, 3, 40, 80)):
        rows = [i for i, tokens in enumerate(sequences) if len(tokens) > begin]
        chunks = [sequences[i][begin:end] for i in rows]
        starts = np.cumsum([0, *map(len, chunks)]).astype(np.int32)
        contexts = np.array([begin + len(chunk) for chunk in chunks], np.int32)
        tokens = np.array([token for chunk in chunks for token in chunk], np.int32)
        logits = decoder.step(tokens, starts, contexts, tables[rows], np.arange(len(tokens)))
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
        return paged_run(decoder, len(sequences), 80).all_logits(sequences)

    for size in (1,) if name in WHOLE else (1, 2):
        assert_close(on_ranks(size, of_rank), theirs)
    if library() is not None:
        assert_close(native_logits(source, sequences), theirs)
    prompts = [tokens[:20] for tokens in sequences[2:]]
    greedy = paged_run(load_model(source), len(prompts), 40).greedy(prompts, 6)
    assert greedy == [expected.greedy(prompt, 6) for prompt in prompts]


def assert_close(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=0)


def test_it_is_planned_with_as_many_parameters(case, reference):
    _, folder = case
    config = json.loads((folder / "config.json").read_text())
    assert shape_of(config).parameters == reference(folder).model.num_parameters()
    assert spec_from_config(config).family == config["model_type"]
