"""What clients send and what they get back: OpenAI's API with vLLM's extensions.

Requests are pydantic models that know every field real clients send; a field they do not know is an error that names
it, and so is one that asks for something this server does not do. Responses are plain typed dictionaries: they cross
Serve handles and become JSON as they are. The API's description (`describe`) is made from both.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired

from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypedDict  # pydantic reads the standard one from Python 3.12 on

from octavo.request import INT64, MAX_LOGPROBS, MAX_N
from octavo_serve.api.bounds import MAX_MESSAGES, MAX_PARTS, MAX_ROLE
from octavo_serve.api.fields import (
    SAYS_SOMETHING,
    AtMost,
    Few,
    Integer,
    LogitBias,
    Metadata,
    Name,
    Options,
    Part,
    Prompt,
    Stop,
    StopTokenIds,
    TokenIds,
    Tools,
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


class Body(BaseModel):
    """Base of request bodies: no unknown fields, no silent conversion of types."""

    model_config = ConfigDict(extra="forbid", strict=True)


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
    request_id: Name | None = Field(default=None, description="Becomes part of the answer's id.")
    user: Name | None = Field(default=None, description="Keeps a user's requests together where no header does.")
    prompt_cache_key: Name | None = Field(default=None, description="The same as `user`, and before it.")

    # labels: nothing to do, for nothing is stored
    metadata: Metadata | None = None
    safety_identifier: Name | None = None

    # refused unless they ask for what is done anyway (see `refusals`)
    store: bool | None = only(False)
    service_tier: Name | None = only("auto", "default")
    prompt_cache_retention: Name | None = only("in_memory", "in-memory")
    response_format: Options | None = None
    length_penalty: float | None = only(0, 1)
    vllm_xargs: Refused
    structured_outputs: Refused
    guided_json: Refused
    guided_regex: Refused
    guided_choice: Refused
    guided_grammar: Refused
    use_beam_search: Refused
    allowed_token_ids: Refused
    bad_words: Refused
    logits_processors: Refused
    truncate_prompt_tokens: Refused
    kv_transfer_params: Refused

    @property
    def sequences(self) -> int:
        """Choices per prompt."""
        return 1 if self.n is None else self.n

    @property
    def asked_tokens(self) -> int | None:
        """Most tokens to generate, as the client says it; None where it leaves that open."""
        return self.max_tokens

    @property
    def wants_usage(self) -> bool:
        """A stream ends with a usage chunk."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)


class Message(BaseModel):
    """One chat message; fields besides role and content go to the chat template as they are."""

    model_config = ConfigDict(extra="allow", strict=True, json_schema_extra=SAYS_SOMETHING)

    role: str = Field(min_length=1, max_length=MAX_ROLE)
    content: Annotated[str | Annotated[list[Part], AtMost(MAX_PARTS)], Field(union_mode="left_to_right")] | None = None


Messages = Annotated[list[Message], AtMost(MAX_MESSAGES), Field(min_length=1)]


