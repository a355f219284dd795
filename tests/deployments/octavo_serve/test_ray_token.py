from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from octavo.errors import ConfigError
from octavo_serve.ray_token import close_token, keep_token, token_file


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_token_is_made_once_for_its_user_alone(tmp_path: Path) -> None:
    environment = {"HOME": str(tmp_path)}
    keep_token(environment)
    path = tmp_path / ".ray" / "auth_token"
    assert (mode(path), mode(path.parent), len(path.read_text())) == (0o600, 0o700, 64)
    before = path.read_text()
    path.chmod(0o644)  # as Ray leaves it
    keep_token(environment)
    assert (mode(path), path.read_text()) == (0o600, before)


def test_a_token_of_the_users_own_place(tmp_path: Path) -> None:
    keep_token({"HOME": str(tmp_path), "RAY_AUTH_TOKEN": "abc"})
    assert list(tmp_path.iterdir()) == []
    mine = tmp_path / "mine"
    keep_token({"HOME": str(tmp_path), "RAY_AUTH_TOKEN_PATH": str(mine)})
    assert mode(mine) == 0o600
    assert list(tmp_path.iterdir()) == [mine]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_another_users_token_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("theirs")
    os.chown(path, 65534, 65534)
    with pytest.raises(ConfigError, match="another user's"):
        keep_token({"RAY_AUTH_TOKEN_PATH": str(path)})


def test_a_place_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="set RAY_AUTH_TOKEN_PATH"):
        keep_token({"RAY_AUTH_TOKEN_PATH": str(tmp_path / "file" / "token")})


def test_a_token_that_ray_made_is_closed(tmp_path: Path) -> None:
    environment = {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
    close_token(environment)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "token").write_text("rays")
    (tmp_path / "token").chmod(0o644)
    close_token(environment)
    assert mode(tmp_path / "token") == 0o600


def test_a_user_without_a_folder_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nobody)
    with pytest.raises(ConfigError, match="HOME is not set: set RAY_AUTH_TOKEN_PATH"):
        keep_token({})


def test_the_places_are_rays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's own loader finds what was made."""
    from ray._raylet import AuthenticationTokenLoader

    loader = AuthenticationTokenLoader.instance()
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    try:
        keep_token(os.environ)
        loader.reset_cache()
        path = token_file(os.environ)
        assert path is not None
        assert loader.get_raw_token(ignore_auth_mode=True) == path.read_text()
    finally:
        monkeypatch.undo()
        loader.reset_cache()
