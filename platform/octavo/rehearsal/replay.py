"""Has the real scheduler, router and autoscaler go through a recording again, and compares what they decide with it.

What is told again makes frames as it did then. They are compared byte for byte; the first that differs ends the replay.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import msgspec

from octavo.engine.recorded import EngineFrame
from octavo.errors import ConfigError
from octavo.recording import Frame, Write, kind_of, read_frames
from octavo.rehearsal.engine_replay import EngineReplay
from octavo.routing.recorded import RouterFrame, RouterReplay
from octavo.scaling.recorded import ScalerFrame, ScalerReplay


class Replay(Protocol):
    """Somebody who decides again; makes one frame for each that is applied.

    Attributes:
        now: seconds on the clock of who was recorded.
    """

    now: float

    def apply(self, frame: Any) -> None: ...


class Kind(NamedTuple):
    """Who may be recorded: what is written, and what begins with the first frame."""

    frames: Any
    begin: Callable[[Any, Write], Replay]


KINDS = {
    "engine": Kind(EngineFrame, EngineReplay),
    "router": Kind(RouterFrame, RouterReplay),
    "scaler": Kind(ScalerFrame, ScalerReplay),
}


@dataclass(frozen=True, slots=True)
class Difference:
    """The first frame of a replay that is not the recorded one.

    Attributes:
        number: of the frame.
        recorded, replayed: its fields that differ.
    """

    number: int
    frame: str
    recorded: dict[str, Any]
    replayed: dict[str, Any]


@dataclass(slots=True)
class Replayed:
    """What came of a replay.

    Attributes:
        kind: who was recorded.
        frames: by their names.
        digest: of all that was decided, with what it was decided on.
        difference: None where all is as recorded.
    """

    path: Path
    kind: str
    seconds: float = 0.0
    digest: str = ""
    frames: Counter[str] = field(default_factory=Counter)
    difference: Difference | None = None


def replay_file(path: Path) -> Replayed:
    """Replay a recording, up to the first difference.

    Raises:
        ConfigError: it cannot be read, is none, or is damaged.
    """
    made: list[Frame] = []
    frames = read_recording(path)
    begun = next(frames, None)
    found = Replayed(path, kind_of(path))
    with following(path):
        replay = KINDS[found.kind].begin(begun, made.append)
    start, encode, digest = replay.now, msgspec.msgpack.Encoder().encode, blake2b(digest_size=8)
    for frame in frames:
        with following(path):
            replay.apply(frame)
            encoded = encode(made.pop())
        digest.update(encoded)
        if encoded != encode(frame):
            found.difference = _difference(found.frames.total() + 1, frame, encoded)
            break
        found.frames[type(frame).__name__] += 1
    found.seconds, found.digest = replay.now - start, digest.hexdigest()
    return found


def read_recording(path: Path) -> Iterator[Frame]:
    """The frames of a recording; the first says who was recorded.

    Raises:
        ConfigError: it cannot be read, is none, or is damaged.
    """
    kind = kind_of(path)
    if kind not in KINDS:
        raise ConfigError(f"{path} is a recording of a {kind}, which this version does not know")
    decode = msgspec.msgpack.Decoder(KINDS[kind].frames).decode
    try:
        for encoded in read_frames(path):
            yield decode(encoded)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:  # also of texts that are not UTF-8
        raise ConfigError(f"{path} is damaged, or of another version: {error}") from None


@contextmanager
def following(path: Path) -> Iterator[None]:
    """Within this somebody does what frames say; where one says what nobody can have done, the recording is damaged."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        raise ConfigError(f"{path} cannot be followed: it is damaged, or of another version ({what:.200})") from error


def _difference(number: int, recorded: Frame, encoded: bytes) -> Difference:
    replayed = msgspec.msgpack.decode(encoded, type=type(recorded))
    names = [name for name in recorded.__struct_fields__ if getattr(recorded, name) != getattr(replayed, name)]
    sides = [{name: getattr(frame, name) for name in names} for frame in (recorded, replayed)]
    return Difference(number, type(recorded).__name__, *sides)
