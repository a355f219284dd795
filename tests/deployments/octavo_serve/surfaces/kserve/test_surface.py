"""A path names the model, whose name may hold slashes, and the one version that it has."""

from __future__ import annotations

import pytest
from starlette.routing import compile_path

from octavo.errors import UnknownModel
from octavo_serve.surfaces.kserve.surface import SURFACES, model_of


@pytest.mark.parametrize(
    "path", ["/v2/models/a/b/infer", "/v2/models/a/b/versions/1/infer", "/v2/models/a/b/versions/1/generate_stream"]
)
def test_names_with_slashes(path: str) -> None:
    found = (compile_path(surface.path)[0].match(path) for surface in SURFACES)
    assert model_of(next(match.groupdict() for match in found if match)) == "a/b"


def test_versions() -> None:
    with pytest.raises(UnknownModel, match="the version 1 alone"):
        model_of({"model": "a", "version": "2"})
