"""An engine with adapters behind two lines, for adapters.py: it reads "STREAMS,ADAPTERS SEED", answers with JSON.

python lora_engines.py octavo|vllm MODEL --adapters FOLDER [--threads 2] [--tokens 48]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

VOCABULARY = range(100, 49_000)
PROMPT = 32


class Octavo:
    def __init__(self, options: argparse.Namespace) -> None:
        from octavo import LLM, LoRARequest, SamplingParams

        self._llm = LLM(options.model, dtype="bfloat16", max_model_len=512, max_num_seqs=64, threads=options.threads,
                        kv_cache_bytes=2**29, speculation=False)  # fmt: skip
        self._params = SamplingParams(temperature=0, max_tokens=options.tokens, ignore_eos=True)
        self._lora = LoRARequest

    def lora(self, number: int, path: str) -> Any:
        return self._lora(f"a{number}", number + 1, path)

    def run(self, prompts: list[list[int]], loras: list[Any]) -> list[int]:
        outputs = self._llm.generate(prompts, self._params, use_tqdm=False, lora_request=loras)
        return [len(output.outputs[0].token_ids) for output in outputs]


class VLLM:
    def __init__(self, options: argparse.Namespace) -> None:
        os.environ |= {
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": f"0-{options.threads - 1}",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        import vllm
        from vllm.lora.request import LoRARequest

        self._llm = vllm.LLM(options.model, dtype="bfloat16", max_model_len=512, max_num_seqs=64, enable_lora=True,
                             max_loras=8, max_lora_rank=16)  # fmt: skip
        self._params = vllm.SamplingParams(temperature=0, max_tokens=options.tokens, ignore_eos=True, detokenize=False)
        self._lora = LoRARequest

    def lora(self, number: int, path: str) -> Any:
        return self._lora(f"a{number}", number + 1, path)

    def run(self, prompts: list[list[int]], loras: list[Any]) -> list[int]:
        asked = [{"prompt_token_ids": prompt} for prompt in prompts]
        outputs = self._llm.generate(asked, self._params, use_tqdm=False, lora_request=loras)
        return [len(output.outputs[0].token_ids) for output in outputs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", choices=["octavo", "vllm"])
    parser.add_argument("model")
    parser.add_argument("--adapters", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=48)
    options = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w")  # engines print to stdout
    os.dup2(2, 1)
    engine = Octavo(options) if options.engine == "octavo" else VLLM(options)
    loras = [engine.lora(number, str(path)) for number, path in enumerate(sorted(options.adapters.iterdir()))]
    print("{}", file=answers, flush=True)
    for line in sys.stdin:
        load, seed = line.split()
        streams, adapters = map(int, load.split(","))
        drawn, chosen = random.Random(seed), [*loras[:adapters], *([None] if streams > adapters else [])]
        prompts = [[drawn.choice(VOCABULARY) for _ in range(PROMPT)] for _ in range(streams)]
        begin = time.perf_counter()
        tokens = engine.run(prompts, [chosen[i % len(chosen)] for i in range(streams)])
        assert tokens == [options.tokens] * streams
        answer = {"seconds": time.perf_counter() - begin, "tokens": sum(tokens)}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
