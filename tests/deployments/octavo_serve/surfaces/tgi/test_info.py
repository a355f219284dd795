"""/info tells what a model takes."""

from __future__ import annotations

from typing import Any


def test_a_model(post: Any) -> None:
    told = post("/info", method="GET").json()
    assert (told["model_id"], told["max_input_tokens"], told["max_total_tokens"]) == ("tiny", 255, 256)
    assert told["max_best_of"] == post.service.limits.max_n
    assert post("/info?model=tiny", method="GET").json() == told
    unknown = post("/info?model=other", method="GET")
    assert (unknown.status_code, unknown.json()["error_type"]) == (404, "not_found")
