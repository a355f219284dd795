"""Unsupported fields, and the sentences that refuse them.

A value that asks for the default behaviour is accepted, because clients send such values by default.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from octavo_serve.surfaces.openai.schemas import NOT_SUPPORTED, SamplingBody


def _one_of(*harmless: object, sentence: str) -> Callable[[Any], str | None]:
    return lambda value: None if value in harmless else sentence


def _thinking(value: Mapping[str, Any]) -> str | None:
    kinds = ("enabled", "disabled", "adaptive")
    if not value or (value.get("type") in kinds and not value.keys() - {"type", "budget_tokens"}):
        return None
    return 'thinking must be {"type": "enabled"}, with "budget_tokens" or without, or {"type": "disabled"}'


def _reasoning(value: Mapping[str, Any]) -> str | None:
    known = {"effort": str, "enabled": bool, "max_tokens": int}
    if all(name in known and isinstance(value[name], (known[name], type(None))) for name in value):
        return None
    return 'reasoning may hold "effort", a string, "max_tokens", and "enabled", true or false; no more is supported'


RULES: dict[str, Callable[[Any], str | None]] = {
    "store": _one_of(False, sentence="store must be false: what is stored is /v1/responses' alone"),
    "service_tier": _one_of("auto", "default", sentence='service_tier must be "auto" or "default": there is one tier'),
    "prompt_cache_retention": _one_of(
        "in_memory", "in-memory", sentence='prompt_cache_retention must be "in_memory": the cache is not kept longer'
    ),
    "thinking": _thinking,
    "reasoning": _reasoning,
    "verbosity": _one_of("medium", sentence='verbosity must be "medium": the models here know no other'),
    "modalities": _one_of([], ["text"], sentence='modalities: only the modality "text" is supported'),
    "functions": _one_of([], sentence="functions and function_call are deprecated; send tools and tool_choice"),
    "function_call": _one_of(
        "none", "auto", sentence="functions and function_call are deprecated; send tools and tool_choice"
    ),
    "suffix": _one_of(
        "", sentence="suffix is not supported: these models continue text, they do not fill in the middle"
    ),
}
"""Field -> function that says what is wrong with a value other than null."""


@cache
def _looked_at(kind: type[SamplingBody]) -> frozenset[str]:
    """Fields of a body that may be refused."""
    return frozenset(
        name for name, field in kind.model_fields.items() if name in RULES or field.description == NOT_SUPPORTED
    )


def refusal(body: SamplingBody) -> tuple[str, str] | None:
    """The first refused field, and a sentence that says why; None if every field is supported."""
    for name in sorted(body.model_fields_set & _looked_at(type(body))):
        value = getattr(body, name)
        if value is None:
            continue
        if name in RULES:
            if sentence := RULES[name](value):
                return name, sentence
        elif value and type(body).model_fields[name].description == NOT_SUPPORTED:
            return name, f"{name} is not supported"
    return _together(body)


def _together(body: SamplingBody) -> tuple[str, str] | None:
    """Fields that are refused only together with another one."""
    if body.spaces_between_special_tokens and body.skip_special_tokens is False:
        sentence = "spaces_between_special_tokens: true is not supported: special tokens are written as they are"
        return "spaces_between_special_tokens", sentence
    if body.stream_options is not None and body.stream_options.include_obfuscation:
        return "stream_options.include_obfuscation", "include_obfuscation is not supported: leave it out"
    return None
