"""A GGUF file's header, as families ask it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from octavo.errors import ModelError
from octavo.gguf_header import read_directory, read_metadata


class Metadata:
    """A GGUF file's header: `meta.get("general.name")`, and `meta.own("block_count")` for `{arch}.block_count`."""

    def __init__(self, file: Path) -> None:
        self._values = read_metadata(file)
        self.tensors = read_directory(file)
        self.architecture = self.get("general.architecture")

    def get(self, key: str) -> Any:
        """The value, or None if the file does not have it."""
        return self._values.get(key)

    def own(self, key: str) -> Any:
        """The value of an architecture's key, or None. A list with one value per layer must hold equal values, or 0:
        recurrent layers have no key-value heads."""
        value = self.get(f"{self.architecture}.{key}")
        if isinstance(value, list) and key != "attention.sliding_window_pattern":
            each = set(value) - {0} if key == "attention.head_count_kv" else set(value)
            if len(each) != 1:
                raise ModelError(f"{self.architecture}.{key} differs between layers, which is not supported")
            return each.pop()
        return value

    def own_list(self, key: str) -> list[Any]:
        """An architecture's key that holds a list; [] without it."""
        return list(self.get(f"{self.architecture}.{key}") or [])

    def required(self, key: str) -> Any:
        """An architecture's key.

        Raises:
            ModelError: the file lacks it.
        """
        if (value := self.own(key)) is None:
            raise ModelError(f"the GGUF file lacks {self.architecture}.{key}")
        return value

    def window_pattern(self) -> dict[str, Any]:
        """Which layers have a window, as a Hugging Face config says it; {} where the file does not."""
        pattern = self.own("attention.sliding_window_pattern")
        if isinstance(pattern, list):
            return {"layer_types": ["sliding_attention" if local else "full_attention" for local in pattern]}
        return {} if pattern is None else {"sliding_window_pattern": pattern}
