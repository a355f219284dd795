"""The example that trains adapters, in two steps on a tiny model: what it writes is read, and changes answers."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from octavo import LLM, LoRARequest, SamplingParams
from octavo.source import resolve_source
from octavo.text.tokenizer import load_tokenizer

EXAMPLE = Path(__file__).parents[1] / "examples" / "train_adapters.py"


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT asks transformers
def test_what_it_trains_is_served(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    example = runpy.run_path(str(EXAMPLE))
    model = tiny_model("llama3")
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    for name in ("json", "brief_late"):
        example["make"](name, base, tmp_path, 2, load_tokenizer(resolve_source(str(model))))
    loras = [None, *(LoRARequest(name, 1, str(tmp_path / name)) for name in ("json", "brief_late"))]
    assert [len(each.adapter().invocation) > 0 for each in loras[1:]] == [False, True]
    llm = LLM(str(model), kv_cache_bytes=2**22, progress=False)
    params = SamplingParams(temperature=0, max_tokens=1, logprobs=0)
    chats = [[{"role": "user", "content": "What color is snow?"}]] * 3
    outputs = llm.chat(chats, params, use_tqdm=False, lora_request=loras)
    assert len({output.outputs[0].cumulative_logprob for output in outputs}) == 3
    llm.close()
