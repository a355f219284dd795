"""A batch job on the same Ray cluster: many prompts through the gateway's handle, no HTTP.

    octavo serve configs/quickstart.yaml --address auto     # or any cluster that already serves "octavo"
    python examples/batch_job.py prompts.txt > answers.jsonl

Validation, routing and batching are those of the HTTP API: the engine batches whatever is in flight.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import ray
from ray import serve
from ray.serve.handle import DeploymentHandle, DeploymentResponse

IN_FLIGHT = 64  # enough to keep the engines' batches full, few enough to bound memory here


def answers(gateway: DeploymentHandle, prompts: Iterable[str], max_tokens: int = 64) -> Iterator[tuple[str, str]]:
    """(prompt, answer) pairs in order, with up to IN_FLIGHT requests under way."""
    waiting: list[tuple[str, DeploymentResponse]] = []
    source = iter(prompts)
    while True:
        for prompt in islice(source, IN_FLIGHT - len(waiting)):
            request = {"messages": [{"role": "user", "content": prompt}], "max_tokens": max_tokens, "temperature": 0}
            waiting.append((prompt, gateway.chat.remote(request)))
        if not waiting:
            return
        prompt, response = waiting.pop(0)
        yield prompt, response.result()["choices"][0]["message"]["content"]


def main() -> None:
    ray.init(address="auto", namespace="serve", log_to_driver=False)
    gateway = serve.get_app_handle("octavo")
    prompts = Path(sys.argv[1]).read_text().splitlines() if len(sys.argv) > 1 else ["What is the capital of France?"]
    for prompt, answer in answers(gateway, prompts):
        print(json.dumps({"prompt": prompt, "answer": answer}))


if __name__ == "__main__":
    main()
