"""Tiny random models of every family, with a byte tokenizer and a chat template, built once per session."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from octavo_kernels.native.cores import available_cores

if importlib.util.find_spec("hypothesis") is not None:  # a borrowed GPU's machine has none
    from hypothesis import HealthCheck, settings

    # How long an example takes, or to draw one, says how busy the machine is. Each run draws others.
    settings.register_profile("octavo", max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("octavo")
    settings.register_profile("fuzz", max_examples=int(os.environ.get("OCTAVO_FUZZ_EXAMPLES", "3000")))

# In a shell's background these are ignored, and so they would be in all that the tests start and end by them.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# torch's threads would spin while they wait, which on shared cores takes them from whoever has work.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
if "PYTEST_XDIST_WORKER" in os.environ:  # the processes have all cores between them
    os.environ.setdefault("OMP_NUM_THREADS", "1")

SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]  # ids 256, 257 and 258, after the 256 bytes
VOCAB_SIZE = 300

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

_COMMON = {
    "vocab_size": VOCAB_SIZE, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
    "bos_token_id": 256, "eos_token_id": 258, "pad_token_id": 256,
}  # fmt: skip
_LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
_YARN_ROPE = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 64}
_GEMMA3_ROPE = {
    "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1_000_000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
}

_EXPERTS = {"num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 40}

TINY_MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama2": ("Llama", {"num_key_value_heads": 4}),
    "llama3": ("Llama", {"rope_parameters": _LLAMA3_ROPE}),
    "llama_yarn": ("Llama", {"rope_parameters": _YARN_ROPE}),
    "llama_biases": ("Llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 24}),
    "smollm2": ("Llama", {"hidden_size": 72, "num_attention_heads": 9, "num_key_value_heads": 3,
                          "tie_word_embeddings": True}),
    "mistral": ("Mistral", {"sliding_window": 12, "head_dim": 24}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2_windows": ("Qwen2", {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}),
    "qwen3": ("Qwen3", {"head_dim": 24, "attention_bias": True}),
    "gemma": ("Gemma", {"head_dim": 32, "num_key_value_heads": 1}),
    "gemma2": ("Gemma2", {"head_dim": 24, "sliding_window": 10, "query_pre_attn_scalar": 20,
                          "attn_logit_softcapping": 5.0, "final_logit_softcapping": 6.0}),
    "gemma3": ("Gemma3", {"num_hidden_layers": 5, "head_dim": 24, "sliding_window": 11, "query_pre_attn_scalar": 30,
                          "sliding_window_pattern": 3, "rope_parameters": _GEMMA3_ROPE, "attn_logit_softcapping": 5.0}),
    "mixtral": ("Mixtral", {"num_local_experts": 5, "num_experts_per_tok": 2, "sliding_window": None}),
    "qwen2_moe": ("Qwen2Moe", _EXPERTS | {"shared_expert_intermediate_size": 56}),
    "qwen3_moe": ("Qwen3Moe", _EXPERTS | {"norm_topk_prob": True, "head_dim": 24}),
    "gpt_oss": (
        "GptOss",
        {
            "num_local_experts": 5,
            "num_experts_per_tok": 2,
            "sliding_window": 12,
            "head_dim": 24,
            "num_hidden_layers": 4,
            "rope_parameters": _YARN_ROPE | {"factor": 8.0, "truncate": False},
        },
    ),
    "glm4_moe": (
        "Glm4Moe",
        {
            "n_routed_experts": 8,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 40,
            "n_group": 4,
            "topk_group": 2,
            "routed_scaling_factor": 1.8,
            "use_qk_norm": True,
            "attention_bias": True,
        },
    ),
}  # fmt: skip
"""Name -> the prefix of its transformers classes and how its config differs from `_COMMON`."""

_OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3_moe_dense": ("Qwen3Moe", _EXPERTS | {"mlp_only_layers": [1], "norm_topk_prob": True}),
    "latent": (
        "DeepseekV3",
        {
            "num_key_value_heads": 4,
            "q_lora_rank": 24,
            "kv_lora_rank": 32,
            "qk_nope_head_dim": 32,
            "qk_rope_head_dim": 8,
            "v_head_dim": 16,
            "n_routed_experts": 8,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 40,
            "n_group": 4,
            "topk_group": 2,
            "first_k_dense_replace": 1,
            "rope_parameters": _YARN_ROPE | {"mscale": 0.8, "mscale_all_dim": 0.8},
        },
    ),
    "delta": (
        "Qwen3Next",
        {
            "layer_types": ["linear_attention", "full_attention", "linear_attention"],
            "head_dim": 16,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 12,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 40,
            "shared_expert_intermediate_size": 24,
        },
    ),
    "space": (
        "GraniteMoeHybrid",
        {
            "layer_types": ["linear_attention", "full_attention", "linear_attention"],
            "num_local_experts": 0,
            "shared_intermediate_size": 96,
            "mamba_n_heads": 8,
            "mamba_d_state": 6,
        },
    ),
    "mpt": ("Mpt", {"hidden_size": 72, "num_attention_heads": 6, "max_seq_len": 512, "layer_norm_epsilon": 1e-3}),
}
"""The same, not among the `tiny_name`s: the native runner does not cover them, or there is no GGUF naming for them."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """`-n auto`, as in `make test`: three processes, of which the one with Ray's tests mostly waits; none but this one
    for chosen tests, or where there is one core."""
    chosen = config.args_source is not pytest.Config.ArgsSource.TESTPATHS or config.option.keyword
    # sets have one order in all, for tests' names may come of them; each run another
    os.environ.setdefault("PYTHONHASHSEED", str(random.randrange(2**32)))
    return 0 if chosen or available_cores() == 1 else 3


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those that need Ray come first: one process has them all when the other begins to take over what is left."""
    items.sort(key=lambda item: item.get_closest_marker("ray") is None)


