from __future__ import annotations

from octavo_loadtest.job import PATHS, Target


def test_every_api_has_its_path() -> None:
    assert [Target("http://a", "m", api).path for api in PATHS] == list(PATHS.values())
    assert Target("http://a", "m").path == "/v1/chat/completions"
