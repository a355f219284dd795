"""What a conversation needs of a model, wherever that runs."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

Message = dict[str, str]


@dataclass(frozen=True, slots=True)
class Piece:
    """More of an answer.

    Attributes:
        text: as the model wrote it; not for a terminal.
        thought: whether it is reasoning, before the answer.
        tokens: of the answer so far; 0 where the server has not said.
    """

    text: str
    thought: bool = False
    tokens: int = 0


class Model(Protocol):
    """A model to talk with.

    Attributes:
        name: of the model that answers.
    """

    name: str

    def answer(self, messages: Sequence[Message], settings: Mapping[str, Any]) -> Generator[Piece, None, None]:
        """Stream the next message. Closing it, or Ctrl-C, ends the model's work on it.

        Args:
            settings: sampling parameters by their names in the API.

        Raises:
            OctavoError: it cannot be answered; says why.
        """
        ...

    def models(self) -> list[str]:
        """What `use` takes, as far as it can be listed.

        Raises:
            OctavoError: it cannot be found out.
        """
        ...

    def use(self, name: str) -> None:
        """Talk with another model from now on.

        Raises:
            OctavoError: there is none of this name; the model stays as it was.
        """
        ...

    def close(self) -> None: ...