@pytest.fixture(autouse=True)
def _same_random_numbers_each_time() -> None:
    """A tolerance that one draw in ten thousand misses would fail a run of 3,000 tests now and then."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(autouse=True)
def _errors_have_paths() -> None:
    """Tests have more wrong schemas in a second than anybody is told the place in."""
    if (blame := sys.modules.get("octavo.text.grammars.blame")) is not None:
        blame._allowance = blame.Allowance()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`tiny_model(name)` -> a Hugging Face directory of that entry above: about 100,000 random weights."""
    folders: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp(name)
            _build_model(name).save_pretrained(folders[name])
            write_tokenizer(folders[name])
        return folders[name]

    return get


@pytest.fixture(scope="session")
def other_weights() -> Callable[[Path], None]:
    """`other_weights(folder)` gives a tiny model in a folder other weights."""

    def change(folder: Path) -> None:
        import torch
        from safetensors.torch import load_file, save_file

        torch.manual_seed(5)
        changed = {
            name: each + 0.3 * torch.randn_like(each) for name, each in load_file(folder / "model.safetensors").items()
        }
        save_file(changed, folder / "model.safetensors", {"format": "pt"})

    return change


class AdapterFolder(type(Path())):  # type: ignore[misc]
    """A folder that knows its model's."""

    base: Path


@pytest.fixture(scope="session")
def make_adapter(
    tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., AdapterFolder]:
    """`make_adapter(name, rank=4, seed=0, **config)` -> a folder as PEFT writes it: random changes of every matrix."""

    def make(name: str, rank: int = 4, seed: int = 0, dtype: Any = None, **config: Any) -> AdapterFolder:
        folder = AdapterFolder(tmp_path_factory.mktemp("adapter"))
        folder.base = tiny_model(name)
        write_adapter(folder, folder.base, rank, seed, dtype, **config)
        return folder

    return make


