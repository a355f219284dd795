"""Hugging Face directories: shards, wrapped models, and checkpoints that do not fit."""

import json
import shutil

import pytest
import torch

from octavo.errors import ModelError
from octavo.models.load import load_model
from octavo.models.packed import load_packed
from octavo.models.parallel import share_of
from octavo.models.weights.layout import slots
from octavo.source import resolve_source


def load(folder):
    return load_model(resolve_source(str(folder)))


def assert_equal_weights(a, b):
    for left, right in zip(slots(a.weights, share_of(a.spec)), slots(b.weights, share_of(b.spec)), strict=True):
        torch.testing.assert_close(left.target, right.target, atol=0, rtol=0)


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
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(4)

    decoder = load(copy("smollm2", add))
    assert decoder.weights.lm_head.weight is decoder.weights.embedding
    assert_equal_weights(decoder, load(tiny_model("smollm2")))


def config_of(folder, **changes):
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value != "absent"}))
    return folder


def assert_as_in_transformers(folder, reference, paged_run, sequences):
    ours = paged_run(load(folder), len(sequences), 80).all_logits(sequences)
    theirs = reference(folder)
    for tokens, logits in zip(sequences, ours, strict=True):
        torch.testing.assert_close(logits, theirs.logits(tokens), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["smollm2", "gemma", "gemma3"])
def test_a_head_of_its_own_wins_over_tie_word_embeddings(copy, name, reference, paged_run, sequences, caplog):
    def add(tensors):
        embedding = tensors["model.embed_tokens.weight"]
        tensors["lm_head.weight"] = torch.randn(embedding.shape, generator=torch.Generator().manual_seed(1))

    folder = copy(name, add)
    assert_as_in_transformers(folder, reference, paged_run, sequences)
    _, packed = load_packed(resolve_source(str(folder)), dtype="float32")
    assert packed.head.weight is not packed.embedding
    assert "config.json says tied_embeddings True, and the weights False" in caplog.text


def test_a_head_that_is_not_there_is_named_with_the_config(tiny_model, tmp_path):
    folder = config_of(shutil.copytree(tiny_model("smollm2"), tmp_path / "model"), tie_word_embeddings=False)
    with pytest.raises(ModelError, match=r"lacks lm_head\.weight.*tie_word_embeddings"):
        load(folder)


def zero_bias(tensors):
    tensors["model.layers.0.self_attn.q_proj.bias"] = torch.zeros(64)


def test_biases_of_zeros_are_none(copy, tiny_model):
    assert_equal_weights(load(copy("llama2", zero_bias)), load(tiny_model("llama2")))


def test_double_precision_is_converted(copy, tiny_model):
    folder = copy("llama2", lambda tensors: tensors.update({name: x.double() for name, x in tensors.items()}))
    assert_equal_weights(load(folder), load(tiny_model("llama2")))
    _, packed = load_packed(resolve_source(str(folder)), dtype="float32")
    assert packed.embedding.format == "F32"


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32, torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("part", ["layers.0.mlp.up_proj", "embed_tokens", "norm"])
def test_codes_without_scales_are_no_weights(copy, dtype, part):
    folder = copy("llama2", lambda tensors: tensors.update({n: tensors[n].to(dtype) for n in [f"model.{part}.weight"]}))
    for read in (load, lambda folder: load_packed(resolve_source(str(folder)), dtype="float32")):
        with pytest.raises(ModelError, match=rf"{part}\.weight is stored as .*codes without scales"):
            read(folder)


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


def test_layers_that_guess_further_tokens_are_left_out(tiny_model, copy):
    """GLM-4.5 has one behind its last layer; its config counts it apart."""

    def add(tensors):
        tensors |= {
            "model.layers.3.eh_proj.weight": torch.zeros(64, 128),
            "model.layers.3.enorm.weight": torch.ones(64),
        }

    folder = copy("glm4_moe", add)
    assert load(folder).spec.num_layers == 3
    assert_equal_weights(load(folder), load(tiny_model("glm4_moe")))
    settings = json.loads((folder / "config.json").read_text()) | {"num_nextn_predict_layers": 0}
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match=r"lacks layers\.3"):
        load(folder)
