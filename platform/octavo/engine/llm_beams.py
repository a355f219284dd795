"""`LLM.beam_search`: its parameters and outputs, in vLLM's words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from octavo.beams import BeamSearch
from octavo.constraint import StructuredOutputs
from octavo.request import MAX_N, CompletionOutput, FinishReason, RequestOutput, SamplingParams, TokenLogprobs
from octavo.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from octavo.engine.llm import LoRARequest


@dataclass(slots=True, kw_only=True)
class BeamSearchParams:
    """How to search. Those after `skip_special_tokens` are ours; a `SamplingParams` with `beams` says even more.

    Attributes:
        beam_width, length_penalty, early_stopping: as in `octavo.beams.BeamSearch`.
        temperature: 0 or 1, which are the same: texts are ranked by the model's own probabilities.
        others: as in `SamplingParams`.
    """

    beam_width: int
    max_tokens: int
    ignore_eos: bool = False
    temperature: float = 0.0
    length_penalty: float = 1.0
    include_stop_str_in_output: bool = False
    structured_outputs: StructuredOutputs | None = None
    skip_special_tokens: bool = True
    early_stopping: bool | Literal["never"] = False
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    min_tokens: int = 0
    logprobs: int | None = None

    def sampling(self) -> SamplingParams:
        """The same as an engine takes it.

        Raises:
            BadRequest: naming the parameter that is wrong.
        """
        beams = BeamSearch(self.beam_width, self.length_penalty, self.early_stopping)
        return SamplingParams(
            n=min(beams.width, MAX_N),
            beams=beams,
            max_tokens=self.max_tokens,
            ignore_eos=self.ignore_eos,
            temperature=self.temperature,
            include_stop_str_in_output=self.include_stop_str_in_output,
            structured_outputs=self.structured_outputs,
            skip_special_tokens=self.skip_special_tokens,
            stop=self.stop,
            stop_token_ids=self.stop_token_ids or [],
            min_tokens=self.min_tokens,
            logprobs=self.logprobs,
        )


@dataclass(slots=True)
class BeamSearchSequence:
    """A text that was found.

    Attributes:
        tokens, text: of the prompt and the answer, as vLLM gives them.
        logprobs: of the answer's tokens; empty where none were asked for.
        cum_logprob: sum of the log probabilities of the answer's tokens.
        score: what texts are ranked by (`BeamSearch.score`).
        output: the answer alone.
    """

    tokens: list[int]
    logprobs: list[TokenLogprobs]
    cum_logprob: float
    text: str
    finish_reason: FinishReason | None
    stop_reason: int | str | None
    lora_request: LoRARequest | None
    score: float
    output: CompletionOutput


@dataclass(slots=True)
class BeamSearchOutput:
    """What was found for a prompt: `beam_width` texts, or MAX_N of them, the best first."""

    sequences: list[BeamSearchSequence]


def beam_output(
    found: RequestOutput, params: BeamSearchParams, lora: LoRARequest | None, tokenizer: Tokenizer
) -> BeamSearchOutput:
    """vLLM's shape of a request's output."""
    prompt, search = found.prompt_token_ids, BeamSearch(params.beam_width, params.length_penalty, params.early_stopping)
    before = tokenizer.decode(prompt, skip_special_tokens=params.skip_special_tokens)
    return BeamSearchOutput([_sequence(each, prompt, before, search, lora) for each in found.outputs])


def _sequence(
    output: CompletionOutput, prompt: list[int], before: str, search: BeamSearch, lora: LoRARequest | None
) -> BeamSearchSequence:
    total = output.cumulative_logprob or 0.0
    return BeamSearchSequence(
        tokens=prompt + output.token_ids,
        logprobs=output.logprobs or [],
        cum_logprob=total,
        text=before + output.text,
        finish_reason=output.finish_reason,
        stop_reason=output.stop_reason,
        lora_request=lora,
        score=search.score(total, max(1, len(output.token_ids))),
        output=output,
    )
