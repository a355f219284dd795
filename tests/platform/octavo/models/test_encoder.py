"""Every family of encoders and every head against transformers, which sees one text at a time and no padding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.models.encoder import Encoder, Texts
from octavo.models.head import read_head
from octavo.models.load import load_encoder
from octavo.models.source_spec import read_spec
from octavo.source import resolve_source

NAMES = ["bert", "roberta", "xlm-roberta", "mpnet", "distilbert", "nomic_bert", "modernbert", "modernbert_biases"]
LENGTHS = (70, 1, 33, 128, 5, 2)


def load(folder, **options) -> Encoder:
    return load_encoder(resolve_source(str(folder)), **options)


def texts_of(seconds=None) -> tuple[list[list[int]], Texts]:
    """Random token ids of several lengths, none of them padding's."""
    random = np.random.default_rng(1)
    sequences = [random.integers(5, 300, length).tolist() for length in LENGTHS]
    return sequences, Texts(np.cumsum([0, *LENGTHS]).tolist(), seconds or [None] * len(LENGTHS))


def forward(encoder: Encoder, sequences: list[list[int]], texts: Texts) -> list[torch.Tensor]:
    tokens = torch.tensor([token for sequence in sequences for token in sequence], device=encoder.device)
    return [encoder.forward(tokens, texts)[begin:end] for begin, end in texts.ranges]


def reference(folder, kind: str):
    import transformers

    options = {"attn_implementation": "eager", "dtype": torch.float32}
    return getattr(transformers, kind).from_pretrained(folder, **options).eval()


@pytest.mark.parametrize("name", NAMES)
def test_states_equal_transformers(tiny_encoder, name):
    folder = tiny_encoder(name)
    sequences, texts = texts_of()
    model = reference(folder, "AutoModel")
    for tokens, states in zip(sequences, forward(load(folder), sequences, texts), strict=True):
        with torch.no_grad():
            expected = model(torch.tensor([tokens])).last_hidden_state[0]
        assert expected.std() > 0.5  # states so small that anything would agree prove nothing
        torch.testing.assert_close(states, expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", ["bert", "mpnet", "modernbert"])
def test_texts_that_attend_together_are_as_alone(tiny_encoder, name):
    """What a GPU does, here on a CPU."""
    sequences, texts = texts_of()
    alone, together = load(tiny_encoder(name)), load(tiny_encoder(name))
    together._grouped = True
    for a, b in zip(*(forward(encoder, sequences, texts) for encoder in (alone, together)), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("one_order", [False, True])
def test_a_gpu_computes_what_the_cpu_does(tiny_encoder, name, one_order):
    sequences, texts = texts_of()
    on_cpu, on_gpu = (load(tiny_encoder(name), device=device) for device in ("cpu", "cuda"))
    if one_order:
        on_gpu.keep_one_order()
    for a, b in zip(*(forward(encoder, sequences, texts) for encoder in (on_cpu, on_gpu)), strict=True):
        torch.testing.assert_close(a, b.cpu(), atol=2e-2, rtol=0)  # Triton may multiply float32 in TF32


@pytest.mark.parametrize("name", ["bert", "nomic_bert"])
def test_token_types_equal_transformers(tiny_encoder, name):
    folder = tiny_encoder(name)
    sequences, texts = texts_of([40, 0, None, 127, 1, None])
    model = reference(folder, "AutoModel")
    encoder = load(folder)
    for i, states in enumerate(forward(encoder, sequences, texts)):
        types = torch.tensor([texts.alone(i).types])
        with torch.no_grad():
            expected = model(torch.tensor([sequences[i]]), token_type_ids=types).last_hidden_state[0]
        torch.testing.assert_close(states, expected, atol=2e-5, rtol=0)
    assert texts.types.count(1) == (70 - 40) + 1 + (128 - 127) + (5 - 1)


@pytest.mark.parametrize("name", NAMES)
def test_classes_equal_transformers(tiny_encoder, name):
    folder = tiny_encoder(name, classes=3)
    source = resolve_source(str(folder))
    spec, encoder = read_spec(source), load(folder)
    head = read_head(source, spec)
    assert head is not None
    sequences, texts = texts_of()
    states = forward(encoder, sequences, texts)
    pooled = torch.stack([x.mean(0) if name == "modernbert_biases" else x[0] for x in states]).numpy()
    with torch.no_grad():
        model = reference(folder, "AutoModelForSequenceClassification")
        expected = torch.cat([model(torch.tensor([tokens])).logits for tokens in sequences])
    assert expected.std() > 0.3
    torch.testing.assert_close(torch.from_numpy(head(pooled)), expected, atol=2e-5, rtol=0)
    assert np.array_equal(head(pooled)[2:3], head(pooled[2:3]))


@pytest.mark.parametrize("name", ["bert", "mpnet", "modernbert"])
def test_a_text_has_the_same_bits_in_any_batch(tiny_encoder, name):
    encoder = load(tiny_encoder(name))
    encoder.keep_one_order()

    @settings(max_examples=15, deadline=None)
    @given(st.lists(st.integers(1, 60), min_size=1, max_size=6), st.data())
    def check(lengths, data):
        random = np.random.default_rng(sum(lengths))
        sequences = [random.integers(5, 300, length).tolist() for length in lengths]
        texts = Texts(np.cumsum([0, *lengths]).tolist(), [None] * len(lengths))
        chosen = data.draw(st.integers(0, len(lengths) - 1))
        together = forward(encoder, sequences, texts)[chosen]
        (alone,) = forward(encoder, [sequences[chosen]], texts.alone(chosen))
        assert torch.equal(together, alone)

    check()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_stays_close_to_float32(tiny_encoder, dtype):
    sequences, texts = texts_of()
    full, half = (
        forward(load(tiny_encoder("modernbert"), dtype=kind), sequences, texts) for kind in ("float32", dtype)
    )
    for a, b in zip(full, half, strict=True):
        assert ((a - b).norm() / a.norm()).item() < (0.1 if dtype == "bfloat16" else 0.02)


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_rounded_matrices_stay_close(tiny_encoder, quantization):
    sequences, texts = texts_of()
    encoder = load(tiny_encoder("bert"), quantization=quantization)
    for a, b in zip(*(forward(x, sequences, texts) for x in (load(tiny_encoder("bert")), encoder)), strict=True):
        assert 0 < ((a - b).norm() / a.norm()).item() < (0.03 if quantization == "int8" else 0.4)
