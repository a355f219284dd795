"""This load tester beside guidellm and aiperf: one server, the same prompts, all at once with a request at a time each.

    .venv/bin/python examples/peers/loadtesters.py --guidellm guidellm --aiperf aiperf [--requests 24]

The server is the load tester's own fake one, slow enough for a busy machine to add less than a percent. Every figure
that two tools define alike is printed by both, ours by their definition; exit code 1 if one differs by more than 3 %.
Each is installed apart: `python -m venv V && V/bin/pip install guidellm==0.8.1`, and aiperf==0.13.0.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from octavo_loadtest.fake_server import Behaviour, running

SERVER = Behaviour(ttft=0.8, itl=0.1)
PROMPT_TOKENS, OUTPUT_TOKENS = 128, 24
BOUND = 0.03
Figures = dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--guidellm", help="its executable")
    parser.add_argument("--aiperf", help="its executable")
    parser.add_argument("--requests", type=int, default=24, help="of each tool; the first two are not counted by ours")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), given)
    rows = [row for peer in ("guidellm", "aiperf") if peer in found for row in compared(found, peer)]
    for peer, name, ours, theirs, off in rows:
        print(f"{peer:>9} {name:>10} {ours:10.2f} {theirs:10.2f} {off:+7.2%}")
    print(json.dumps({"worst": max(abs(row[-1]) for row in rows)}))
    sys.exit(any(abs(row[-1]) > BOUND for row in rows))


def compared(found: dict[str, Figures], peer: str) -> Iterator[tuple[str, str, float, float, float]]:
    """(tool, figure, ours by its definition, its own, how far ours is off)."""
    for name, theirs in found[peer].items():
        ours = found[f"ours by {peer}"][name]
        yield peer, name, ours, theirs, ours / theirs - 1


def measure(folder: Path, given: argparse.Namespace) -> dict[str, Figures]:
    """Figures by tool, in ms; all run at once, so that they meet the same server."""
    write_inputs(folder, given.requests)
    with running(SERVER) as fake:
        commands = {"ours": ours_command(fake.url, given.requests)}
        if given.guidellm:
            commands["guidellm"] = guidellm_command(given.guidellm, fake.url, given.requests)
        if given.aiperf:
            commands["aiperf"] = aiperf_command(given.aiperf, fake.url, given.requests)
        logs = {name: (folder / f"{name}.log").open("w") for name in commands}
        children = {
            name: subprocess.Popen(command, cwd=folder, stdout=logs[name], stderr=subprocess.STDOUT)
            for name, command in commands.items()
        }
        for name, child in children.items():
            if child.wait() != 0:
                sys.exit(f"{name} failed:\n{(folder / f'{name}.log').read_text()[-2000:]}")
    return dict(figures(folder, [name for name in commands if name != "ours"]))


def write_inputs(folder: Path, requests: int) -> None:
    """The same prompts for all, in the words of each, and a tokenizer of words for those that want one."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    draw = random.Random(1)
    prompts = [" ".join(str(draw.randrange(10**6)) for _ in range(PROMPT_TOKENS)) for _ in range(requests)]
    lines: dict[str, list[dict[str, Any]]] = {
        "ours": [{"prompt": each, "output_length": OUTPUT_TOKENS} for each in prompts],
        "guidellm": [{"prompt": each, "output_tokens_count": OUTPUT_TOKENS} for each in prompts],
        "aiperf": [{"text": each, "output_length": OUTPUT_TOKENS} for each in prompts],
    }
    for name, each in lines.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in each))
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    (folder / "tokenizer").mkdir()
    tokenizer.save(str(folder / "tokenizer" / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "[UNK]"}
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(config))


def ours_command(url: str, requests: int) -> list[str]:
    load = ["--workload", "ours.jsonl", "--arrivals", "closed", "--concurrency", "1", "--requests", str(requests)]
    return [sys.executable, "-m", "octavo_loadtest", "load", url, *load, "--out", "ours"]


def guidellm_command(executable: str, url: str, requests: int) -> list[str]:
    return [
        *(executable, "run", "--backend", f"kind=openai_http,target={url},model=fake", "--disable-console"),
        *("--tokenizer", "kind=hf_auto,model=tokenizer", "--data", "kind=json_file,path=guidellm.jsonl"),
        *("--profile", "kind=concurrent,streams=1", "--constraint", f"kind=max_requests,count={requests}"),
        *("--output", "kind=json,path=guidellm.json"),
    ]


def aiperf_command(executable: str, url: str, requests: int) -> list[str]:
    return [
        *(executable, "profile", "--model", "fake", "--url", url, "--endpoint-type", "chat", "--streaming"),
        *("--tokenizer", "tokenizer", "--input-file", "aiperf.jsonl", "--custom-dataset-type", "single_turn"),
        *("--use-server-token-count", "--concurrency", "1", "--request-count", str(requests), "--ui", "none"),
        *("--extra-inputs", f"max_tokens:{OUTPUT_TOKENS}", "--use-legacy-max-tokens", "--artifact-dir", "aiperf"),
    ]


# ---- reading what they wrote --------------------------------------------------------------------------------------


def figures(folder: Path, peers: list[str]) -> Iterator[tuple[str, Figures]]:
    for peer in peers:
        yield peer, guidellm_figures(folder) if peer == "guidellm" else aiperf_figures(folder)
        yield f"ours by {peer}", our_figures(folder, peer)


def our_figures(folder: Path, definitions: str) -> Figures:
    command = [
        sys.executable,
        "-m",
        "octavo_loadtest",
        "report",
        "ours",
        "--definitions",
        definitions,
        "--out",
        "again",
    ]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    run = json.loads((folder / "again" / "report.json").read_text())["points"][0]["runs"][0]
    found = {
        f"{key} {short}": run["latency"][key]["headline"][statistic] * 1e3
        for key in ("ttft", "itl", "tpot", "e2e")
        for short, statistic in (("mean", "mean"), ("p50", "p50"))
    }
    return found | {"tokens": run["lengths"]["output"]["realised_mean"]}


def guidellm_figures(folder: Path) -> Figures:
    metrics = json.loads((folder / "guidellm.json").read_text())["benchmarks"][0]["metrics"]
    names = {"ttft": "time_to_first_token_ms", "itl": "inter_token_latency_ms", "tpot": "time_per_output_token_ms"}
    found = {
        f"{key} {short}": metrics[name]["successful"][statistic]
        for key, name in names.items()
        for short, statistic in (("mean", "mean"), ("p50", "median"))
    }
    whole = metrics["request_latency"]["successful"]
    found |= {"e2e mean": whole["mean"] * 1e3, "e2e p50": whole["median"] * 1e3}
    return found | {"tokens": metrics["output_token_count"]["successful"]["mean"]}


def aiperf_figures(folder: Path) -> Figures:
    exported = json.loads((folder / "aiperf" / "profile_export_aiperf.json").read_text())
    names = {"ttft": "time_to_first_token", "itl": "inter_token_latency", "e2e": "request_latency"}
    found = {
        f"{key} {short}": exported[name][statistic]
        for key, name in names.items()
        for short, statistic in (("mean", "avg"), ("p50", "p50"))
    }
    return found | {"tokens": exported["output_sequence_length"]["avg"]}


if __name__ == "__main__":
    main()
