"""Real, unmodified clients against a real server: `make compat`, or `make compat CLIENT=openai-python`.

Starts `octavo serve scripted.yaml` (the executor is replaced by a script, nothing else), installs each client below
.compat in the version of clients.toml, runs its script, and prints a table. Exit code 1 if a case failed that
clients.toml does not list as known to fail, with the reason.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "proofs"))
sys.path.insert(0, str(Path(__file__).parent))
from install import CLIENTS, FOLDER, HERE, NODE, install, interpreter, version
from running import RunningServer

SECONDS = 300  # for one client's cases


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("clients", nargs="*", help=f"of {', '.join(CLIENTS)}; all")
    options.add_argument("--port", type=int, help="of a server that runs scripted.yaml already, on this machine")
    options.add_argument("--verbose", action="store_true", help="show what the clients print")
    chosen = options.parse_args()
    if unknown := set(chosen.clients) - set(CLIENTS):
        options.error(f"no client {', '.join(sorted(unknown))}")
    print("The model is a script behind the real server: the executor is replaced, nothing else (script.yaml).")
    with RunningServer(HERE / "scripted.yaml", chosen.port) as server:
        results = [told(client, server, chosen.verbose) for client in chosen.clients or CLIENTS]
    sys.exit(1 if [show(result) for result in results].count(False) else 0)


def told(client: str, server: RunningServer, verbose: bool) -> dict[str, Any]:
    """What a client's script says of itself."""
    print(f"... {client}", file=sys.stderr)
    try:
        folder = install(client)
        line = _output(client, folder, server, verbose).strip().rpartition("\n")[2]
        result: dict[str, Any] = json.loads(line)
    except (subprocess.SubprocessError, OSError, json.JSONDecodeError) as error:
        why = f"{type(error).__name__}: {error}"[:300]
        return {"client": client, "version": version(client), "cases": [{"name": "run", "ok": False, "why": why}]}
    return result


def _output(client: str, folder: Path, server: RunningServer, verbose: bool) -> str:
    script = HERE / "clients" / CLIENTS[client]["script"]
    if script.suffix == ".mjs":  # Node looks for packages beside the script
        for file in (script, script.with_name("cases.mjs")):
            shutil.copy(file, folder)
        script = folder / script.name
    given = {"COMPAT_URL": server.url, "COMPAT_MODEL": server.model, "COMPAT_FOLDER": str(folder)}
    path = f"{NODE / 'bin'}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [*interpreter(client), str(script)],
        cwd=folder,
        env={**os.environ, **given, "PATH": path, "HOME": str(FOLDER / "home")},
        stdout=subprocess.PIPE,
        stderr=None if verbose else subprocess.DEVNULL,
        timeout=SECONDS,
        text=True,
        check=False,
    )
    return done.stdout


def show(result: dict[str, Any]) -> bool:
    """Print a client's cases; whether all went as they should."""
    known: dict[str, str] = CLIENTS[result["client"]].get("known", {})
    fine = True
    print(f"\n{result['client']} {result['version']}")
    for case in result["cases"]:
        name, why = case["name"], known.get(case["name"], "")
        expected = case["ok"] or bool(why)
        fine = fine and expected
        mark = "ok" if case["ok"] else "known" if expected else "FAILED"
        print(f"  {mark:7} {name:28} {why if mark == 'known' else case['why']}".rstrip())
    return fine


if __name__ == "__main__":
    main()
