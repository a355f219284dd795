"""What a gateway and a shard say to each other: plain records, MessagePack on the wire, nothing of which is executed.

    gateway   Submit, after its RequestParts if it is long; Abort
              Ask, four times a second; AskStatistics; AskCourses; PeerAddresses, when they change; Inherit; Manage
    shard     Hello     first of all: who it is, and what its model takes
              Step      what one engine step did to all of the gateway's sequences; PromptPart before it
              Refusal   a request it does not take, or loses
              Blocks    numbered changes of its prefix cache; Snapshot, in parts, to who asks for it
              Report    its load when that changed, and an answer to each Ask; at least one a second
              Statistics  the answer to AskStatistics; Courses, to AskCourses; Managed, to Manage
              Weights   what its model does now, and what it is, when that changes
              Leaving   before it goes

All but what is sent in parts comes in order, so a gateway that sees its own Ask's time again has taken in all that was
said of the cache before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import msgspec

from octavo import errors
from octavo.engine.stats import EngineStats
from octavo.engine.timeline import ShardCourse
from octavo.errors import OctavoError
from octavo.load import LoadedAdapters, Phase, ShardState
from octavo.pooling import PoolingInfo, Task
from octavo.request import PackedLogprobs, Request, SequenceUpdate
from octavo.routing.index import Kind

MAX_MESSAGE = 2**20
"""Bytes of one message; who announces a longer one is given up before it is read. What can be larger goes in parts."""

MAX_PEERS = 4096
"""Shards that are told of each other: 700 KB."""

MAX_SENTENCE = 2000
"""Characters of an error's sentence: Python's own may print whole arrays."""

BEAT_SECONDS = 1.0
"""Longest time between two messages of a shard whose engine lives."""


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a gateway must know about a model to validate and route requests.

    Attributes:
        hash_name: what the engine's block hashes start from.
        max_model_len: tokens of one sequence, prompt and output.
        vocab_size: rows of the model's output; token ids are below it.
        block_size: tokens per KV block.
        tasks: what requests may want of it; one without "generate" keeps no prefix cache, and needs no block hashes.
        pooling: what its checkpoint says of vectors.
    """

    hash_name: str
    max_model_len: int
    vocab_size: int
    block_size: int
    tasks: tuple[Task | Literal["generate"], ...] = ("generate",)
    pooling: PoolingInfo = field(default_factory=lambda: PoolingInfo(tasks=()))


class Address(NamedTuple):
    """Where a shard listens, and the secret that both ends must know (hexadecimal).

    A shard tells it Serve as its metadata, and Serve the gateways: behind Ray's token.
    """

    host: str
    port: int
    secret: str

    def as_metadata(self) -> dict[str, Any]:
        """For Serve's `record_replica_metadata`."""
        return self._asdict()

    @classmethod
    def of(cls, metadata: Mapping[str, Any]) -> Address:
        return cls(metadata["host"], metadata["port"], metadata["secret"])


class Submit(msgspec.Struct, tag=True):
    """Run this request."""

    request: Request


class RequestPart(msgspec.Struct, tag=True):
    """Part of a long request, which follows in a Submit that lacks these tokens and hashes.

    Attributes:
        sequence: whose emitted tokens they are; None: the prompt's.
        hashes: of the prompt's blocks.
    """

    request_id: str
    sequence: int | None
    token_ids: list[int] = []
    hashes: list[bytes] = []


class Abort(msgspec.Struct, tag=True):
    """End a request, or one of its sequences; an id that is not known has just ended."""

    request_id: str
    index: int | None = None


class Ask(msgspec.Struct, tag=True):
    """A gateway is there.

    Attributes:
        time: of its clock; the answering Report brings it back.
        snapshot: whether it needs one.
        pace: seconds between two messages about blocks, and between two reports, at least; it hears of many shards.
    """

    time: float
    snapshot: bool = False
    pace: float = 0.0


class AskStatistics(msgspec.Struct, tag=True):
    """A gateway wants the shard's statistics."""


class AskCourses(msgspec.Struct, tag=True):
    """A gateway wants to know where a request's time went.

    Attributes:
        block: hash of a block that was not found; b"" for none.
    """

    request_id: str
    block: bytes = b""


class PeerAddresses(msgspec.Struct, tag=True):
    """Where the shards of the model give KV blocks, by name: all that do, at most MAX_PEERS."""

    addresses: dict[str, Address]


class Inherit(msgspec.Struct, tag=True):
    """A shard, one of the `PeerAddresses`, is about to leave: this one is to have what is hot there."""

    shard: str


MAX_BROUGHT = 4096
"""Hashes in a `Bring`."""


