"""What one request may hold at most: every bound of the API with its name and where it comes from.

The bounds of `octavo.request` (stop strings, biased tokens, log probabilities, 64-bit integers) hold for every sender
and stand there. What depends on the model, such as the length of a prompt, is checked once its context is known.
"""

from __future__ import annotations

from dataclasses import dataclass

MAX_NAME = 512
"""Characters of a model's name, a user, a session, a cache salt, a request id and the like."""

MAX_ROLE = 64
"""Characters of a message's role."""

MAX_MESSAGES = 2**16
"""Messages of a chat: each takes at least a few tokens, and contexts end at a million of them."""

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

MAX_PROMPT_TOKENS = 2**20
"""Token ids of one prompt, before the model and its shorter context are known."""

MAX_CHOICES = 4096
"""Sequences of one request over all of its prompts."""

MAX_PROMPT_VALUES = 2**21
"""Log probabilities of prompt tokens in one answer: 20 each of 100,000 tokens; with `n`, 8,000 would be 21 M."""

MAX_DEPTH = 64
"""Levels of nesting anywhere in a body: far below what ends Python's recursion in a template."""

UNKNOWN_CONTEXT = 2**17
"""Tokens that the context of a model still loading is taken for."""

MAX_FIELDS = 256
"""Fields of a body: more than there are."""

MAX_FIELD_BYTES = 2**17
"""Bytes of JSON of one field that is neither prompt, tokens, messages nor tools; 16 long stop strings take 98 KiB."""

LARGE_BODY = 2**16
"""Bytes from which a body is parsed beside the event loop; 64 KiB take 0.2 ms, a few when they are hostile."""


@dataclass(frozen=True, slots=True)
class BodyBounds:
    """What a body may hold at a context of so many tokens.

    Attributes:
        context: of the served model that has the longest.
    """

    context: int = UNKNOWN_CONTEXT

    @property
    def num_bytes(self) -> int:
        """32 per token, eight times English text and four times token ids, and 2 MiB for many prompts and for tools."""
        return 2 * 2**20 + 32 * self.context

    @property
    def structure(self) -> int:
        """Brackets and keys, or commas, of which a text that fits the context holds about one per token at most.

        Each costs up to 0.1 us to parse; a value in a list costs 0.01 us.
        """
        return 2**16 + self.context


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may ask for (see `GatewaySettings`)."""

    max_body_bytes: int | None = None
    max_prompts: int = 1024
    max_n: int = 128
