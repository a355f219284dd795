"""Schemas shared by OpenAI's chats and completions, with vLLM's extensions.

Requests are pydantic models with every field that real clients send. An unknown field, or an unsupported value, is an
error that names the field. Responses are plain typed dictionaries, which are sent through Serve handles and encoded as
JSON unchanged. The API's description (`http.describe`) is made from both.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field
from typing_extensions import TypedDict  # pydantic reads the standard one from Python 3.12 on

from octavo.beams import MAX_PENALTY, MAX_WIDTH
from octavo.request import INT64, MAX_LOGPROBS, MAX_N
from octavo_serve.api.body import Body
from octavo_serve.api.bounds import MAX_MESSAGES
from octavo_serve.api.chats import Message
from octavo_serve.api.fields import (
    RESPONSE_FORMAT,
    STRUCTURED,
    AllowedTokenIds,
    AtMost,
    BadWords,
    Choices,
    DeadlineMs,
    Few,
    GrammarText,
    Integer,
    LogitBias,
    Metadata,
    Name,
    Options,
    Schema,
    Stop,
    StopTokenIds,
    only,
    within,
)

NOT_SUPPORTED = "Not supported: refused unless it is null or empty."
Refused = Annotated[
    Any,
    Field(
        default=None,
        description=NOT_SUPPORTED,
        json_schema_extra={"enum": [None, False, 0, "", list[Any](), dict[str, Any]()]},
    ),
]


class StreamOptions(Body):
    include_usage: bool | None = None
    include_obfuscation: bool | None = only(False)
    continuous_usage_stats: bool | None = Field(default=None, description="Usage so far in every chunk.")


class SamplingBody(Body):
    """Fields that chat and plain completions share; None means the default."""

    model: Name | None = None
    stream: bool | None = None
    stream_options: Annotated[StreamOptions, Few] | None = None
    n: Integer | None = within(1, MAX_N, "Choices per prompt.")
    best_of: Integer | None = within(0, MAX_N)
    temperature: float | None = within(0, 100, "0 is greedy.")
    top_p: float | None = within(0, 1)
    top_k: Integer | None = within(-1, INT64[1], "0 and -1 keep all tokens.")
    min_p: float | None = within(0, 1)
    presence_penalty: float | None = within(-2, 2)
    frequency_penalty: float | None = within(-2, 2)
    repetition_penalty: float | None = within(0, 100, "More than 0.")
    logit_bias: LogitBias | None = Field(default=None, description="Token id -> added to its logit.")
    seed: Integer | None = Field(default=None, description="-1 draws one, as null does.")
    stop: Stop | None = None
    stop_token_ids: StopTokenIds | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    min_tokens: Integer | None = within(0, INT64[1])
    max_tokens: Integer | None = within(0, INT64[1])
    prompt_logprobs: Integer | None = within(0, MAX_LOGPROBS)
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    add_special_tokens: bool | None = None
    return_token_ids: bool | None = Field(default=None, description="Token ids beside the text, of prompt and answer.")
    return_tokens_as_token_ids: bool | None = Field(default=None, description='Tokens in logprobs as "token_id:7".')
    cache_salt: Name | None = None
    priority: Integer | None = None
    deadline_ms: DeadlineMs | None = None
    request_id: Name | None = Field(default=None, description="Becomes part of the answer's id.")
    user: Name | None = Field(default=None, description="Keeps a user's requests together where no header does.")
    prompt_cache_key: Name | None = Field(default=None, description="The same as `user`, and before it.")

    # what the answer must be: one of these (see `structured`)
    response_format: Annotated[Options, Field(json_schema_extra=RESPONSE_FORMAT)] | None = None
    structured_outputs: Annotated[Options, Field(json_schema_extra=STRUCTURED)] | None = None
    guided_json: Schema | None = Field(default=None, description="`structured_outputs.json`.")
    guided_regex: GrammarText | None = Field(default=None, description="`structured_outputs.regex`.")
    guided_choice: Choices | None = Field(default=None, description="`structured_outputs.choice`.")
    guided_grammar: GrammarText | None = Field(default=None, description="`structured_outputs.grammar`.")
    grammar: GrammarText | None = Field(default=None, description="As llama.cpp's: GBNF, or Lark.")
    json_schema: Schema | None = Field(default=None, description="As llama.cpp's.")
    allowed_token_ids: AllowedTokenIds | None = Field(default=None, description="No other token is drawn.")
    bad_words: BadWords | None = Field(default=None, description="Texts that do not appear in the answer.")

    # a search for the likeliest texts in place of samples (see `beams`)
    use_beam_search: bool | None = None
    beam_width: Integer | None = within(1, MAX_WIDTH, "Beams; asks for a search, too. By default `best_of`, or `n`.")
    length_penalty: float | None = within(-MAX_PENALTY, MAX_PENALTY, "Power of the length that divides a score.")
    early_stopping: Literal[True, False, "never"] | None = Field(default=None, description="As in transformers.")

    # labels: accepted and ignored, because nothing is stored
    metadata: Metadata | None = None
    safety_identifier: Name | None = None

    # refused unless their value asks for the default behaviour (see `refusals`)
    store: bool | None = only(False)
    service_tier: Name | None = only("auto", "default")
    prompt_cache_retention: Name | None = only("in_memory", "in-memory")
    vllm_xargs: Refused
    logits_processors: Refused
    truncate_prompt_tokens: Refused
    kv_transfer_params: Refused

    @property
    def sequences(self) -> int:
        """Choices per prompt."""
        return 1 if self.n is None else self.n

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with a usage chunk."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)


Messages = Annotated[list[Message], AtMost(MAX_MESSAGES), Field(min_length=1)]


class PromptTokensDetails(TypedDict):
    cached_tokens: int


class CompletionTokensDetails(TypedDict):
    reasoning_tokens: int
    audio_tokens: int
    accepted_prediction_tokens: int
    rejected_prediction_tokens: int


class Usage(TypedDict):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails | None
    completion_tokens_details: CompletionTokensDetails


class PromptLogprob(TypedDict):
    logprob: float
    rank: int
    decoded_token: str | None


PromptLogprobs = list[dict[str, PromptLogprob] | None]
"""vLLM's form: None for the first token, then token id (as JSON keys are strings) -> its log probability."""


class ErrorDetail(TypedDict):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(TypedDict):
    error: ErrorDetail
