"""A model in this process: no Ray, no server."""

from __future__ import annotations

import itertools
import signal
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from types import FrameType
from typing import Any

from octavo.config import unknown_key
from octavo.engine.llm import LLM
from octavo.errors import BadRequest
from octavo.request import Request, SamplingParams
from octavo.text.chat import render_chat
from octavo.text.output import SequenceText
from octavo_serve.command.chat.talk import Message, Piece

LONGEST = 1024
"""Tokens of an answer where nobody says: a small model may go on and on."""
_PARAMETERS = [field.name for field in fields(SamplingParams)]


class OfflineModel:
    """`Model` over an engine of this process.

    Args:
        source: see `octavo.source`.
        engine: fields of `EngineConfig`.
        defaults: sampling parameters in place of what the model's files recommend.
        progress: show how far it is loaded.

    Raises:
        ModelError, ConfigError: as `LLM`.
    """

    def __init__(
        self,
        source: str,
        engine: Mapping[str, Any] | None = None,
        defaults: Mapping[str, Any] | None = None,
        *,
        progress: bool = True,
    ) -> None:
        self.name = source
        self._engine, self._progress = dict(engine or {}), progress
        self._llm = LLM(source, progress=progress, **self._engine)
        recommended = self._llm.get_default_sampling_params()
        self._defaults = {"temperature": recommended.temperature, "top_k": recommended.top_k,
                          "top_p": recommended.top_p, "min_p": recommended.min_p,
                          "repetition_penalty": recommended.repetition_penalty,
                          "max_tokens": LONGEST} | dict(defaults or {})  # fmt: skip
        self._ids = itertools.count()

    def models(self) -> list[str]:
        return [self.name]

    def use(self, name: str) -> None:
        other = OfflineModel(name, self._engine, progress=self._progress)
        self._llm.close()
        self.name, self._llm, self._defaults = other.name, other._llm, other._defaults

    def answer(self, messages: Sequence[Message], settings: Mapping[str, Any]) -> Generator[Piece, None, None]:
        if unknown := next((name for name in settings if name not in _PARAMETERS), None):
            raise BadRequest(unknown_key(unknown, _PARAMETERS, "parameter"))
        params = SamplingParams(**(self._defaults | dict(settings)))
        ids = self._llm.tokenizer.encode(render_chat(self._llm.tokenizer, messages), add_special_tokens=False)
        yield from self._stream(Request(request_id=f"chat-{next(self._ids)}", prompt_token_ids=ids, params=params))

    def _stream(self, request: Request) -> Iterator[Piece]:
        engine = self._llm.engine
        text = SequenceText(self._llm.tokenizer, request.params, request.prompt_token_ids)
        engine.scheduler.check(request)
        engine.add(request)
        try:
            with _interrupted_between_steps() as check:
                while text.finish_reason is None:
                    for update in engine.step():
                        if update.request_id == request.request_id and update.index == 0:
                            yield Piece(text.push(update), tokens=len(text.token_ids))
                    check()
        finally:
            engine.abort(request.request_id)

    def close(self) -> None:
        self._llm.close()


@contextmanager
def _interrupted_between_steps() -> Iterator[Callable[[], None]]:
    """Ctrl-C raises at the next call of what this yields: in the middle of a step it would leave half of one."""
    came: list[int] = []

    def note(signum: int, frame: FrameType | None) -> None:
        came.append(signum)

    def check() -> None:
        if came:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, note)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, before)
