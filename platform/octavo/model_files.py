"""Reads model files, which are untrusted: whatever they contain, the only error raised is `ModelError`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from octavo.errors import ModelError, OctavoError


@contextmanager
def reading(what: object) -> Iterator[None]:
    """Turn every error raised inside the block, by Python or a library, into a `ModelError` that blames `what`."""
    try:
        yield
    except OctavoError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":  # Rust's
            raise
        raise ModelError(f"{what} is damaged or cannot be read: {type(error).__name__}: {error}") from error


def read_json(file: Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
        ModelError: it cannot be read, or is not an object.
    """
    with reading(file):
        if file.exists() and not file.is_file():  # a pipe would be waited for
            raise ModelError(f"{file} is not a file")
        content = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ModelError(f"{file} is not a JSON object")
    return content


def read_optional(file: Path) -> dict[str, Any]:
    """The same, or an empty one where there is no such file.

    Raises:
        ModelError: it is there and cannot be read, or is not an object.
    """
    return read_json(file) if os.path.lexists(file) else {}


def read_text(file: Path) -> str:
    """A text file in UTF-8.

    Raises:
        ModelError: it cannot be read.
    """
    with reading(file):
        return file.read_text(encoding="utf-8")
