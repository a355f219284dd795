"""Settings of who may ask: no key comes into a message, a dump or a log."""

from __future__ import annotations

from hashlib import sha256

import pytest

from octavo.errors import BadRequest, ConfigError
from octavo_serve.api.access import Caller, Rules
from octavo_serve.api.model import Price
from octavo_serve.api.tenants import Tenant
from octavo_serve.config.settings import load_settings

MODEL = {"name": "a", "source": "b"}

NO_KEYS = [
    ([{"name": "a", "key": "sk-secret"}, {"name": "b", "key": "sk-secret"}], "'a' and 'b' have the same key"),
    (None, "api_keys has no entry"),
    ([], "api_keys has no entry"),
    ("sk-secret", "api_keys is a list of entries"),
    (["sk-secret"], "api_keys is a list of entries"),
    ({"alice": "sk-secret"}, "api_keys is a list of entries"),
    ([{"name": "alice"}], "one of key, file, env or sha256"),
    ([{"key": "sk-secret"}], "setting 'api_keys.0.name' is required"),
    ([{"name": "alice", "key": "sk-secret", "env": "KEY"}], "one of key, file, env or sha256"),
    ([{"name": "alice", "kye": "sk-secret"}], "unknown setting 'kye': did you mean 'key'? in api_keys.0"),
    ([{"name": "alice", "key": ""}], "visible ASCII characters"),
    ([{"name": "alice", "key": "sk-secret two"}], "visible ASCII characters"),
    ([{"name": "alice", "key": 7_777_777}], "visible ASCII characters"),
    ([{"name": "alice", "sha256": "sk-secret"}], "api_keys.0.sha256 string should match"),
    ([{"name": "a b", "key": "sk-secret"}], "api_keys.0.name string should match"),
]


@pytest.mark.parametrize(("keys", "sentence"), NO_KEYS)
def test_what_is_wrong_with_a_key_is_said_without_it(keys: object, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings({"models": [MODEL], "api_keys": keys}).sealed()
    assert sentence in str(caught.value)
    assert "secret" not in str(caught.value)
    assert "7777777" not in str(caught.value)


def test_what_serve_keeps_has_no_text_of_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCTAVO_TEST_KEY", "sk-secret-env\n")
    keys = [
        {"name": "alice", "key": "sk-secret-inline", "operator": True},
        {"name": "bob", "env": "OCTAVO_TEST_KEY", "tenant": "acme"},
        {"name": "carol", "file": "carol.key"},
        {"name": "dave", "sha256": sha256(b"sk-dave").hexdigest()},
    ]
    tenants = [{"name": "acme", "weight": 4, "requests_per_minute": 60, "max_concurrent": 1}]
    settings = load_settings({"models": [MODEL], "api_keys": keys, "tenants": tenants})
    assert "inline" not in repr(settings)
    sealed = settings.sealed()
    assert "secret" not in repr(sealed) + str(sealed.as_args())
    again = load_settings(sealed.as_args())
    assert (again, again.sealed()) == (sealed, sealed)
    rules = again.rules(loopback=True, gateways=2)
    assert rules.keys is not None
    found = [rules.keys.holder(key) for key in (b"sk-secret-inline", b"sk-secret-env", b"sk-dave", b"sk-secret")]
    assert found == [
        Caller("alice", operator=True, tenant=Tenant("alice")),
        Caller("bob", tenant=Tenant("acme", 4.0, requests_per_minute=30, max_concurrent=1)),
        Caller("dave", tenant=Tenant("dave")),
        None,
    ]


@pytest.mark.parametrize("value", [None, "", "\n"])
def test_a_variable_that_is_not_set_is_named(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    monkeypatch.delenv("OCTAVO_TEST_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("OCTAVO_TEST_KEY", value)
    with pytest.raises(ConfigError, match="environment variable OCTAVO_TEST_KEY of the key 'bob' is not set"):
        load_settings({"models": [MODEL], "api_keys": [{"name": "bob", "env": "OCTAVO_TEST_KEY"}]}).sealed()


def rules(loopback: bool, **more: object) -> Rules:
    return load_settings({"models": [MODEL], **more}).rules(loopback)


def test_the_defaults_depend_on_who_can_reach_the_server() -> None:
    keys = [{"name": "alice", "key": "sk-alice"}]
    assert [(r.hosts, r.disclose) for r in (rules(True), rules(False))] == [(frozenset(), True), (None, False)]
    assert [rules(loopback, api_keys=keys).disclose for loopback in (True, False)] == [False, False]
    assert rules(False, api_keys=keys, disclose=True).disclose
    assert rules(False, allowed_hosts=["A.example", "[::2]"]).hosts == {"a.example", "::2"}
    assert rules(True, allowed_hosts=["*"]).hosts is None
    assert rules(True, client_priority={"max": 5}).priorities == (0, 5)


WRONG_TENANTS = [
    ([{"name": "a"}, {"name": "a"}], "two tenants are called 'a'"),
    ([{"name": "acne"}], "the key 'alice': unknown tenant 'acme': did you mean 'acne'?"),
    ([{"name": "a", "weight": 0}], "tenants.0.weight must be greater than or equal to 0.001, got 0"),
    ([{"name": "a", "weight": float("nan")}], "tenants.0.weight"),
    ([{"name": "a", "weight": 1e300}], "tenants.0.weight must be less than or equal to 1000"),
    ([{"name": "a", "requests_per_minute": 0}], "requests_per_minute must be greater than or equal to 1, got 0"),
    ([{"name": "a", "tokens_per_minute": 10**30}], "tokens_per_minute must be less than or equal to 1000000000000"),
    ([{"name": "a", "tokens_per_minute": 1.5}], "tokens_per_minute must be a valid integer"),
    ([{"name": "a", "max_concurent": 1}], "did you mean 'max_concurrent'? in tenants.0"),
    ([{"name": "a", "cache_share": 1.1}], "cache_share must be less than or equal to 1"),
    ([{"name": ""}], "tenants.0.name string should match"),
    ([{"name": 'a"b'}], "tenants.0.name string should match"),
    ([{"name": f"t{i}"} for i in range(1025)], "tenants must have at most 1024 entries"),
]


@pytest.mark.parametrize(("tenants", "sentence"), WRONG_TENANTS)
def test_what_is_wrong_with_a_tenant_is_named(tenants: object, sentence: str) -> None:
    keys = [{"name": "alice", "key": "sk-alice", "tenant": "acme"}]
    with pytest.raises(ConfigError) as caught:
        load_settings({"models": [MODEL], "api_keys": keys, "tenants": tenants})
    assert sentence in str(caught.value)


def test_calls_by_a_handle_name_tenants_of_the_config_and_of_the_keys() -> None:
    found = rules(True, tenants=[{"name": "acme", "weight": 4}], api_keys=[{"name": "alice", "key": "sk-alice"}])
    assert (found.tenant("acme").weight, found.tenant("alice"), found.tenant("")) == (4.0, Tenant("alice"), Tenant())
    with pytest.raises(BadRequest, match="unknown tenant 'acne': did you mean 'acme'"):
        found.tenant("acne")


def test_a_price_for_what_is_cached_is_that_of_prompts_unless_it_is_said() -> None:
    def price(**price: float) -> Price:
        return load_settings({"models": [{**MODEL, "price": price}]}).models[0].price.price

    assert (price(), price(prompt=2.0, completion=8)) == (Price(), Price(2.0, 2.0, 8.0))
    assert price(prompt=2.0, cached=0) == Price(2.0, 0.0, 0.0)
