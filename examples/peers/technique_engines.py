"""An engine with adapters or guesses behind two lines, for techniques.py: it reads "LOAD SEED", answers with JSON.

python technique_engines.py octavo|vllm|llama MODEL FOLDER [--guess WAY] [--draft MODEL] [--threads 2] [--tokens 48]

LOAD is "adapters,STREAMS,COUNT" or "WORK,STREAMS", WORK a name in FOLDER/prompts.json. `--guess` turns speculation on:
from text alone, or with the model that `--draft` names; for llama.cpp it is one of its `--spec-type`s.
"""

from __future__ import annotations

import argparse
import atexit
import http.client
import json
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Protocol

from engines import free_port, wait_for

VOCABULARY = range(100, 49_000)
PROMPT, LENGTH, SLOTS = 32, 2048, 16


class Engine(Protocol):
    def lora(self, number: int, path: str) -> Any:
        """An adapter, as `run` takes it."""
        ...

    def run(self, prompts: list[list[int]], loras: list[Any]) -> list[list[int]]:
        """Answers to all prompts, which arrive at once."""
        ...


class Octavo:
    def __init__(self, options: argparse.Namespace) -> None:
        from octavo import LLM, LoRARequest, SamplingParams

        guess: Any = {"draft": options.draft} if options.draft else bool(options.guess)
        self._llm = LLM(options.model, dtype="bfloat16", max_model_len=LENGTH, max_num_seqs=64, kv_cache_bytes=2**29,
                        threads=options.threads, speculation=guess)  # fmt: skip
        self._params = SamplingParams(temperature=0, max_tokens=options.tokens, ignore_eos=True)
        self._lora = LoRARequest

    def lora(self, number: int, path: str) -> Any:
        return self._lora(f"a{number}", number + 1, path)

    def run(self, prompts: list[list[int]], loras: list[Any]) -> list[list[int]]:
        outputs = self._llm.generate(prompts, self._params, use_tqdm=False, lora_request=loras)
        return [output.outputs[0].token_ids for output in outputs]


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

        more: dict[str, Any] = {"enable_lora": True, "max_loras": 8, "max_lora_rank": 16}
        if options.guess:
            guess = {"method": "ngram", "prompt_lookup_max": 5, "prompt_lookup_min": 3, "num_speculative_tokens": 5}
            draft = {"method": "draft_model", "model": options.draft, "num_speculative_tokens": 4}
            more = {"speculative_config": draft if options.draft else guess}
        self._llm = vllm.LLM(options.model, dtype="bfloat16", max_model_len=LENGTH, max_num_seqs=64, **more)
        self._params = vllm.SamplingParams(temperature=0, max_tokens=options.tokens, ignore_eos=True, detokenize=False)
        self._lora = LoRARequest

    def lora(self, number: int, path: str) -> Any:
        return self._lora(f"a{number}", number + 1, path)

    def run(self, prompts: list[list[int]], loras: list[Any]) -> list[list[int]]:
        asked = [{"prompt_token_ids": prompt} for prompt in prompts]
        outputs = self._llm.generate(asked, self._params, use_tqdm=False, lora_request=loras)
        return [list(output.outputs[0].token_ids) for output in outputs]


class LlamaServer:
    """llama.cpp's server. Requests of one adapter are computed together, those of others after them."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._port, self._tokens, threads = free_port(), options.tokens, str(options.threads)
        command = [os.environ["LLAMA_BIN"] + "/llama-server", "-m", options.model, "--port", str(self._port)]
        command += ["-t", threads, "-tb", threads, "-np", str(SLOTS), "-c", str(SLOTS * LENGTH), "--cache-ram", "0"]
        files = sorted(options.folder.glob("*/adapter.gguf"))
        if options.guess:
            command += ["--spec-type", options.guess, *(["-md", options.draft] if options.draft else [])]
        elif files:
            command += ["--lora", ",".join(map(str, files)), "--lora-init-without-apply"]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        atexit.register(process.terminate)
        wait_for(self._port, process)

    def lora(self, number: int, _: str) -> Any:
        return number

    def run(self, prompts: list[list[int]], loras: list[Any]) -> list[list[int]]:
        answers: list[list[int]] = [[] for _ in prompts]

        def ask(i: int) -> None:
            answers[i] = self._ask(prompts[i], loras[i])

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(prompts))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return answers

    def _ask(self, prompt: list[int], lora: int | None) -> list[int]:
        body = {"prompt": prompt, "n_predict": self._tokens, "ignore_eos": True, "return_tokens": True}
        body |= {"temperature": 0, "lora": [] if lora is None else [{"id": lora, "scale": 1.0}]}
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=600)
        connection.request("POST", "/completion", json.dumps(body), {"Content-Type": "application/json"})
        said: list[int] = json.loads(connection.getresponse().read())["tokens"]
        return said


ENGINES: dict[str, type] = {"octavo": Octavo, "vllm": VLLM, "llama": LlamaServer}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", choices=ENGINES)
    parser.add_argument("model")
    parser.add_argument("folder", type=Path, help="of adapters a0, a1, ... and prompts.json")
    parser.add_argument("--guess", default="")
    parser.add_argument("--draft", default="")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=48)
    options = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w")  # engines print to stdout
    os.dup2(2, 1)
    engine: Engine = ENGINES[options.engine](options)
    loras = [engine.lora(number, str(path)) for number, path in enumerate(sorted(options.folder.glob("a*/")))]
    works = json.loads((options.folder / "prompts.json").read_text())
    print("{}", file=answers, flush=True)
    for line in sys.stdin:
        load, seed = line.split()
        prompts, chosen = requests(load, seed, works, loras)
        begin = time.perf_counter()
        said = engine.run(prompts, chosen)
        seconds = time.perf_counter() - begin
        assert [len(each) for each in said] == [options.tokens] * len(prompts), "another number of tokens"
        print(json.dumps({"seconds": seconds, "tokens": sum(map(len, said)), "said": said}), file=answers, flush=True)


def requests(
    load: str, seed: str, works: dict[str, list[list[int]]], loras: list[Any]
) -> tuple[list[list[int]], list[Any]]:
    """Prompts and adapters of a load."""
    name, *numbers = load.split(",")
    streams, drawn = int(numbers[0]), random.Random(seed)
    if name != "adapters":
        return drawn.sample(works[name], streams), [None] * streams
    count = int(numbers[1])
    chosen = [*loras[:count], *([None] if streams > count else [])]
    prompts = [[drawn.choice(VOCABULARY) for _ in range(PROMPT)] for _ in range(streams)]
    return prompts, [chosen[i % len(chosen)] for i in range(streams)]


if __name__ == "__main__":
    main()
