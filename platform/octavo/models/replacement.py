"""Whether a checkpoint may take the place of another one while that is served, and what its weights are called."""

from __future__ import annotations

import dataclasses
from typing import Any

from octavo.errors import BadRequest
from octavo.models.packed_cache import content
from octavo.models.pooling_facts import read_pooling
from octavo.models.source_spec import read_spec
from octavo.source import Source
from octavo.text.tokenizer import Tokenizer, load_tokenizer

_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")


def named_by_weights(source: Source) -> Source:
    """A source whose name, from which hashes of KV blocks start, ends with a hash of its files.

    All of the weights are read the first time; the sums of files that have not changed since are known.

    Raises:
        ModelError: they cannot be read.
    """
    return dataclasses.replace(source, name=f"{source.name}#weights={content(source)}")


def check_replacement(old: Source, new: Source, tokenizer: Tokenizer) -> None:
    """Raise BadRequest unless a model can go over from one source's weights to the other's.

    Everything but the values of the weights has to be the same. A directory without a tokenizer takes the old one.

    Raises:
        ModelError: the new one is damaged, or not supported.
    """
    differing = _first_difference(read_spec(old), read_spec(new))
    differing = differing or _first_difference(read_pooling(old, read_spec(old)), read_pooling(new, read_spec(new)))
    if differing is not None:
        name, before, after = differing
        raise BadRequest(f"{name} of the new weights is {after!r:.80}, of those that are served {before!r:.80}: they "
                         "must be of the same architecture", "path")  # fmt: skip
    if new.kind == "hf" and not any((new.path / name).is_file() for name in _TOKENIZERS):
        return
    other = load_tokenizer(new)
    piece = tokenizer.differs_at(other) or other.differs_at(tokenizer)
    if piece is not None:
        raise BadRequest(f"the new weights have another tokenizer: {piece!r:.80} is not the same token there", "path")


def _first_difference(old: Any, new: Any) -> tuple[str, object, object] | None:
    """The name of the first field in which two records differ, and its values."""
    if type(old) is not type(new):
        return "the kind of model", type(old).__name__, type(new).__name__
    for field in dataclasses.fields(old):
        before, after = getattr(old, field.name), getattr(new, field.name)
        if before != after:
            return field.name, before, after
    return None
