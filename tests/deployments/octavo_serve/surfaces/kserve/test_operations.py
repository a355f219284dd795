"""Health and metadata, by KServe's paths."""

from __future__ import annotations

from typing import Any

import pytest

from octavo_serve.surfaces.kserve.schemas import INPUTS, OUTPUTS


def get(post: Any, path: str) -> tuple[int, Any]:
    answer = post(path, method="GET")
    return answer.status_code, answer.json()


def test_the_server(post: Any) -> None:
    assert get(post, "/v2/health/live") == (200, {"live": True})
    assert get(post, "/v2/health/ready") == (200, {"ready": True})
    assert "binary_tensor_data" in get(post, "/v2")[1]["extensions"]


@pytest.mark.parametrize("path", ["/v2/models/tiny", "/v2/models/tiny/versions/1"])
def test_a_model(post: Any, path: str) -> None:
    status, model = get(post, path)
    assert (status, model["name"], model["versions"]) == (200, "tiny", ["1"])
    assert {one["name"]: one["datatype"] for one in model["inputs"]} == INPUTS
    assert {one["name"]: one["datatype"] for one in model["outputs"]} == OUTPUTS
    config = get(post, f"{path}/config")[1]
    assert [one["name"] for one in config["input"] if not one["optional"]] == ["text_input"]
    assert get(post, f"{path}/ready") == (200, {"name": "tiny", "ready": True})


def test_what_is_not_there(post: Any) -> None:
    for path in ("/v2/models/other", "/v2/models/other/ready", "/v2/models/tiny/versions/2/config"):
        assert get(post, path)[0] == 404


def test_what_cannot_answer(post: Any, service: Any) -> None:
    service.models.entries["tiny"].update(shards=0)
    for path in ("/v2/health/ready", "/v2/models/tiny/ready"):
        status, body = get(post, path)
        assert (status, list(body)) == (503, ["error"])
    assert get(post, "/v2/health/live")[0] == 200
    assert get(post, "/v2/models/tiny")[0] == 200
