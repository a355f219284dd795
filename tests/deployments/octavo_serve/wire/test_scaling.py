from __future__ import annotations

import msgspec
import pytest

from octavo_serve.wire.scaling import Change, Scaling, decode_scaling, encode_scaling, scaling_key


def test_what_is_kept_is_read_again() -> None:
    kept = Scaling(1000.5, 3, 2, "coming", 2.41, {"coming": 1}, [Change(999.0, 2, 3, "coming", 2.41, met=False)])
    assert decode_scaling(encode_scaling(kept)) == kept


def test_what_is_not_a_decision_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError):
        decode_scaling(b'{"decided_at": "now"}')


def test_each_deployment_has_a_key_of_its_own() -> None:
    assert scaling_key("octavo", "shard-a") != scaling_key("octavo", "shard-b")
