"""From a checkpoint's config to a `ModelSpec`, by the records of this folder; encoders by `encoder_families.py`."""

from __future__ import annotations

from dataclasses import replace

from octavo.errors import ModelError
from octavo.model_files import reading
from octavo.models.encoder_families import encoder_from_config, encoder_types, is_classifier, is_encoder, num_labels
from octavo.models.encoder_spec import DenseSpec, HeadSpec
from octavo.models.families.record import Config, Family
from octavo.models.families.settings import check_sizes, complete, decoder_fields
from octavo.models.families.table import FAMILIES, OUTER, family_of
from octavo.models.spec import ModelSpec
from octavo.models.stored_facts import Stored, flags, sizes


def spec_from_config(config: Config, stored: Stored | None = None) -> ModelSpec:
    """The spec of a Hugging Face config.

    Args:
        stored: the tensors it describes, which win over the config where both differ; None uses the config alone.

    Raises:
        ModelError: unknown model type, a setting that is not covered, or one that contradicts the tensors; the
            message names it.
    """
    with reading("the model's config"):
        config = _text_config(config)
        model_type = config.get("model_type")
        if is_encoder(model_type):
            check_sizes(config)
            return encoder_from_config(config, stored)
        if (family := family_of(model_type)) is None:
            supported = ", ".join(sorted([*FAMILIES, *encoder_types(), *OUTER]))
            raise ModelError(
                f"models of type {model_type!r} are not supported; supported types are {supported}. With `runner: "
                "transformers`, transformers' own code may run it, slower"
            )
        spec = _spec(config, family, stored)
        if is_classifier(config):
            return _classifier(spec, config, stored)
        return spec if stored is None else replace(spec, **flags(spec, stored))


def _spec(config: Config, family: Family, stored: Stored | None) -> ModelSpec:
    config = complete(config, family)
    if stored is not None:
        config |= sizes(config, stored)
    return ModelSpec(**decoder_fields(config) | family.fields(config))


def _classifier(spec: ModelSpec, config: Config, stored: Stored | None) -> ModelSpec:
    """A decoder with classes of a text in place of logits of a next token."""
    found = None if stored is None else stored.entries.get("score.weight")
    classes = num_labels(config) if found is None else found.shape[0]
    head = HeadSpec((DenseSpec(classes, spec.hidden_size, "score", bias=False),))
    spec = replace(spec, tied_embeddings=True, generates=False, head=head)
    return spec if stored is None else replace(spec, **flags(spec, stored) | {"tied_embeddings": True})


def _text_config(config: Config) -> Config:
    """The config of the text model in one that sees too; settings in the outer config win."""
    text, outer = config.get("text_config"), config.get("model_type")
    if not isinstance(outer, str) or outer not in OUTER or not isinstance(text, dict):
        return config
    whole = ("bos_token_id", "eos_token_id", "tie_word_embeddings", "quantization_config")
    inner = {"model_type": OUTER[outer].model_type} | text
    return inner | {key: config[key] for key in whole if config.get(key) is not None}