class ChatRequest(SamplingBody):
    """Body of /v1/chat/completions."""

    messages: Messages
    logprobs: bool | None = None
    top_logprobs: Integer | None = within(0, MAX_LOGPROBS)
    max_tokens: Integer | None = within(1, INT64[1])
    max_completion_tokens: Integer | None = within(1, INT64[1], "Wins over max_tokens.")
    tools: Tools | None = None
    tool_choice: Annotated[str | Options, Field(union_mode="left_to_right")] | None = only("none", "auto")
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: Options | None = Field(default=None, description="Further variables of the chat template.")
    reasoning_effort: Name | None = Field(default=None, description="For chat templates that read it.")
    thinking: Options | None = Field(default=None, description='{"type": "enabled"}, for chat templates that read it.')
    reasoning: Options | None = Field(default=None, description='{"effort": ..., "enabled": ...}: the two above.')

    # refused unless they ask for what is done anyway
    parallel_tool_calls: bool | None = None
    verbosity: Name | None = only("medium")
    include_reasoning: bool | None = only(True)
    modalities: Annotated[list[Name], AtMost(8)] | None = only(list[str](), ["text"])
    echo: Refused
    chat_template: Refused
    functions: Annotated[Any, only(list[Any]())]
    function_call: Annotated[Any, only("none", "auto")]
    audio: Refused
    web_search_options: Refused
    documents: Refused
    moderation: Refused
    prediction: Refused
    mm_processor_kwargs: Refused

    @property
    def asked_tokens(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


class CompletionRequest(SamplingBody):
    """Body of /v1/completions."""

    prompt: Prompt | None = Field(description='null or "" begins a new text.')
    logprobs: Integer | None = within(0, MAX_LOGPROBS)
    echo: bool | None = None
    suffix: Annotated[Any, only("")]


class TokenizeRequest(Body):
    """Body of /tokenize: a prompt or chat messages."""

    model: Name | None = None
    prompt: str | None = None
    messages: Messages | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    return_token_strs: bool | None = None
    tools: Tools | None = None
    chat_template_kwargs: Options | None = None


class DetokenizeRequest(Body):
    """Body of /detokenize."""

    model: Name | None = None
    tokens: TokenIds


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


class TopLogprob(TypedDict):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(TypedDict):
    content: list[TokenLogprob]
    refusal: None


class CompletionLogprobs(TypedDict):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class PromptLogprob(TypedDict):
    logprob: float
    rank: int
    decoded_token: str | None


PromptLogprobs = list[dict[str, PromptLogprob] | None]
"""vLLM's form: None for the first token, then token id (as JSON keys are strings) -> its log probability."""


class AssistantMessage(TypedDict):
    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(TypedDict):
    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: str | None
    stop_reason: int | str | None
    token_ids: NotRequired[list[int]]


class ChatCompletion(TypedDict):
    """Answer of /v1/chat/completions and of the handle's `chat`."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    system_fingerprint: str
    service_tier: None
    prompt_logprobs: PromptLogprobs | None
    prompt_token_ids: NotRequired[list[int]]


class Delta(TypedDict):
    role: NotRequired[Literal["assistant"]]
    content: NotRequired[str]


class ChunkChoice(TypedDict):
    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: str | None
    stop_reason: NotRequired[int | str | None]
    token_ids: NotRequired[list[int]]


class ChatChunk(TypedDict):
    """One event of a chat stream."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChunkChoice]
    system_fingerprint: str
    usage: NotRequired[Usage | None]
    prompt_logprobs: NotRequired[PromptLogprobs | None]
    prompt_token_ids: NotRequired[list[int]]


class CompletionChoice(TypedDict):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: str | None
    stop_reason: int | str | None
    prompt_logprobs: PromptLogprobs | None
    token_ids: NotRequired[list[int]]
    prompt_token_ids: NotRequired[list[int]]


class Completion(TypedDict):
    """Answer of /v1/completions and of the handle's `complete`; its stream's events have the same form."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    system_fingerprint: str
    usage: NotRequired[Usage | None]


class Tokens(TypedDict):
    """Answer of /tokenize."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class Detokenized(TypedDict):
    """Answer of /detokenize."""

    prompt: str


class TokenizerInfo(TypedDict):
    """Answer of /tokenizer_info; the special tokens are there by their names, such as eos_token."""

    tokenizer_class: str
    chat_template: str | None
    model_max_length: int
    vocab_size: int
    eos_token_ids: list[int]


class ModelCard(TypedDict):
    """One entry of /v1/models; what may be told of its state is there for operators."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str | None
    parent: None
    max_model_len: int | None
    status: Literal["ready", "loading", "failed"]
    reason: str | None
    alias_of: NotRequired[dict[str, float]]


class ModelList(TypedDict):
    """Answer of /v1/models."""

    object: Literal["list"]
    data: list[ModelCard]


class Health(TypedDict):
    """Answer of /health; shards and models are there for operators."""

    status: Literal["ok", "degraded", "unhealthy"]
    shards: NotRequired[dict[str, int]]
    models: NotRequired[dict[str, dict[str, str | None]]]


class Version(TypedDict):
    """Answer of /version."""

    version: str
