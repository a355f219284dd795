"""Rehearsal: an executor that only sleeps for as long as the model's step would take, and makes tokens up.

    seconds = step + token * tokens + sequence * sequences + attended * attended + context * context

as in `octavo.cost_model`. The coefficients come from a profile, a small YAML file that says where each number is from;
see `profiles/`. Scheduler, block pool, prefix cache, text and everything
above are the real ones, so a deployment can be rehearsed on a laptop before its machines are there.

A token depends on nothing but the token before it and its position. So a stream goes on with the same tokens on any
shard and in any batch, and every sequence of a request with n > 1 says the same. End tokens are never drawn: requests
end by `max_tokens`, the context limit or a stop string. Log probabilities are made up too: 1/2 for the token drawn, 1/4
and so on for the alternatives. Temperature, bias and penalties change nothing.

Needs no torch: a shard starts at once and stays small.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from octavo.config import EngineConfig, unknown_key
from octavo.cost_model import Cost, StepWork, attended
from octavo.errors import ConfigError
from octavo.execution.executor import LocalExecutor, Wait, finished
from octavo.layer_groups import ONE_GROUP, LayerGroups
from octavo.pooling import PoolingInfo
from octavo.request import Adapter
from octavo.step import Candidates, Float32, Int64, LogprobRow, PooledRow, SamplingRows, StepBatch, StepResult, Uint32
from octavo.text.tokenizer import Tokenizer

POOLING = PoolingInfo(dimensions=64)
"""Of every rehearsal: a made-up vector depends on the prompt's last token and its length alone."""

PROFILES = Path(__file__).with_name("profiles")

_OPTIONAL = ("script",)
_KEYS = "source", "seconds", "kv_bytes_per_token", "kv_cache_bytes", "max_model_len"
_NUM_WORDS = 4096
_LOG_HALF = math.log(0.5)


@dataclass(frozen=True, slots=True)
class Profile:
    """A machine with a model on it, as far as the engine can tell.

    Attributes:
        source: a sentence per number that says where it comes from.
        script: what is said in place of made-up words (see `octavo.rehearsal.scripted`), as it stands in the file.
        groups: of layers, whose blocks `kv_cache_bytes` holds.
    """

    name: str
    cost: Cost
    kv_bytes_per_token: int
    kv_cache_bytes: int
    max_model_len: int
    source: tuple[str, ...]
    script: Any = None
    groups: LayerGroups = ONE_GROUP


@dataclass(frozen=True, slots=True)
class SimulatedSpec:
    """What the engine asks of a model's shape."""

    vocab_size: int
    max_position_embeddings: int
    encoder: None = None
    generates: bool = True


def load_profile(name: str) -> Profile:
    """Read a profile.

    Args:
        name: of one in `profiles/`, or the path of a YAML file.

    Raises:
        ConfigError: there is none, or a key of it is missing, unknown or no number.
    """
    import yaml

    path = PROFILES / f"{name}.yaml" if "/" not in name and not name.endswith(".yaml") else Path(name).expanduser()
    if not path.is_file():
        known = ", ".join(sorted(found.stem for found in PROFILES.glob("*.yaml")))
        raise ConfigError(f"no rehearsal profile {name!r}: give the path of a YAML file or one of {known}")
    try:
        document = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"the profile {name!r} cannot be read: {error}") from None
    where = f"the profile {name!r}"
    _check_keys(document, _KEYS, where, _OPTIONAL)
    _check_keys(document["seconds"], Cost._fields, f"'seconds' of {where}")
    source = document["source"]
    return Profile(
        path.stem,
        Cost(*(_number(document["seconds"], key, where) for key in Cost._fields)),
        _whole(document, "kv_bytes_per_token", where),
        _whole(document, "kv_cache_bytes", where),
        _whole(document, "max_model_len", where),
        tuple(map(str, source if isinstance(source, list) else [source])),
        document.get("script"),
    )


def _check_keys(document: Any, keys: Sequence[str], where: str, optional: Sequence[str] = ()) -> None:
    if not isinstance(document, dict):
        raise ConfigError(f"{where} must hold {', '.join(keys)}")
    for key in document:
        if key not in (*keys, *optional):
            raise ConfigError(f"{where}: {unknown_key(str(key), [*keys, *optional])}")
    if missing := [key for key in keys if key not in document]:
        raise ConfigError(f"{where} lacks {', '.join(missing)}")


