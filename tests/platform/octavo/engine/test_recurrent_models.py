"""Models with recurrent layers, tiny and random, through the whole engine: the same bits with and without cache."""

import shutil

import pytest
import torch
from safetensors.torch import save_file

from octavo import LLM, SamplingParams
from octavo.config import EngineConfig
from octavo.constraint import StructuredOutputs
from octavo.engine.llm import LoRARequest
from octavo.errors import ConfigError, ModelError
from octavo.execution.load import load_draft
from octavo.models.source_spec import read_spec
from octavo.request import BeamSearch
from octavo.source import resolve_source
from octavo_kernels.native.library import library, use

FAMILIES = {
    "conv": ("Lfm2", {"num_hidden_layers": 5, "full_attn_idxs": [2, 4], "intermediate_size": 96}),
    "space": (
        "GraniteMoeHybrid",
        {
            "num_hidden_layers": 4,
            "num_local_experts": 0,
            "shared_intermediate_size": 96,
            "mamba_n_heads": 8,
            "mamba_d_state": 6,
            "mamba_expand": 1,
            "layer_types": ["linear_attention", "full_attention"] * 2,
        },
    ),
    "delta": (
        "Qwen3_5Text",
        {
            "num_hidden_layers": 4,
            "intermediate_size": 96,
            "linear_num_key_heads": 2,
            "head_dim": 16,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 8,  # where a state takes more than four blocks, those never run short
            "linear_value_head_dim": 12,
            "layer_types": ["linear_attention", "full_attention"] * 2,
        },
    ),
}
SIZES = {
    "vocab_size": 300, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "bos_token_id": 256,
    "max_position_embeddings": 512, "eos_token_id": 258, "pad_token_id": 256,
}  # fmt: skip
GREEDY = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True, logprobs=3, prompt_logprobs=None)
SHARED = [(7 * i) % 251 for i in range(90)]
PROMPTS = [
    SHARED, [*SHARED[:50], 1, 2, 3], [5], list(range(16)), list(range(17)), [*SHARED, 9, 9], [*SHARED[:50], 4, 5],
]  # fmt: skip


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory, tiny_model):
    """A checkpoint with weights whose logits tell right from wrong."""
    import transformers

    prefix, differences = FAMILIES[request.param]
    config = getattr(transformers, f"{prefix}Config")(**SIZES | differences)
    model = transformers.AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            scale = 1.0 if "embed" in name else weight.shape[-1] ** -0.5
            weight.copy_(weight + 0.3 * noise if weight.ndim == 1 else noise * scale)
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    for file in tiny_model("llama3").glob("tokenizer*"):
        shutil.copy(file, folder)
    return folder


@pytest.fixture(scope="module", params=["torch", "native", "fast"])
def make(request, folder):
    """Engines on both runners; torch has products in one order, for a library's depends on how many rows there are."""
    made, is_native = [], request.param != "torch"
    if is_native and library() is None:
        pytest.skip("there is no native library")

    def make(one_order=True, **settings):
        own = {"kv_cache_bytes": 2**22, "dtype": "bfloat16" if request.param == "fast" else "float32"}
        with use(library() if is_native else None):
            llm = LLM(str(folder), progress=False, **own | settings)
        made.append(llm)
        if one_order and not is_native:
            llm.engine.executor.local._decoder.keep_one_order()
        return llm

    make.exact = request.param != "fast"
    yield make
    for llm in made:
        llm.close()


@pytest.fixture(scope="module")
def alone(make):
    """Each prompt's output when it is computed alone, in one step, and nothing is cached."""
    llm = make(enable_prefix_caching=False)
    return [outputs(llm, [prompt])[0] for prompt in PROMPTS]


def outputs(llm, prompts, params=GREEDY, lora=None):
    """Tokens and their log probabilities, to the bit."""
    found = llm.generate(prompts, params, use_tqdm=False, lora_request=lora)
    llm.engine.check_integrity()
    return [[(o.token_ids, [sorted(row.items()) for row in o.logprobs or ()]) for o in each.outputs] for each in found]


def test_it_is_greedy_like_transformers(folder, make, alone):
    from transformers import AutoModelForCausalLM

    if not make.exact:
        pytest.skip("8-bit activations may choose another token")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    for prompt, ((said, _),) in zip(PROMPTS, alone, strict=True):
        with torch.inference_mode():
            logits = model(torch.tensor([prompt + said[:-1]])).logits[0]
        assert said == logits[len(prompt) - 1 :].argmax(-1).tolist()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"max_num_batched_tokens": 16},
        {"max_num_batched_tokens": 5},
        {"max_num_seqs": 2},
        {"async_scheduling": True},
    ],
    ids=str,
)
def test_a_hit_gives_the_same_bits_as_no_cache(make, alone, settings):
    llm = make(**settings)
    assert outputs(llm, PROMPTS) == alone
    before = llm.engine.stats().counters.cached_tokens
    assert outputs(llm, PROMPTS) == alone
    assert llm.engine.stats().counters.cached_tokens >= before + 90 + 48


