"""canitoolcall's live probe, every check a case: nine scenarios, whole and streamed, and both beside each other."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from cases import MODEL, URL


def _how(check: dict[str, Any]) -> str:
    return "both" if check["check"] == "stream_equals_nonstream" else "streamed" if check["stream"] else "whole"


command = [str(Path(sys.executable).with_name("canitoolcall")), "probe", "--base-url", f"{URL}/v1", "--model", MODEL]
probe = subprocess.run([*command, "--json", "-"], stdout=subprocess.PIPE, text=True, timeout=250, check=False)
cases = [
    {
        "name": f"{each['scenario_id']} {_how(each)}",
        "ok": each["status"] == "pass",
        "why": each["detail"] or "",
    }
    for each in json.loads(probe.stdout)["outcomes"]
]
print(json.dumps({"client": "canitoolcall", "version": "0.1.1", "cases": cases}))
