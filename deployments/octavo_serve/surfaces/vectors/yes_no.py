"""Models that say "yes" or "no" to whether a document answers a query: Qwen3-Reranker, and others that were trained
with its prompt. The score is the probability of "yes" beside "no" as the next token.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import cast

from octavo.errors import BadRequest, PromptTooLong
from octavo.request import Request, SamplingParams, SequenceUpdate
from octavo.text.tokenizer import Tokenizer
from octavo_serve.api.pooling import Accepted, Window
from octavo_serve.api.prompts import CHARACTERS_PER_TOKEN, exceeds
from octavo_serve.api.texts import Encoded, Pair, Text, longest

# the prompt as the model's card has it
_BEFORE = (
    "<|im_start|>system\n"
    "Judge whether the Document meets the requirements based on the Query and the Instruct provided. "
    'Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
)
_BETWEEN = "<Instruct>: {}\n<Query>: {}\n<Document>: "
_AFTER = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"


@dataclass(frozen=True)
class YesNo:
    """Makes the prompts of one request, and reads their answers."""

    ready: Accepted
    instruction: str | None = None

    def encode(self, texts: Sequence[Text], first: int) -> list[Encoded]:
        """The prompts of some pairs; as `Encoder.encode`."""
        return [self._encode(cast("Pair", pair), number) for number, pair in enumerate(texts, first)]

    def _encode(self, pair: Pair, number: int) -> Encoded:
        cut, before, after = self.ready.asking.cut, self._before, self._after
        room = longest(self.ready.info) - len(before) - len(after) - 1  # one for the answer
        head = _BETWEEN.format(self.instruction or INSTRUCTION, pair.first)
        document, limited = pair.second, cut.most is not None or cut.most_of_second is not None
        if limited:
            if cut.most_of_second not in (None, -1):
                document = self._begin(document, cut.most_of_second or 0)
            document = document[: room * CHARACTERS_PER_TOKEN]
        if exceeds(self._tokenizer, head, room) or (not limited and exceeds(self._tokenizer, document, room)):
            raise self._too_long(number, room)
        ids = self._tokenizer.encode(head + document, add_special_tokens=False)
        if len(ids) > room and (not limited or len(self._tokenizer.encode(head, add_special_tokens=False)) >= room):
            raise self._too_long(number, room)
        return Encoded(array("i", [*before, *ids[:room], *after]))

    def _begin(self, document: str, tokens: int) -> str:
        """The first tokens of a document, as text."""
        ids = self._tokenizer.encode(document[: tokens * CHARACTERS_PER_TOKEN], add_special_tokens=False)
        return document if len(ids) <= tokens else self._tokenizer.decode(ids[:tokens])

    def _too_long(self, number: int, room: int) -> PromptTooLong:
        asking = self.ready.asking
        name = asking.name(number) if asking.name else asking.param
        return PromptTooLong(
            f"{name} and the query have more than the {room} tokens that this model reads of both: {asking.hint}",
            asking.param,
        )

    async def scores(self, encoded: Sequence[Encoded], *, raw: bool) -> tuple[str, int, list[float]]:
        """The request's id, its tokens, and by pair the probability of "yes", or by how much its logit is larger.

        Raises:
            BadRequest, Overloaded, EngineDead.
        """
        window = Window(self.ready, sum(len(text.token_ids) for text in encoded), first_alone=True)
        yes, no = self._answers
        params = SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True, logprob_token_ids=[yes, no])

        def request(number: int) -> Request:
            return window.request(number, encoded[number].token_ids.tolist(), params, None)

        def read(update: SequenceUpdate) -> float:
            assert update.logprobs
            return update.logprobs[0][yes].logprob - update.logprobs[0][no].logprob

        found = await window.run(len(encoded), request, read)
        return window.id, window.prompt_tokens, found if raw else [sigmoid(value) for value in found]

    @property
    def _tokenizer(self) -> Tokenizer:
        return self.ready.model.tokenizer

    @cached_property
    def _before(self) -> list[int]:
        return self._tokenizer.encode(_BEFORE, add_special_tokens=False)

    @cached_property
    def _after(self) -> list[int]:
        return self._tokenizer.encode(_AFTER, add_special_tokens=False)

    @cached_property
    def _answers(self) -> tuple[int, int]:
        yes, no = self._tokenizer.token_id("yes"), self._tokenizer.token_id("no")
        if yes is None or no is None:
            raise BadRequest("this model has no tokens for yes and no: it cannot rank this way", "model")
        return yes, no


def sigmoid(value: float) -> float:
    """1 / (1 + exp(-value)), for values of any size."""
    if value >= 0:
        return 1.0 / (1.0 + math.exp(-value))
    grown = math.exp(value)
    return grown / (1.0 + grown)
