"""Attributes of a request's span by OpenTelemetry's GenAI conventions, and ours beside them (`octavo.*`)."""

from __future__ import annotations

from collections.abc import Iterable

from octavo.text.output import SequenceText
from octavo_serve.api.chats import Chat
from octavo_serve.api.jobs import Asked, Job
from octavo_serve.api.telemetry import Operation
from octavo_serve.api.tracing import CURRENT, Value

MOST_CHOICES = 128
"""Whose finish reasons are told."""


def asks(asked: Asked) -> None:
    """Tell the trace of the request which runs what is asked for."""
    begins("chat" if isinstance(asked.content, Chat) else "text_completion", asked.model)


def begins(operation: Operation, model: str | None) -> None:
    """Tell the trace of the request which runs what kind of request it is, and which model it names."""
    if (trace := CURRENT.get()) is None:
        return
    trace.attributes |= {"gen_ai.operation.name": operation, "gen_ai.provider.name": "octavo"}
    if model is not None:
        trace.attributes["gen_ai.request.model"] = model.encode("utf-8", "replace").decode()


def pools(request_id: str, model: str, prompt_tokens: int) -> None:
    """Tell it that texts begin to run of which no tokens are made."""
    if (trace := CURRENT.get()) is None:
        return
    trace.attributes.setdefault("gen_ai.request.model", model)
    trace.attributes |= {
        "gen_ai.response.id": request_id,
        "gen_ai.response.model": model,
        "gen_ai.usage.input_tokens": prompt_tokens,
    }


def runs(job: Job) -> None:
    """Tell it what begins to run."""
    if (trace := CURRENT.get()) is None:
        return
    params, attributes = job.params, trace.attributes
    attributes.setdefault("gen_ai.request.model", job.model.name)
    attributes |= {
        "gen_ai.response.id": job.id,
        "gen_ai.response.model": job.model.name,
        "gen_ai.usage.input_tokens": job.prompt_tokens,
        "gen_ai.request.temperature": float(params.temperature),
        "gen_ai.request.top_p": float(params.top_p),
    }
    attributes |= {f"gen_ai.request.{name}": value for name, value in _unusual(job)}


def _unusual(job: Job) -> Iterable[tuple[str, Value]]:
    """What a request says beyond what most leave as it is."""
    params = job.params
    if params.max_tokens is not None:
        yield "max_tokens", params.max_tokens
    if params.top_k > 0:
        yield "top_k", float(params.top_k)
    if params.frequency_penalty:
        yield "frequency_penalty", float(params.frequency_penalty)
    if params.presence_penalty:
        yield "presence_penalty", float(params.presence_penalty)
    if params.seed is not None and params.seed < 2**63:  # as large as an attribute may be
        yield "seed", params.seed
    if (choices := params.n * len(job.requests)) > 1:
        yield "choice.count", choices


def answered(sequences: Iterable[SequenceText], cached_tokens: int) -> None:
    """Tell it what came of it, whole or not."""
    if (trace := CURRENT.get()) is None:
        return
    made = list(sequences)
    reasons: list[str] = [sequence.finish_reason or "abort" for sequence in made[:MOST_CHOICES]]
    trace.attributes |= {
        "gen_ai.usage.output_tokens": sum(len(sequence.token_ids) for sequence in made),
        "gen_ai.usage.cache_read.input_tokens": cached_tokens,
        "gen_ai.response.finish_reasons": reasons,
    }
