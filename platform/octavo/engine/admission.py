"""Which requests can run at all on a model: everything here is found before a request takes any room."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from octavo.errors import BadRequest, PromptTooLong
from octavo.pooled import check_task
from octavo.pooling import PoolingInfo, Task
from octavo.request import Request


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """What the scheduler must know of the model.

    Attributes:
        name: mixed into block hashes; two models never share blocks.
        vocab_size: token ids are below it.
        max_model_len: most tokens of one sequence.
        end_token_ids: tokens of the vocabulary that end a sequence unless `ignore_eos`.
        tasks: what requests may want of it: "generate", and those of `octavo.pooling.Task`.
        pooling: how its vectors are made.
        takes_whole: whether it is an encoder, which computes a prompt in one step and keeps nothing of it.
    """

    name: str
    vocab_size: int
    max_model_len: int
    end_token_ids: frozenset[int]
    tasks: tuple[Task | Literal["generate"], ...] = ("generate",)
    pooling: PoolingInfo = field(default_factory=PoolingInfo)
    takes_whole: bool = False


def check_request(request: Request, limits: ModelLimits) -> None:
    """Raise BadRequest if the request can never run."""
    prompt = request.prompt_token_ids
    check_task("generate" if request.pooling is None else request.pooling.task, limits.tasks, limits.name)
    if not prompt:
        raise BadRequest("the prompt is empty: it must have at least one token", "prompt")
    if not (min(prompt) >= 0 and max(prompt) < limits.vocab_size):
        raise BadRequest(f"prompt token ids must be in [0, {limits.vocab_size})", "prompt")
    if request.params.max_tokens == 0 or request.pooling is not None:
        if len(prompt) > limits.max_model_len:
            raise PromptTooLong(
                f"the prompt has {len(prompt)} tokens; this model's context is {limits.max_model_len} tokens", "prompt"
            )
    elif len(prompt) >= limits.max_model_len:
        raise PromptTooLong(
            f"the prompt has {len(prompt)} tokens; this model's context is {limits.max_model_len} tokens "
            "and at least one must be left for the answer",
            "prompt",
        )
    if request.emitted is not None:
        _check_emitted(request, limits)
    if request.pooling is not None:
        _check_pooling(request)
    _check_tokens(request, limits)


def most_tokens(request: Request, limits: ModelLimits) -> int:
    """Most tokens that each sequence of a request may generate: what it asks for, or what the context leaves."""
    if request.pooling is not None:
        return 0
    room = limits.max_model_len - len(request.prompt_token_ids)
    wanted = request.params.max_tokens
    return room if wanted is None else min(wanted, room)


def _check_pooling(request: Request) -> None:
    params, second = request.params, None if request.pooling is None else request.pooling.second
    if params.num_sequences != 1:
        raise BadRequest(f"a prompt has one vector, and n is {params.num_sequences}: leave it at 1", "n")
    if params.prompt_logprobs is not None or params.grammar is not None:
        raise BadRequest("a vector comes without tokens: leave prompt_logprobs and grammars out", "prompt_logprobs")
    if second is not None and not 0 <= second <= len(request.prompt_token_ids):
        raise BadRequest("the second text of a pair must begin inside of the prompt", "prompt")


def _check_tokens(request: Request, limits: ModelLimits) -> None:
    params = request.params
    thinking = params.thinking
    given: list[tuple[str, Iterable[int]]] = [
        ("logit_bias", params.logit_bias or ()),
        ("stop_token_ids", params.stop_token_ids),
        ("logprob_token_ids", params.logprob_token_ids or ()),
        ("allowed_token_ids", params.allowed_token_ids or ()),
        ("bad_words", itertools.chain.from_iterable(params.bad_token_ids)),
        ("thinking", () if thinking is None else thinking.open_tokens + thinking.close),
    ]
    for name, ids in given:
        if any(not 0 <= token < limits.vocab_size for token in ids):
            raise BadRequest(f"{name} token ids must be in [0, {limits.vocab_size})", name)
    if thinking is not None and (not thinking.close or thinking.budget < 0):
        raise BadRequest("thinking must have a budget of at least 0, and tokens that close it", "thinking")
    ends = frozenset() if params.ignore_eos else limits.end_token_ids
    if params.min_tokens and len(ends.union(params.stop_token_ids)) >= limits.vocab_size:
        raise BadRequest("min_tokens leaves nothing to draw, for every token is a stop token: list fewer", "min_tokens")


def _check_emitted(request: Request, limits: ModelLimits) -> None:
    emitted = request.emitted or []
    living = [tokens for tokens in emitted if tokens is not None]
    most = most_tokens(request, limits)
    if len(emitted) != request.params.num_sequences or not living or max(map(len, living)) >= max(most, 1):
        raise BadRequest(
            f"emitted must have an entry for each of the {request.params.num_sequences} sequences, one of them a "
            f"list, and none as long as the {most} tokens asked for",
            "emitted",
        )
    if any(not 0 <= token < limits.vocab_size for tokens in living for token in tokens):
        raise BadRequest(f"emitted token ids must be in [0, {limits.vocab_size})", "emitted")
