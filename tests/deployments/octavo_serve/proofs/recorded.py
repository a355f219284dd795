"""A production trace on shards that scale, and of which some are killed: recorded, decided again, and foretold.

    python tests/deployments/octavo_serve/proofs/recorded.py mooncake_conversation.jsonl --requests 400

1. `octavo serve` with three to eight rehearsed shards gets Mooncake's trace (as in examples/benchmark_routing.py) while
   `--kills` of them are killed; scheduler, router and autoscaler are recorded. Each must decide again what it decided.
2. The same is simulated, with shards that die and come; and what becomes of the requests on `--shards` shards with
   `--max-num-seqs`.
3. They are sent to such a server, which is recorded too. Medians and 90th percentiles must be within 15 % of what came.

`--speed` is the shards': so slow that all eight are needed. How many steps each shard ran, and how many shards there
were at once, is told; so is what the autoscaler makes of it in simulated time, which is no bar: a start takes here as
long as a busy laptop lets it.

Exit code 1 if anything differs. The last line of the output is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
import yaml

from octavo.recording import find_recordings
from octavo.rehearsal.replay import replay_file
from octavo.rehearsal.scaled import ScaledRerun, scaling_of
from octavo.rehearsal.traffic import Traffic, read_traffic
from octavo.rehearsal.whatif import Measures, Rerun, Slo, changed, measures
from octavo.routing.router import RoutingConfig

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[4] / "examples"))
from benchmark_routing import WARM_UP, at, body_of, config, replay, rows
from running import RunningServer

LEAST, MOST = 3, 8
"""Shards of the recorded server."""


def main() -> None:
    options = arguments()
    folder = Path(tempfile.mkdtemp(prefix="recorded"))
    print("recordings are in", folder, flush=True)
    failed = serve(options, folder / "first", {"min": LEAST, "max": MOST, "warm": MOST - LEAST}, options.kills)
    began = time.monotonic()
    replayed = [replay_file(file) for file in find_recordings(folder / "first")]
    replay_seconds = time.monotonic() - began
    differ = [str(each.path) for each in replayed if each.difference is not None]
    traffic = read_traffic(folder / "first")
    errors = {"as it was": apart(simulated(traffic, {}, None), measures(traffic.told, Slo()))}
    began = time.monotonic()
    predicted = simulated(traffic, {"max_num_seqs": options.max_num_seqs}, options.shards)
    predicted_seconds = time.monotonic() - began
    scaled = ScaledRerun(traffic, changed(traffic, {}), routing_of(traffic), scaling_of(traffic, LEAST, MOST, {}))
    errors_scaled = apart(measures(scaled.outcome(), Slo()), measures(traffic.told, Slo()))
    failed += serve(options, folder / "second", options.shards, 0, options.max_num_seqs)
    second = read_traffic(folder / "second")
    came = measures(second.told, Slo())
    errors["what if"] = apart(predicted, came)
    kinds = [f"{each.kind}: {each.frames.total()} frames, {each.digest}" for each in replayed]
    print(*kinds, sep="\n")
    print(json.dumps({
        "failed": failed, "differ": differ, "recordings": len(replayed), "replay_s": replay_seconds,
        "predicted_s": predicted_seconds, "predicted": msgspec.to_builtins(predicted, str_keys=True),
        "came": msgspec.to_builtins(came, str_keys=True), "errors": errors,
        "on_the_way_p90_s": [delay(traffic), delay(second)], **used(traffic),
        "scaled": errors_scaled | {"shards": scaled.shards_on_average(), "recorded": traffic.shards_on_average()},
    }))  # fmt: skip
    worst = max(abs(error) for each in errors.values() for error in each.values())
    sys.exit(bool(differ or failed or worst > 0.15))


def arguments() -> argparse.Namespace:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("trace", type=Path)
    options.add_argument("--requests", type=int, default=300)
    options.add_argument("--time-scale", type=float, default=3.2, help="times as slow as the trace's talks, made short")
    options.add_argument("--kills", type=int, default=2)
    options.add_argument("--shards", type=int, default=8)
    options.add_argument("--max-num-seqs", type=int, default=16)
    options.add_argument("--speed", type=float, default=0.1, help="of the shards")
    options.set_defaults(scale=0.25, no_sharing=False)
    return options.parse_args()


def serve(options: argparse.Namespace, folder: Path, replicas: Any, kills: int, max_num_seqs: int = 64) -> int:
    """Send the trace to a recorded server; returns how many requests got no whole answer."""
    document = config("prefix_affinity", argparse.Namespace(shards=replicas, scale=options.scale))
    (model,) = document["applications"][0]["args"]["models"]
    model["engine"] |= {"record": str(folder), "max_num_seqs": max_num_seqs, "rehearsal_speed": options.speed}
    model["engine"]["target_itl"] /= options.speed
    model |= {"max_ongoing_requests": 10_000, "max_queue_s": 600}  # nobody is refused before the shards have come
    path = folder.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(document))
    bodies = [(at(row, options), "", body_of(row, options, 0)) for row in rows(options)]
    with RunningServer(path, None) as server:
        answers = asyncio.run(send(server, bodies, body_of(WARM_UP, options, 0), kills))
    return sum(answer is None for answer in answers)


async def send(server: RunningServer, bodies: list[Any], warm: bytes, kills: int) -> list[float | None]:
    await replay(server.port, [(0.0, "", warm)] * 16)
    killing = asyncio.create_task(kill(server, kills, bodies[-1][0] / (kills + 1)))
    answers, _ = await replay(server.port, bodies)
    killing.cancel()
    return answers


async def kill(server: RunningServer, kills: int, pause: float) -> None:
    for number in range(kills):
        await asyncio.sleep(pause)
        os.kill(random.Random(number).choice(server.shards()), signal.SIGKILL)


def simulated(traffic: Traffic, settings: dict[str, Any], shards: int | None) -> Measures:
    return measures(Rerun(traffic, changed(traffic, settings), routing_of(traffic), shards).outcome(), Slo())


def routing_of(traffic: Traffic) -> RoutingConfig:
    return traffic.routing or RoutingConfig()


def used(traffic: Traffic) -> dict[str, Any]:
    """Steps of each shard, and how many shards there were at once, at most, that ran a hundred or more."""
    machines = [machine for machine in traffic.machines if len(machine.steps) >= 100]
    at_once = max(sum(one.since <= each.since < one.until for one in machines) for each in machines)
    return {"steps": sorted((len(each.steps) for each in traffic.machines), reverse=True), "at_once": at_once}


def delay(traffic: Traffic) -> float:
    """Seconds from a gateway's decision until a shard took a request in; simulation knows none of a busy machine's."""
    return sorted(told.taken - told.came for told in traffic.told)[len(traffic.told) * 9 // 10]


def apart(told: Measures, came: Measures) -> dict[str, float]:
    """How far medians and 90th percentiles are from what came, as a share of that."""
    pairs = [(name, share) for name in ("ttft", "itl") for share in (50, 90)]
    return {f"{name} p{share}": getattr(told, name)[share] / getattr(came, name)[share] - 1 for name, share in pairs}


if __name__ == "__main__":
    main()
