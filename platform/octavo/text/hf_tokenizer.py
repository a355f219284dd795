"""Reads a tokenizer from a Hugging Face directory: tokenizer.json and the small files around it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, decoders, pre_tokenizers
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE

from octavo.errors import ModelError
from octavo.model_files import read_optional, read_text, reading
from octavo.text.parts import TokenizerParts

_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_FLAGS = ("lstrip", "rstrip", "single_word", "normalized", "special")


def read_hf(folder: Path) -> TokenizerParts:
    """The tokenizer and chat templates of a directory in Hugging Face layout.

    The special tokens around a text (`add_special_tokens`) are those of tokenizer.json's post-processor. As in
    transformers, `add_bos_token` and `add_eos_token` in tokenizer_config.json are ignored. The other files add tokens
    and change their flags as in transformers 5 (`_from_pretrained` in tokenization_utils_base.py).

    Raises:
        ModelError: there is no tokenizer.json, or a file is damaged; the message names it.
    """
    backend = _read_backend(folder)
    with reading(f"the tokenizer in {folder}"):
        config, added = _settings(folder, backend)
        if _is_llama(folder, config, backend):
            _set_llamas_spaces(backend, config)
        named = _named_tokens(config)
        _add_tokens(backend, config, added, named)
        bos = named.get("bos_token")
        return TokenizerParts(
            backend,
            _end_tokens(folder, backend, named),
            None if bos is None else backend.token_to_id(bos),
            named,
            _chat_templates(folder, config),
            config.get("response_template"),
            "token_type_ids" in config.get("model_input_names", ["token_type_ids"]),
        )


def _settings(folder: Path, backend: Backend) -> tuple[dict[str, Any], list[AddedToken]]:
    """The content of tokenizer_config.json, and the added tokens. If it lists none, they are those of the older
    added_tokens.json; for equal ids, tokenizer.json's own win."""
    config = read_optional(folder / "tokenizer_config.json")
    if "added_tokens_decoder" in config:
        listed = sorted((config["added_tokens_decoder"] or {}).items(), key=lambda item: int(item[0]))
        return config, [_added_token(token) for _, token in listed]
    config |= read_optional(folder / "special_tokens_map.json")
    special = {*_named_tokens(config).values(), *map(_token_text, _extra(config))}
    older = {
        int(token_id): AddedToken(text, normalized=text not in special, special=text in special)
        for text, token_id in read_optional(folder / "added_tokens.json").items()
    }
    return config, [token for _, token in sorted((older | backend.get_added_tokens_decoder()).items())]


def _read_backend(folder: Path) -> Backend:
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ModelError(f"{folder} has no tokenizer.json; save one with transformers: tokenizer.save_pretrained(...)")
    with reading(path):
        backend = Backend.from_file(str(path))
        backend.no_truncation()
        backend.no_padding()
        return backend


def _is_llama(folder: Path, config: dict[str, Any], backend: Backend) -> bool:
    """Whether transformers 5 would take only the vocabulary from tokenizer.json and handle spaces as for Llama 2."""
    model = read_optional(folder / "config.json")
    name = str(config.get("tokenizer_class") or model.get("tokenizer_class") or "").removesuffix("Fast")
    byte_level = any("ByteLevel" in str(part) for part in (backend.pre_tokenizer, backend.decoder))
    ours = name == "LlamaTokenizer" and model.get("model_type") not in ("mistral", "mixtral", "qwen2")
    return ours and not byte_level and isinstance(backend.model, BPE)


def _set_llamas_spaces(backend: Backend, config: dict[str, Any]) -> None:
    """As `LlamaTokenizer`: prepend a space to a text, and in `legacy` mode to each of its pieces."""
    prefix = config.get("add_prefix_space") in (None, True)
    scheme = ("always" if config.get("legacy") else "first") if prefix else "never"
    backend.normalizer = None
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    backend.model.fuse_unk = True
    backend.model.byte_fallback = True


def _token_text(token: Any) -> str | None:
    """Special tokens are written as a string or as {"content": string, ...}."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _added_token(token: Any) -> AddedToken:
    """A token as a file lists it; a string's flags are those of a special token."""
    if isinstance(token, str):
        return AddedToken(token, normalized=False, special=True)
    return AddedToken(token["content"], **{name: bool(token[name]) for name in _FLAGS if name in token})


def _named_tokens(config: dict[str, Any]) -> dict[str, str]:
    """Special tokens by name: the seven usual ones, and those that a model adds."""
    extra = _extra(config)
    own = {name: token for name, token in config.items() if name.endswith("_token") and name not in _NAMED}
    usual = {name: config.get(name) for name in _NAMED}
    every = usual | own | (extra if isinstance(extra, dict) else {})
    return {name: text for name, token in every.items() if (text := _token_text(token)) is not None}


def _extra(config: dict[str, Any]) -> Any:
    """Special tokens beyond the seven usual ones, from the old or the new key: a list, or a map of names to tokens."""
    return config.get("extra_special_tokens") or config.get("additional_special_tokens") or []


def _add_tokens(backend: Backend, config: dict[str, Any], listed: Iterable[AddedToken], named: dict[str, str]) -> None:
    """Add the tokens that tokenizer.json lacks, and set the flags that the other files give to those it has."""
    known = {token.content: token for token in backend.get_added_tokens_decoder().values()}
    for token in listed:
        if token.content in named.values():
            token.special = True
        if repr(known.get(token.content)) != repr(token):
            backend.add_tokens([token])
            known[token.content] = token
    unnamed = [] if isinstance(_extra(config), dict) else _extra(config)
    for token in map(_added_token, [*(config.get(name, text) for name, text in named.items()), *unnamed]):
        if token.content not in known:
            token.special = token.special or token.content in named.values()
            backend.add_tokens([token])
            known[token.content] = token


def _end_tokens(folder: Path, backend: Backend, named: dict[str, str]) -> frozenset[int]:
    config = read_optional(folder / "config.json")
    sources = [read_optional(folder / "generation_config.json"), config, config.get("text_config") or {}]
    ids = {token_id for source in sources for token_id in _ids(source.get("eos_token_id"))}
    eos = backend.token_to_id(named["eos_token"]) if "eos_token" in named else None
    return frozenset(ids if eos is None else ids | {eos})


def _ids(value: Any) -> list[int]:
    """A config's `eos_token_id`: absent, one id or a list."""
    listed = value if isinstance(value, list) else [] if value is None else [value]
    if any(not isinstance(token_id, int) or isinstance(token_id, bool) for token_id in listed):
        raise ModelError(f"eos_token_id is {value!r}, which is neither a token id nor a list of them")
    return listed


def _chat_templates(folder: Path, config: dict[str, Any]) -> dict[str, str]:
    """Files win over tokenizer_config.json; a list there names its templates."""
    listed = config.get("chat_template")
    if isinstance(listed, str):
        listed = [{"name": "default", "template": listed}]
    elif isinstance(listed, dict):
        listed = [{"name": name, "template": text} for name, text in listed.items()]
    templates = {entry["name"]: entry["template"] for entry in listed or []}
    files = {path.stem: path for path in (folder / "additional_chat_templates").glob("*.jinja")}
    if (folder / "chat_template.jinja").is_file():
        files["default"] = folder / "chat_template.jinja"
    templates |= {name: read_text(path) for name, path in files.items()}
    if any(not isinstance(text, str) for pair in templates.items() for text in pair):
        raise ModelError(f"a chat template of {folder} is not a text")
    return templates
