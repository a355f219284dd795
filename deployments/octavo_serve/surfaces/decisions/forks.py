"""The prompts of a request: one state, after it the text of a kind of question, then each question; and the labels
whose log probabilities are wanted.

    state ──┬─ kind ─┬─ question 0 ─ [Yes No]
            │        └─ question 1 ─ [Yes No]
            └─ kind ─── question 2 ─ [A B C ...] and, of more than 26 options, a fork per letter: A ─ [0 1 2 ...]

What prompts share is computed first and alone, so that they find its blocks in the prefix cache. Each asks for one
token, which is drawn and dropped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from octavo.block_hash import Origin, Turn, extend_chain, hash_chain
from octavo.errors import BadRequest
from octavo.request import Adapter, Request, SamplingParams
from octavo.text.tokenizer import Tokenizer
from octavo_serve.api.jobs import Asked
from octavo_serve.api.prompts import check_characters, check_length, check_token_ids
from octavo_serve.surfaces.decisions.labels import Labels, alphabet_of
from octavo_serve.surfaces.decisions.questions import Question
from octavo_serve.surfaces.decisions.state import Frame
from octavo_serve.wire.messages import ModelInfo

MAX_FORKS = 4096
"""Prompts of one request: 400 questions whose labels are one token, or 151 with 255 options."""


@dataclass(slots=True)
class Prefix:
    """Token ids that prompts begin with, and their chain (see `octavo.block_hash`)."""

    token_ids: list[int]
    chain: list[bytes]


@dataclass(frozen=True, slots=True)
class Fork:
    """One prompt that ends where a label begins, or goes on.

    Attributes:
        prefix: what it begins with.
        token_ids: what follows.
        candidates: token ids whose log probabilities are wanted.
    """

    prefix: Prefix
    token_ids: list[int]
    candidates: tuple[int, ...]


@dataclass(slots=True)
class Forks:
    """All prompts of a request.

    Attributes:
        root, block_size: of the chains.
        heads: by question, the state and the text of its kind; the same object for all of a kind.
        suffixes: by question, the token ids between the head and the label.
        labels: by question.
    """

    request_id: str
    asked: Asked
    root: bytes
    block_size: int
    state: Prefix
    heads: list[Prefix]
    suffixes: list[list[int]]
    labels: list[Labels]
    adapter: Adapter | None = None

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the state, of each kind's text and of all questions, each once."""
        heads = {id(head): len(head.token_ids) - len(self.state.token_ids) for head in self.heads}
        return len(self.state.token_ids) + sum(heads.values()) + sum(map(len, self.suffixes))

    @property
    def shared(self) -> list[list[Prefix]]:
        """What to compute before the questions, one list after the other: none where nothing is shared."""
        prompts = Counter[int]()
        for head, its in zip(self.heads, self.labels, strict=True):
            prompts[id(head)] += its.forks
        several = [head for head in {id(head): head for head in self.heads}.values() if prompts[id(head)] > 1]
        steps = [[self.state], several] if len(prompts) > 1 else [several]
        return [found for step in steps if (found := [prefix for prefix in step if prefix.chain])]

    def first(self, question: int) -> Fork:
        """The prompt whose next token is a label, or the first of a label's two tokens."""
        return Fork(self.heads[question], self.suffixes[question], self.labels[question].groups)

    def seconds(self, question: int) -> list[Fork]:
        """The prompts whose next token is the second of a label's two; empty where labels are one token."""
        labels = self.labels[question]
        if not labels.members:
            return []
        return [
            Fork(self.heads[question], [*self.suffixes[question], letter], labels.members_of(group))
            for group, letter in enumerate(labels.groups)
        ]

    def prefix_request(self, prefix: Prefix, name: str) -> Request:
        """Computes a prefix and samples nothing; `name` is unique in the request."""
        return self._request(name, prefix.token_ids, SamplingParams(max_tokens=0), list(prefix.chain))

    def request(self, fork: Fork, name: str) -> Request:
        """Computes a fork; `name` is unique in the request."""
        token_ids, chain = fork.prefix.token_ids + fork.token_ids, list(fork.prefix.chain)
        extend_chain(chain, self.root, token_ids, self.block_size)
        params = SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True, logprob_token_ids=list(fork.candidates))
        return self._request(name, token_ids, params, chain)

    def _request(self, name: str, token_ids: list[int], params: SamplingParams, chain: list[bytes]) -> Request:
        if (turn := Turn.of(self.adapter, token_ids)) is not None:
            chain = hash_chain(self.root, token_ids, self.block_size, turn)
        return Request(
            request_id=f"{self.request_id}-{name}",
            prompt_token_ids=token_ids,
            params=params,
            priority=self.asked.priority,
            session=self.asked.session or self.request_id,
            cache_salt=self.asked.cache_salt,
            adapter=self.adapter,
            block_hashes=chain,
            asker=self.asked.asker,
            tenant=self.asked.tenant.name,
            weight=self.asked.tenant.weight,
            cache_share=self.asked.tenant.cache_share,
        )


def forks_of(
    tokenizer: Tokenizer,
    info: ModelInfo,
    frame: Frame,
    questions: Sequence[Question],
    asked: Asked,
    request_id: str,
    adapter: Adapter | None = None,
) -> Forks:
    """Tokenise the state and the questions. This is CPU work.

    Raises:
        PromptTooLong: the context cannot hold the state and a question.
        BadRequest: the model has too few labels, or there are too many prompts.
    """
    alphabet = alphabet_of(tokenizer, frame.after)
    labels = [question.labels(alphabet) for question in questions]
    _check_number(labels)
    root, _ = Origin.of(info.hash_name, adapter, asked.cache_salt, ())
    size = info.block_size
    check_characters(tokenizer, frame.before, info.max_model_len, asked.param)
    token_ids = tokenizer.encode(frame.before, add_special_tokens=False)
    check_token_ids(token_ids, info.vocab_size, asked.param)
    check_length(len(token_ids), 1, info.max_model_len, asked.param)
    state = Prefix(token_ids, hash_chain(root, token_ids, size))
    texts, heads, suffixes = dict[str, Prefix](), [], []
    for question, its in zip(questions, labels, strict=True):
        text = question.head(its)
        if (head := texts.get(text)) is None:
            token_ids = state.token_ids + tokenizer.encode(text, add_special_tokens=False)
            head = texts[text] = Prefix(token_ids, list(state.chain))
            extend_chain(head.chain, root, token_ids, size)
        text = question.text(its) + frame.after
        check_characters(tokenizer, text, info.max_model_len, question.param)
        suffix = tokenizer.encode(text, add_special_tokens=False)
        check_length(len(head.token_ids) + len(suffix), 1 + bool(its.members), info.max_model_len, question.param)
        heads.append(head)
        suffixes.append(suffix)
    return Forks(request_id, asked, root, size, state, heads, suffixes, labels, adapter)


def _check_number(labels: Sequence[Labels]) -> None:
    count = sum(its.forks for its in labels)
    if count > MAX_FORKS:
        raise BadRequest(
            f"these questions take {count} prompts; at most {MAX_FORKS} are computed for one request: ask fewer "
            "of those with many options",
            "questions",
        )
