"""Reads a tokenizer from a Hugging Face directory: tokenizer.json and the small files around it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from octavo.errors import ModelError
from octavo.text.parts import TokenizerParts

_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def read_hf(folder: Path) -> TokenizerParts:
    """The tokenizer and chat templates of a directory in Hugging Face layout.

    What is put around a text (add_special_tokens) is what tokenizer.json's post-processor says; like transformers, this
    gives no heed to `add_bos_token` and `add_eos_token` in tokenizer_config.json beside it.

    Raises:
        ModelError: there is no tokenizer.json, or a file is damaged; the message names it.
    """
    config = _read_json(folder / "special_tokens_map.json") | _read_json(folder / "tokenizer_config.json")
    named = {name: text for name in _NAMED if (text := _token_text(config.get(name))) is not None}
    backend = _read_backend(folder)
    _add_missing(backend, config, named)
    bos = named.get("bos_token")
    return TokenizerParts(
        backend,
        _end_tokens(folder, backend, named),
        None if bos is None else backend.token_to_id(bos),
        named,
        _chat_templates(folder, config),
    )


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path} is not valid JSON: {error}") from error
    return content if isinstance(content, dict) else {}


def _read_backend(folder: Path) -> Backend:
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ModelError(f"{folder} has no tokenizer.json; save one with transformers: tokenizer.save_pretrained(...)")
    try:
        backend = Backend.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise ModelError(f"{path} cannot be read: {error}") from error
    backend.no_truncation()
    backend.no_padding()
    return backend


def _token_text(token: Any) -> str | None:
    """Special tokens are written as a string or as {"content": string, ...}."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _add_missing(backend: Backend, config: dict[str, Any], named: dict[str, str]) -> None:
    """Add the tokens that only tokenizer_config.json knows, as transformers does."""
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    listed = config.get("added_tokens_decoder") or {}
    for _, entry in sorted(listed.items(), key=lambda item: int(item[0])):
        flags = {k: entry[k] for k in ("lstrip", "rstrip", "single_word", "normalized", "special") if k in entry}
        if entry["content"] not in known:
            backend.add_tokens([AddedToken(entry["content"], **flags)])
            known.add(entry["content"])
    backend.add_special_tokens([text for text in dict.fromkeys(named.values()) if text not in known])


def _end_tokens(folder: Path, backend: Backend, named: dict[str, str]) -> frozenset[int]:
    config = _read_json(folder / "config.json")
    sources = [_read_json(folder / "generation_config.json"), config, config.get("text_config") or {}]
    ids: set[int] = set()
    for source in sources:
        listed = source.get("eos_token_id")
        ids.update([listed] if isinstance(listed, int) else listed or [])
    eos = backend.token_to_id(named["eos_token"]) if "eos_token" in named else None
    return frozenset(ids if eos is None else ids | {eos})


def _chat_templates(folder: Path, config: dict[str, Any]) -> dict[str, str]:
    """Files win over tokenizer_config.json; a list there names its templates."""
    listed = config.get("chat_template")
    if isinstance(listed, str):
        listed = [{"name": "default", "template": listed}]
    templates = {entry["name"]: entry["template"] for entry in listed or []}
    files = {path.stem: path for path in (folder / "additional_chat_templates").glob("*.jinja")}
    if (folder / "chat_template.jinja").is_file():
        files["default"] = folder / "chat_template.jinja"
    return templates | {name: path.read_text(encoding="utf-8") for name, path in files.items()}
