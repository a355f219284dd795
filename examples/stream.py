"""A streamed chat from Python on the same Ray cluster, no HTTP.

.venv/bin/octavo serve configs/quickstart.yaml                    # says what to put for RAY_ADDRESS
RAY_ADDRESS=... .venv/bin/python examples/stream.py "Tell me about paper sizes." --model smollm2-135m
"""

from __future__ import annotations

import argparse
import logging
import os

# what `octavo serve` starts takes no job without its user's token; Ray looks at this when it is imported
os.environ.setdefault("RAY_AUTH_MODE", "token")

import ray
from ray import serve


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("question", nargs="?", default="What is the capital of France?")
    parser.add_argument("--model", help="needed where several are served")
    parser.add_argument("--max-tokens", type=int, default=256)
    arguments = parser.parse_args()
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    ray.init(address="auto", namespace="serve", log_to_driver=False)
    gateway = serve.get_app_handle("octavo").options(stream=True)
    messages = [{"role": "user", "content": arguments.question}]
    request = {"model": arguments.model, "messages": messages, "max_tokens": arguments.max_tokens, "temperature": 0}
    for chunk in gateway.chat_stream.remote(request):
        for choice in chunk["choices"]:
            print(choice["delta"].get("content", ""), end="", flush=True)
    print()


if __name__ == "__main__":
    main()
