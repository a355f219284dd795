"""Sleep and other weights over HTTP: who may ask for it, for which model, and what everybody else is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from octavo.errors import ModelError
from octavo_serve.api.access import Caller, Keys, KnownKey, Rules
from octavo_serve.api.model import Updated
from octavo_serve.api.registry import ModelEntry

ASK = {"prompt": "Once", "max_tokens": 4}


class Noted:
    """A keeper that notes what it is told."""

    def __init__(self, entry: ModelEntry) -> None:
        self.entry = entry
        self.paths: list[str] = []

    async def sleep(self, level: int) -> None:
        self.entry.update(asleep=level)

    async def wake_up(self) -> None:
        self.entry.update(asleep=0)

    async def update(self, path: str) -> Updated:
        if path.endswith("damaged"):
            raise ModelError("they are damaged")
        self.paths.append(path)
        return Updated("ab12", 3, 1.5, 0.25)


@pytest.fixture
def entry(service: Any, tmp_path: Path) -> ModelEntry:
    entry: ModelEntry = service.models.entries["tiny"]
    entry.keeper = Noted(entry)
    for name in ("folder/new", "folder/damaged", "elsewhere"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "folder" / "link").symlink_to(tmp_path / "elsewhere")
    entry.update(weight_folders=(str(tmp_path / "folder"),))
    return entry


def sleeping(post: Any) -> tuple[bool, int]:
    answer = post("/is_sleeping", method="GET").json()
    return answer["is_sleeping"], answer["level"]


def test_a_model_that_sleeps_says_so_everywhere_and_wakes_up(post: Any, entry: ModelEntry) -> None:
    assert sleeping(post) == (False, 0)
    assert post("/sleep").json()["message"] == "tiny is asleep"
    assert sleeping(post) == (True, 1)
    refused = post("/v1/completions", ASK)
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
    assert "model 'tiny' is asleep until an operator wakes it; try again later" in refused.text
    assert post("/v1/models", method="GET").json()["data"][0]["status"] == "asleep"
    health = post("/health", method="GET")
    assert (health.status_code, health.json()["status"]) == (200, "ok")
    assert health.json()["models"]["tiny"] == {"status": "asleep", "reason": "level 1; POST /wake_up wakes it"}
    assert post("/ping", method="GET").status_code == 503
    assert post("/sleep?level=2&model=tiny&mode=wait").status_code == 200
    assert sleeping(post) == (True, 2)
    assert post("/wake_up?tags=weights&tags=kv_cache").json()["message"] == "tiny is awake"
    assert sleeping(post) == (False, 0)
    assert post("/v1/completions", ASK).status_code == 200


@pytest.mark.parametrize(
    ("path", "status", "sentence"),
    [
        ("/sleep?level=3", 400, "level"),
        ("/sleep?level=0", 400, "level"),
        ("/sleep?mode=abort", 400, "mode"),
        ("/sleep?model=other", 404, "does not exist"),
        ("/sleep?levle=1", 400, "did you mean 'level'"),
        ("/wake_up?tags=weights", 400, "tags must be weights and kv_cache"),
        ("/wake_up?model=other", 404, "does not exist"),
    ],
)
def test_what_is_wrong_is_said(post: Any, entry: ModelEntry, path: str, status: int, sentence: str) -> None:
    answer = post(path)
    assert (answer.status_code, sentence in answer.text) == (status, True), answer.text
    assert not entry.asleep


def test_other_weights_come_from_the_folders_that_the_config_names(post: Any, entry: Any, tmp_path: Path) -> None:
    answer = post("/v1/update_weights", {"path": "new"})
    assert answer.json() == {
        "message": "tiny has other weights now",
        "weights": "ab12",
        "shards": 3,
        "seconds": {"load": 1.5, "switch": 0.25},
    }
    assert post("/v1/update_weights", {"path": str(tmp_path / "folder" / "new"), "model": "tiny"}).status_code == 200
    assert entry.keeper.paths == [str(tmp_path / "folder" / "new")] * 2
    for path in ("../elsewhere", "/etc", ".", "link", "nowhere", "a\0b", str(tmp_path)):
        answer = post("/v1/update_weights", {"path": path})
        assert (answer.status_code, "in none of the model's weight_folders" in answer.text) == (400, True)
    damaged = post("/v1/update_weights", {"path": "damaged"})
    assert (damaged.status_code, "cannot be taken: they are damaged" in damaged.text) == (400, True)
    assert post("/v1/update_weights", {}).status_code == 400
    entry.update(weight_folders=())
    assert "weight_folders in the config says" in post("/v1/update_weights", {"path": "new"}).text
    assert len(entry.keeper.paths) == 2


def test_operators_alone_may(post: Any, entry: ModelEntry) -> None:
    keys = Keys([KnownKey(Caller("a"), b"x")])
    asks = [("/sleep", None), ("/wake_up", None), ("/v1/update_weights", {"path": "new"})]
    for rules in (Rules(disclose=False), Rules(keys=keys)):
        post.access.rules = rules
        for path, body in asks:
            answer = post(path, body)
            assert answer.status_code in (401, 403), answer.text
            if rules.keys is None:
                assert "by operators" in answer.text
    assert not entry.asleep
    assert entry.keeper.paths == []  # type: ignore[union-attr]


def test_a_model_without_shards_of_its_own_has_no_such_thing(post: Any, entry: ModelEntry) -> None:
    entry.keeper = None
    assert "not kept by shards" in post("/sleep").text
