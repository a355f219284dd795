"""`octavo chat`: which model is meant, and whether somebody types."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from octavo.errors import BadRequest, ConfigError, OctavoError
from octavo_serve.command.chat.talk import Model
from octavo_serve.command.chat.terminal import Conversation, converse
from octavo_serve.command.packaged import quickstart_model
from octavo_serve.command.plain_text import clean

_MOST_PIPED = 2**24
"""Characters of a question from a pipe; no context holds more."""


def chat(
    words: Sequence[str], key: str | None, model: str | None, system: str | None, settings: Sequence[str] = ()
) -> int:
    """Talk until Ctrl-D, or answer the one question that comes through a pipe.

    Args:
        words: a model or a URL, and settings of the engine.
        model: a server's model.
        settings: sampling parameters as NAME=VALUE.

    Returns:
        The exit code: 0, or 1 where the model cannot be had or a piped question got no answer.
    """
    typed = sys.stdin.isatty()
    console, problems = Console(highlight=False), Console(stderr=True, highlight=False)
    try:
        question = "" if typed else _piped()
        talker = _model(words, key, model, problems, progress=typed)
    except OctavoError as error:
        problems.print(clean(str(error)), style="red", markup=False, soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        return 130
    conversation = Conversation(talker, console, problems, system)
    for setting in settings:
        name, _, value = setting.partition("=")
        conversation.set(name, value)
    try:
        if not typed:
            return 0 if conversation.ask(question) else 1
        console.print(f"{clean(talker.name)}: /help says what can be done, Ctrl-D leaves", style="dim", markup=False)
        converse(conversation)
    finally:
        talker.close()
    return 0


def _piped() -> str:
    question = sys.stdin.read(_MOST_PIPED).strip()
    if not question:
        raise BadRequest("no question comes through the pipe")
    return question


def _model(words: Sequence[str], key: str | None, name: str | None, problems: Console, progress: bool) -> Model:
    """The model that is meant: a server's where there is a URL, or where one runs here and nothing is named."""
    from octavo_serve.command.remote import HERE

    first = words[0] if words else ""
    if first.startswith(("http://", "https://")):
        if len(words) > 1:
            raise ConfigError(f"a server's model has its settings: leave out {' '.join(words[1:])}")
        return _served(first, key, name)
    if not words and name is None and _listens():
        problems.print(f"Talking with the server at {HERE}; name a model to load it here.", style="dim")
        return _served("", key, None)
    return _offline([*words, *(["--model", name] if name else [])], progress)


def _served(url: str, key: str | None, name: str | None) -> Model:
    from octavo_serve.command.chat.server import ServedModel
    from octavo_serve.command.remote import Remote

    remote = Remote(url, key)
    try:
        return ServedModel(remote, name)
    except OctavoError:
        remote.close()
        raise


def _listens() -> bool:
    from octavo_serve.ports import holder_of

    return holder_of(8000) is not None


def _offline(words: Sequence[str], progress: bool) -> Model:
    from octavo_serve.command.chat.offline import OfflineModel

    if progress:
        _tell_of_compiling()
    return OfflineModel(**model_of(words), progress=progress)


def model_of(words: Sequence[str]) -> dict[str, Any]:
    """A model that is named with settings of the engine, or the quickstart's: source, engine, defaults.

    Raises:
        ConfigError: there is no such setting, or it is not the engine's.
    """
    if not words:
        return _quickstart()
    from octavo_serve.command.flags import read_words

    said = read_words(words)
    engine = {path[2]: value for path, value in said.given.items() if path[:2] == ("models", "engine")}
    if others := [".".join(path) for path in said.given if path[:2] != ("models", "engine")]:
        raise ConfigError(f"{', '.join(others)} is not the engine's: it counts for `octavo serve` alone")
    if said.what is None:
        found = _quickstart()
        return found | {"engine": found["engine"] | engine}
    return {"source": said.what, "engine": engine, "defaults": None}


def _tell_of_compiling() -> None:
    """Half a minute, the first time: what says so is else heard by those alone who read logs."""
    logger = logging.getLogger("octavo_kernels.native.build")
    logger.setLevel(logging.INFO)
    logger.addHandler(logging.StreamHandler())


def _quickstart() -> dict[str, Any]:
    model = quickstart_model()
    return {"source": model["source"], "engine": model["engine"], "defaults": model["override_generation_config"]}
