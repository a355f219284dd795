"""Bounds on one request: every bound of the API, with its name and its reason.

Bounds that hold for every sender of a request (stop strings, biased tokens, log probabilities, 64-bit integers) are in
`octavo.request`. Bounds that depend on the model, such as a prompt's length, are checked once its context is known.
"""

from __future__ import annotations

from dataclasses import dataclass

MAX_NAME = 512
"""Characters of a model's name, a user, a session, a cache salt, a request id and the like."""

MAX_ROLE = 64
"""Characters of a message's role."""

MAX_MESSAGES = 2**16
"""Messages of a chat. Each takes at least a few tokens, and contexts have at most a million tokens."""

MAX_PARTS = 2**12
"""Parts of one message's content, and tool calls in it."""

MAX_TOOLS = 1024
"""Tool definitions; OpenAI takes 128."""

MAX_TOOL_NAME = 64
"""Characters of a function's name, as OpenAI's."""

MAX_METADATA = 16
"""Entries of `metadata`, as OpenAI's; MAX_NAME bounds their length."""

MAX_OPTIONS = 64
"""Entries of `chat_template_kwargs` and of other objects whose keys are options."""

MAX_ALLOWED_TOKENS = 2**14
"""Entries of `allowed_token_ids`; the bytes of a field hold about as many."""

MAX_THINKING = 2**24
"""Tokens of a budget for thinking, before the model and its context are known."""

MAX_BAD_WORDS = 256
"""Entries of `bad_words`; each is tokenised twice."""

MAX_PROMPT_TOKENS = 2**20
"""Token ids of one prompt, before the model and its shorter context are known."""

MAX_CHOICES = 4096
"""Sequences of one request over all of its prompts."""

MAX_TEXTS = 10_000
"""Texts of one request that wants vectors, scores or classes; OpenAI takes 2,048."""

TEXT_BYTES = 1600
"""Bytes of JSON of one of many texts, on average: 300 tokens of English, and 250 as ids."""

MAX_PROMPT_VALUES = 2**21
"""Log probabilities of prompt tokens in one answer: enough for 20 of each of 100,000 tokens. Without this bound, 8,000
tokens with n=128 would be 21 million."""

MAX_DEPTH = 64
"""Levels of nesting anywhere in a body: far below Python's recursion limit, which a template could reach."""

UNKNOWN_CONTEXT = 2**17
"""Assumed context length, in tokens, of a model that is still loading."""

MAX_FIELDS = 256
"""Fields of a body: more than any schema has."""

MAX_FIELD_BYTES = 2**17
"""Bytes of JSON of one field other than prompt, tokens, messages and tools; 16 long stop strings take 98 KiB."""

LARGE_BODY = 2**16
"""Bytes from which a body is parsed in a thread; 64 KiB take 0.2 ms, or a few ms if they are hostile."""


@dataclass(frozen=True, slots=True)
class BodyBounds:
    """Bounds of a body for models with a given context.

    Attributes:
        context: tokens of the longest context among the served models.
        texts: that a body may hold, each of TEXT_BYTES on average.
    """

    context: int = UNKNOWN_CONTEXT
    texts: int = 0

    @property
    def num_bytes(self) -> int:
        """Most bytes: 32 per token, which is eight times English text and four times token ids, plus 2 MiB for many
        prompts and for tools."""
        return 2 * 2**20 + 32 * self.context + TEXT_BYTES * self.texts

    @property
    def structure(self) -> int:
        """Most brackets and keys, and most commas. A text has at most about one per token.

        Each costs up to 0.1 us to parse; a value in a list costs 0.01 us.
        """
        return 2**16 + self.context + TEXT_BYTES // 10 * self.texts


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may ask for (see `GatewaySettings`)."""

    max_body_bytes: int | None = None
    max_prompts: int = 1024
    max_n: int = 128
