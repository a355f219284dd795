"""CompatCanary's scan, every probe a case."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from cases import MODEL, URL

FOLDER = Path(os.environ["COMPAT_FOLDER"])
command = ["node", str(FOLDER / "node_modules/compatcanary/src/cli.js"), "scan", "--base-url", f"{URL}/v1"]
command += ["--model", MODEL, "--format", "json", "--api-key", "none"]
report = json.loads(subprocess.run(command, capture_output=True, text=True, timeout=250, check=False).stdout)
probes = report.get("results") or report["probes"]
cases = [
    {"name": probe["id"], "ok": probe["status"] == "pass", "why": "" if probe["status"] == "pass" else probe["summary"]}
    for probe in probes
]
print(json.dumps({"client": "compatcanary", "version": "0.2.2", "cases": cases}))
