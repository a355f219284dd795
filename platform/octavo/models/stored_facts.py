"""Facts about a model that its tensors show. Where the config says otherwise, the tensors win.

`sizes` reads sizes from the tensors' shapes; they replace the config's before a family builds its spec. `flags` finds
out whether there are biases, norms of queries and keys, and a separate output head. An error is raised if the config
asks for more layers than the file has, or if no number or size of heads fits the shapes.
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from octavo import gguf_header, safetensors_header
from octavo.errors import ModelError
from octavo.models.families.record import GGUF_STACKS, Stack
from octavo.models.families.table import family_of
from octavo.models.spec import ModelSpec
from octavo.models.weights.encoder_names import ENCODER_NAMES, ENCODER_STACKS, GGUF_ENCODER_PARTS
from octavo.models.weights.names import gguf_parts, hf_parts, plain_name, renamed
from octavo.source import Source

logger = logging.getLogger(__name__)

Entry = safetensors_header.Entry | gguf_header.Entry

_MATRICES = ("q", "k", "v", "out", "gate", "up", "down")
_BIASES = {"qkv_bias": ("q", "k", "v", "q_a", "kv_a"), "out_bias": ("out",), "mlp_bias": ("gate", "up", "down")}


@dataclass(frozen=True, slots=True)
class Stored:
    """The tensors of a checkpoint by name.

    Attributes:
        where: name of the file that holds the config, for messages.
        layer: prefix of a layer's tensors, with {} for its index.
        parts: part -> name.
        stacks: name of a matrix that holds several parts -> which.
        transposed: layers' matrices are stored [in, out].
    """

    where: str
    entries: Mapping[str, Entry]
    layer: str
    parts: Mapping[str, str]
    stacks: Mapping[str, Stack]
    transposed: bool = False

    def shape(self, part: str, *, rank: int = 2) -> tuple[int, ...] | None:
        """Shape of a part's weight (of a layer's part: in the first layer); None if there is none with `rank`
        dimensions."""
        if self.parts.get(part) in self.stacks:
            return None
        name = f"{self.parts.get(part)}.weight"
        entry = self.entries.get(name) or self.entries.get(self.layer.format(0) + name)
        if entry is None or len(entry.shape) != rank:
            return None
        return entry.shape[::-1] if self.transposed and part in _MATRICES else entry.shape

    def num_layers(self) -> int | None:
        """The number of layers; None if layers are missing in between."""
        pattern = re.compile(re.escape(self.layer).replace(r"\{\}", r"(\d{1,6})"))
        found = {int(match[1]) for match in map(pattern.match, self.entries) if match}
        return len(found) if found and max(found) == len(found) - 1 else None

    def biases(self, parts: tuple[str, ...]) -> list[str]:
        """Names of the biases of these parts, in all layers."""
        own = [self.parts[part] for part in parts if part in self.parts]
        stacks = [name for name, stack in self.stacks.items() if set(stack.parts) & set(parts)]
        ends = tuple(f"{name}.bias" for name in own + stacks)
        first = self.layer.partition("{}")[0]  # Gemma 3's vision model has layers too, with another prefix
        return [name for name in self.entries if ends and name.startswith(first) and name.endswith(ends)]


def stored_facts(source: Source, model_type: object) -> Stored | None:
    """The tensors of a source; None for a directory without weights, which can be run with random ones.

    Raises:
        ModelError: a file is damaged, or a shard is missing.
    """
    family = family_of(model_type)
    if source.kind == "gguf":
        parts = GGUF_ENCODER_PARTS if family is None else gguf_parts(family)
        stacks = GGUF_STACKS | dict(family.gguf.stacks if family is not None and family.gguf is not None else {})
        where = f"the metadata of {source.path}"
        return Stored(where, gguf_header.read_directory(source.path), "blk.{}.", parts, stacks)
    if not any(source.path.glob("*.safetensors")):
        return None
    files = safetensors_header.weight_files(source.path)
    others = {} if family is None else family.names.renamed
    entries = {
        renamed(plain_name(name), others): entry
        for file in files
        for name, entry in safetensors_header.read_header(file).items()
    }
    where = str(source.path / "config.json")
    if family is not None:
        names = family.names
        return Stored(where, entries, names.layer, hf_parts(family), names.stacks, names.transposed)
    return Stored(where, entries, *ENCODER_NAMES.get(str(model_type), ("", {})), ENCODER_STACKS)


def sizes(config: Mapping[str, Any], stored: Stored) -> dict[str, int]:
    """Sizes that differ between the tensors and a Llama-like config: config key -> the tensors' value.

    Raises:
        ModelError: they contradict each other; the message names both.
    """
    found = _plain_sizes(config, stored)
    return _differing(config, found | _heads({**config, **found}, stored), stored.where)


def encoder_sizes(config: Mapping[str, Any], stored: Stored) -> dict[str, int]:
    """The same of an encoder's config.

    Raises:
        ModelError: as above.
    """
    found = _plain_sizes(config, stored)
    if down := stored.shape("down"):  # gate and up may be stored as one
        found["intermediate_size"] = down[1]
    for part, key in (("position_embedding", "max_position_embeddings"), ("type_embedding", "type_vocab_size")):
        if table := stored.shape(part):
            found[key] = table[0]
    return _differing(config, found, stored.where)


def _plain_sizes(config: Mapping[str, Any], stored: Stored) -> dict[str, int]:
    found: dict[str, int] = {}
    if embedding := stored.shape("embedding"):
        found["vocab_size"], found["hidden_size"] = embedding
    mixture = config.get("num_experts") or config.get("num_local_experts")
    if (up := stored.shape("up")) and not mixture:  # or else it is a shared expert's
        found["intermediate_size"] = up[0]
    if layers := stored.num_layers():
        found["num_hidden_layers"] = layers = _without_predictors(layers, config)
    if layers and layers < config["num_hidden_layers"]:
        raise ModelError(
            f"{stored.where} says {config['num_hidden_layers']} layers, and the checkpoint holds {layers} of them"
        )
    return found


def _without_predictors(layers: int, config: Mapping[str, Any]) -> int:
    """The layers without those behind the last that guess further tokens, which some checkpoints hold."""
    own, predictors = config["num_hidden_layers"], config.get("num_nextn_predict_layers") or 0
    return own if own < layers <= own + predictors else layers


def _differing(config: Mapping[str, Any], found: dict[str, int], where: str) -> dict[str, int]:
    changed = {key: size for key, size in found.items() if config.get(key) != size}
    for key, size in changed.items():
        if config.get(key) is not None:
            _say(f"{where} says {key} {config[key]}, and the weights {size}: the weights are right")
    return changed


def _heads(config: Mapping[str, Any], stored: Stored) -> dict[str, int]:
    """A corrected number of heads, or head size: the one change that makes the config fit the shapes."""
    query, key, norm = stored.shape("q"), stored.shape("k"), stored.shape("q_norm", rank=1)
    if query is None or key is None:
        return {}
    q, k, heads = query[0], key[0], config["num_attention_heads"]
    norm = None if norm == (q,) else norm  # over all heads
    kv_heads, named = config.get("num_key_value_heads") or heads, config.get("head_dim")
    own = named or config["hidden_size"] // heads
    dim = norm[0] if norm else own
    found = {} if dim == own else {"head_dim": dim}
    if (heads * dim, kv_heads * dim) == (q, k):
        return found
    if heads * dim == q and k % dim == 0:
        return found | {"num_key_value_heads": k // dim}
    if kv_heads * dim == k and q % dim == 0 and (norm or named):
        return found | {"num_attention_heads": q // dim}
    if q % heads == 0 and kv_heads * (q // heads) == k and not norm:
        return {"head_dim": q // heads}
    raise ModelError(
        f"{stored.where} says {heads} query heads and {kv_heads} key-value heads of {dim}, and the checkpoint's "
        f"matrices have {q} rows for queries and {k} for keys"
    )


def flags(spec: ModelSpec, stored: Stored) -> dict[str, Any]:
    """Fields of the spec whose value the tensors contradict, with the tensors' value."""
    found = {"tied_embeddings": spec.tied_embeddings and not _has_head(stored)}
    found |= {flag: _has_bias(getattr(spec, flag), stored, parts) for flag, parts in _BIASES.items()}
    norms = stored.shape("q_norm", rank=1), stored.shape("k_norm", rank=1)
    found["qk_norm"] = spec.qk_norm or norms == ((spec.head_dim,),) * 2
    changed = {flag: value for flag, value in found.items() if value != getattr(spec, flag)}
    for flag, value in changed.items():
        _say(f"{stored.where} says {flag} {not value}, and the weights {value}: the weights are right")
    return changed


