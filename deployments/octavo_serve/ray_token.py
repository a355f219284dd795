"""Ray's token: who has it may run code on the cluster, so nobody but its user may read it."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from octavo.errors import ConfigError

MODE = "RAY_AUTH_MODE"
UNAUTHENTICATED = (
    "This Ray cluster asks nobody who they are: whoever reaches its ports can run code on it, as its user, and read "
    "every prompt. It was started without RAY_AUTH_MODE=token; see docs/security.md."
)


def token_file(environment: Mapping[str, str]) -> Path | None:
    """Where Ray's processes find the token; None where it is in the environment itself.

    These are the places, and their order, of Ray 2.60.

    Raises:
        ConfigError: the user has no folder.
    """
    if environment.get("RAY_AUTH_TOKEN"):
        return None
    if path := environment.get("RAY_AUTH_TOKEN_PATH"):
        return Path(path)
    try:
        return Path(environment.get("HOME") or Path.home()) / ".ray" / "auth_token"
    except RuntimeError:  # a user without a name, as in some containers
        raise ConfigError("HOME is not set: set RAY_AUTH_TOKEN_PATH to a file of yours, for Ray's token") from None


def keep_token(environment: Mapping[str, str]) -> None:
    """Make the token unless there is one, readable for its user alone: Ray itself makes it readable for everybody.

    Raises:
        ConfigError: the file is another user's, or cannot be made.
    """
    if (path := token_file(environment)) is None:
        return
    try:
        _keep(path)
    except OSError as error:
        raise ConfigError(
            f"{path}: Ray's token cannot be kept there ({error.strerror}): set RAY_AUTH_TOKEN_PATH to a file of yours"
        ) from None


def _keep(path: Path) -> None:
    if not path.exists() or not path.stat().st_size:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        made = path.with_name(f"{path.name}.{os.getpid()}")
        made.touch(mode=0o600)
        made.write_text(secrets.token_hex(32))
        made.replace(path)
    found = path.stat()
    if found.st_uid != os.geteuid():
        raise ConfigError(f"{path}: Ray's token is another user's: set RAY_AUTH_TOKEN_PATH to a file of yours")
    if found.st_mode & 0o077:
        path.chmod(0o600)


def close_token(environment: Mapping[str, str]) -> None:
    """Take from others the right to read a token that is this user's, where there is one."""
    with contextlib.suppress(OSError, ConfigError):
        if (path := token_file(environment)) is not None and path.stat().st_uid == os.geteuid():
            path.chmod(0o600)
