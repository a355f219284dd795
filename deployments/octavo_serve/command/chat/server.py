"""A model behind a URL."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import Any

from octavo.config import unknown_key
from octavo_serve.command.chat.talk import Message, Piece
from octavo_serve.command.remote import Remote, RemoteError


class ServedModel:
    """`Model` over an OpenAI-compatible server.

    Args:
        name: one of its models; its first by default.

    Raises:
        RemoteError: it does not answer, or has no such model.
    """

    def __init__(self, remote: Remote, name: str | None = None) -> None:
        self._remote = remote
        self.name = ""
        served = self.models()
        self.use(name if name is not None or not served else served[0])

    def models(self) -> list[str]:
        found = self._remote.json("/v1/models")
        cards = found.get("data") if isinstance(found, dict) else None
        if not isinstance(cards, list):
            raise RemoteError(f"{self._remote.url}/v1/models lists no models: is it an OpenAI-compatible server?")
        return [str(card["id"]) for card in cards if isinstance(card, dict) and "id" in card]

    def use(self, name: str | None) -> None:
        served = self.models()
        if name not in served:
            raise RemoteError(unknown_key(name, served, "model") if name else f"{self._remote.url} serves no model")
        self.name = name

    def answer(self, messages: Sequence[Message], settings: Mapping[str, Any]) -> Generator[Piece, None, None]:
        body = {"model": self.name, "messages": list(messages), "stream": True, **settings}
        for event in self._remote.events("/v1/chat/completions", body | {"stream_options": {"include_usage": True}}):
            tokens = _tokens(event)
            delta = _delta(event)
            for name in ("reasoning_content", "content"):
                if isinstance(text := delta.get(name), str) and text:
                    yield Piece(text, name != "content", tokens)
            if tokens:
                yield Piece("", tokens=tokens)

    def close(self) -> None:
        self._remote.close()


def _delta(event: Any) -> dict[str, Any]:
    choices = event.get("choices") if isinstance(event, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    delta = choice.get("delta") if isinstance(choice, dict) else None
    found = dict(delta) if isinstance(delta, dict) else {}
    if "reasoning_content" not in found and "reasoning" in found:  # other servers' name
        found["reasoning_content"] = found["reasoning"]
    return found


def _tokens(event: Any) -> int:
    usage = event.get("usage") if isinstance(event, dict) else None
    found = usage.get("completion_tokens") if isinstance(usage, dict) else None
    return found if isinstance(found, int) and 0 < found < 2**31 else 0  # more than that nobody has counted
