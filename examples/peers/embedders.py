"""One embedder of another make, or ours, behind a line "FILE BATCH": it answers with JSON, and writes its vectors down.

    python embedders.py NAME MODEL [--threads 2] [--tokens 512] [--dtype float32] [--tokenizer tokenizer.json]

embeddings.py starts each with the Python that has it installed. FILE is a JSON list of texts. BATCH is how many a peer
puts into a batch (Octavo decides itself); 0: each text alone, one after another. The answer has `seconds`, of which
those of single texts are a list. The vectors lie beside FILE then, as FILE.npy.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any, Protocol

import numpy as np


class Embedder(Protocol):
    """Loads a model when it is made."""

    def embed(self, texts: list[str], batch: int) -> Any:
        """A vector of length 1 for each text, in their order."""
        ...


class Octavo:
    def __init__(self, options: argparse.Namespace) -> None:
        from octavo import LLM

        self._llm = LLM(options.model, dtype=options.dtype, threads=options.threads, max_model_len=options.tokens)

    def embed(self, texts: list[str], batch: int) -> Any:
        return [output.outputs.embedding for output in self._llm.embed(texts, use_tqdm=False)]


class SentenceTransformers:
    """It sorts by length itself. float32, as the checkpoint is."""

    def __init__(self, options: argparse.Namespace) -> None:
        import torch
        from sentence_transformers import SentenceTransformer

        torch.set_num_threads(options.threads)
        self._model = SentenceTransformer(options.model, device="cpu")
        self._model.max_seq_length = options.tokens

    def embed(self, texts: list[str], batch: int) -> Any:
        return self._model.encode(texts, batch_size=batch, normalize_embeddings=True, show_progress_bar=False)


class OnnxRuntime:
    """Batches of texts of like length, padded to the longest of each; the mean and the norm in numpy."""

    def __init__(self, options: argparse.Namespace) -> None:
        import onnxruntime
        from tokenizers import Tokenizer

        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = options.threads
        self._session = onnxruntime.InferenceSession(options.model, settings, providers=["CPUExecutionProvider"])
        self._inputs = {node.name for node in self._session.get_inputs()}
        self._tokenizer = Tokenizer.from_file(options.tokenizer)
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(options.tokens)

    def embed(self, texts: list[str], batch: int) -> Any:
        rows = [encoding.ids for encoding in self._tokenizer.encode_batch(texts)]
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        vectors = np.empty((len(rows), 384), np.float32)
        for start in range(0, len(order), batch):
            these = order[start : start + batch]
            vectors[these] = self._run([rows[i] for i in these])
        return vectors

    def _run(self, rows: list[list[int]]) -> Any:
        ids = np.zeros((len(rows), max(map(len, rows))), np.int64)
        mask = np.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, : len(row)], mask[i, : len(row)] = row, 1
        given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        (states, *_) = self._session.run(None, {name: given[name] for name in self._inputs})
        sums = (states * mask[..., None]).sum(1, dtype=np.float32) if states.ndim == 3 else states
        return sums / np.linalg.norm(sums, axis=1, keepdims=True)


EMBEDDERS: dict[str, type] = {
    "octavo": Octavo,
    "sentence-transformers": SentenceTransformers,
    "onnxruntime": OnnxRuntime,
}


def measured(embedder: Embedder, file: Path, batch: int) -> dict[str, Any]:
    """Embed a file of texts, write down the vectors, say how long it took."""
    texts = json.loads(file.read_text())
    begin = time.perf_counter()
    if batch:
        vectors, seconds = embedder.embed(texts, batch), time.perf_counter() - begin
        np.save(file.with_suffix(".npy"), np.asarray(vectors, np.float32))
        return {"seconds": seconds}
    times = []
    for text in texts:
        begin = time.perf_counter()
        embedder.embed([text], 1)
        times.append(time.perf_counter() - begin)
    return {"seconds": times}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("embedder", choices=EMBEDDERS)
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=512, help="of a text at most; more are cut")
    parser.add_argument("--tokenizer", help="tokenizer.json for onnxruntime")
    parser.add_argument("--dtype", default="float32", help="of Octavo")
    options = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w")  # libraries print to stdout
    os.dup2(2, 1)
    embedder: Embedder = EMBEDDERS[options.embedder](options)
    embedder.embed(["Hello."], 1)
    print("{}", file=answers, flush=True)
    for line in sys.stdin:
        file, batch = line.split()
        print(json.dumps(measured(embedder, Path(file), int(batch))), file=answers, flush=True)


if __name__ == "__main__":
    main()
