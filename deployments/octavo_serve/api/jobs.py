"""The two records that a request of any protocol becomes: `Asked`, then `Job`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from octavo.request import Request, SamplingParams
from octavo_serve.api.chats import Chat
from octavo_serve.api.model import ServedModel
from octavo_serve.api.pieces import Stage
from octavo_serve.api.telemetry import Operation, Telemetry
from octavo_serve.api.tenants import NOBODY, Tenant

if TYPE_CHECKING:
    from octavo_serve.api.explaining import Before, Explaining

Prompt = str | list[int]

MANY = 1000
"""Number of log probabilities that take about a millisecond to write into an answer."""
MANY_CHOICES = 64
"""Number of choices that take about a millisecond to write."""
USUAL_TOKEN = 4
"""Characters of a token in most languages."""
_KEPT = 1024  # characters or tokens of a request's beginning and end that its key is made of


@dataclass(slots=True, kw_only=True)
class Asked:
    """What a body asks for. A surface makes it before the request waits for anything.

    Attributes:
        kind, number: prefix of the request's id, and the rest of it where that is drawn already.
        model: a model's name or alias; None if there is only one.
        content: prompts, or a chat that the model's template turns into one.
        param: the field that held the content, for errors.
        given: sampling settings in the body, by the names of `SamplingParams`; the model's defaults fill in the others.
        max_tokens: tokens that the context must hold beside the prompt; None means as many as fit.
        add_special_tokens: whether the tokenizer adds special tokens to prompts that are texts.
        truncate: of each prompt only so many tokens are read, the last ones; None: all.
        asker: see `Call`.
        tenant: whom it is charged to.
        deadline_ms: milliseconds in which its first token must come; None: whenever it can.
        owner: name of the caller's key.
        session: name of the session; its requests stay together. "" for none.
        echo: whether the answer repeats the prompts.
        stage: makes a `Stage` for each choice; None passes pieces on unchanged. A chat whose answers are read (see
            `reading`) gets another in its place.
        known: token ids that the prompt may begin with, the best first: of earlier turns, as they were computed. The
            first whose text begins the prompt's text is used.
        tells_origins: whether the answer tells sampled tokens from forced ones.
        prediction: what much of the answer is expected to be; "" for nothing.
        context: what the surface keeps for its writer.
    """

    kind: str
    model: str | None
    content: Chat | list[Prompt]
    param: str
    params: SamplingParams
    given: Mapping[str, object] = field(default_factory=dict)
    max_tokens: int | None = None
    add_special_tokens: bool = True
    truncate: int | None = None
    priority: int = 0
    session: str = ""
    cache_salt: str = ""
    asker: str = ""
    tenant: Tenant = NOBODY
    deadline_ms: float | None = None
    owner: str = ""
    number: str = ""
    echo: bool = False
    stage: Callable[[], Stage] | None = None
    known: Sequence[list[int]] = ()
    tells_origins: bool = False
    prediction: str = ""
    context: Any = None

    @property
    def size(self) -> tuple[int, int]:
        """Sequences that run for it, and about how many tokens its prompts have, before anything is tokenised."""
        count = self.params.num_places
        if isinstance(self.content, Chat):
            return count, sum(_characters(message.content) for message in self.content.messages) // USUAL_TOKEN
        lengths = (len(prompt) // (USUAL_TOKEN if isinstance(prompt, str) else 1) for prompt in self.content)
        return count * len(self.content), sum(lengths)

    def key(self) -> bytes:
        """Identifies the request when it comes again; nearly all others have other keys. The cost is constant."""
        content = self.content
        chat = isinstance(content, Chat)
        number, parts = len(content.messages) if isinstance(content, Chat) else len(content), 0
        last: Any = content.messages[-1].content if isinstance(content, Chat) else content[-1]
        if isinstance(last, list) and last and isinstance(last[-1], Mapping):  # parts of a message, each of any length
            parts, last = len(last), str(last[-1].get("text") or "")
        ends = (last[:_KEPT], last[-_KEPT:], len(last)) if last else ()
        text = repr((self.model, self.session, self.cache_salt, chat, number, parts, ends))
        return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _characters(content: Any) -> int:
    """Characters of a message's content: a text, or parts that hold one each."""
    if isinstance(content, list):
        return sum(len(str(part.get("text") or "")) for part in content if isinstance(part, Mapping))
    return len(content or "")


@dataclass(slots=True)
class Job:
    """One validated request, ready to run (see `generation.run`).

    Attributes:
        id: unique among requests in flight.
        created: seconds since 1970.
        hash_name: the model's (see `ModelInfo`).
        requests: one per prompt, all with the same `params`.
        prompt_texts: texts of the prompts if they are echoed, otherwise empty.
        marks: what stands for tokens in the pieces' texts, for the stage.
        tells_origins, context: see `Asked`.
        tenant: whom it is charged to.
        answer_tokens: that all its sequences may have.
        explaining: remembers what becomes of it, and what came before; None: nothing does.
        accepted, rejected: tokens of the prediction so far that were verified and kept, and those computed in vain.
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
    marks: Mapping[int, str] | None = None
    tells_origins: bool = False
    context: Any = None
    operation: Operation = "text_completion"
    tenant: Tenant = NOBODY
    answer_tokens: int = 0
    explaining: tuple[Explaining, Before] | None = None
    accepted: int = 0
    rejected: int = 0

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts."""
        return sum(len(request.prompt_token_ids) for request in self.requests)

    def is_large(self, prompt_tokens: int, tokens: int) -> bool:
        """Whether the log probabilities of this many tokens take too long to be written on the event loop."""
        params = self.params
        of_prompts = 0 if params.prompt_logprobs is None else prompt_tokens * (1 + params.prompt_logprobs)
        of_tokens = 0 if params.num_logprobs is None else tokens * (1 + params.num_logprobs)
        return of_prompts + of_tokens > MANY
