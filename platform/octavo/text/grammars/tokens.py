"""A tokenizer's vocabulary as llguidance needs it: the bytes of each token, in a trie.

It is built once: 0.4 s and 38 MB for SmolLM2's 49,152 tokens, for which llguidance holds the GIL. So a server builds
it while the weights load (`AsyncEngine.load`). Texts that a grammar forces are tokenized by it as well, in Rust and
without the GIL: a callback into Python could wait for the GIL while whoever holds it waits for a matcher.
"""

from __future__ import annotations

import json
import re
import secrets
import threading
from collections.abc import Container
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer as Backend

from octavo.errors import ModelError
from octavo.step import Uint32
from octavo.text.grammars.whitespace import whitespace_tokens
from octavo.text.responses.families import template_of
from octavo.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLTokenizer

_TEXT = r'[^"\\\x00-\x1F\x7F]'
SLICES = [r"[\x20\x0A\x0D\x09]+", *(f"{_TEXT}{{1,{most}}}" for most in (2, 4, 7, 10, 14, 20, 30)), f"{_TEXT}+"]
"""Sets of tokens that llguidance takes into a mask as a whole. It has fewer by default; then each mask within a string
that has a `maxLength` takes ten times as long."""


_NAME = re.compile(r'//[^\n]*|"(?:[^"\\\n]|\\.)*"|/(?:[^/\\\n]|\\.)+/|(?P<name><[^<>\[\]\s"/]+>)')
"""What a grammar in Lark has of comments, literals and expressions, and the names of tokens between them."""


class Vocabulary:
    """What masks are made over.

    Args:
        tokenizer: the model's.
        size: of the model's logits; tokens that the tokenizer does not have are never allowed.
    """

    def __init__(self, tokenizer: Tokenizer, size: int) -> None:
        self.tokenizer = tokenizer
        self.size = size
        self._built: LLTokenizer | ModelError | None = None
        self._blank: Uint32 | None = None
        self._lock = threading.Lock()

    @property
    def words(self) -> int:
        """32-bit words of a mask."""
        return -(-self.size // 32)

    def trie(self) -> LLTokenizer:
        """llguidance's view of it; the first call builds it.

        Raises:
            ModelError: the tokenizer is of a kind whose tokens are no bytes, or has no end token.
        """
        built = self.prepare()
        if isinstance(built, ModelError):
            raise built.with_traceback(None)
        return built

    def prepare(self) -> LLTokenizer | ModelError:
        """Build it, or find out once why that cannot be."""
        with self._lock:
            if self._built is None:
                try:
                    self._built = _build(self.tokenizer, self.size)
                    self._blank = whitespace_tokens(self._built, self.words)
                except ModelError as error:
                    self._built = error
            return self._built

    def blank(self) -> Uint32:
        """Mask of the tokens that are white space alone."""
        self.trie()
        assert self._blank is not None
        return self._blank

    def by_ids(self, source: str) -> str:
        """A grammar whose tokens are told by their ids: llguidance knows none of them by its name (`_unspellable`)."""
        if "<" not in source:
            return source
        if not source.lstrip().startswith("{"):
            return _NAME.sub(self._by_id, source)
        try:
            given = json.loads(source)
        except (ValueError, RecursionError):
            return source
        for each in given["grammars"]:
            if "lark_grammar" in each:
                each["lark_grammar"] = _NAME.sub(self._by_id, each["lark_grammar"])
        return json.dumps(given)

    def _by_id(self, found: re.Match[str]) -> str:
        token = self.tokenizer.added_tokens.get(found["name"] or "")
        return found[0] if token is None else f"<[{token}]>"

    def tokens_of(self, text: bytes) -> list[int]:
        """Some tokens whose bytes are the text."""
        return self.trie().tokenize_bytes(text)


def _build(tokenizer: Tokenizer, size: int) -> LLTokenizer:
    from llguidance import LLTokenizer

    ends = sorted(token for token in tokenizer.eos_token_ids if token < min(size, tokenizer.vocab_size))
    if not ends:
        raise ModelError("this model's tokenizer has no end token, which a grammar's end needs")
    if tokenizer.vocab_size > size:
        raise ModelError(f"this model's tokenizer has {tokenizer.vocab_size} tokens, its logits only {size}")
    try:
        return LLTokenizer(
            _unspellable(_with_special(tokenizer, ends), tokenizer.added_tokens),
            n_vocab=size,
            eos_token=list(ends),
            slices=SLICES,
        )
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # pyo3 raises a panic as a BaseException
        raise ModelError(f"grammars do not work with this model's tokenizer: {error}") from None


def _with_special(tokenizer: Tokenizer, ends: list[int]) -> str:
    """The tokenizer's JSON; end tokens and those that its response template reads are special: no text contains them.

    llguidance takes added tokens as text, unless they are special or look like <this>.
    """
    text, template = tokenizer.to_json(), template_of(tokenizer)
    read = [] if template is None else [t for t in template.marks if not _stays(tokenizer.token_text(t))]
    plain = [token for token in sorted({*ends, *read}) if not tokenizer.is_special(token)]
    if not plain:
        return text
    backend = Backend.from_str(text)
    backend.add_special_tokens([backend.id_to_token(token) for token in plain])
    return str(backend.to_str())


def _unspellable(text: str, added: Container[str]) -> str:
    """A tokenizer's JSON in which no text has the tokens that are none: their names get a part that nobody knows.

    What a grammar forces is tokenized, and `{"const": "<|im_end|>"}` would become the token of that name.

    Args:
        added: names of the tokens that are not made of others; others' names are parts of merges.
    """
    made: dict[str, Any] = json.loads(text)
    salt, names = secrets.token_hex(8), dict[str, str]()
    for token in made["added_tokens"]:
        content: str = token["content"]
        if content in added and (token["special"] or (content[:1] == "<" and content[-1:] == ">")):
            token["content"] = names[content] = f"{content[:-1]}{salt}{content[-1:]}"
    vocab = made["model"]["vocab"]
    if isinstance(vocab, dict):
        made["model"]["vocab"] = {names.get(name, name): token for name, token in vocab.items()}
        if merges := made["model"].get("merges"):
            made["model"]["merges"] = [[a, b] for a, b in merges if names.keys().isdisjoint((a, b, a + b))]
    else:
        made["model"]["vocab"] = [[names.get(name, name), score] for name, score in vocab]
    return json.dumps(made)


def _stays(text: str) -> bool:
    """Whether a token stays what it is: <this> is no text to llguidance anyway, and a blank one is text to grammars."""
    return not text.strip() or (text[0] == "<" and text[-1] == ">")
