"""Adapters as PEFT stores them, on both decoders: against PEFT's own logits, merged into the weights and beside."""

from __future__ import annotations

import json
from functools import partial
from itertools import pairwise, product

import numpy as np
import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from octavo.errors import ModelError
from octavo.models.adapters import find_adapter, read_adapter
from octavo.models.load import load_model
from octavo.models.packed import load_packed
from octavo.models.parallel import share_of
from octavo.models.source_spec import read_spec
from octavo.models.step_context import StepAdapters, StepContext
from octavo.models.weights.adapted import on_device, take_adapters
from octavo.source import resolve_source
from octavo_kernels.decoder import NativeDecoder, PackedKV
from octavo_kernels.linear.formats import Precision
from octavo_kernels.lora.packed import PackedAdapter
from octavo_kernels.lora.segments import Segments, sort_rows
from octavo_kernels.native.library import library

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT asks transformers

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
MLP = ["gate_proj", "up_proj", "down_proj"]
SHARED_EXPERT = [f"shared_expert.{name}" for name in MLP]


def peft_logits(model, folder, sequences, **config):
    """PEFT's logits with a random adapter, beside the weights and merged into them; the adapter goes into `folder`."""
    base = AutoModelForCausalLM.from_pretrained(model, attn_implementation="eager", dtype=torch.float32)
    base.config.model_type = ""  # else PEFT takes the names of a mixture's layers without experts for those of experts
    peft = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **config)).eval()
    random = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, weight in peft.named_parameters():
            if "lora_B" in name:
                weight.copy_(torch.randn(weight.shape, generator=random) * 0.02)
        peft.save_pretrained(folder, save_embedding_layers=False)
        beside = [peft(torch.tensor([tokens])).logits[0] for tokens in sequences]
        merged = peft.merge_and_unload()
        return beside, [merged(torch.tensor([tokens])).logits[0] for tokens in sequences]


def assert_equals_peft(model, folder, paged_run, reference, sequences, *ways, **config):
    expected = peft_logits(model, folder, sequences, r=5, lora_alpha=12, **config)
    assert (expected[0][0] - reference(model).logits(sequences[0])).abs().max() > 0.1  # it does change something
    for way, theirs in product((partial(torch_logits, paged_run), *ways), expected):
        for one, other in zip(way(model, folder, sequences), theirs, strict=True):
            torch.testing.assert_close(one, other, atol=1e-4, rtol=0)


MODULES = {"mixtral": ATTENTION, "qwen2_moe": ATTENTION + SHARED_EXPERT, "qwen3_moe": ATTENTION}
"""Where they are not all of every layer."""


def test_logits_are_those_of_peft(tiny_model, tiny_name, tmp_path, paged_run, reference, sequences):
    config = {"target_modules": MODULES.get(tiny_name, ATTENTION + MLP), "use_rslora": tiny_name.startswith("qwen")}
    config["rank_pattern"] = {"k_proj": 3, "o_proj": 16}
    config["alpha_pattern"] = {"v_proj": 20, r"^model.layers.1.self.attn\.q_proj": 4}
    assert_equals_peft(tiny_model(tiny_name), tmp_path, paged_run, reference, sequences, native_logits, **config)


@pytest.mark.parametrize(
    ("name", "where"), [("gpt_oss", ()), ("glm4_moe", ("0.mlp", "shared_experts")), ("qwen3_moe_dense", ("1.mlp",))]
)
def test_logits_of_other_mixtures_are_those_of_peft(tiny_model, tmp_path, paged_run, reference, sequences, name, where):
    """Layers without experts, and shared ones, too."""
    modules = ATTENTION + [f"{place}.{each}" for place, each in product(where, MLP)]
    assert_equals_peft(
        tiny_model(name), tmp_path, paged_run, reference, sequences, native_logits, target_modules=modules
    )


STACKED = {
    "GPT2": (["c_attn", "c_fc", "c_proj"], {"n_inner": 96}),
    "Phi3": (["qkv_proj", "o_proj", "gate_up_proj", "down_proj"], {"pad_token_id": 0}),
    "GPTNeoX": (["query_key_value", "dense", "dense_h_to_4h"], {}),
    "Falcon": (["query_key_value", "dense_4h_to_h"], {"new_decoder_architecture": True, "num_kv_heads": 2}),
}
"""Families that stack matrices, each in its own way: their modules, and what their config has beside the usual."""


