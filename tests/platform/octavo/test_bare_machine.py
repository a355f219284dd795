"""The engine where there is torch, transformers, safetensors and tokenizers, and what those bring, and nothing else."""

from __future__ import annotations

import json
import subprocess
import sys

MISSING = ["ray", "fastapi", "starlette", "uvicorn", "pydantic", "gguf", "bitsandbytes", "msgspec", "zmq", "openai",
           "prometheus_client", "opentelemetry", "hypothesis", "matplotlib"]  # fmt: skip

SCRIPT = """
import json, sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in MISSING:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

MISSING = json.loads(sys.argv[2])
sys.meta_path.insert(0, Missing())

from octavo import LLM, SamplingParams
from octavo_kernels.native import library

def said(**settings):
    llm = LLM(sys.argv[1], dtype="float32", kv_cache_bytes=2**20, progress=False, **settings)
    params = SamplingParams(temperature=0, max_tokens=8, logprobs=1, stop=["zzz"])
    tokens = [output.outputs[0].token_ids for output in llm.generate(["Hello", [1, 2, 3]], params, use_tqdm=False)]
    llm.chat([{"role": "user", "content": "hi"}], params, use_tqdm=False)
    llm.close()
    return tokens

answers = [said(), said(quantization="int8")]
with library.use(None):
    answers += [said(async_scheduling=True), said(quantization="int8")]
print(json.dumps(answers))
"""


def test_it_runs_without_what_only_servers_and_other_formats_need(tiny_model):
    command = [sys.executable, "-c", SCRIPT, str(tiny_model("llama3")), json.dumps(MISSING)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    native, native_int8, plain, plain_int8 = json.loads(done.stdout.splitlines()[-1])
    assert native == plain
    assert native_int8 == plain_int8
    assert [len(tokens) for tokens in native] == [8, 8]
