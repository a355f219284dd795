from __future__ import annotations

import pytest

from octavo_serve.command.joining import collision

OURS = {"name": "octavo", "route_prefix": "/"}


@pytest.mark.parametrize(
    ("app", "there", "sentence"),
    [
        (OURS, {}, None),
        (OURS, {"theirs": "/theirs"}, None),
        (OURS, {"octavo": "/else"}, "an application called 'octavo'"),
        (OURS, {"theirs": "/"}, "'theirs' on that cluster answers at / already"),
        ({}, {"default": None}, "an application called 'default'"),
        (OURS | {"route_prefix": None}, {"theirs": None}, None),
        (OURS | {"runtime_env": {"env_vars": {"A": "B"}}}, {}, "runtime_env is not possible with --address"),
        (OURS | {"deployments": [{"name": "gateway"}]}, {}, "deployments is not possible with --address"),
    ],
)
def test_what_is_there_is_not_touched(
    app: dict[str, object], there: dict[str, str | None], sentence: str | None
) -> None:
    said = collision([app], there)
    assert said is None if sentence is None else sentence in str(said)
