"""What is supported, from the records alone."""

from __future__ import annotations

from dataclasses import dataclass

from octavo.models.families.table import RECORDS


@dataclass(frozen=True, slots=True)
class Supported:
    """A family, as the documentation lists it.

    Attributes:
        title: models of it.
        model_type: of configs.
        gguf: architecture of GGUF files; None where they are not read.
    """

    title: str
    model_type: str
    gguf: str | None


def supported() -> list[Supported]:
    """Every family of decoders."""
    return [
        Supported(family.title, family.model_type, None if family.gguf is None else family.gguf.architecture)
        for family in sorted(RECORDS, key=lambda family: family.title.lower())
    ]
