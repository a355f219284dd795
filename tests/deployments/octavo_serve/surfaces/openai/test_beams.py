"""Searches as bodies ask for them."""

from __future__ import annotations

from typing import Any

import pytest

from octavo.beams import BeamSearch
from octavo.errors import BadRequest
from octavo_serve.api.body import parse
from octavo_serve.api.bounds import Limits
from octavo_serve.api.model import Defaults
from octavo_serve.surfaces.chat.schemas import ChatRequest
from octavo_serve.surfaces.chat.surface import CHAT
from octavo_serve.surfaces.completions.schemas import CompletionRequest
from octavo_serve.surfaces.completions.surface import COMPLETIONS

LIMITS = Limits(max_prompts=3, max_n=16)
HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello"}]}


@pytest.mark.parametrize(
    ("extra", "beams", "n"),
    [
        ({"use_beam_search": True, "n": 4}, BeamSearch(4), 4),  # vLLM's
        ({"use_beam_search": True, "best_of": 4, "n": 2, "temperature": 0}, BeamSearch(4), 2),
        ({"use_beam_search": True}, BeamSearch(1), 1),
        ({"beam_width": 5}, BeamSearch(5), 1),  # SGLang's
        ({"beam_width": 5, "n": 2, "length_penalty": 0, "early_stopping": True}, BeamSearch(5, 0.0, True), 2),
        ({"beam_width": 2, "early_stopping": "never"}, BeamSearch(2, 1.0, "never"), 1),
        ({"length_penalty": 1, "early_stopping": False, "use_beam_search": False}, None, 1),
    ],
)
def test_both_surfaces_understand_it_alike(extra: dict[str, Any], beams: BeamSearch | None, n: int) -> None:
    asked = COMPLETIONS.ask(parse(CompletionRequest, {"prompt": ["a", "b"], **extra}), LIMITS)
    for params in (asked.params, CHAT.ask(parse(ChatRequest, HELLO | extra), LIMITS).params):
        assert (params.beams, params.n, params.best_of) == (beams, n, None)
    assert asked.size[0] == 2 * (1 if beams is None else beams.width)


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        ({"length_penalty": 2.0}, "length_penalty belongs to beam search: send use_beam_search: true, too"),
        ({"beam_width": 2, "use_beam_search": False}, "beam_width belongs to beam search"),
        ({"early_stopping": "never"}, "early_stopping belongs to beam search"),
        ({"beam_width": 17}, "beam_width must be at least 1 and at most 16, got 17"),
        ({"beam_width": 0}, "beam_width must be at least 1"),
        ({"beam_width": 2, "early_stopping": "often"}, "early_stopping must be True, False or 'never', got 'often'"),
        ({"beam_width": 2, "length_penalty": 9}, "length_penalty must be a number of -5 to 5"),
        ({"beam_width": 2, "n": 3}, "n is 3, and 2 beams end in so many texts at most"),
        ({"beam_width": 2, "temperature": 0.7}, "beam search samples nothing: leave temperature out"),
        ({"use_beam_search": "yes"}, "use_beam_search must be"),
        ({"beam_width": 16, "prompt": ["a"] * 3}, None),
    ],
)
def test_what_is_wrong_is_said(extra: dict[str, Any], says: str | None) -> None:
    body = {"prompt": "a", **extra}
    if says is None:
        COMPLETIONS.ask(parse(CompletionRequest, body), LIMITS)
        return
    with pytest.raises(BadRequest) as refused:
        COMPLETIONS.ask(parse(CompletionRequest, body), LIMITS)
    assert says in str(refused.value)
    assert refused.value.param in extra


def test_a_models_defaults_for_samples_do_not_touch_a_search() -> None:
    asked = COMPLETIONS.ask(parse(CompletionRequest, {"prompt": "a", "beam_width": 2}), LIMITS)
    defaults = Defaults(sampling={"temperature": 0.6, "top_p": 0.9, "repetition_penalty": 1.1})
    defaults.fill_in(asked.params, asked.given, 9)
    assert (asked.params.temperature, asked.params.top_p, asked.params.repetition_penalty) == (0.0, 1.0, 1.1)
