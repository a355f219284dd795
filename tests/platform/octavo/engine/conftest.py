"""A model for tests of the engine: no tensors, but a KV cache that is really read through the block tables."""

from __future__ import annotations

import json
import random
import threading
import zlib
from collections import Counter, deque
from types import SimpleNamespace

import numpy as np
import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers

from octavo import LLM
from octavo.config import EngineConfig
from octavo.engine.drafter import Drafter
from octavo.engine.engine import Engine
from octavo.execution.background import BackgroundExecutor
from octavo.execution.executor import States, Wait, finished
from octavo.execution.pooling import pool, pooled_tokens
from octavo.layer_groups import ONE_GROUP, layer_groups
from octavo.pooling import PoolingInfo
from octavo.request import Adapter, Request, SamplingParams
from octavo.step import Candidates, LogprobRow, SamplingRows, StepBatch, StepResult
from octavo.text.parts import TokenizerParts
from octavo.text.tokenizer import Tokenizer

VOCAB = 1000


def next_token(tokens, seed: int = 0) -> int:
    """The token this model says after `tokens`; depends on every one of them."""
    return zlib.crc32(np.asarray(tokens, np.int32).tobytes(), seed & 0xFFFFFFFF) % VOCAB


def state(tokens) -> np.ndarray:
    """This model's state after `tokens`, which depends on every one of them."""
    return np.random.default_rng(zlib.crc32(np.asarray(tokens, np.int32).tobytes())).normal(size=5).astype(np.float32)


def following(tokens, count: int, rows: SamplingRows, row: int) -> Candidates:
    """What this model says may follow `tokens`, if nothing but bans and masks changes it."""
    logits = np.random.default_rng(zlib.crc32(np.asarray(tokens, np.int32).tobytes())).normal(size=VOCAB) * 3
    own = (logits - np.log(np.exp(logits).sum())).astype(np.float32)
    ids = np.argsort(-own, kind="stable")
    ids = ids[[nearest(token, rows, row) == token for token in ids.tolist()]][:count]
    return Candidates(ids, own[ids], own[ids], 1 + np.array([np.count_nonzero(own > own[token]) for token in ids]))


def nearest(token: int, rows: SamplingRows, row: int) -> int:
    """The first token from `token` on, in a circle, that a row may draw."""
    allowed = np.ones(VOCAB, bool)
    if rows.masked is not None and rows.masks is not None and row in rows.masked:
        mask = rows.masks[rows.masked.tolist().index(row)]
        allowed = np.unpackbits(mask.view(np.uint8), bitorder="little")[:VOCAB].astype(bool)
    if row in rows.banned:
        allowed[rows.banned[row]] = False
    return token if allowed[token] else int((np.flatnonzero(np.roll(allowed, -token))[0] + token) % VOCAB)