@pytest.mark.parametrize("family", STACKED)
def test_logits_of_families_that_stack_are_those_of_peft(tmp_path, paged_run, reference, sequences, family):
    modules, more = STACKED[family]
    usual = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
             "num_attention_heads": 4, "max_position_embeddings": 128}  # fmt: skip
    model = AutoModelForCausalLM.from_config(getattr(transformers, f"{family}Config")(**usual, **more))
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.copy_(torch.randn(weight.shape, generator=random) * weight.shape[-1] ** -0.5)
    model.save_pretrained(tmp_path / "model")
    config = {"target_modules": modules, "fan_in_fan_out": family == "GPT2"}  # which stores them transposed
    assert_equals_peft(tmp_path / "model", tmp_path, paged_run, reference, sequences, native_logits, **config)


def test_logits_of_stacked_matrices_are_those_of_peft(tiny_model, tmp_path, paged_run, reference, sequences):
    modules = ["Wqkv", "out_proj", "up_proj", "down_proj"]
    assert_equals_peft(tiny_model("mpt"), tmp_path, paged_run, reference, sequences, target_modules=modules)


def torch_logits(paged_run, model, folder, sequences):
    decoder = load_model(resolve_source(str(model)))
    adapter = read_adapter(folder, share_of(decoder.spec))
    loaded = on_device(adapter, decoder.spec, decoder.device, decoder.dtype)
    take_adapters(decoder.weights, decoder.spec)

    class Run(paged_run):
        def context(self, layout, rows, lens):
            segments = Segments(*map(torch.from_numpy, sort_rows(np.zeros(sum(lens), np.int64))))
            return StepContext(layout, self.kv, StepAdapters(segments, [loaded.changes], loaded.words[None]))

    return Run(decoder, len(sequences), 80).all_logits(sequences)


class NativeSteps:
    """Sequences with adapters on the native decoder; prompts in the chunks that a caller wants."""

    def __init__(self, model, dtype="float32", quantization=None, most=40, precision=None):
        source = resolve_source(str(model))
        self.precision = precision or (Precision.EXACT if dtype == "float32" else Precision.FAST)
        self.spec, self.model = load_packed(source, dtype=dtype, quantization=quantization, max_model_len=80)
        kv = PackedKV(self.spec.num_layers, 5 * most, 16, self.spec.num_kv_heads, self.spec.head_dim, dtype)
        self.decoder = NativeDecoder(library(), self.model, kv, precision=self.precision)

    def adapter(self, folder):
        layers = [{} for _ in range(self.spec.num_layers)]
        for (layer, part), low in read_adapter(folder, share_of(self.spec)).items():
            layers[layer][part] = low.a, low.b
        return PackedAdapter(layers, self.model.adapter_kinds(self.precision))

    def step(self, chunks, adapters):
        """chunks: (tokens, how many came before, which blocks of five); gives the logits of each."""
        lens = [len(tokens) for tokens, _, _ in chunks]
        starts = np.cumsum([0, *lens]).astype(np.int32)
        contexts = np.array([before + len(tokens) for tokens, before, _ in chunks], np.int32)
        tables = np.array([range(5 * place, 5 * place + 5) for _, _, place in chunks], np.int32)
        flat = np.array([token for tokens, _, _ in chunks for token in tokens], np.int32)
        logits = self.decoder.step(flat, starts, contexts, tables, np.arange(len(flat)), adapters=adapters)
        return [torch.from_numpy(logits[a:b].copy()) for a, b in pairwise(starts)]


def native_logits(model, folder, sequences):
    steps = NativeSteps(model)
    adapter = steps.adapter(folder)
    chunks = [(tokens, 0, place) for place, tokens in enumerate(sequences)]
    return steps.step(chunks, [adapter] * len(sequences))


def test_a_gguf_file_takes_the_adapters_of_its_directory(tiny_model, make_adapter, write_gguf, tmp_path, sequences):
    """Its rows of q and k alternate between the halves of a head; what is read of it does not."""
    model, folder = tiny_model("llama3"), make_adapter("llama3")
    converted = write_gguf(model, tmp_path / "model.gguf")
    for ours, same in zip(*(native_logits(each, folder, sequences) for each in (converted, model)), strict=True):
        torch.testing.assert_close(ours, same, atol=1e-5, rtol=0)


