"""From what is asked to what runs: the two records that every protocol's requests become."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from octavo.request import Request, SamplingParams
from octavo_serve.api.chats import Chat
from octavo_serve.api.model import ServedModel
from octavo_serve.api.pieces import Stage
from octavo_serve.api.telemetry import Telemetry

Prompt = str | list[int]

MANY = 1000
"""Log probabilities that take about a millisecond to put into an answer."""
MANY_CHOICES = 64
"""Choices that take about a millisecond to write."""


@dataclass(slots=True, kw_only=True)
class Asked:
    """What a body asks for; a surface makes it before anything is waited for.

    Attributes:
        kind: what the request's id begins with.
        model: a name or an alias; None where there is only one.
        content: prompts, or a chat of which the model's template makes one.
        param: the field they came in, which errors name.
        given: what the client says of sampling, by the names of `SamplingParams`; the model's defaults are the rest.
        max_tokens: that the context must hold besides the prompt; None is whatever it leaves.
        add_special_tokens: of the tokenizer, around prompts that are texts.
        session: requests of one session stay together; "" is none.
        echo: the prompts' texts are wanted, too.
        stage: makes the stage of one choice; None passes pieces on as they are.
    """

    kind: str
    model: str | None
    content: Chat | list[Prompt]
    param: str
    params: SamplingParams
    given: Mapping[str, object] = field(default_factory=dict)
    max_tokens: int | None = None
    add_special_tokens: bool = True
    priority: int = 0
    session: str = ""
    cache_salt: str = ""
    echo: bool = False
    stage: Callable[[], Stage] | None = None


@dataclass(slots=True)
class Job:
    """One validated request, ready to run (see `generation.run`).

    Attributes:
        id: unique among requests in flight.
        created: seconds since 1970.
        hash_name: of the model (see `ModelInfo`).
        requests: one per prompt, all with the same `params`.
        prompt_texts: of the prompts, where they are to be echoed.
    """

    id: str
    created: int
    model: ServedModel
    hash_name: str
    params: SamplingParams
    requests: list[Request]
    prompt_texts: list[str]
    stage: Callable[[], Stage] | None
    telemetry: Telemetry

    @property
    def prompt_tokens(self) -> int:
        """Of all prompts."""
        return sum(len(request.prompt_token_ids) for request in self.requests)

    def is_large(self, prompt_tokens: int, tokens: int) -> bool:
        """Whether what says the log probabilities of so many tokens takes too long to be written on the event loop."""
        params = self.params
        of_prompts = 0 if params.prompt_logprobs is None else prompt_tokens * (1 + params.prompt_logprobs)
        of_tokens = 0 if params.logprobs is None else tokens * (1 + params.logprobs)
        return of_prompts + of_tokens > MANY