def _number(values: dict[str, Any], key: str, where: str) -> float:
    try:
        value = float(values[key])  # YAML 1.1 reads 1e-3 as a string
    except (TypeError, ValueError):
        value = math.nan
    if not 0 <= value < math.inf:
        raise ConfigError(f"{where}: {key} must be a number of at least 0, got {values[key]!r}")
    return value


def _whole(values: dict[str, Any], key: str, where: str) -> int:
    number = _number(values, key, where)
    if number != int(number) or number < 1:
        raise ConfigError(f"{where}: {key} must be a whole number of at least 1, got {values[key]!r}")
    return int(number)


class SimulatedExecutor:
    """`Executor` over a profile.

    Steps that follow one another keep to an absolute schedule: what a sleep overshot, and what the engine did between
    two steps, is taken off the next one, as an engine that prepares a step while the last one runs would. A lag of more
    than a step is not made up.

    Attributes:
        max_in_flight: 1, for the same reason.

    Args:
        profile: how long a step takes.
        config: its `block_size`, and its `kv_cache_bytes` in place of the profile's.
        words: the token ids to draw from.
        vocab_size: of the tokenizer.
        clock, sleep: of the machine; monotonic seconds.
    """

    max_in_flight: int = 1
    batch_invariant: bool = True
    kv = states = None
    local: LocalExecutor | None = None

    def __init__(
        self,
        profile: Profile,
        config: EngineConfig,
        words: Sequence[int],
        vocab_size: int,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.profile = profile
        self.speed = config.speed_of_shard(0)
        self.spec = SimulatedSpec(vocab_size, profile.max_model_len)
        self.groups = replace(profile.groups, step=config.max_num_batched_tokens)
        self.num_blocks = (config.kv_cache_bytes or profile.kv_cache_bytes) // (
            profile.kv_bytes_per_token * config.block_size
        )
        if not self.num_blocks:
            raise ConfigError(f"kv_cache_bytes holds no block of {config.block_size} tokens of {profile.name}")
        self._words = np.array(words, np.int64)
        self._clock = clock
        self._sleep = sleep
        self._due = -math.inf  # when the last step ended by the schedule
        self._last = 0.0  # its seconds
        self._ends: set[tuple[int, int]] = set()  # its sequences: (first block, tokens in the cache)

    def __str__(self) -> str:
        return f"rehearsal of {self.profile.name} at speed {self.speed:g}"

    def launch(self, batch: StepBatch) -> Wait:
        """Make tokens up, and sleep until the step would be over (other threads run)."""
        seconds = self.seconds(batch)
        now = self._clock()
        self._due = (max(self._due, now - self._last) if self._goes_on(batch) else now) + seconds
        self._last = seconds
        result = self._result(batch, seconds)
        if (rest := self._due - self._clock()) > 0:
            self._sleep(rest)
        return finished(result)

    def seconds(self, batch: StepBatch) -> float:
        """What the step takes by the profile."""
        query = np.diff(batch.query_start).astype(np.int64)
        context = batch.context_lens.astype(np.int64)
        positions = int(attended(context - query, query).sum())
        has_prompts = batch.num_tokens > batch.num_seqs
        work = StepWork(batch.num_tokens, batch.num_seqs, positions, int(context.sum()), has_prompts)
        return self.profile.cost.seconds(work) / self.speed

    def load_adapter(self, adapter: Adapter) -> int:
        """As in `Executor`: any takes no room and changes nothing."""
        return 0

    def drop_adapter(self, digest: str) -> None:
        """As in `Executor`."""

    def check_health(self) -> None:
        """Nothing can break."""

    def close(self) -> None:
        """Nothing to give up."""

    def _goes_on(self, batch: StepBatch) -> bool:
        """Whether a sequence of the last step is in this one too, so that the engine was not idle between them."""
        first = batch.block_tables.reshape(-1, batch.num_seqs, batch.block_tables.shape[-1])[0, :, 0].tolist()
        begins = (batch.context_lens - np.diff(batch.query_start)).tolist()
        goes_on = not self._ends.isdisjoint(zip(first, begins, strict=True))
        self._ends = set(zip(first, batch.context_lens.tolist(), strict=True))
        return goes_on

    def _result(self, batch: StepBatch, seconds: float) -> StepResult:
        rows = batch.sampling
        tokens = self._words[_mix(batch.token_ids[rows.token_index], rows.position) % len(self._words)]
        if rows.masked is not None and rows.masks is not None:
            for row, mask in zip(rows.masked.tolist(), rows.masks, strict=True):
                tokens[row] = _masked(int(tokens[row]), mask)
        for row, banned in rows.banned.items():
            tokens[row] = self._allowed(int(tokens[row]), banned)
        logprobs = {
            row: self._logprobs(int(tokens[row]), int(rows.num_logprobs[row]), rows.named.get(row))
            for row in np.flatnonzero(rows.num_logprobs >= 0).tolist()
        }
        prompt = [self._logprobs(token, count) for _, token, count in batch.prompt_logprobs]
        pooled = {each.row: _vector(batch, each) for each in batch.pooled if each.is_last}
        found = {row: self._following(int(tokens[row]), row, rows) for row in rows.beams}
        return StepResult(tokens, logprobs, prompt, seconds, pooled, found)

    def _following(self, token: int, row: int, rows: SamplingRows) -> Candidates:
        """The token, and where nothing says what may be drawn the words after it, each half as likely."""
        free = row not in rows.banned and (rows.masked is None or row not in rows.masked)
        others = np.roll(self._words, -int(np.argmax(self._words == token)))[: rows.beams[row] if free else 0]
        ids = np.array([token, *others[others != token].tolist()], np.int64)[: rows.beams[row]]
        ranks = np.arange(1, len(ids) + 1)
        scores = (_LOG_HALF * ranks).astype(np.float32)
        return Candidates(ids, scores, scores, ranks)

    def _allowed(self, token: int, banned: Int64) -> int:
        """The token, or the next word after it that is not banned (the token itself when all are)."""
        if token not in banned:
            return token
        start = int(np.flatnonzero(self._words == token)[0])
        following = np.roll(self._words, -start)
        allowed = following[~np.isin(following, banned)]
        return int(allowed[0]) if len(allowed) else token

    def _logprobs(self, token: int, count: int, named: Int64 | None = None) -> LogprobRow:
        others = [other % self.spec.vocab_size for other in range(token + 1, token + count)]
        ids = [token, *([token] if count else []), *others]
        values = [_LOG_HALF * place for place in range(1, count + 1)]
        asked = [] if named is None else named.tolist()
        far = [_LOG_HALF * (1 + (other - token) % self.spec.vocab_size) for other in asked]
        return LogprobRow([*ids, *asked], [_LOG_HALF, *values, *far], 1, len(asked))


