"""Claude Code: a question and another one in the same conversation, of whose prompt nearly all must be cached."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from cases import CAPITAL, MODEL, URL, check, run

FOLDER = Path(os.environ["COMPAT_FOLDER"])
HOME = FOLDER / "home"
COMMAND = ["node", str(FOLDER / "node_modules/@anthropic-ai/claude-code/cli-wrapper.cjs")]
OFFLINE = {"CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1", "DISABLE_AUTOUPDATER": "1", "DISABLE_TELEMETRY": "1"}
CACHED = 0.95
"""Least share of the second turn's prompt."""


def asked(*options: str) -> Any:
    """Its answer, and what the server's usage said of it."""
    environment = os.environ | OFFLINE | {"HOME": str(HOME), "ANTHROPIC_BASE_URL": URL, "ANTHROPIC_API_KEY": "none"}
    command = [*COMMAND, *options, "-p", CAPITAL, "--model", MODEL, "--output-format", "json"]
    done = subprocess.run(command, cwd=HOME, env=environment, capture_output=True, text=True, timeout=120, check=False)
    check(done.returncode == 0, done.stdout[-500:], done.stderr[-500:])
    answer = json.loads(done.stdout)
    check("Paris" in answer["result"], answer["result"])
    return answer["usage"]


def two_turns() -> str:
    shutil.rmtree(HOME, ignore_errors=True)
    HOME.mkdir()
    asked()
    usage = asked("--continue")
    cached = usage["cache_read_input_tokens"] / (usage["cache_read_input_tokens"] + usage["input_tokens"])
    check(cached >= CACHED, usage)
    return f"{cached:.1%} of the second turn's prompt were cached"


run("claude-code", "2.1.328", two_turns)
