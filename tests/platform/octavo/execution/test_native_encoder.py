"""The native executor of encoders beside the torch one and transformers, step by step."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from octavo.config import EngineConfig
from octavo.execution.encoder_executor import load_torch_encoder
from octavo.execution.local import load_local_encoder
from octavo.execution.native_encoder import NativeEncoderExecutor, load_native_encoder, why_not_native_encoder
from octavo.models.packed_encoder import load_packed_encoder
from octavo.source import resolve_source
from octavo.step import PooledRow, SamplingRows, StepBatch
from octavo_kernels.native.library import library

NAMES = ["bert", "roberta", "xlm-roberta", "mpnet", "distilbert", "nomic_bert", "modernbert", "modernbert_biases"]
LENGTHS = (70, 1, 33, 128, 5, 2)


def random_texts() -> list[list[int]]:
    random = np.random.default_rng(1)
    return [random.integers(5, 300, length).tolist() for length in LENGTHS]


def step(texts: list[list[int]], method="mean", seconds=None, task="embed") -> StepBatch:
    """A step that wants a vector of each text."""
    lengths = [len(text) for text in texts]
    starts = np.cumsum([0, *lengths]).astype(np.int32)
    nothing = {kind: np.zeros(0, kind) for kind in (np.int32, np.int64, np.float32, np.uint64)}
    ints, floats = nothing[np.int32], nothing[np.float32]
    sampling = SamplingRows(ints, floats, ints, floats, floats, nothing[np.uint64], nothing[np.int64], ints)
    tokens = np.array([token for text in texts for token in text], np.int32)
    rows = [PooledRow(i, 0, True, task, method, (seconds or {}).get(i)) for i in range(len(texts))]
    contexts, tables = np.array(lengths, np.int32), np.zeros((len(texts), 1), np.int32)
    return StepBatch(tokens, starts, contexts, tables, [], sampling, pooled=rows)


def native(folder, **options) -> NativeEncoderExecutor:
    if (found := library()) is None:
        pytest.skip("no C++ compiler")
    source = resolve_source(str(folder))
    config = EngineConfig(**options)
    assert why_not_native_encoder(source, config) is None
    return load_native_encoder(found, source, config, progress=False)


def vectors(executor, batch: StepBatch) -> np.ndarray:
    pooled = executor.launch(batch)().pooled
    return np.stack([pooled[row.row] for row in batch.pooled])


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


@pytest.mark.parametrize("name", NAMES)
def test_vectors_equal_those_of_torch(tiny_encoder, name):
    folder = tiny_encoder(name)
    source, config = resolve_source(str(folder)), EngineConfig()
    torch_executor, executor = load_torch_encoder(source, config, "cpu", progress=False), native(folder)
    for method in ("cls", "mean", "last"):
        batch = step(random_texts(), method, seconds={0: 40, 3: 127, 4: 1})
        expected = vectors(torch_executor, batch)
        assert np.abs(vectors(executor, batch) - expected).max() < 2e-5
        assert expected.std() > 0.2


@pytest.mark.parametrize("name", ["bert", "mpnet", "modernbert_biases"])
def test_classes_equal_transformers(tiny_encoder, name):
    import transformers

    folder = tiny_encoder(name, classes=3)
    kind = transformers.AutoModelForSequenceClassification
    model = kind.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
    with torch.no_grad():
        expected = torch.cat([model(torch.tensor([tokens])).logits for tokens in random_texts()]).numpy()
    method = "mean" if name == "modernbert_biases" else "cls"
    found = vectors(native(folder), step(random_texts(), method, task="classify"))
    assert expected.std() > 0.3
    assert np.abs(found - expected).max() < 1e-4


@pytest.mark.parametrize(("options", "least"), [
    ({"dtype": "bfloat16"}, 0.999),
    ({"dtype": "bfloat16", "quantization": "int8"}, 0.999),
    ({"dtype": "bfloat16", "quantization": "int8-g32"}, 0.999),
    ({"dtype": "float32", "quantization": "int8-g32"}, 0.9995),
    ({"dtype": "bfloat16", "quantization": "int4"}, 0.9),
], ids=["bf16", "int8", "int8 in groups", "int8 weights", "int4"])  # fmt: skip
def test_fewer_bits_stay_close_and_keep_bits_in_any_batch(tiny_encoder, options, least):
    folder, texts = tiny_encoder("bert"), random_texts()
    executor = native(folder, **options)
    found = vectors(executor, step(texts))
    exact = vectors(native(folder), step(texts))
    assert cosines(found, exact).min() > least
    assert not np.isclose(found, exact, rtol=1e-4).all()
    for i, text in enumerate(texts):
        assert np.array_equal(vectors(executor, step([text]))[0], found[i])


def test_value_projections_are_not_rounded(tiny_encoder):
    source = resolve_source(str(tiny_encoder("bert")))
    _, model = load_packed_encoder(source, dtype="bfloat16", quantization="int8-g32")
    assert {layer.v.weight.format for layer in model.layers} == {"BF16"}
    assert {layer.k.weight.format for layer in model.layers} == {"Q8_0"}


def test_what_the_native_code_does_not_cover_runs_on_torch(tiny_encoder, caplog):
    folder = tiny_encoder("bert")
    source, texts = resolve_source(str(folder)), random_texts()
    executors = [
        load_local_encoder(source, EngineConfig(device="cpu", dtype=dtype)) for dtype in ("float32", "float16")
    ]
    assert "dtype is float16" in caplog.text
    if library() is not None:
        assert "bert on cpu" in str(executors[0])
    assert cosines(*(vectors(executor, step(texts)) for executor in executors)).min() > 0.999


def test_a_step_without_texts_is_empty(tiny_encoder):
    assert native(tiny_encoder("bert")).launch(step([]))().pooled == {}