class Bring(msgspec.Struct, tag=True):
    """Blocks that a request will want which is about to come here: a shard, one of the `PeerAddresses`, has them.

    Attributes:
        hashes: at most MAX_BROUGHT.
    """

    shard: str
    hashes: list[bytes]


Do = Literal["sleep", "wake_up", "stage", "unstage", "switch"]


class Manage(msgspec.Struct, tag=True):
    """Do something with the model's weights (`octavo.engine.served_engine`).

    Attributes:
        ticket: which the answer has.
        level: of sleep.
        path: of other weights.
    """

    ticket: int
    do: Do
    level: int = 1
    path: str = ""


class Hello(msgspec.Struct, tag=True):
    """The shard's first message: its name, and what a request must keep to."""

    shard: str
    model: ModelInfo


class Step(msgspec.Struct, tag=True):
    """What one step did to the gateway's sequences."""

    updates: list[SequenceUpdate]


class PromptPart(msgspec.Struct, tag=True):
    """Part of the log probabilities of a prompt; the request's first update, which lacks them, comes after the last."""

    request_id: str
    logprobs: PackedLogprobs


class Refusal(msgspec.Struct, tag=True):
    """An error of `octavo.errors` ended the request, or kept it from starting."""

    request_id: str
    kind: str
    arguments: tuple[str | float | None, ...]

    @classmethod
    def of(cls, request_id: str, error: Exception) -> Refusal:
        kind, arguments = OctavoError.__name__, (f"{type(error).__name__}: {error}",)
        if isinstance(error, OctavoError) and type(error) is getattr(errors, type(error).__name__, None):
            kind, arguments = type(error).__name__, error.args
        short = (each[:MAX_SENTENCE] if isinstance(each, str) else each for each in arguments)
        return cls(request_id, kind, tuple(short))

    def error(self) -> OctavoError:
        """The error as it was raised."""
        kind: type[OctavoError] = getattr(errors, self.kind, OctavoError)
        return kind(*self.arguments)


class Blocks(msgspec.Struct, tag=True):
    """Changes of the prefix cache, `first` the number of the first; each a kind and the hashes, joined."""

    first: int
    changes: list[tuple[Kind, bytes]]


class Snapshot(msgspec.Struct, tag=True):
    """Part `index` of `count` of the prefix cache as it was at change number `sequence`."""

    sequence: int
    index: int
    count: int
    hashes: bytes


class Report(msgspec.Struct, tag=True):
    """The engine lives.

    Attributes:
        next: number of the next change there will be.
        state: if it changed.
        tickets: of requests that `state` counts for the first time.
        echo: time of the Ask that this answers.
        adapters: those that are loaded, if that changed.
    """

    next: int
    state: ShardState | None = None
    tickets: list[str] = []
    echo: float | None = None
    adapters: LoadedAdapters | None = None


class Statistics(msgspec.Struct, tag=True):
    """The answer to AskStatistics."""

    stats: EngineStats


class Courses(msgspec.Struct, tag=True):
    """The answer to AskCourses: at most MAX_COURSES of MAX_SPANS (`octavo.engine.timeline`), 200 KB.

    Attributes:
        courses: of the request's sequences, by index.
        gone: seconds since the block was evicted, and for which request; None where that is not known.
    """

    request_id: str
    courses: dict[int, ShardCourse]
    gone: tuple[float, str] | None = None


class Managed(msgspec.Struct, tag=True):
    """The answer to Manage, once it is done.

    Attributes:
        weights: what those are called that were staged.
        error: why it was not done.
    """

    ticket: int
    weights: str = ""
    error: Refusal | None = None


class Weights(msgspec.Struct, tag=True):
    """What the model does now.

    Attributes:
        level: of its sleep; 0 while it is awake.
        model: as in Hello, but that its weights may be others by now.
    """

    phase: Phase
    level: int
    model: ModelInfo


class Leaving(msgspec.Struct, tag=True):
    """The shard is about to end: nothing more comes, what has not ended goes on elsewhere."""


ToShard = Submit | RequestPart | Abort | Ask | AskStatistics | AskCourses | PeerAddresses | Inherit | Bring | Manage
_Said = Hello | Step | PromptPart | Refusal | Blocks | Snapshot | Report | Weights | Leaving
ToGateway = _Said | Statistics | Courses | Managed

encode = msgspec.msgpack.Encoder().encode
TO_SHARD: msgspec.msgpack.Decoder[ToShard] = msgspec.msgpack.Decoder(ToShard)
TO_GATEWAY: msgspec.msgpack.Decoder[ToGateway] = msgspec.msgpack.Decoder(ToGateway)
