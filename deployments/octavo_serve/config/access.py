"""Settings of who may ask: keys, tenants, priorities, web pages."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from octavo.config import unknown_key
from octavo.errors import ConfigError
from octavo_serve.api.access import Caller, Keys, KnownKey, Rules
from octavo_serve.api.tenants import Tenant
from octavo_serve.config.base import Settings

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
"""Of keys and tenants: what is safe in logs, labels and file names."""
Quota = Annotated[int, Field(ge=1, le=10**12)]


def _key(value: object) -> object:
    if value is not None and not (isinstance(value, str) and re.fullmatch(r"[!-~]{1,512}", value)):
        raise ValueError("a key is a string of 1 to 512 visible ASCII characters")
    return value


class ApiKey(Settings):
    """One key that opens the API, by one of four ways; see docs/access.md.

    Attributes:
        name: of whoever holds it, in logs and metrics. Several entries may share a name: an old key and its successor.
        key: its text, for tests: it stands in the config.
        file: a file with the key, or with several, a line each; read again when it changes.
        env: an environment variable with the key, of the process that reads the config.
        sha256: of its text, 64 hexadecimal digits: no secret is in the config then.
        operator: whoever holds it sees what `AccessSettings.disclose` withholds from others.
        tenant: whom its requests are charged to, an entry of `tenants`; None: a tenant of the key's own name.
    """

    name: Annotated[str, Field(pattern=NAME)]
    key: Annotated[str | None, BeforeValidator(_key), Field(repr=False)] = None
    file: Annotated[str, Field(min_length=1)] | None = None
    env: Annotated[str, Field(min_length=1)] | None = None
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    operator: bool = False
    tenant: Annotated[str, Field(pattern=NAME)] | None = None

    @model_validator(mode="after")
    def _has_one_way(self) -> Self:
        if sum(way is not None for way in (self.key, self.file, self.env, self.sha256)) != 1:
            raise ValueError("a key needs its name and one of key, file, env or sha256")
        return self

    @property
    def of(self) -> str:
        """The name of its tenant."""
        return self.tenant or self.name

    def sealed(self) -> ApiKey:
        """The same entry without its secret: what `key` or `env` held as its SHA-256.

        Raises:
            ConfigError: the environment variable is not set, or holds no key.
        """
        if self.key is None and self.env is None:
            return self
        text = self.key if self.env is None else os.environ.get(self.env, "").strip()
        if not text:
            raise ConfigError(f"the environment variable {self.env} of the key {self.name!r} is not set, or empty")
        digest = sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
        return ApiKey(name=self.name, sha256=digest, operator=self.operator, tenant=self.tenant)

    def known(self, tenants: Mapping[str, Tenant]) -> KnownKey:
        """The same, sealed, as the gateway keeps it."""
        holder = Caller(self.name, self.operator, tenants[self.of])
        if self.file is not None:
            return KnownKey(holder, file=Path(self.file))
        return KnownKey(holder, bytes.fromhex(self.sealed().sha256 or ""))


class TenantSettings(Settings):
    """Who uses this server; one or several keys belong to each tenant. See docs/tenants.md.

    Attributes:
        name: in metrics and in /v1/usage.
        weight: its share of the machine while others wait, relative to theirs.
        requests_per_minute, tokens_per_minute: quotas, of which each gateway grants its part; None: no limit.
        max_concurrent: requests that may run or wait at once; None: no limit.
        cache_share: part of each shard's KV blocks; cached blocks beyond it go before anybody else's. None: no limit.
    """

    name: Annotated[str, Field(pattern=NAME)]
    weight: Annotated[float, Field(ge=0.001, le=1000)] = 1.0
    requests_per_minute: Quota | None = None
    tokens_per_minute: Quota | None = None
    max_concurrent: Quota | None = None
    cache_share: Annotated[float, Field(gt=0, le=1)] | None = None

    @property
    def tenant(self) -> Tenant:
        """The same as the gateway needs it."""
        return Tenant(**self.model_dump())


class PriorityRange(Settings):
    """What clients may say in `priority`: lower goes first, and what is outside is taken as the nearer end."""

    min: int = Field(0, ge=-(2**63), lt=2**63)
    max: int = Field(0, ge=-(2**63), lt=2**63)

    @model_validator(mode="after")
    def _bounds_are_in_order(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min {self.min} must not be above max {self.max}")
        return self


def _given(value: object) -> object:
    """An `api_keys` without keys is a mistake that would open the door: it is refused."""
    if not value:
        raise ValueError("api_keys has no entry: leave it out to serve without keys")
    if not isinstance(value, list) or not all(isinstance(entry, dict | ApiKey) for entry in value):
        raise ValueError("api_keys is a list of entries such as {name: alice, file: alice.key}")
    return value


def _origin(value: str) -> str:
    if value != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/\s?#@]+", value):
        raise ValueError(f'{value!r} is not an origin: write it like https://app.example.com, or "*" for all')
    return value


def _host(value: str) -> str:
    name = value.lower().removesuffix(".").removeprefix("[").removesuffix("]")
    if name != "*" and not re.fullmatch(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*|[0-9a-f.]*:[0-9a-f.]*:[0-9a-f:.]*", name):
        raise ValueError(f'{value!r} is not a host: write its name or address without a port, or "*" for all')
    return name


class AccessSettings(Settings):
    """Who may ask, and what answers tell (see `octavo_serve.api.access`, docs/access.md).

    Attributes:
        api_keys: with any, everything but /health needs one of them.
        tenants: weights and quotas of those who use the server; a key that is in none is a tenant without limits.
        isolate_cache: what one key's prompts left in the prefix cache serves no other key's.
        client_priority: what a client's `priority` may be; None refuses it.
        allowed_hosts: names beside those of this machine's loopback that a request's `Host` may say; "*" is any. None
            checks nothing where the server listens on more than loopback.
        cors_origins: web pages of these origins may use the API; "*" is any.
        disclose: whether answers tell cached tokens, shards and why they were chosen, and why a model has failed. None
            tells it where the server listens on loopback and has no keys.
    """

    api_keys: Annotated[list[ApiKey], BeforeValidator(_given)] = Field(default_factory=list)
    tenants: list[TenantSettings] = Field(default_factory=list, max_length=1024)
    isolate_cache: bool = False
    client_priority: PriorityRange | None = None
    allowed_hosts: list[Annotated[str, AfterValidator(_host)]] | None = None
    cors_origins: list[Annotated[str, AfterValidator(_origin)]] = Field(default_factory=list)
    disclose: bool | None = None

    @model_validator(mode="after")
    def _namespaces_need_names(self) -> Self:
        if self.isolate_cache and not self.api_keys:
            raise ValueError("isolate_cache keeps the prompts of different keys apart: it needs api_keys")
        return self

    @model_validator(mode="after")
    def _tenants_are_there(self) -> Self:
        names = [tenant.name for tenant in self.tenants]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"two tenants are called {twice!r}: give each its own name")
        for key in self.api_keys:
            if key.tenant is not None and key.tenant not in names:
                raise ValueError(f"the key {key.name!r}: {unknown_key(key.tenant, names, 'tenant')}")
        return self

    def rules(self, loopback: bool, gateways: int = 1) -> Rules:
        """The same as the gateway needs it; files with keys are read.

        Args:
            loopback: the server listens on nothing else.
            gateways: among which the quotas are divided.
        """
        tenants = {key.of: Tenant(key.of) for key in self.api_keys}
        tenants |= {each.name: each.tenant.among(gateways) for each in self.tenants}
        priority, hosts = self.client_priority, self.allowed_hosts
        checked = [] if hosts is None and loopback else hosts
        return Rules(
            Keys(key.known(tenants) for key in self.api_keys) if self.api_keys else None,
            self.isolate_cache,
            None if priority is None else (priority.min, priority.max),
            None if checked is None or "*" in checked else frozenset(checked),
            tuple(self.cors_origins),
            (loopback and not self.api_keys) if self.disclose is None else self.disclose,
            tenants,
        )
