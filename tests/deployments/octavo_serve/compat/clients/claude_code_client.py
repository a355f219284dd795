"""Claude Code, the command line: two turns of one conversation, and how much of the second was cached."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from cases import CAPITAL, MODEL, URL, check, run

FOLDER = Path(os.environ["COMPAT_FOLDER"])
CLAUDE = FOLDER / "node_modules/.bin/claude"


def ask(folder: str, text: str, *flags: str) -> dict[str, Any]:
    environment = {
        **os.environ,
        "ANTHROPIC_BASE_URL": URL,
        "ANTHROPIC_AUTH_TOKEN": "none",
        "ANTHROPIC_MODEL": MODEL,
        "ANTHROPIC_DEFAULT_HAIKU_MODEL": MODEL,
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "CLAUDE_CONFIG_DIR": str(FOLDER / "claude-home"),
        "DISABLE_AUTOUPDATER": "1",
    }
    command = [str(CLAUDE), "-p", text, "--output-format", "json", *flags]
    done = subprocess.run(
        command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    check(done.returncode == 0, done.stdout[-1500:], done.stderr[-500:])
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def two_turns() -> str:
    with tempfile.TemporaryDirectory() as folder:
        first = ask(folder, CAPITAL)
        check("Paris" in first["result"], first)
        second = ask(folder, "And once more?", "--continue")
    usage = second["usage"]
    read = usage["cache_read_input_tokens"]
    prompt = read + usage["input_tokens"] + (usage["cache_creation_input_tokens"] or 0)
    check(read >= 0.95 * prompt, usage)
    return f"{read} of the second turn's {prompt} prompt tokens were cached: {read / prompt:.1%}"


run("claude-code", "2.1.328", two_turns)