def write_adapter(folder: Path, base: Path, rank: int, seed: int, dtype: Any = None, **config: Any) -> None:
    """An adapter of a tiny model, with alpha 12."""
    import torch
    from safetensors.torch import load_file, save_file

    random, tensors = torch.Generator().manual_seed(seed), {}
    for name, weight in load_file(base / "model.safetensors").items():
        if name.endswith("_proj.weight"):
            stem, (rows, columns) = f"base_model.model.{name.removesuffix('.weight')}", weight.shape
            tensors[f"{stem}.lora_A.weight"] = torch.randn(rank, columns, generator=random) / columns**0.5
            tensors[f"{stem}.lora_B.weight"] = torch.randn(rows, rank, generator=random) * 0.02
    save_file({name: tensor.to(dtype or torch.float32) for name, tensor in tensors.items()},
              folder / "adapter_model.safetensors")  # fmt: skip
    written = {"peft_type": "LORA", "r": rank, "lora_alpha": 12, "bias": "none", "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(written | config))


def write_tokenizer(folder: Path) -> None:
    """A tokenizer whose ids below 256 are bytes, and the ChatML template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL_TOKENS)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|endoftext|>",
        "eos_token": "<|im_end|>",
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def _build_model(name: str) -> Any:
    import transformers

    prefix, differences = (TINY_MODELS | _OTHERS)[name]
    text = "Text" if prefix == "Gemma3" else ""
    config = getattr(transformers, f"{prefix}{text}Config")(**_COMMON | differences)
    model = getattr(transformers, f"{prefix}ForCausalLM")(config)
    randomize(model)
    return model


def randomize(model: Any) -> None:
    """Weights that tell right from wrong: biases and norms are not what they are initialised to, logits are large."""
    import torch

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if "norm" in name:
                weight.add_(0.3 * noise)
            else:
                weight.copy_(noise * (1.0 if weight.ndim == 1 or "embed" in name else weight.shape[-1] ** -0.5))
        for name, buffer in model.named_buffers():
            if name.endswith("correction_bias"):
                buffer.copy_(0.2 * torch.randn(buffer.shape, generator=generator))


@pytest.fixture(params=sorted(TINY_MODELS))
def tiny_name(request: pytest.FixtureRequest) -> str:
    """Every name that `tiny_model` takes, one test each."""
    return str(request.param)


_ENCODER = {
    "vocab_size": VOCAB_SIZE, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
    "num_attention_heads": 4, "max_position_embeddings": 130, "layer_norm_eps": 1e-5,
}  # fmt: skip
_ROBERTA = {"max_position_embeddings": 132, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
_MODERNBERT = dict.fromkeys(("pad_token_id", "bos_token_id", "cls_token_id"), 0) | {
    "eos_token_id": 2,
    "sep_token_id": 2,
}
TINY_ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("Bert", {}),
    "roberta": ("Roberta", _ROBERTA | {"type_vocab_size": 1}),
    "xlm-roberta": ("XLMRoberta", _ROBERTA | {"type_vocab_size": 1, "hidden_act": "gelu_new"}),
    "mpnet": ("MPNet", _ROBERTA),
    "distilbert": ("DistilBert", {"dim": 64, "hidden_dim": 96, "n_layers": 3, "n_heads": 4, "activation": "relu"}),
    "nomic_bert": ("NomicBert", {}),
    "modernbert": ("ModernBert", _MODERNBERT | {"num_hidden_layers": 5, "local_attention": 10}),
    "modernbert_biases": ("ModernBert", _MODERNBERT | {
        "local_attention": 6, "attention_bias": True, "mlp_bias": True, "norm_bias": True, "classifier_bias": True,
        "classifier_pooling": "mean"}),
}  # fmt: skip
"""Name -> the prefix of its transformers classes and how its config differs from `_ENCODER`."""


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`tiny_encoder(name, classes=0)` -> a Hugging Face directory of that entry above, with a tokenizer of its kind.

    With `classes` it is a classifier.
    """
    folders: dict[tuple[str, int], Path] = {}

    def get(name: str, classes: int = 0) -> Path:
        if (name, classes) not in folders:
            folder = folders[name, classes] = tmp_path_factory.mktemp(name)
            _build_encoder(name, classes).save_pretrained(folder)
            write_encoder_tokenizer(folder, name)
        return folders[name, classes]

    return get


def _build_encoder(name: str, classes: int) -> Any:
    import transformers

    prefix, differences = TINY_ENCODERS[name]
    labels = {"num_labels": classes} if classes else {}
    config = getattr(transformers, f"{prefix}Config")(**_ENCODER | differences | labels)
    model = getattr(transformers, f"{prefix}{'ForSequenceClassification' if classes else 'Model'}")(config)
    randomize(model)
    return model


def write_encoder_tokenizer(folder: Path, name: str) -> None:
    """WordPiece of single letters for BERT and its like, bytes for RoBERTa and ModernBERT, Unigram for XLM-R."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    wordpiece = name in ("bert", "mpnet", "distilbert", "nomic_bert")
    first = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"] if wordpiece else ["<s>", "<pad>", "</s>", "<unk>"]
    letters = [chr(code) for code in range(33, 127) if not chr(code).isupper()] + list("äöüßé漢字")
    if wordpiece:
        pieces = first + letters + [f"##{letter}" for letter in letters]
        tokenizer = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer()
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    elif name == "xlm-roberta":
        scored = [(piece, 0.0) for piece in first] + [
            (piece, -3.0 - i / 100) for i, piece in enumerate(["▁", *letters])
        ]
        tokenizer = Tokenizer(models.Unigram([*scored, ("▁the", -2.0), ("ing", -2.5)], unk_id=3))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    else:
        pieces = first + sorted(pre_tokenizers.ByteLevel.alphabet())
        tokenizer = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[]))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    begin, end = (first[2], first[3]) if wordpiece else (first[0], first[2])
    pair = f"{begin}:0 $A:0 {end}:0 $B:1 {end}:1" if wordpiece else f"{begin} $A {end} {end} $B {end}"
    tokenizer.add_special_tokens(first)
    special = [(token, tokenizer.token_to_id(token)) for token in (begin, end)]
    tokenizer.post_processor = processors.TemplateProcessing(f"{begin} $A {end}", pair, special)
    tokenizer.save(str(folder / "tokenizer.json"))
    padding = first[0] if wordpiece else first[1]
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "cls_token": begin,
        "sep_token": end,
        "pad_token": padding,
        "model_input_names": ["input_ids", *(["token_type_ids"] if wordpiece else []), "attention_mask"],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
