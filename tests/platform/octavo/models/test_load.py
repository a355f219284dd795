"""The one entry point: settings, types, configs on disk, progress and memory."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from octavo.errors import ConfigError, ModelError
from octavo.models.load import load_model
from octavo.models.source_spec import read_spec
from octavo.source import resolve_source


@pytest.fixture
def folder(tiny_model, tmp_path):
    """A llama whose files a test may change."""
    return shutil.copytree(tiny_model("llama2"), tmp_path / "model")


def rewrite(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def test_end_tokens_of_config_and_generation_config_are_joined(folder):
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [258, 257]}))
    assert read_spec(resolve_source(str(folder))).eos_token_ids == (258, 257)
    (folder / "generation_config.json").write_text(json.dumps({"temperature": 0.6}))
    assert read_spec(resolve_source(str(folder))).eos_token_ids == (258,)


@pytest.mark.parametrize("text", ["{", "[]", "\x00"])
def test_damaged_config(folder, text):
    (folder / "config.json").write_text(text)
    with pytest.raises(ModelError, match=r"config\.json"):
        read_spec(resolve_source(str(folder)))


def test_dtype_auto_is_float32_on_a_cpu(folder):
    rewrite(folder, dtype="bfloat16")
    source = resolve_source(str(folder))
    assert load_model(source).dtype == torch.float32
    assert load_model(source, dtype="bfloat16").dtype == torch.bfloat16


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("own", "expected"), [("bfloat16", torch.bfloat16), ("float16", torch.float16)])
def test_dtype_auto_is_the_checkpoints_own_on_a_gpu(folder, own, expected):
    rewrite(folder, dtype=own)
    decoder = load_model(resolve_source(str(folder)), device="cuda")
    assert (decoder.dtype, decoder.device.type) == (expected, "cuda")


def test_quantization_says_what_is_supported(folder, write_gguf, tmp_path):
    source = resolve_source(str(folder))
    with pytest.raises(ConfigError, match=r"quantization must be None .*'int3'"):
        load_model(source, quantization="int3")
    with pytest.raises(ConfigError, match="'gguf'"):
        load_model(source, quantization="gguf")
    file = resolve_source(str(write_gguf(folder, tmp_path / "model.gguf")))
    assert load_model(file, quantization="gguf").dtype == torch.float32
    with pytest.raises(ConfigError, match="None or 'gguf'"):
        load_model(file, quantization="awq")


def test_max_model_len_beyond_the_model_is_refused(folder):
    with pytest.raises(ConfigError, match=r"max_model_len is 513.*512"):
        load_model(resolve_source(str(folder)), max_model_len=513)


@pytest.mark.parametrize("progress", [True, False])
def test_progress_bar(folder, capfd, progress):
    load_model(resolve_source(str(folder)), progress=progress)
    assert ("Loading" in capfd.readouterr().err) == progress


MEASURE = """
import sys
from octavo.models.load import load_model
from octavo.source import resolve_source
import gguf.quants

def peak():
    # not ru_maxrss: it starts at the parent's
    status = dict(line.split(":") for line in open("/proc/self/status"))
    return int(status["VmHWM"].split()[0]) * 1024

small, large = (resolve_source(name) for name in sys.argv[1:])
load_model(small, dtype="float32")  # everything is imported now
before = peak()
load_model(large, dtype="float32")
assert "transformers" not in sys.modules
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux' /proc")
@pytest.mark.parametrize("kind", ["safetensors", "gguf"])
def test_peak_memory_stays_near_the_models_size(folder, tmp_path, write_gguf, kind):
    """400 MB of weights in float32, read from a file of half that (bfloat16)."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(vocab_size=32_000, hidden_size=1024, intermediate_size=2560, num_hidden_layers=3,
                         num_attention_heads=8, bos_token_id=0, eos_token_id=1)  # fmt: skip
    model = LlamaForCausalLM(config)
    size = sum(weight.numel() for weight in model.parameters()) * 4
    large = tmp_path / "large"
    if kind == "gguf":
        model.save_pretrained(large)
        large = write_gguf(large, tmp_path / "large.gguf", "BF16")
    else:
        model.bfloat16().save_pretrained(large)
    command = [sys.executable, "-c", MEASURE, str(folder), str(large)]
    peak = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert 1 < peak / size < 1.2
