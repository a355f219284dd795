"""Beam search as bodies ask for it: vLLM's `use_beam_search`, SGLang's `beam_width`."""

from __future__ import annotations

from octavo.beams import BeamSearch
from octavo.errors import BadRequest
from octavo_serve.surfaces.openai.schemas import SamplingBody


def beams_of(body: SamplingBody) -> BeamSearch | None:
    """The search that a body asks for; None where it wants samples.

    The width is `beam_width`, or else `best_of`, or else `n`, as in vLLM.

    Raises:
        BadRequest: a number is out of its range, or belongs to a search that is not asked for.
    """
    if not (body.beam_width is not None if body.use_beam_search is None else body.use_beam_search):
        _check_none(body)
        return None
    width = body.beam_width if body.beam_width is not None else body.best_of or body.sequences
    penalty = 1.0 if body.length_penalty is None else body.length_penalty
    return BeamSearch(width, penalty, body.early_stopping or False)


def _check_none(body: SamplingBody) -> None:
    neutral = {"beam_width": (None,), "length_penalty": (None, 0, 1), "early_stopping": (None, False)}
    for name, values in neutral.items():
        if getattr(body, name) not in values:
            raise BadRequest(f"{name} belongs to beam search: send use_beam_search: true, too, or leave it out", name)
