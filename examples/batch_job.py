"""A batch job on the same Ray cluster: many prompts through the gateway's handle, no HTTP.

    .venv/bin/octavo serve configs/quickstart.yaml                    # says what to put for RAY_ADDRESS
    RAY_ADDRESS=... .venv/bin/python examples/batch_job.py prompts.txt > answers.jsonl

Validation, routing and batching are those of the HTTP API: the engine batches whatever is in flight. With several
models served, --model says which one; an alias works too.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

# what `octavo serve` starts takes no job without its user's token; Ray looks at this when it is imported
os.environ.setdefault("RAY_AUTH_MODE", "token")

import ray
from ray import serve
from ray.serve.handle import DeploymentHandle, DeploymentResponse

IN_FLIGHT = 64  # enough to keep the engines' batches full, few enough to bound memory here


def answers(gateway: DeploymentHandle, prompts: Iterable[str], options: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(prompt, answer) pairs in order, with up to IN_FLIGHT requests under way."""
    waiting: deque[tuple[str, DeploymentResponse]] = deque()
    source = iter(prompts)
    while True:
        for prompt in islice(source, IN_FLIGHT - len(waiting)):
            request = {"messages": [{"role": "user", "content": prompt}], **options}
            waiting.append((prompt, gateway.chat.remote(request)))
        if not waiting:
            return
        prompt, response = waiting.popleft()
        yield prompt, response.result()["choices"][0]["message"]["content"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("prompts", nargs="?", type=Path, help="a file with one prompt per line")
    parser.add_argument("--model", help="needed where several are served")
    parser.add_argument("--max-tokens", type=int, default=64)
    arguments = parser.parse_args()
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    ray.init(address="auto", namespace="serve", log_to_driver=False)
    gateway = serve.get_app_handle("octavo")
    prompts = arguments.prompts.read_text().splitlines() if arguments.prompts else ["What is the capital of France?"]
    options = {"model": arguments.model, "max_tokens": arguments.max_tokens, "temperature": 0}
    for prompt, answer in answers(gateway, prompts, options):
        print(json.dumps({"prompt": prompt, "answer": answer}))


if __name__ == "__main__":
    main()
