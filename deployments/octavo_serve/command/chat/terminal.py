"""Questions, commands and history."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from octavo.errors import OctavoError
from octavo_serve.command.chat.screen import Answer
from octavo_serve.command.chat.talk import Message, Model
from octavo_serve.command.plain_text import clean

_HISTORY = 1000
"""Questions that are remembered."""
_BLOCK = '"""'


class Conversation:
    """What was said, and how to go on.

    Args:
        console: for answers.
        problems: for what is wrong.
        system: the system prompt.
    """

    def __init__(self, model: Model, console: Console, problems: Console, system: str | None = None) -> None:
        self.model, self.console, self.problems = model, console, problems
        self.system = system
        self.said: list[Message] = []
        self.settings: dict[str, Any] = {}
        self._commands: dict[str, tuple[Callable[[str], None], str]] = {
            "/help": (self._help, "this list"),
            "/model": (self._model, "NAME  talk with another model; without a name, those there are"),
            "/system": (self._system, "TEXT  the system prompt from now on; without a text, none"),
            "/set": (
                self._set,
                "NAME VALUE  a sampling parameter, such as temperature 0.7; no value is its default",
            ),
            "/clear": (self._clear, "forget what was said"),
            "/save": (self._save, "FILE  write the conversation down as JSON"),
        }

    @property
    def messages(self) -> list[Message]:
        """The conversation as the API takes it."""
        return [*([{"role": "system", "content": self.system}] if self.system else []), *self.said]

    def ask(self, question: str) -> bool:
        """Show the answer; what came of it before Ctrl-C, or before it failed, stays in the conversation.

        Returns:
            whether it came to its end.
        """
        self.said.append({"role": "user", "content": question})
        problem = None
        with Answer(self.console) as answer:
            try:
                self._listen(answer)
            except KeyboardInterrupt:
                problem = "stopped"
            except OctavoError as error:
                problem = str(error)
        self._keep(answer.text)
        if problem is not None:
            self._complain(problem)
        elif self.console.is_terminal:
            self._note(answer.figures())
        return problem is None

    def _listen(self, answer: Answer) -> None:
        pieces = self.model.answer(self.messages, self.settings)
        try:
            for piece in pieces:
                answer.add(piece)
        finally:
            pieces.close()

    def _keep(self, text: str) -> None:
        """A question that got no answer is as if it had not been asked."""
        if text:
            self.said.append({"role": "assistant", "content": text})
        else:
            self.said.pop()

    def set(self, name: str, value: str) -> None:
        """Ask with a sampling parameter from now on, as JSON or as a text; with its default for an empty one."""
        if not value:
            self.settings.pop(name, None)
            return
        try:
            self.settings[name] = json.loads(value)
        except ValueError:
            self.settings[name] = value

    def command(self, line: str) -> None:
        """Do what a line that begins with a slash says."""
        name, _, rest = line.partition(" ")
        found = self._commands.get(name)
        if found is None:
            self._complain(f"there is no {clean(name)}: /help lists what there is")
            return
        try:
            found[0](rest.strip())
        except (OctavoError, OSError) as error:
            self._complain(str(error))

    def _help(self, rest: str) -> None:
        for name, (_, says) in self._commands.items():
            self._note(f"{name} {says}")
        self._note(f"{_BLOCK} begins and ends a question of several lines; Ctrl-C stops an answer, Ctrl-D leaves")

    def _model(self, name: str) -> None:
        if name:
            self.model.use(name)
        for each in self.model.models():
            self._note(f"{'*' if each == self.model.name else ' '} {clean(each)}")

    def _system(self, text: str) -> None:
        self.system = text or None
        self._note("system prompt set" if text else "no system prompt")

    def _set(self, rest: str) -> None:
        name, _, value = rest.partition(" ")
        self.set(name, value.strip())
        self._note(", ".join(f"{key} {value}" for key, value in self.settings.items()) or "the model's defaults")

    def _clear(self, rest: str) -> None:
        self.said.clear()
        self._note("forgotten")

    def _save(self, name: str) -> None:
        path = Path(name or f"chat-{datetime.now():%Y%m%d-%H%M%S}.json").expanduser()
        body = {"model": self.model.name, "messages": self.messages, **self.settings}
        with path.open("x") as file:  # nothing is overwritten
            file.write(json.dumps(body, indent=2, ensure_ascii=False) + "\n")
        self._note(f"saved in {path}")

    def _note(self, text: str) -> None:
        if text:
            self.console.print(clean(text), style="dim", markup=False, highlight=False)

    def _complain(self, text: str) -> None:
        self.problems.print(clean(text), style="red", markup=False, highlight=False, soft_wrap=True)


def converse(conversation: Conversation) -> None:
    """Ask and answer until Ctrl-D."""
    with _history():
        while True:
            try:
                line = _read()
            except KeyboardInterrupt:
                conversation.console.print()  # a line that was begun is dropped
                continue
            except EOFError:
                conversation.console.print()
                return
            if line.startswith("/"):
                conversation.command(line)
            elif line:
                conversation.ask(line)


def _read() -> str:
    line = input(">>> ").strip()
    if not line.startswith(_BLOCK):
        return line
    lines = [line.removeprefix(_BLOCK)]
    while _BLOCK not in lines[-1]:
        lines.append(input("... "))
    return "\n".join(lines).partition(_BLOCK)[0].strip()


@contextlib.contextmanager
def _history() -> Iterator[None]:
    """Questions of earlier conversations under the arrow keys, in a file for this user alone."""
    try:
        import readline
    except ImportError:  # a Python without it
        yield
        return
    path = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state", "octavo", "chat_history")
    readline.set_history_length(_HISTORY)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.touch(mode=0o600)
        readline.read_history_file(path)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            readline.write_history_file(path)
