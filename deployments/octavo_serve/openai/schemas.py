"""What clients send and what they get back: OpenAI's API with vLLM's extensions.

Requests are pydantic models that know every field real clients send; a field they do not know is an error that names
it. Responses are plain typed dictionaries: they cross Serve handles and become JSON as they are.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired, TypedDict

from pydantic import BaseModel, ConfigDict, Field

Ignored = Annotated[Any, Field(default=None, description="Accepted and without effect here.")]
TokenIds = list[Annotated[int, Field(ge=0)]]


class Body(BaseModel):
    """Base of request bodies: no unknown fields, no silent conversion of types."""

    model_config = ConfigDict(extra="forbid", strict=True)


class StreamOptions(Body):
    include_usage: bool | None = None
    include_obfuscation: Ignored
    continuous_usage_stats: bool | None = None


class SamplingBody(Body):
    """Fields that chat and plain completions share; None means the default."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    best_of: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: TokenIds | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    min_tokens: int | None = None
    max_tokens: int | None = None
    prompt_logprobs: int | None = None
    skip_special_tokens: bool | None = None
    add_special_tokens: bool | None = None
    cache_salt: str | None = None
    priority: int | None = None
    user: str | None = None  # keeps a user's requests together where no session header does

    # refused unless they ask for nothing (see `refusals`)
    response_format: dict[str, Any] | None = None
    structured_outputs: Any = None
    guided_json: Any = None
    guided_regex: Any = None
    guided_choice: Any = None
    guided_grammar: Any = None
    use_beam_search: Any = None
    length_penalty: Any = None
    allowed_token_ids: Any = None
    bad_words: Any = None
    logits_processors: Any = None
    truncate_prompt_tokens: Any = None
    kv_transfer_params: Any = None

    # sent by real clients; nothing to do
    metadata: Ignored
    store: Ignored
    service_tier: Ignored
    request_id: Ignored
    spaces_between_special_tokens: Ignored
    safety_identifier: Ignored
    prompt_cache_key: Ignored
    prompt_cache_retention: Ignored
    return_token_ids: Ignored
    return_tokens_as_token_ids: Ignored
    vllm_xargs: Ignored
    thinking: Ignored
    reasoning: Ignored
    reasoning_effort: Ignored

    @property
    def sequences(self) -> int:
        """Choices per prompt."""
        return 1 if self.n is None else self.n

    @property
    def wants_usage(self) -> bool:
        """A stream ends with a usage chunk."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def refusals(self) -> dict[str, str]:
        """Fields that ask for something this server does not do -> the sentence that says so."""
        found = {
            name: f"{name} is not supported"
            for name in ("structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar",
                         "allowed_token_ids", "bad_words", "logits_processors", "truncate_prompt_tokens",
                         "use_beam_search", "kv_transfer_params")
            if getattr(self, name)
        }  # fmt: skip
        if self.length_penalty not in (None, 1, 0):
            found["length_penalty"] = "length_penalty belongs to beam search, which is not supported"
        if self.response_format and self.response_format.get("type") != "text":
            kind = self.response_format.get("type")
            found["response_format"] = f'response_format {kind!r} is not supported yet; use {{"type": "text"}}'
        return found


class Message(BaseModel):
    """One chat message; fields besides role and content go to the chat template as they are."""

    model_config = ConfigDict(extra="allow", strict=True)

    role: str = Field(min_length=1)
    content: str | list[dict[str, Any]] | None = None


class ChatRequest(SamplingBody):
    """Body of /v1/chat/completions."""

    messages: list[Message]
    logprobs: bool | None = None
    top_logprobs: int | None = None
    max_completion_tokens: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    # refused unless they ask for nothing
    echo: Any = None
    chat_template: Any = None
    functions: Any = None
    function_call: Any = None
    modalities: list[str] | None = None
    audio: Any = None
    web_search_options: Any = None
    documents: Any = None
    moderation: Any = None

    parallel_tool_calls: Ignored
    prediction: Ignored
    verbosity: Ignored
    include_reasoning: Ignored
    mm_processor_kwargs: Ignored

    def refusals(self) -> dict[str, str]:
        found = super().refusals()
        for name in ("echo", "chat_template", "audio", "web_search_options", "documents", "moderation"):
            if getattr(self, name):
                found[name] = f"{name} is not supported"
        if self.functions or self.function_call not in (None, "none", "auto"):
            found["functions"] = "functions and function_call are deprecated; send tools and tool_choice"
        if self.modalities not in (None, [], ["text"]):
            found["modalities"] = 'only the modality "text" is supported'
        if self.tool_choice not in (None, "none", "auto"):
            found["tool_choice"] = 'tool_choice must be "none" or "auto"; forcing a call is not supported yet'
        return found


class CompletionRequest(SamplingBody):
    """Body of /v1/completions."""

    prompt: str | list[str] | TokenIds | list[TokenIds]
    logprobs: int | None = None
    echo: bool | None = None
    suffix: str | None = None

    def refusals(self) -> dict[str, str]:
        found = super().refusals()
        if self.suffix:
            found["suffix"] = "suffix is not supported: these models continue text, they do not fill in the middle"
        return found


class TokenizeRequest(Body):
    """Body of /tokenize: a prompt or chat messages."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    return_token_strs: bool | None = None
    tools: list[dict[str, Any]] | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class DetokenizeRequest(Body):
    """Body of /detokenize."""

    model: str | None = None
    tokens: TokenIds


class PromptTokensDetails(TypedDict):
    cached_tokens: int


class Usage(TypedDict):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


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


class ChatCompletion(TypedDict):
    """Answer of /v1/chat/completions and of the handle's `chat`."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    prompt_logprobs: NotRequired[PromptLogprobs]


class Delta(TypedDict):
    role: NotRequired[Literal["assistant"]]
    content: NotRequired[str]


class ChunkChoice(TypedDict):
    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: str | None
    stop_reason: NotRequired[int | str | None]


class ChatChunk(TypedDict):
    """One event of a chat stream."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: NotRequired[Usage | None]


class CompletionChoice(TypedDict):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: str | None
    stop_reason: int | str | None
    prompt_logprobs: NotRequired[PromptLogprobs]


class Completion(TypedDict):
    """Answer of /v1/completions and of the handle's `complete`; its stream's events have the same form."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: NotRequired[Usage | None]
