"""What clients send and what they get back: OpenAI's API with vLLM's extensions.

Requests are pydantic models that know every field real clients send; a field they do not know is an error that names
it, and so is one that asks for something this server does not do. Responses are plain typed dictionaries: they cross
Serve handles and become JSON as they are. The API's description (`describe`) is made from both.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired, TypedDict

from pydantic import BaseModel, ConfigDict, Field

from octavo_serve.openai.bounds import MAX_MESSAGES, MAX_PARTS, MAX_ROLE
from octavo_serve.openai.fields import (
    AtMost,
    Few,
    Integer,
    LogitBias,
    Metadata,
    Name,
    Options,
    Prompt,
    Stop,
    StopTokenIds,
    TokenIds,
    Tools,
)

NOT_SUPPORTED = "Not supported: refused unless it is null or empty."
Refused = Annotated[Any, Field(default=None, description=NOT_SUPPORTED)]


class Body(BaseModel):
    """Base of request bodies: no unknown fields, no silent conversion of types."""

    model_config = ConfigDict(extra="forbid", strict=True)


class StreamOptions(Body):
    include_usage: bool | None = None
    include_obfuscation: bool | None = Field(default=None, description="Only false: nothing is added to the chunks.")
    continuous_usage_stats: bool | None = Field(default=None, description="Usage so far in every chunk.")


class SamplingBody(Body):
    """Fields that chat and plain completions share; None means the default."""

    model: Name | None = None
    stream: bool | None = None
    stream_options: Annotated[StreamOptions, Few] | None = None
    n: Integer | None = Field(default=None, description="Choices per prompt.")
    best_of: Integer | None = None
    temperature: float | None = Field(default=None, description="0 is greedy.")
    top_p: float | None = None
    top_k: Integer | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: LogitBias | None = Field(default=None, description="Token id -> added to its logit, in [-100, 100].")
    seed: Integer | None = Field(default=None, description="-1 draws one, as null does.")
    stop: Stop | None = None
    stop_token_ids: StopTokenIds | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    min_tokens: Integer | None = None
    max_tokens: Integer | None = None
    prompt_logprobs: Integer | None = None
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
    store: bool | None = None
    service_tier: Name | None = None
    prompt_cache_retention: Name | None = None
    response_format: Options | None = None
    length_penalty: float | None = None
    vllm_xargs: Options | None = None
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

    model_config = ConfigDict(extra="allow", strict=True)

    role: str = Field(min_length=1, max_length=MAX_ROLE)
    content: (
        Annotated[str | Annotated[list[dict[str, Any]], AtMost(MAX_PARTS)], Field(union_mode="left_to_right")] | None
    ) = None


Messages = Annotated[list[Message], AtMost(MAX_MESSAGES)]


class ChatRequest(SamplingBody):
    """Body of /v1/chat/completions."""

    messages: Messages
    logprobs: bool | None = None
    top_logprobs: Integer | None = None
    max_completion_tokens: Integer | None = Field(default=None, description="Wins over max_tokens.")
    tools: Tools | None = None
    tool_choice: Annotated[str | Options, Field(union_mode="left_to_right")] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: Options | None = Field(default=None, description="Further variables of the chat template.")
    reasoning_effort: Name | None = Field(default=None, description="For chat templates that read it.")
    thinking: Options | None = Field(default=None, description='{"type": "enabled"}, for chat templates that read it.')
    reasoning: Options | None = Field(default=None, description='{"effort": ..., "enabled": ...}: the two above.')

    # refused unless they ask for what is done anyway
    parallel_tool_calls: bool | None = None
    verbosity: Name | None = None
    include_reasoning: bool | None = None
    modalities: Annotated[list[Name], AtMost(8)] | None = None
    echo: Refused
    chat_template: Refused
    functions: Refused
    function_call: Refused
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
    logprobs: Integer | None = None
    echo: bool | None = None
    suffix: Refused


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
