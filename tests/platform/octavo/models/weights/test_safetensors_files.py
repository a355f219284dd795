"""Hugging Face directories: shards, wrapped models, and checkpoints that do not fit."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from octavo.errors import ModelError
from octavo.models.load import load_model
from octavo.models.parallel import share_of
from octavo.models.weights.layout import slots
from octavo.source import resolve_source


def load(folder):
    return load_model(resolve_source(str(folder)))


def assert_equal_weights(a, b):
    for left, right in zip(slots(a.weights, share_of(a.spec)), slots(b.weights, share_of(b.spec)), strict=True):
        torch.testing.assert_close(left.target, right.target, atol=0, rtol=0)


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


@pytest.mark.parametrize("name", ["llama2", "gemma3"])
def test_sharded_equals_single(tiny_model, tmp_path, name):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model(name))
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert_equal_weights(load(tmp_path), load(tiny_model(name)))


def test_a_missing_shard_is_named(tiny_model, tmp_path):
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(tiny_model("llama2")).save_pretrained(tmp_path, max_shard_size="100KB")
    gone = sorted(tmp_path.glob("*.safetensors"))[1]
    gone.unlink()
    with pytest.raises(ModelError, match=gone.name):
        load(tmp_path)


def test_gemma_3_with_eyes_equals_its_text_half(tmp_path, paged_run, sequences):
    import transformers

    text = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "head_dim": 24,
            "num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": 9,
            "sliding_window_pattern": 2}  # fmt: skip
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
              "image_size": 16, "patch_size": 8}  # fmt: skip
    config = transformers.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4,
                                       image_token_index=299)  # fmt: skip
    model = transformers.Gemma3ForConditionalGeneration(config).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape) * 0.3)
    model.save_pretrained(tmp_path)
    ours = paged_run(load(tmp_path), len(sequences), 80).all_logits(sequences)
    for tokens, logits in zip(sequences, ours, strict=True):
        with torch.no_grad():
            expected = model(torch.tensor([tokens])).logits[0]
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("prefix", ["", "language_model.model.", "model.language_model."])
def test_prefixes_of_base_and_wrapped_models(copy, tiny_model, prefix):
    def rename(tensors):
        for name in [name for name in tensors if name.startswith("model.")]:
            tensors[prefix + name.removeprefix("model.")] = tensors.pop(name)

    assert_equal_weights(load(copy("smollm2", rename)), load(tiny_model("smollm2")))


def test_copies_that_a_model_does_not_use_are_left_out(copy, tiny_model):
    def add(tensors):
        tensors["lm_head.weight"] = torch.zeros(300, 72)
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(4)

    assert_equal_weights(load(copy("smollm2", add)), load(tiny_model("smollm2")))


def drop(tensors):
    del tensors["model.layers.1.mlp.up_proj.weight"], tensors["model.norm.weight"]


def add(tensors):
    tensors["model.layers.0.self_attn.q_proj.bias"] = torch.zeros(64)


def reshape(tensors):
    tensors["model.layers.2.self_attn.k_proj.weight"] = torch.zeros(64, 32)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (drop, r"lacks norm\.weight, layers\.1\.mlp\.up_proj\.weight"),
        (add, r"does not have: layers\.0\.self_attn\.q_proj\.bias"),
        (reshape, r"layers\.2\.self_attn\.k_proj\.weight is \[64, 32\] instead of \[64, 64\]"),
        (dict.clear, r"lacks .* and \d+ more"),
    ],
    ids=["missing", "unexpected", "wrong shape", "empty"],
)
def test_tensors_that_do_not_fit_are_named(copy, change, named):
    with pytest.raises(ModelError, match=named):
        load(copy("llama2", change))


def test_damaged_and_absent_files(tiny_model, tmp_path):
    shutil.copytree(tiny_model("llama2"), tmp_path, dirs_exist_ok=True)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(ModelError, match=r"model\.safetensors is damaged"):
        load(tmp_path)
    weights.unlink()
    with pytest.raises(ModelError, match=r"no \.safetensors file"):
        load(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "gone.safetensors"}}))
    with pytest.raises(ModelError, match=r"lacks gone\.safetensors"):
        load(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("{")
    with pytest.raises(ModelError, match=r"index\.json"):
        load(tmp_path)
