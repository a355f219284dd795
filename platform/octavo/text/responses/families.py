"""Which response template a model gets: its own, the one its settings name, or the built-in one of its family.

What models are called says little: a family is known by the tokens its format is made of, and by what its chat template
spells. The first line of the table that fits decides, so that a format stands above those it is made of.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from octavo.text.responses.bound import BoundTemplate
from octavo.text.responses.patterns import Node
from octavo.text.responses.template import Field, ResponseTemplate, TemplateError, load_template
from octavo.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

_FOLDER = Path(__file__).parent / "builtin"
NAMES = tuple(sorted(path.stem for path in _FOLDER.glob("*.json")))
"""Of the built-in templates."""
AUTO, NONE = "auto", "none"
DEFAULT_FORM = "default form"
"""How calls are written by models whose chat template does not say (see `octavo.text.default_form`)."""
READS_DEFAULT_FORM = "hermes"
"""The built-in template that reads it."""


@dataclass(frozen=True, slots=True)
class _Spelled:
    """What a model's files spell.

    Attributes:
        tokens: its added tokens.
        source: its chat templates.
    """

    tokens: Mapping[str, int]
    source: str

    def has(self, text: str) -> bool:
        """Whether it is a token, or a part of a chat template."""
        return text in self.tokens or text in self.source


_TABLE: tuple[tuple[str, Callable[[_Spelled], bool]], ...] = (
    ("gpt_oss", lambda model: "<|channel|>" in model.tokens and "<|message|>" in model.tokens),
    ("kimi_k3", lambda model: "<|open|>" in model.tokens and "<|sep|>" in model.tokens),
    ("kimi_k2", lambda model: model.has("<|tool_call_argument_begin|>")),
    ("deepseek_dsml", lambda model: model.has("｜DSML｜")),
    ("deepseek_r1", lambda model: model.has("<｜tool▁call▁begin｜>") and "```json" in model.source),
    ("deepseek_v31", lambda model: model.has("<｜tool▁call▁begin｜>")),
    ("gemma", lambda model: model.has("<|tool_call>") and model.has("<tool_call|>")),
    ("glm", lambda model: model.has("<arg_key>")),
    ("qwen3_xml", lambda model: "<function=" in model.source and "<parameter=" in model.source),
    ("mistral", lambda model: model.has("[TOOL_CALLS]") and model.has("[ARGS]")),
    ("mistral_v3", lambda model: model.has("[TOOL_CALLS]")),
    ("granite", lambda model: model.has("<|tool_call|>") and model.has("<|start_of_role|>")),
    ("phi4", lambda model: model.has("<|tool_call|>") or "functools" in model.source),
    ("hermes", lambda model: model.has("<tool_call>")),
    ("pythonic", lambda model: model.has("<|python_start|>")),
    ("llama3_json", lambda model: model.has("<|python_tag|>")),
    ("hermes", lambda model: model.has("<think>") or model.has("</think>")),
)


@cache
def builtin(name: str) -> ResponseTemplate:
    """One of NAMES."""
    return load_template(json.loads((_FOLDER / f"{name}.json").read_text(encoding="utf-8")))


def family(tokenizer: Tokenizer) -> str:
    """The name of the built-in template that fits a model; "none" where none does."""
    model = _spelled(tokenizer)
    return next((name for name, fits in _TABLE if fits(model)), NONE)


_bound: WeakKeyDictionary[Tokenizer, dict[str, BoundTemplate | None]] = WeakKeyDictionary()


def template_of(tokenizer: Tokenizer, name: str = AUTO) -> BoundTemplate | None:
    """How a model's answers are read; None where they are text and nothing else.

    Args:
        name: of a built-in template; "none" reads nothing; "auto" is the model's own template, or its family's. Of
            these, what reasoning opens with is looked for only if the model knows it: others' content may spell it.
    """
    known = _bound.setdefault(tokenizer, {})
    if name not in known:
        known[name] = _made(tokenizer, name)
    return known[name]


def _made(tokenizer: Tokenizer, name: str) -> BoundTemplate | None:
    if name == AUTO and tokenizer.response_template is not None:
        try:
            return BoundTemplate(load_template(tokenizer.response_template), tokenizer.added_tokens)
        except TemplateError as error:
            logger.warning("the model's own response_template is not used: %s", error)
    if name in NAMES:
        return BoundTemplate(builtin(name), tokenizer.added_tokens)
    name = {AUTO: family(tokenizer), DEFAULT_FORM: READS_DEFAULT_FORM}.get(name, NONE)
    if name == NONE:
        return None
    template, model = builtin(name), _spelled(tokenizer)
    unknown = [field for field in template.fields if field.role == "reasoning" and not _reasons(field, model)]
    closings = [field.closing for field in unknown]
    fields = tuple(_not_closed_by(closings, field) for field in template.fields if field not in unknown)
    return BoundTemplate(replace(template, fields=fields), tokenizer.added_tokens)


def _not_closed_by(closings: list[Node | None], field: Field) -> Field:
    """A field that ends a content no more where a model that does not think spells what would end its thinking."""
    if field.role != "content" or field.closing is None or field.closing[0] != "alt":
        return field
    return replace(field, closing=("alt", *(part for part in field.closing[1:] if part not in closings)))


def _reasons(field: Field, model: _Spelled) -> bool:
    """Whether a model knows what a field of reasoning opens with."""
    return any(model.has(text) for text in _texts(field.opening))


def _texts(node: Any) -> list[str]:
    """What a delimiter spells, and the tokens that may be in it."""
    if not isinstance(node, tuple):
        return []
    if node[0] != "seq":
        return [text for child in node for text in _texts(child)]
    runs = "".join(child[1] if child[0] == "char" else "\0" for child in node[1:]).split("\0")
    tokens = [run[: run.index(">") + 1] for run in runs if run.startswith("<") and ">" in run]
    return [*(run for run in runs if len(run) > 2), *tokens, *(t for child in node[1:] for t in _texts(child))]


def _spelled(tokenizer: Tokenizer) -> _Spelled:
    return _Spelled(tokenizer.added_tokens, "\n".join(tokenizer.chat_templates.values()))