class PagedFake:
    """An executor whose cache stores token ids: a wrong block, a missed copy or an early reuse changes its answers."""

    max_in_flight = 1
    batch_invariant = True
    local = None
    groups = ONE_GROUP

    def __init__(
        self, num_blocks: int, block_size: int, max_model_len: int = 4096, states: States | None = None
    ) -> None:
        self.states = states
        self.kept = np.full(0 if states is None else states.count, -1, np.int64)  # a recurrent layer's, as `taken_in`
        self.spec = SimpleNamespace(
            vocab_size=VOCAB, max_position_embeddings=max_model_len, encoder=None, generates=True
        )
        self.num_blocks = num_blocks
        self.cache = np.full((num_blocks, block_size), -1, np.int32)
        self.kv = FakeBlocks(self.cache)
        self.batches: list[StepBatch] = []
        self.fail_tokens: set[int] = set()  # last tokens for which the logits are "not finite"
        self.parrot: int | None = None  # of how many tokens, of these few, what it says depends; None: of all
        self.seconds_each = 0.0  # of a token; a step takes a millisecond more
        self.astray = 0  # every how many-th token it says is another than it should be; 0: none
        self.seconds = 1e-3  # of a step
        self.stair = 0.0  # seconds of each four tokens that have begun, as of kernels for four rows
        self.closed = False

    def check_health(self) -> None:
        pass

    def launch(self, batch: StepBatch) -> Wait:
        self.batches.append(batch)
        sources, targets = [s for s, _ in batch.block_copies], [t for _, t in batch.block_copies]
        self.cache[targets] = self.cache[sources]
        for s in range(batch.num_seqs):
            begin, end = batch.query_start[s], batch.query_start[s + 1]
            length = batch.context_lens[s]
            self.write(batch, s, np.arange(length - (end - begin), length), batch.token_ids[begin:end])
        if self.states is not None:
            self._recur(batch)
        tokens, logprobs, found = [], {}, {}
        for row, index in enumerate(batch.sampling.token_index):
            s = np.searchsorted(batch.query_start, index, "right") - 1
            read = self.read(batch, s, batch.context_lens[s] - (batch.query_start[s + 1] - 1 - index))
            adapter = zlib.crc32((batch.adapters[s] if batch.adapters else "").encode())
            if self.states is not None:
                adapter ^= self.taken_in[index] ^ zlib.crc32(read.tobytes())  # 0 unless it goes on from a wrong state
            token = self.said(read, int(batch.sampling.seed[row]) ^ adapter)
            token = nearest(token, batch.sampling, row)
            tokens.append(-1 if int(read[-1]) in self.fail_tokens else token)
            if row in batch.sampling.beams:
                found[row] = following(read, batch.sampling.beams[row], batch.sampling, row)
            if batch.sampling.num_logprobs[row] >= 0:
                logprobs[row] = LogprobRow([token], [-float(token) / VOCAB], 1)
        prompt = [LogprobRow([token], [-float(token) / VOCAB], 1) for _, token, _ in batch.prompt_logprobs]
        seconds = self.seconds_of(batch.num_tokens)
        return finished(StepResult(np.array(tokens, np.int64), logprobs, prompt, seconds, self._pooled(batch), found))

    def seconds_of(self, tokens: int) -> float:
        """What a step takes."""
        return self.seconds + self.seconds_each * tokens + self.stair * -(-tokens // 4)

    def _recur(self, batch: StepBatch) -> None:
        """Take tokens in one by one; in any order of sequences, for none may read what another one writes."""
        rows = batch.states
        source = np.full(batch.num_seqs, -1) if rows is None else rows.source
        saved = {} if rows is None else dict(zip(rows.saved.tolist(), rows.states.tolist(), strict=True))
        assert len(set(saved.values())) == len(saved), "a state is written twice"
        assert (source < 0).tolist() == (batch.context_lens == np.diff(batch.query_start)).tolist()
        self.taken_in = [0] * batch.num_tokens
        for s in range(batch.num_seqs)[:: 1 if len(self.batches) % 2 else -1]:
            now = 0 if source[s] < 0 else int(self.kept[source[s]])
            for index in range(batch.query_start[s], batch.query_start[s + 1]):
                now = zlib.crc32(batch.token_ids[index : index + 1].tobytes(), now)
                self.taken_in[index] = now
                if index in saved:
                    self.kept[saved[index]] = now

    def write(self, batch: StepBatch, s: int, positions: np.ndarray, tokens: np.ndarray) -> None:
        size, blocks = self.cache.shape[1], batch.block_tables[s]
        self.cache[blocks[positions // size], positions % size] = tokens

    def read(self, batch: StepBatch, s: int, length: int) -> np.ndarray:
        """What a sequence's cache holds of its first tokens."""
        blocks = batch.block_tables[s][: -(-length // self.cache.shape[1])]
        return self.cache[blocks].reshape(-1)[:length]

    def said(self, tokens, seed: int) -> int:
        if self.astray and next_token(tokens, 1) % self.astray == 0:
            return next_token(tokens, 2)
        if self.parrot is None:
            return next_token(tokens, seed)
        if len(tokens) % 19 == seed % 19:
            return next_token(tokens, seed) % self.parrot
        return next_token(tokens[-2:]) % self.parrot

    def _pooled(self, batch: StepBatch) -> dict[int, np.ndarray]:
        states = []
        for index in pooled_tokens(batch).tolist():
            s = np.searchsorted(batch.query_start, index, "right") - 1
            length = batch.context_lens[s] - (batch.query_start[s + 1] - 1 - index)
            read = self.read(batch, s, length)
            states.append(np.full(5, np.nan, np.float32) if int(read[-1]) in self.fail_tokens else state(read))
        return pool(batch, np.array(states, np.float32).reshape(-1, 5))

    def load_adapter(self, adapter: Adapter) -> int:
        return 1

    def drop_adapter(self, digest: str) -> None:
        pass

    def close(self) -> None:
        self.closed = True


class WindowFake(PagedFake):
    """An executor whose layers have windows, or some of them.

    Beside each token its cache has a digest of all tokens up to it, made of the digest before it. So it reads, as
    layers do, what its groups hold of a window and of nothing else, and knows whether that is what was written there.
    """

    def __init__(self, num_blocks: int, block_size: int, windows, step: int, max_model_len: int = 4096) -> None:
        super().__init__(num_blocks, block_size, max_model_len)
        self.groups = layer_groups(windows, max_model_len, step)
        self.cache = np.full((num_blocks, block_size, 2), -1, np.int32)
        self.kv = FakeBlocks(self.cache)

    def tables(self, batch: StepBatch, s: int):
        """Block tables of a sequence, and how many positions a token sees through each."""
        groups = self.groups
        tables = batch.block_tables.reshape(groups.count, batch.num_seqs, -1)[:, s]
        return zip(tables, [2**30] * groups.whole + [groups.window] * groups.windowed, strict=True)

    def write(self, batch: StepBatch, s: int, positions: np.ndarray, tokens: np.ndarray) -> None:
        size = self.cache.shape[1]
        for blocks, window in self.tables(batch, s):
            for position, token in zip(positions.tolist(), tokens.tolist(), strict=True):
                seen = self.seen(blocks, position, window - 1)
                digest = chained([token], seen[-1, 1] if len(seen) else 0)
                self.cache[blocks[position // size], position % size] = token, digest

    def read(self, batch: StepBatch, s: int, length: int) -> np.ndarray:
        found = {tuple(self.seen(blocks, length, window)[-1]) for blocks, window in self.tables(batch, s)}
        assert len(found) == 1, "groups hold different texts"
        return np.array([*found], np.int32)[0, ::-1]

    def seen(self, blocks: np.ndarray, length: int, window: int) -> np.ndarray:
        """Tokens and digests of the last `window` of the first `length` positions."""
        size, places = self.cache.shape[1], np.arange(max(0, length - window), length)
        found = self.cache[blocks[places // size], places % size]
        before = 0 if length <= window else None
        for token, digest in found.tolist():
            assert before is None or digest == chained([token], before), "a block is not what was written there"
            before = digest
        return found


def chained(tokens, digest: int = 0) -> int:
    """Digest of tokens that follow those of a digest."""
    for token in tokens:
        digest = zlib.crc32(int(token).to_bytes(4, "little", signed=True), int(digest) & 0x7FFFFFFF) & 0x7FFFFFFF
    return digest


def expected_in_windows(prompt: list[int], count: int, seed: int = 0) -> list[int]:
    """As `expected_tokens`, of a `WindowFake`."""
    tokens, digest = list(prompt), chained(prompt)
    for _ in range(count):
        tokens.append(next_token([digest, tokens[-1]], seed))
        digest = chained(tokens[-1:], digest)
    return tokens[len(prompt) :]


class FakeBlocks:
    """What the cache of a `PagedFake` holds."""

    form = "fake"

    def __init__(self, cache: np.ndarray) -> None:
        self.cache, self.block_bytes = cache, cache[0].nbytes

    def read(self, blocks):
        data = self.cache[np.asarray(blocks, np.int64)].view(np.uint8)
        return lambda: data

    def write(self, blocks, data):
        self.cache[np.asarray(blocks, np.int64)] = data.view(np.int32)


class Shelf:
    """A tier in memory; somebody may hold up what is read."""

    def __init__(self, lost: float = 0.0):
        self.lost, self.random = lost, random.Random(0)  # the share of reads that find a block gone
        self.failures, self.changes = Counter(), deque()
        self.kept, self.open = {}, threading.Event()
        self.open.set()
        self.reads = self.lost_reads = 0
        self.closed = False

    def hashes(self):
        return list(self.kept)

    def lookup(self, chain):
        return next((i for i, block_hash in enumerate(chain) if block_hash not in self.kept), len(chain))

    def read(self, hashes, into):
        assert self.open.wait(60)
        if self.random.random() < self.lost:
            self.kept.pop(hashes[-1], None)
            self.changes.append((False, hashes[-1]))
            self.lost_reads += 1
        self.reads += 1
        for i, block_hash in enumerate(hashes):
            if (row := self.kept.get(block_hash)) is None:
                return i
            into[i] = row
        return len(hashes)

    def write(self, hashes, data):
        self.kept |= dict(zip(hashes, data, strict=True))
        self.changes.extend((True, block_hash) for block_hash in hashes)
        return len(hashes)

    def close(self):
        self.closed = True


class Neighbour:
    """Another engine as a source of blocks, from which no more than some may come; somebody may hold them up."""

    def __init__(self, engine):
        self.failures, self.engine = Counter(), engine
        self.most, self.random = None, random.Random(0)
        self.open, self.reads, self.closed = threading.Event(), 0, False
        self.open.set()

    def read(self, hashes, into):
        assert self.open.wait(60)
        self.reads += 1
        data = self.engine.copy_blocks(hashes)()
        count = len(data) if self.most is None else min(len(data), self.most(self.random))
        into[:count] = data[:count]
        return count

    def close(self):
        self.closed = True


class Neighbours:
    """All by their names."""

    def __init__(self, **known):
        self.known, self.failures = known, Counter()

    def find(self, name):
        return self.known.get(name)

    def close(self):
        for each in self.known.values():
            each.close()


class WholeFake:
    """An encoder: it refuses steps that hold a part of a text."""

    max_in_flight = 1
    groups = ONE_GROUP
    batch_invariant = True
    kv = local = states = None
    num_blocks = 0

    def __init__(self, positions: int = 100) -> None:
        self.spec = SimpleNamespace(vocab_size=VOCAB, max_position_embeddings=positions, encoder="yes", generates=False)
        self.batches: list[StepBatch] = []

    def check_health(self) -> None:
        pass

    def launch(self, batch: StepBatch) -> Wait:
        self.batches.append(batch)
        assert np.diff(batch.query_start).tolist() == batch.context_lens.tolist()
        assert [(row.row, row.start, row.is_last) for row in batch.pooled] == [
            (i, 0, True) for i in range(batch.num_seqs)
        ]
        texts = np.split(batch.token_ids, batch.query_start[1:-1])
        nothing = np.zeros(0, np.int64)
        return finished(StepResult(nothing, {}, [], 1e-3, {i: state(text) for i, text in enumerate(texts)}))

    def close(self) -> None:
        pass


def make_encoder(positions: int = 100, *, max_tokens: int | None = None, **settings) -> Engine:
    config = EngineConfig(**{"max_num_batched_tokens": 32, **settings})
    model = WholeFake(positions)
    executor = BackgroundExecutor(model) if config.async_scheduling else model
    info = PoolingInfo(method="mean", dimensions=5, max_tokens=max_tokens)
    return Engine("fake", executor, config, end_token_ids=(), pooling=info)


def make_drafter(
    num_blocks: int = 400, *, astray: int = 0, seconds: float = 1e-5, parrot: int | None = None, **settings
) -> Drafter:
    """A draft model that is right but for every `astray`-th token, and takes so long for a pass."""
    model = PagedFake(num_blocks, 4)
    model.astray, model.seconds, model.parrot = astray, seconds, parrot
    drafter = Drafter(model, 4, **settings)
    drafter.measure()
    return drafter


def make_engine(
    num_blocks: int = 64,
    *,
    tokenizer=None,
    pooling=None,
    drafter=None,
    tier=None,
    states=None,
    windows=None,
    **settings,
) -> Engine:
    config = EngineConfig(**{"block_size": 4, "max_num_seqs": 8, "max_num_batched_tokens": 32, **settings})
    if windows is None:
        model = PagedFake(num_blocks, config.block_size, states=None if states is None else States(*states, 1))
    else:
        model = WindowFake(num_blocks, config.block_size, windows, config.max_num_batched_tokens)
    executor = BackgroundExecutor(model) if config.async_scheduling else model
    ends = () if tokenizer is None else tokenizer.eos_token_ids
    parts = {"tokenizer": tokenizer, "pooling": pooling, "drafter": drafter, "tier": tier}
    return Engine("fake", executor, config, end_token_ids=ends, **parts)


def model_of(engine: Engine) -> PagedFake:
    """What runs an engine's steps, be it in a thread or not."""
    executor = engine.executor
    return executor.executor if isinstance(executor, BackgroundExecutor) else executor


def make_request(request_id: str, prompt: list[int], seed: int = 0, **params) -> Request:
    own = ("priority", "cache_salt", "adapter", "predicted", "tenant", "weight", "deadline")
    extra = {k: params.pop(k) for k in own if k in params}
    return Request(request_id=request_id, prompt_token_ids=prompt, params=SamplingParams(seed=seed, **params), **extra)


def expected_tokens(prompt: list[int], count: int, seed: int = 0) -> list[int]:
    """What an unbroken run of the fake model yields."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(next_token(tokens, seed))
    return tokens[len(prompt) :]


def run(engine: Engine, max_steps: int = 10_000) -> dict[str, dict[int, list[int]]]:
    """Step until idle; returns tokens by request and sequence."""
    out: dict[str, dict[int, list[int]]] = {}
    for _ in range(max_steps):
        if not engine.has_work:
            break
        for update in engine.step():
            out.setdefault(update.request_id, {}).setdefault(update.index, []).extend(update.token_ids)
    assert not engine.has_work
    engine.check_integrity()
    return out


@pytest.fixture
def fake():
    """The fake model's parts, for tests in this folder (which cannot import each other)."""
    return SimpleNamespace(
        engine=make_engine,
        encoder=make_encoder,
        drafter=make_drafter,
        state=state,
        model=model_of,
        request=make_request,
        expected=expected_tokens,
        expected_in_windows=expected_in_windows,
        run=run,
        VOCAB=VOCAB,
        PagedFake=PagedFake,
        Shelf=Shelf,
        Neighbour=Neighbour,
        Neighbours=Neighbours,
    )


@pytest.fixture(scope="session")
def tiny_llm(tiny_model):
    """A tiny model, as it is used offline."""
    llm = LLM(str(tiny_model("smollm2")), dtype="float32", kv_cache_bytes=2**22, max_num_seqs=8, progress=False)
    yield llm
    llm.close()


@pytest.fixture(scope="session")
def tiny_tokenizer():
    """A byte-level BPE of 600 tokens."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<|end|>", "<|stop|>", "<think>", "</think>", "<call>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = json.dumps({"first_name": "Ada", "year_of_birth": 1815, "languages": ["fr", "de", "en"]})
    backend.train_from_iterator([text, "yes, the abc is done", "no, this is done, maybe the others are"] * 9, trainer)
    return Tokenizer(TokenizerParts(backend, frozenset({0, 1}), None, {}, {}))


@pytest.fixture(scope="session")
def neighbours():
    """Makes engines known by their names as sources of blocks; a fifth of the reads gives fewer than it could."""

    def make(**engines):
        known = {name: Neighbour(engine) for name, engine in engines.items()}
        for each in known.values():
            each.most = lambda rng: rng.choice([0, 1, 100, 100, 100, 100, 100, 100, 100, 100])
        return Neighbours(**known)

    return make