MODES = [("float32", None, None), ("bfloat16", None, None), ("bfloat16", "int8-g32", None),
         ("float32", "int8-g32", Precision.TWICE)]  # fmt: skip
"""Adapters in float32, in bfloat16, in codes of 8 bits, and in float16 beside inputs of two parts."""


def test_halves_beside_inputs_of_two_parts_change_next_to_nothing(tiny_model, make_adapter, sequences):
    """Of what floats make of the same weights, and of the same in other sizes: a large A with a tiny B."""
    model, folder = tiny_model("llama3"), make_adapter("llama3")
    exact, twice = (
        NativeSteps(model, "float32", "int8-g32", precision=each) for each in (Precision.EXACT, Precision.TWICE)
    )
    tensors = load_file(folder / "adapter_model.safetensors")
    chunks = [(tokens, 0, place) for place, tokens in enumerate(sequences)]
    expected = exact.step(chunks, [exact.adapter(folder)] * len(chunks))
    for size in (1.0, 2.0**20):
        sized = {name: tensor * (size if "lora_A" in name else 1 / size) for name, tensor in tensors.items()}
        save_file(sized, folder / "adapter_model.safetensors")
        ours = twice.step(chunks, [twice.adapter(folder)] * len(chunks))
        for own, other in zip(ours, expected, strict=True):
            assert (own - other).norm() < 2e-4 * other.norm()


@pytest.mark.parametrize(("dtype", "quantization", "precision"), MODES)
def test_bits_do_not_depend_on_what_is_beside_a_sequence(tiny_model, make_adapter, dtype, quantization, precision):
    """Three adapters and the base in one step, a prompt of many rows, one that is cut: the same bits as alone."""
    model = tiny_model("llama3")
    folders = [make_adapter("llama3", rank=rank, seed=rank) for rank in (3, 16, 37)]
    beside, alone = (NativeSteps(model, dtype, quantization, precision=precision) for _ in range(2))
    ways = [None, *map(beside.adapter, folders)]
    random = np.random.default_rng(3)
    prompts = [random.integers(0, 256, length).tolist() for length in (70, 9, 1, 33, 70, 2, 75)]
    adapters = [ways[i % 4] for i in range(len(prompts))]
    mixed = beside.step([(tokens, 0, i) for i, tokens in enumerate(prompts)], adapters)
    after = beside.step([([7], len(tokens), i) for i, tokens in enumerate(prompts)], adapters)
    for i, (tokens, adapter) in enumerate(zip(prompts, adapters, strict=True)):
        cut = len(tokens) // 2
        first = alone.step([(tokens[:cut], 0, i)], [adapter]) if cut else []
        (rest,) = alone.step([(tokens[cut:], cut, i)], None if adapter is None else [adapter])
        assert torch.equal(torch.cat([*first, rest]), mixed[i])
        assert torch.equal(alone.step([([7], len(tokens), i)], [adapter])[0], after[i])
    assert not torch.equal(*(beside.step([(prompts[0], 0, 0)], [way])[0] for way in ways[:2]))


def test_an_adapter_is_its_contents(make_adapter):
    one, same, other = (make_adapter("llama3", seed=seed) for seed in (1, 1, 2))
    digest, same_digest, other_digest = (find_adapter("a", each).digest for each in (one, same, other))
    assert digest == same_digest != other_digest
    spec = read_spec(resolve_source(str(one.base)))
    read_adapter(one, share_of(spec), digest)
    with pytest.raises(ModelError, match="has changed since it was loaded"):
        read_adapter(other, share_of(spec), digest)