def test_answers_are_gone_on_from(make, alone):
    llm = make()
    for prompt, ((said, _),) in zip(PROMPTS, alone, strict=True):
        outputs(llm, [prompt])
        (found,) = llm.generate([[*prompt, *said, 3]], GREEDY, use_tqdm=False)
        assert found.num_cached_tokens >= (len(prompt) + len(said) - 1) // 16 * 16
        fresh = make(enable_prefix_caching=False)
        assert outputs(fresh, [[*prompt, *said, 3]]) == outputs(llm, [[*prompt, *said, 3]])


def test_preempted_sequences_say_the_same(make, alone):
    room = make().engine
    block = 2 * 2 * 2 * 16 * 16 * (4 if make.exact else 2)  # layers, K and V, heads, tokens, dimensions, bytes
    llm = make(kv_cache_bytes=room.executor.states.num_bytes * 18 + 16 * block, max_num_seqs=8)
    assert outputs(llm, PROMPTS) == alone
    assert llm.engine.stats().counters.preemptions > 0


def test_forks_go_their_own_ways(make):
    params = SamplingParams(temperature=1.5, n=3, best_of=5, seed=1, max_tokens=20, ignore_eos=True, logprobs=0)
    whole, few = make(), make(max_num_seqs=3)  # some of them start late
    bare = make(enable_prefix_caching=False, max_num_seqs=1)
    prompts = PROMPTS[:3]
    assert outputs(whole, prompts, params) == outputs(few, prompts, params) == outputs(bare, prompts, params)


def test_beams_are_those_of_a_model_that_computes_everything_anew(make):
    params = SamplingParams(beams=BeamSearch(width=3), n=2, max_tokens=12, ignore_eos=True)
    assert outputs(make(), PROMPTS[:2], params) == outputs(make(max_num_batched_tokens=7), PROMPTS[:2], params)


@pytest.mark.parametrize("ahead", [False, True])
def test_constraints_hold(make, ahead):
    choices = StructuredOutputs(regex="[a-c]{3}(zz|yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy)[0-9]{4}")
    params = SamplingParams(temperature=0, max_tokens=50, structured_outputs=choices)
    llm, bare = make(async_scheduling=ahead), make(enable_prefix_caching=False)
    found, other = (each.generate([PROMPTS[1]], params, use_tqdm=False)[0] for each in (llm, bare))
    assert found.outputs[0].token_ids == other.outputs[0].token_ids
    assert found.outputs[0].finish_reason == "stop"


def test_what_cannot_be_done_is_refused(folder, tmp_path):
    source = resolve_source(str(folder))
    for settings, part in [
        ({"speculation": True}, "cannot give tokens back"),
        ({"record": str(tmp_path)}, "record"),
        ({"disk_cache_bytes": 2**24, "disk_cache_path": str(tmp_path)}, "disk_cache_bytes"),
        ({"tensor_parallel_size": 2}, "recurrent layers are not cut"),
    ]:
        with pytest.raises(ConfigError, match=part):
            LLM(str(folder), dtype="float32", kv_cache_bytes=2**22, progress=False, **settings)
    with pytest.raises(ModelError, match=r"states .* raise kv_cache_bytes"):
        LLM(str(folder), dtype="float32", kv_cache_bytes=2**10, progress=False)
    with pytest.raises(ConfigError, match=r"speculation\.draft"):
        load_draft(source, source, EngineConfig(kv_cache_bytes=2**22))


def test_adapters_change_attention_and_mlps_alone(folder, make, tmp_path):
    if "delta" in folder.name:
        pytest.skip("its attention has a gate")
    spec = read_spec(resolve_source(str(folder)))
    attention, recurrent = spec.attention_layers[-1], spec.recurrent[0]
    out, first = ("o_proj", "mamba.in_proj") if "space" in folder.name else ("out_proj", "conv.in_proj")

    def adapter(name, layer, part):
        path = tmp_path / name
        path.mkdir()
        (path / "adapter_config.json").write_text('{"peft_type": "LORA", "lora_alpha": 64, "r": 2}')
        stem, generator = f"base_model.model.model.layers.{layer}.{part}", torch.Generator().manual_seed(0)
        a, b = (torch.randn(shape, generator=generator) for shape in ((2, 64), (64, 2)))
        save_file({f"{stem}.lora_A.weight": a, f"{stem}.lora_B.weight": b}, path / "adapter_model.safetensors")
        return LoRARequest(name, 1, str(path))

    llm, good = make(one_order=False), adapter("good", attention, f"self_attn.{out}")
    plain = [outputs(llm, [prompt])[0][0][0] for prompt in PROMPTS[:2]]
    changed = [
        outputs(each, PROMPTS[:2], lora=good)[0][0][0]
        for each in (llm, make(one_order=False, max_num_batched_tokens=7))
    ]
    assert len(changed[0]) == 24
    assert changed[0] == changed[1] != plain[0]
    for part in ("self_attn.q_proj", first):
        bad = adapter(part, recurrent, part)
        (found,) = llm.generate([PROMPTS[0]], GREEDY, use_tqdm=False, lora_request=bad)
        assert found.outputs[0].finish_reason == "error"
        assert "no matrix of this model" in str(found.outputs[0].stop_reason)