def _has_bias(expected: bool, stored: Stored, parts: tuple[str, ...]) -> bool:
    """Whether these parts have biases. Unexpected ones that are all zero do not count: AutoGPTQ writes such."""
    names = stored.biases(parts)
    if expected or not names:
        return bool(names)
    entries = [stored.entries[name] for name in names]
    return any(any(chunk) for entry in entries for chunk in _chunks(entry))


def _has_head(stored: Stored) -> bool:
    """Whether there is an output head that is not a copy of the embedding."""
    name = stored.parts["lm_head"]
    head, embedding = (stored.entries.get(f"{x}.weight") for x in (name, stored.parts["embedding"]))
    if head is None or embedding is None:  # quantised ones have no weight, and tied ones may have a bias
        return any(other.startswith(f"{name}.") and other != f"{name}.bias" for other in stored.entries)
    return not _equal(head, embedding)


def _chunks(entry: Entry, size: int = 1 << 22) -> Iterator[bytes]:
    """A tensor's bytes in order, `size` at a time."""
    with entry.file.open("rb") as handle:
        handle.seek(entry.offset)
        for start in range(0, entry.num_bytes, size):
            yield handle.read(min(size, entry.num_bytes - start))


def _equal(a: Entry, b: Entry) -> bool:
    return _same_bytes(a, b, a.file.stat().st_mtime_ns, b.file.stat().st_mtime_ns)


@functools.lru_cache(maxsize=8)  # a start asks several times
def _same_bytes(a: Entry, b: Entry, *_changed: int) -> bool:
    kinds = [(entry.shape, getattr(entry, "dtype", None)) for entry in (a, b)]
    return kinds[0] == kinds[1] and all(x == y for x, y in zip_longest(_chunks(a), _chunks(b)))


@functools.cache
def _say(message: str) -> None:
    """Log a message once, although a start reads a model's spec several times."""
    logger.warning(message)