@pytest.mark.parametrize("cut", ["rows", "columns"])
def test_a_rank_gets_what_its_matrices_are_cut_to(make_adapter, cut):
    folder = make_adapter("llama3")
    spec = read_spec(resolve_source(str(folder.base)))
    whole = read_adapter(folder, share_of(spec))
    halves = [read_adapter(folder, share_of(spec, rank, 2)) for rank in (0, 1)]
    for (layer, part), low in whole.items():
        a, b = zip(*((half[layer, part].a, half[layer, part].b) for half in halves), strict=True)
        is_cut_by_columns = part in ("out", "down")
        if cut == "columns" and is_cut_by_columns:
            np.testing.assert_array_equal(np.concatenate(a, 1), low.a)
            np.testing.assert_array_equal(b[0], low.b)
        if cut == "rows" and not is_cut_by_columns:
            np.testing.assert_array_equal(np.concatenate(b), low.b)
            np.testing.assert_array_equal(a[0], low.a)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"use_dora": True}, "DoRA's magnitudes are not supported"),
        ({"modules_to_save": ["lm_head"]}, "whole matrices beside the low-rank ones"),
        ({"bias": "lora_only"}, "biases are not supported"),
        ({"peft_type": "IA3"}, "only LORA is supported"),
        ({"alora_invocation_tokens": [300]}, "tokens that the model does not have"),
        ({"alora_invocation_tokens": []}, "must be 1 to 1024 ids"),
        ({"init_lora_weights": "pissa"}, "changes the model's own weights"),
        ({"alpha_pattern": {"q_proj|k_proj": 3}}, "plain names are supported"),
        ({"lora_alpha": "much"}, "not a number"),
    ],
)
def test_what_would_answer_wrongly_is_refused(make_adapter, change, sentence):
    folder = make_adapter("llama3", **change)
    with pytest.raises(ModelError, match=sentence):
        read_adapter(folder, share_of(read_spec(resolve_source(str(folder.base)))))


def test_what_does_not_fit_is_refused(tiny_model, make_adapter, tmp_path):
    folder = make_adapter("llama3")
    other = share_of(read_spec(resolve_source(str(tiny_model("llama_biases")))))
    with pytest.raises(ModelError, match="it was made for another model"):
        read_adapter(folder, other)
    own = share_of(read_spec(resolve_source(str(folder.base))))
    tensors = load_file(folder / "adapter_model.safetensors")
    broken = {
        "changes lm_head, which is no matrix": {
            "base_model.model.lm_head.lora_A.weight": torch.ones(2, 64),
            "base_model.model.lm_head.lora_B.weight": torch.ones(300, 2),
        },
        "only one of lora_A and lora_B": dict([next(iter(tensors.items()))]),
        "are taken, of no head": {"base_model.model.model.embed_tokens.lora_embedding_A": torch.ones(2, 2)},
        "lora_. of .* under two names": tensors
        | {name.removeprefix("base_model.model."): tensor.clone() for name, tensor in tensors.items()},
        r"changes \w+ of layer \d twice": tensors
        | {name.replace(".model.layers", ".layers"): tensor.clone() for name, tensor in tensors.items()},
        "the rank of .* must be 1 to 256": {
            "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": torch.ones(257, 64),
            "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight": torch.ones(64, 257),
        },
    }  # fmt: skip
    for sentence, content in broken.items():
        save_file(content, folder / "adapter_model.safetensors")
        with pytest.raises(ModelError, match=sentence):
            read_adapter(folder, own)
    (folder / "adapter_model.safetensors").write_bytes(b"x" * 40)
    with pytest.raises(ModelError, match="is damaged or not a safetensors file"):
        read_adapter(folder, own)
    with (folder / "adapter_model.safetensors").open("wb") as large:
        large.truncate(2**30)  # it takes no room, and would take a second to read
    with pytest.raises(ModelError, match=r"no file of at most \d+ bytes, which is what the largest"):
        read_adapter(folder, own)
    (tmp_path / "adapter_model.bin").touch()
    with pytest.raises(ModelError, match="is a pickle"):
        find_adapter("a", tmp_path)
    (tmp_path / "adapter_model.safetensors").touch()
    with pytest.raises(ModelError, match=r"holds no adapter_config\.json"):
        find_adapter("a", tmp_path)


def test_patterns_give_matrices_ranks_and_alphas_of_their_own(make_adapter):
    folder = make_adapter("llama3", rank=4, alpha_pattern={"q_proj": 8}, dtype=torch.bfloat16)
    found = read_adapter(folder, share_of(read_spec(resolve_source(str(folder.base)))))
    stored = load_file(folder / "adapter_model.safetensors")
    for part, module, alpha in [("q", "self_attn.q_proj", 8), ("down", "mlp.down_proj", 12)]:
        b = stored[f"base_model.model.model.layers.1.{module}.lora_B.weight"].float().numpy()
        np.testing.assert_allclose(found[1, part].b, b * alpha / 4, rtol=1e-6)
    assert json.loads((folder / "adapter_config.json").read_text())["r"] == 4