def _vector(batch: StepBatch, pooled: PooledRow) -> Float32:
    """A made-up vector, with values in [-1, 1)."""
    last = batch.token_ids[batch.query_start[pooled.row + 1] - 1]
    places = np.arange(POOLING.dimensions, dtype=np.int64) + int(batch.context_lens[pooled.row]) * POOLING.dimensions
    return (_mix(np.full(POOLING.dimensions, last), places) / 2**30 - 1).astype(np.float32)


def _masked(token: int, mask: Uint32) -> int:
    """The token, or the next one, in a circle, that the mask allows."""
    allowed = np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))
    return int(allowed[np.searchsorted(allowed, token) % len(allowed)]) if len(allowed) else token


def readable_tokens(tokenizer: Tokenizer) -> list[int]:
    """Up to 4,096 ids whose text is printable ASCII with a letter, so that every token shows; all if there are none."""
    words = (
        token_id
        for token_id in range(tokenizer.vocab_size)
        if not tokenizer.is_special(token_id) and token_id not in tokenizer.eos_token_ids
        and _readable(tokenizer.token_text(token_id))
    )  # fmt: skip
    return [token_id for token_id, _ in zip(words, range(_NUM_WORDS), strict=False)] or [*range(tokenizer.vocab_size)]


def _readable(text: str) -> bool:
    return text.isascii() and text.isprintable() and any(map(str.isalpha, text))


def _mix(previous: np.ndarray, position: np.ndarray) -> Int64:
    """A hash in [0, 2**31) of the token before and the position: SplitMix64's finaliser (Steele et al., 2014)."""
    x = previous.astype(np.uint64) << np.uint64(32) ^ position.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ x >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ x >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    mixed: Int64 = (x >> np.uint64(33)).astype(np.int64)
    return mixed
