"""Writes the answers of KServe's protocol and the events of Triton's generate extension."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from octavo_serve.api.jobs import Job
from octavo_serve.api.pieces import Element, Piece, Whole
from octavo_serve.api.surface import A, Encoded, Writer, to_json
from octavo_serve.surfaces.kserve.inputs import Inputs
from octavo_serve.surfaces.kserve.schemas import OUTPUTS, Generated, GenerateRequest, Inferred, InferRequest
from octavo_serve.surfaces.kserve.tensors import encoded
from octavo_serve.surfaces.openai.writer import finite

VERSION = "1"


class KServeWriter(Writer[A, Generated]):
    """Base of both writers."""

    def __init__(self, body: InferRequest | GenerateRequest, job: Job, tells: bool) -> None:
        super().__init__(job, tells)
        self.inputs: Inputs = job.context
        self._id = body.id
        self._prompt = job.prompt_texts[0] if job.prompt_texts else ""
        self._streamed = Whole()  # of a request whose stream has one event

    def is_large(self, element: Element) -> bool:
        return isinstance(element, Piece) and self.job.is_large(0, len(element.token_ids))

    def piece(self, piece: Piece) -> list[Generated]:
        if not self.inputs.stream:
            self._streamed.add([piece])
            return []
        told = piece.text or piece.finish_reason or (piece.token_ids and len(self.inputs.outputs) > 1)
        return [self._generated([piece])] if told else []

    def end(self) -> list[Generated]:
        return [] if self.inputs.stream else [self.generated(self._streamed)]

    def generated(self, whole: Whole) -> Generated:
        """The answer of /generate."""
        return self._generated(self._best(whole.choices()))

    def _generated(self, pieces: Sequence[Piece]) -> Generated:
        values = {name: values[0] if len(values) == 1 else values for name, values in self._values(pieces).items()}
        return {**self.head, **values}  # type: ignore[typeddict-item]

    def inferred(self, whole: Whole) -> Inferred:
        """The answer of /infer."""
        found = self._values(self._best(whole.choices()))
        return {
            **self.head,  # type: ignore[typeddict-item]
            "outputs": [
                {"name": name, "datatype": OUTPUTS[name], "shape": [len(values)], "data": values}
                for name, values in found.items()
            ],
        }

    @property
    def head(self) -> dict[str, str]:
        """What begins every answer."""
        said = {"model_name": self.job.model.name, "model_version": VERSION}
        return said if self._id is None else {"id": self._id, **said}

    def _best(self, pieces: list[Piece]) -> list[Piece]:
        """The `n` sequences with the highest mean log probability, best first (see `choose_best`)."""
        n = self.job.params.n
        if len(pieces) == n:
            return pieces
        return sorted(pieces, key=lambda p: -p.cumulative_logprob / max(1, len(p.token_ids)))[:n]

    def _values(self, pieces: Sequence[Piece]) -> dict[str, list[Any]]:
        """Each output's value for each sequence."""
        return {name: self._of_each(name, pieces) for name in self.inputs.outputs}

    def _of_each(self, name: str, pieces: Sequence[Piece]) -> list[Any]:
        if name == "num_input_tokens":
            return [self.job.prompt_tokens]
        return [_VALUES[name](self, piece) for piece in pieces]

    def text(self, piece: Piece) -> str:
        """A sequence's text, after its input where that is asked for."""
        return self._prompt + piece.text

    def logprobs(self, piece: Piece) -> str:
        """JSON of log probabilities in vLLM's form; null where sampling did not ask for any."""
        if self.inputs.sampling.get("logprobs") is None:
            return "null"
        places = [
            {str(token_id): replace(entry, logprob=finite(entry.logprob)) for token_id, entry in entries.items()}
            for entries in piece.logprobs or ()
        ]
        return to_json(places).decode()


_VALUES: dict[str, Callable[[KServeWriter[Any], Piece], str | int | float]] = {
    "text_output": lambda writer, piece: writer.text(piece),
    "finish_reason": lambda writer, piece: str(piece.finish_reason),
    "cumulative_logprob": lambda writer, piece: finite(piece.cumulative_logprob),
    "logprobs": lambda writer, piece: writer.logprobs(piece),
    "num_output_tokens": lambda writer, piece: len(piece.token_ids),
}


class InferWriter(KServeWriter[Inferred]):
    """Of /infer."""

    def whole(self, whole: Whole) -> Inferred:
        return self.inferred(whole)

    def encoded(self, answer: Inferred, to_json: Callable[[Any], bytes]) -> Encoded:
        return encoded(answer, self.inputs.binary, to_json)


class GenerateWriter(KServeWriter[Generated]):
    """Of /generate and /generate_stream."""

    def whole(self, whole: Whole) -> Generated:
        return self.generated(whole)
