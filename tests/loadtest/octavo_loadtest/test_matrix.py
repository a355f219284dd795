from __future__ import annotations

from pathlib import Path

import pytest

from octavo_loadtest import matrix
from octavo_loadtest.errors import LoadTestError

EXAMPLE = Path(__file__).parents[3] / "examples" / "loadtest.yaml"


def test_the_example() -> None:
    config = matrix.read(EXAMPLE)
    (server,) = config.servers
    assert server.command[1:] == ["serve", str(EXAMPLE.parent / "../configs/quickstart.yaml"), "--port", "8123"]
    assert Path(server.command[2]).exists()
    assert list(config.loads) == ["prefill-heavy", "decode-heavy"]
    assert [load.rate for load in config.loads["decode-heavy"]] == [0.5, 1, 2]
    assert config.over == "rate"


def test_servers_that_run_already(tmp_path: Path) -> None:
    file = tmp_path / "two.yaml"
    file.write_text("servers: [{name: a, url: 'http://a:1'}, {url: 'http://b:2'}]\nload: {concurrency: 4}\n")
    config = matrix.read(file)
    assert [(each.name, each.command) for each in config.servers] == [("a", []), ("http://b:2", [])]
    assert config.loads["load"][0].concurrency == 4


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("- a list", "mapping"),
        ("server: {url: x}\ncolour: red", "colour"),
        ("server: {port: 3}", "needs `serve`"),
        ("server: {url: x, image: y}", "image"),
        ("server: {url: x}\nload: {speed: 3}", "speed"),
        ("server: {url: x}\nslo: fast", "fast"),
        ("server: {url: x}\ndefinitions: mine", "mine"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, sentence: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    with pytest.raises(LoadTestError, match=sentence):
        matrix.read(file)
