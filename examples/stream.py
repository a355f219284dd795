"""A streamed chat from Python on the same Ray cluster, no HTTP.

python examples/stream.py "Tell me about paper sizes."
"""

from __future__ import annotations

import sys

import ray
from ray import serve


def main() -> None:
    ray.init(address="auto", namespace="serve", log_to_driver=False)
    gateway = serve.get_app_handle("octavo").options(stream=True)
    question = " ".join(sys.argv[1:]) or "What is the capital of France?"
    for chunk in gateway.chat_stream.remote({"messages": [{"role": "user", "content": question}], "max_tokens": 256}):
        for choice in chunk["choices"]:
            print(choice["delta"].get("content", ""), end="", flush=True)
    print()


if __name__ == "__main__":
    main()
