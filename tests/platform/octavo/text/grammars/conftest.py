"""Grammars tried on tokenizers whose tokens are bytes, and the markers of a family's template."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
from llguidance import LLMatcher, LLTokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from octavo.text.grammars.calls import CallableTool, CallGrammar
from octavo.text.responses.bound import BoundTemplate
from octavo.text.responses.families import builtin
from octavo.text.responses.parser import ResponseParser, properties
from octavo.text.responses.patterns import marked
from octavo.text.responses.template import load_template

TOKEN = re.compile(r"<\|\"\|>|</?[|｜]?[\w▁]+[|｜]?>|<[\w]+\|>|｜DSML｜|\[/?[A-Z_]+\]")
SPELLED = {"</parameter>", "</function>"}
END = "<|the end|>"


class Model:
    """A family's template in a vocabulary of bytes and, if it has them, of the tokens that the template names."""

    def __init__(self, spec: str | dict[str, Any], *, tokens: bool) -> None:
        template = builtin(spec) if isinstance(spec, str) else load_template(spec)
        found = {token for text in template.texts for token in TOKEN.findall(text.replace("\\", ""))} - SPELLED
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        backend = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        backend.add_special_tokens([END])
        known = sorted(found) if tokens else []
        backend.add_tokens([AddedToken(token, special=token[0] != "<") for token in known])
        self.backend = backend
        self.end = backend.token_to_id(END)
        added = {token.content: i for i, token in backend.get_added_tokens_decoder().items()}
        self.template_ids = added
        self.template = BoundTemplate(template, added)
        self.calls = CallGrammar(self.template, [self.end])
        self.trie = LLTokenizer(backend.to_str(), n_vocab=backend.get_vocab_size(), eos_token=[self.end])

    def matcher(self, source: str) -> LLMatcher:
        matcher = LLMatcher(self.trie, source)
        assert not matcher.is_error(), matcher.get_error()[:2000] + source
        return matcher

    def accepts(self, source: str, text: str) -> bool:
        ids = self.backend.encode(text).ids
        matcher = self.matcher(source)
        return matcher.try_consume_tokens(ids) == len(ids) and bool(matcher.is_accepting())

    def read(self, text: str, tools: list[dict[str, Any]]) -> tuple[list[tuple[str, Any]], str]:
        """The calls in a text, and its content."""
        parser = ResponseParser(self.template, properties(tools))
        names = {name: mark for mark, name in self.template.names.items()}
        calls: list[list[str]] = []
        content = ""
        for part in [*parser.push(marked(text, names)), *parser.finish()]:
            if part.kind == "call":
                calls.append([part.text, ""])
            elif part.kind == "arguments":
                calls[part.index][1] += part.text
            else:
                content += part.text
        return [(name, json.loads(arguments)) for name, arguments in calls], content

    def sample(self, source: str, choose: random.Random) -> str | None:
        """A random text of a grammar; None where it did not end."""
        matcher = self.matcher(source)
        ids: list[int] = []
        for _ in range(400):
            if matcher.is_stopped() or (matcher.is_accepting() and choose.random() < 0.5):
                return str(self.backend.decode(ids, skip_special_tokens=False))
            taken = matcher.compute_ff_tokens() or self._tried(matcher, choose, len(ids))
            assert matcher.consume_tokens(taken), matcher.get_error()
            ids += [token for token in taken if token != self.end]
        return None

    def _tried(self, matcher: LLMatcher, choose: random.Random, length: int) -> list[int]:
        pieces = CLOSERS if length > 120 or choose.random() < 0.4 else TEXTS
        for text in choose.sample(pieces, len(pieces)):
            ids = self.backend.encode(text).ids
            if matcher.validate_tokens(ids) == len(ids):
                return list(ids)
        mask = matcher.compute_logit_bias()
        return [choose.choice([token for token, allowed in enumerate(mask) if allowed])]


CLOSERS = ['"', "}", "]", ")", "\n</parameter>", "</arg_value>", "</｜DSML｜parameter>", "<|close|>", '<|"|>']
TEXTS = [
    "a",
    " b",
    "\u00e9",
    "<",
    "</x>",
    "1",
    "0",
    "-3",
    "\n",
    "\\n",
    '\\"',
    "/",
    "'",
    "true",
    "=",
    "{",
    "[",
    '"',
    ",",
]

TOOLS: list[dict[str, Any]] = [
    {"name": "now", "parameters": {"type": "object", "properties": {}, "additionalProperties": False}},
    {
        "name": "look_up",
        "parameters": {
            "type": "object",
            "properties": {
                "what": {"type": "string"},
                "n": {"type": "integer", "minimum": 0, "maximum": 99},
                "unit": {"enum": ["c", "f", "<d>"]},
                "deep": {"$ref": "#/$defs/deep"},
                "maybe": {"anyOf": [{"type": "number"}, {"type": "null"}, {"type": "boolean"}]},
                "names": {"type": "array", "items": {"type": "string", "maxLength": 5}, "minItems": 1, "maxItems": 3},
            },
            "required": ["what", "deep"],
            "additionalProperties": False,
            "$defs": {
                "deep": {
                    "type": "object",
                    "properties": {"x": {"type": ["integer", "string"]}, "more": {"$ref": "#/$defs/deep"}},
                    "required": ["x"],
                    "additionalProperties": False,
                }
            },
        },
    },
]  # fmt: skip
CALLABLE = [CallableTool(name=tool["name"], parameters=tool["parameters"]) for tool in TOOLS]


@cache
def _model(name: str, tokens: bool) -> Model:
    return Model(name, tokens=tokens)


@pytest.fixture(scope="session")
def model() -> Callable[[str, bool], Model]:
    """A family's model by the name of its built-in template, with or without tokens of its own."""
    return _model


@pytest.fixture(scope="session")
def own_model() -> type[Model]:
    """Makes one of a checkpoint's own template."""
    return Model


@pytest.fixture(scope="session")
def tools() -> list[dict[str, Any]]:
    return TOOLS


@pytest.fixture(scope="session")
def callable_tools() -> list[CallableTool]:
    return CALLABLE


@pytest.fixture(scope="session")
def accepts() -> Callable[[str, str], bool]:
    """Whether a grammar, which must be one, accepts a text as a whole."""
    tokenizer = LLTokenizer("byte")

    def accepts(source: str, text: str) -> bool:
        error, messages = LLMatcher.validate_grammar_with_warnings(source, tokenizer)
        assert not error, messages
        matcher, ids = LLMatcher(tokenizer, source), list(text.encode())
        taken: int = matcher.try_consume_tokens(ids)
        return taken == len(ids) and bool(matcher.is_accepting())

    return accepts
