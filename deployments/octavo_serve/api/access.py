"""Access control: keys, cache namespaces, priorities, and what answers disclose. Knows no HTTP and no Ray.

A key is stored as its SHA-256. Somebody who can read this process's memory could test guesses against the hash, so keys
should be random (32 bytes of `secrets.token_urlsafe`). A slow hash would protect only weak keys, and cost time in every
request.
"""

from __future__ import annotations

import hmac
import logging
import time
from codecs import BOM_UTF8
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b, sha256
from pathlib import Path

from octavo.config import unknown_key
from octavo.errors import BadRequest, ConfigError
from octavo_serve.api.tenants import NOBODY, Tenant

logger = logging.getLogger("ray.serve")

LONGEST_KEY = 512
"""Characters."""
LARGEST_FILE = 65_536
"""Most bytes of a file with keys."""
LOOK_SECONDS = 1.0
"""Seconds between two checks whether a file with keys has changed. A request does the check, in 2 us."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent a request.

    Attributes:
        name: name of its key; "" if there are no keys.
        operator: whether the caller sees what is withheld from others.
        tenant: whom its requests are charged to.
    """

    name: str = ""
    operator: bool = False
    tenant: Tenant = NOBODY


@dataclass(frozen=True, slots=True)
class KnownKey:
    """A stored key: its holder, and its SHA-256 or the file that holds it."""

    holder: Caller
    digest: bytes = b""
    file: Path | None = None


class Keys:
    """The keys of an application.

    Args:
        known: at least one. While a key's file cannot be read, the key is not valid; the file is read again later.
        clock: returns seconds.
    """

    def __init__(self, known: Iterable[KnownKey], clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._known = list(known)
        self._state: list[tuple[int, int, int] | None] | None = None
        self._table: list[tuple[bytes, Caller]] = []
        self._next_look = -1.0
        self._refresh()

    @property
    def names(self) -> list[str]:
        """Names of all holders, each once."""
        return list(dict.fromkeys(key.holder.name for key in self._known))

    def named(self, name: str) -> Caller | None:
        """The holder of this name, while it has a key."""
        return next((key.holder for key in self._known if key.holder.name == name), None)

    def holder(self, key: bytes) -> Caller | None:
        """The holder of a key, which is compared with all keys in constant time; None if it is not valid."""
        self._refresh()
        if len(key) > LONGEST_KEY:
            return None
        digest, found = sha256(key).digest(), None
        for known, holder in self._table:
            if hmac.compare_digest(digest, known):
                found = holder
        return found

    def _refresh(self) -> None:
        now = self._clock()
        if now < self._next_look:
            return
        self._next_look = now + LOOK_SECONDS
        files = [key.file for key in self._known if key.file is not None]
        state = [_state(file) for file in files]
        if state == self._state:
            return
        self._state = state
        self._table = [(digest, key.holder) for key in self._known for digest in _digests(key)]


def _state(file: Path) -> tuple[int, int, int] | None:
    """A value that changes whenever a file's content or permissions change."""
    try:
        found = file.expanduser().stat()
    except (OSError, ValueError, RuntimeError):  # also for impossible file names, and ~ of an unknown user
        return None
    return found.st_ino, found.st_size, found.st_ctime_ns


def _digests(key: KnownKey) -> list[bytes]:
    if key.file is None:
        return [key.digest]
    try:
        return [sha256(text).digest() for text in read_keys(key.file)]
    except ConfigError as error:
        logger.error("The key %r opens nothing: %s", key.holder.name, error)
        return []


def read_keys(file: Path) -> list[bytes]:
    """The keys of a file, one per line; empty lines and lines that begin with # are skipped.

    Raises:
        ConfigError: it cannot be read or has no key, or a line cannot be a key.
    """
    try:
        with file.expanduser().open("rb") as opened:
            content = opened.read(LARGEST_FILE + 1)
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(f"the file {str(file)!r} with keys cannot be read: {error}") from None
    lines = [line.strip() for line in content.removeprefix(BOM_UTF8).splitlines()]  # some editors write a BOM first
    keys = [line for line in lines if line and not line.startswith(b"#")]
    if len(content) > LARGEST_FILE or any(not _is_key(key) for key in keys):
        raise ConfigError(
            f"the file {str(file)!r} must hold keys, a line each, of at most {LONGEST_KEY} visible characters"
        )
    if not keys:
        raise ConfigError(f"the file {str(file)!r} holds no key")
    return keys


def _is_key(text: bytes) -> bool:
    return len(text) <= LONGEST_KEY and all(33 <= byte <= 126 for byte in text)


@dataclass(frozen=True, slots=True)
class Rules:
    """An application's access settings (see `octavo_serve.config.settings.AccessSettings`).

    Attributes:
        keys: None admits everybody.
        isolate_cache: whether each key has a cache namespace of its own.
        priorities: bounds of a client's `priority`; None refuses requests that set it.
        hosts: values of the `Host` header that are accepted beside loopback; None accepts all.
        origins: origins whose web pages may use the API.
        disclose: whether answers tell every caller about cache, shards and failures.
        tenants: of the config, by name.
    """

    keys: Keys | None = None
    isolate_cache: bool = False
    priorities: tuple[int, int] | None = None
    hosts: frozenset[str] | None = None
    origins: tuple[str, ...] = ()
    disclose: bool = True
    tenants: Mapping[str, Tenant] = field(default_factory=dict)

    def tenant(self, name: str) -> Tenant:
        """The tenant that a call by a handle names; "" names none.

        Raises:
            BadRequest: the config has none of that name.
        """
        if name and name not in self.tenants:
            raise BadRequest(unknown_key(name, list(self.tenants), "tenant"), "tenant")
        return self.tenants.get(name, NOBODY)

    def tells(self, caller: Caller | None) -> bool:
        """Whether this caller's answers contain cached tokens and shard names."""
        return self.disclose or (caller is not None and caller.operator)

    def explains(self, caller: Caller | None) -> bool:
        """Whether this caller is told why a model does not answer; the reason may name files of this machine."""
        return self.keys is None or (caller is not None and self.tells(caller))

    def operates(self, caller: Caller) -> bool:
        """Whether this caller may change what is served."""
        return caller.operator or (self.keys is None and self.disclose)

    def cache_salt(self, caller: Caller, salt: str) -> str:
        """The cache namespace of a request with `salt`; inside its key's own one if keys are isolated."""
        if not self.isolate_cache:
            return salt
        return blake2b(f"{caller.name}\0{salt}".encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()

    def priority(self, asked: int) -> int:
        """The effective priority. A request without one has 0, which is put within the bounds too.

        Raises:
            BadRequest: clients may not set a priority.
        """
        if self.priorities is not None:
            least, most = self.priorities
            return min(max(asked, least), most)
        if asked:
            raise BadRequest("priority is not for clients of this server: leave it out", "priority")
        return asked


@dataclass(slots=True)
class Access:
    """Holder of the current rules; replacing them takes effect everywhere at once."""

    rules: Rules = field(default_factory=Rules)
