"""A directory's JSON files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from octavo.errors import ModelError


def read_json(file: Path) -> dict[str, Any]:
    """A directory's JSON file.

    Raises:
        ModelError: it cannot be read, or is not an object.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{file} is not a JSON object")
    return content
