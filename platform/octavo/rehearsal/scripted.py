"""A rehearsal with a script: the simulated model says what is written for what it was asked, instead of made-up words.

For whoever tests an application, a client or a tool loop without a model that is good enough. A profile's `script` says
what begins an answer in the model's template, and what is said when:

    script:
      after: "<|im_start|>assistant\\n"
      lines:
        - when: ["weather in Paris"]         # all are in the text since the last answer; the first counts
          say: '<tool_call>{"name": "weather", "arguments": {"city": "Paris"}}</tool_call>'
        - say: Hello.                        # where nothing else applies

The executor keeps the tokens of each KV block where a model keeps keys and values, so it knows a sequence by what the
engine put into the cache, cached prefixes and copies included. Masks hold: a token that is not allowed is not said,
and white space outside of the script is gone along with. Where a script ends, or the answer has gone another way, comes
an end token.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from octavo.config import EngineConfig
from octavo.errors import ConfigError
from octavo.execution.executor import Wait
from octavo.rehearsal.simulated import Profile, SimulatedExecutor, load_profile, readable_tokens
from octavo.step import Int32, StepBatch, StepResult
from octavo.text.tokenizer import Tokenizer

Allowed = npt.NDArray[np.bool_]

_LONGEST = 24
"""Characters of a token that are tried where a mask forbids the usual one."""


@dataclass(frozen=True, slots=True)
class Line:
    """What is said where all of some texts are in the latest turn."""

    say: str
    when: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Script:
    """What is said, by what was asked.

    Attributes:
        after: what the template writes before an answer.
        lines: the first that applies counts.
    """

    after: str
    lines: tuple[Line, ...]

    def answer(self, turn: str) -> str:
        """What is said to the text since the answer before; nothing if no line applies."""
        return next((line.say for line in self.lines if all(text in turn for text in line.when)), "")


def load_rehearsal(config: EngineConfig, tokenizer: Tokenizer) -> SimulatedExecutor:
    """The executor for `config.rehearsal`.

    Raises:
        ConfigError: the profile cannot be used.
    """
    profile = load_profile(str(config.rehearsal))
    words = readable_tokens(tokenizer)
    if profile.script is None:
        return SimulatedExecutor(profile, config, words, tokenizer.vocab_size)
    return ScriptedExecutor(profile, config, words, tokenizer)


def read_script(document: Any, where: str) -> Script:
    """A profile's `script`.

    Raises:
        ConfigError: it has another form.
    """
    try:
        lines = tuple(Line(str(line["say"]), tuple(map(str, line.get("when", ())))) for line in document["lines"])
        return Script(str(document["after"]), lines)
    except (AttributeError, KeyError, TypeError):
        raise ConfigError(f"{where}: a script has `after` and `lines`, each with `say` and a list `when`") from None


class ScriptedExecutor(SimulatedExecutor):
    """`SimulatedExecutor` that follows a script."""

    def __init__(
        self, profile: Profile, config: EngineConfig, words: Sequence[int], tokenizer: Tokenizer, **clock: Any
    ) -> None:
        super().__init__(profile, config, words, tokenizer.vocab_size, **clock)
        self._script = read_script(profile.script, f"the profile {profile.name!r}")
        self._tokenizer = tokenizer
        self._after = np.array(tokenizer.encode(self._script.after, add_special_tokens=False), np.int32)
        self._blocks = np.zeros((self.num_blocks, config.block_size), np.int32)
        self._end = min(tokenizer.eos_token_ids)
        self._answer = lru_cache(maxsize=256)(self._answered)

    def launch(self, batch: StepBatch) -> Wait:
        """As a model would: the step's tokens go into the cache first."""
        for source, target in batch.block_copies:
            self._blocks[target] = self._blocks[source]
        size = self._blocks.shape[1]
        for row, end in enumerate(batch.context_lens.tolist()):
            tokens = batch.token_ids[batch.query_start[row] : batch.query_start[row + 1]]
            places = np.arange(end - len(tokens), end)
            self._blocks[batch.block_tables[row, places // size], places % size] = tokens
        return super().launch(batch)

    def _result(self, batch: StepBatch, seconds: float) -> StepResult:
        result = super()._result(batch, seconds)
        masks = _masks(batch)
        for row, index in enumerate(batch.sampling.token_index.tolist()):
            said = self._next(self._sequence(batch, index), masks.get(row))
            if (logprobs := result.logprobs.get(row)) is not None:
                ranked = min(2, len(logprobs.token_ids) - logprobs.named)
                logprobs.token_ids[:ranked] = [said] * ranked
            result.token_ids[row] = said
            if row in result.candidates:
                result.candidates[row] = self._following(said, row, batch.sampling)
        return result

    def _sequence(self, batch: StepBatch, index: int) -> Int32:
        """All tokens up to a flat token of the step."""
        row = int(np.searchsorted(batch.query_start, index, side="right")) - 1
        end = int(batch.context_lens[row] - (batch.query_start[row + 1] - index) + 1)
        used = -(-end // self._blocks.shape[1])
        return self._blocks[batch.block_tables[row, :used]].reshape(-1)[:end]

    def _next(self, sequence: Int32, allowed: Allowed | None) -> int:
        places = _places(sequence, self._after)
        begin = places[-1] if places else len(sequence)
        turn = sequence[places[-2] if len(places) > 1 else 0 : begin]
        said, begun = _text(b"".join(map(self._tokenizer.token_bytes, sequence[begin:].tolist())))
        rest = rest_of(self._answer(turn.tobytes()), said)
        for token in self._inside(rest, begun) if begun else self._candidates(rest):
            if allowed is None or allowed[token]:
                return token
        assert allowed is not None, "without a mask the first candidate is said"
        return int(np.flatnonzero(allowed)[0])

    def _candidates(self, rest: str) -> Iterator[int]:
        """Tokens that go on with a text, the usual one first; then the end."""
        for text in dict.fromkeys((rest, rest.lstrip())):
            if text:
                yield self._tokenizer.encode(text, add_special_tokens=False)[0]
                for length in range(min(_LONGEST, len(text)), 0, -1):
                    if len(tokens := self._tokenizer.encode(text[:length], add_special_tokens=False)) == 1:
                        yield tokens[0]
        yield self._end

    def _inside(self, rest: str, begun: bytes) -> Iterator[int]:
        """Tokens that go on with a character of which the first bytes are said; then the end."""
        left = rest[:1].encode()[len(begun) :]
        for length in range(len(left), 0, -1):
            if (token := self._tokens.get(left[:length])) is not None:
                yield token
        yield self._end

    @cached_property
    def _tokens(self) -> dict[bytes, int]:
        """Tokens by their bytes."""
        return {self._tokenizer.token_bytes(token): token for token in range(self._tokenizer.vocab_size)}

    def _answered(self, turn: bytes) -> str:
        tokens = np.frombuffer(turn, np.int32).tolist()
        return self._script.answer(self._tokenizer.decode(tokens, skip_special_tokens=False))


def _text(data: bytes) -> tuple[str, bytes]:
    """A text, and the bytes at its end that only begin a character."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    return decoder.decode(data), decoder.getstate()[0]


def rest_of(script: str, said: str) -> str:
    """What of a script has not been said. White space that only one of both has is passed over.

    Returns:
        "" where something else was said.
    """
    if script.startswith(said):
        return script[len(said) :]
    place = 0
    for character in said:
        while place < len(script) and script[place].isspace() and not character.isspace():
            place += 1
        if place < len(script) and script[place] == character:
            place += 1
        elif not character.isspace():
            return ""
    return script[place:]


def _places(sequence: Int32, marker: Int32) -> list[int]:
    """Where a marker's occurrences end."""
    if len(sequence) < len(marker):
        return []
    found = np.lib.stride_tricks.sliding_window_view(sequence, len(marker)) == marker
    places: list[int] = (np.flatnonzero(found.all(axis=1)) + len(marker)).tolist()
    return places


def _masks(batch: StepBatch) -> Mapping[int, Allowed]:
    """Row -> which tokens it may draw."""
    rows = batch.sampling
    if rows.masks is None or rows.masked is None:
        return {}
    bits = np.unpackbits(rows.masks.view(np.uint8), axis=1, bitorder="little").astype(bool)
    return dict(zip(rows.masked.tolist(), bits, strict=True))
