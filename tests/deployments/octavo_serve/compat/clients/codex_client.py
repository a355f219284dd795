"""Codex, the command line: a small edit in a repository of its own, offline."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path

from cases import MODEL, URL, check, run

FOLDER = Path(os.environ["COMPAT_FOLDER"])
CONFIG = f"""
model = "{MODEL}"
model_provider = "octavo"
model_context_window = 131072

[model_providers.octavo]
name = "Octavo"
base_url = "{URL}/v1"
wire_api = "responses"
request_max_retries = 0
stream_max_retries = 0
"""


def edit() -> str:
    home = FOLDER / "codex-home"
    home.mkdir(exist_ok=True)
    home.joinpath("config.toml").write_text(CONFIG)
    with tempfile.TemporaryDirectory() as name:
        notes = Path(name, "notes.txt")
        notes.write_text("one\n")
        subprocess.run(["git", "init", "-q", name], check=True)
        command = ["node", str(FOLDER / "node_modules/@openai/codex/bin/codex.js"), "exec", "--json"]
        command += ["--sandbox", "danger-full-access", "-C", name, "Add a line that says two to notes.txt."]
        environment = {**os.environ, "CODEX_HOME": str(home)}
        done = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False
        )
        check(notes.read_text() == "one\ntwo\n", notes.read_text(), done.stdout[-1500:], done.stderr[-500:])
    usage = [json.loads(line) for line in done.stdout.splitlines() if '"turn.completed"' in line][-1]["usage"]
    return f"{usage['input_tokens']} tokens in, {usage['cached_input_tokens']} of them cached"


run("codex", "0.169.0", edit)
