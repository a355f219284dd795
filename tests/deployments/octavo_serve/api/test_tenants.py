"""Tenants, and what each of several gateways grants them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo_serve.api.tenants import NOBODY, Tenant


@pytest.mark.parametrize("quota", ["requests_per_minute", "tokens_per_minute", "max_concurrent"])
def test_who_has_a_quota_is_limited(quota: str) -> None:
    tenant = Tenant("a", **{quota: 1})  # type: ignore[arg-type]
    assert (tenant.limited, tenant.unlimited, NOBODY.limited) == (True, Tenant("a"), False)


@given(quota=st.integers(1, 10**12), gateways=st.integers(1, 64))
def test_gateways_grant_no_more_than_the_quota_together_unless_they_are_more(quota: int, gateways: int) -> None:
    part = Tenant("a", tokens_per_minute=quota).among(gateways)
    assert part.tokens_per_minute is not None
    assert 1 <= part.tokens_per_minute <= max(1, quota / gateways)
    assert part.requests_per_minute is None
