"""Tenants: who a request's work is charged to, and what they may use. One or several keys belong to each."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self


@dataclass(frozen=True, slots=True)
class Tenant:
    """One of them, as the config says.

    Attributes:
        name: "" is everybody whom nobody has named.
        weight: its share of the machine beside others who wait, relative to theirs.
        requests_per_minute, tokens_per_minute, max_concurrent: quotas (see `quotas`); None: no limit.
        cache_share: part of each shard's KV blocks; cached blocks beyond it go before anybody else's. None: no limit.
    """

    name: str = ""
    weight: float = 1.0
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_concurrent: int | None = None
    cache_share: float | None = None

    @property
    def limited(self) -> bool:
        """Whether it has a quota."""
        return (self.requests_per_minute, self.tokens_per_minute, self.max_concurrent) != (None, None, None)

    @property
    def unlimited(self) -> Self:
        """The same without quotas."""
        return replace(self, requests_per_minute=None, tokens_per_minute=None, max_concurrent=None)

    def among(self, gateways: int) -> Self:
        """The same with the part of its quotas that each of so many gateways grants, at least 1."""
        return replace(
            self,
            requests_per_minute=_part(self.requests_per_minute, gateways),
            tokens_per_minute=_part(self.tokens_per_minute, gateways),
            max_concurrent=_part(self.max_concurrent, gateways),
        )


def _part(quota: int | None, gateways: int) -> int | None:
    return None if quota is None else max(1, quota // gateways)


NOBODY = Tenant()
