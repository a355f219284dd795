"""Ray's authentication token. Whoever has it may run code on the cluster, so only its user may read it."""

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
    """The file in which Ray's processes look for the token; None if the environment holds the token itself.

    These are the places, and their order, of Ray 2.60.

    Raises:
        ConfigError: the user has no home folder.
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
    """Create the token if there is none, readable only by its user: Ray would make it readable by everybody.

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
    """Remove other users' permission to read this user's token file, if there is one."""
    with contextlib.suppress(OSError, ConfigError):
        if (path := token_file(environment)) is not None and path.stat().st_uid == os.geteuid():
            path.chmod(0o600)
