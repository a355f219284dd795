"""Prompts computed on other shards than their streams run on, against everything on one: in simulated time.

    .venv/bin/python examples/benchmark_apart.py streams                              # one prompt beside streams
    .venv/bin/python examples/benchmark_apart.py trace mooncake_conversation.jsonl    # a production trace

`streams`: two shards, streams, and prompts of 8,000 tokens that come one after the other; how long a stream's gap is
then. `trace`: Mooncake's, as `benchmark_routing.py` has it; goodput (requests whose first token and whose mean gap come
within limits) in windows, how prompts and streams were spread, and gaps. `--picture` draws the last of these. The last
line of the output is JSON.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from benchmark_routing import at, output_of, rows, tokens_of

from octavo.config import EngineConfig
from octavo.engine.plan import StepPlan
from octavo.rehearsal.fleet import Fleet, SimulatedShard
from octavo.rehearsal.simulated import load_profile
from octavo.request import Request, SamplingParams, SequenceUpdate
from octavo.routing.router import RoutingConfig

PROFILE = "llama-8b-h100"
DECODED = 20
"""Tokens of a prompt that take as long as one of a stream, in the picture."""
SECONDS_A_MINUTE = 60
_LEGEND = (
    "minutes; what each shard's time went to: ",
    '<tspan fill="rgb(220,70,60)">&#9632; prompts</tspan> ',
    '<tspan fill="rgb(60,70,220)">&#9632; streams</tspan>',
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("streams", "trace"))
    parser.add_argument("trace", type=Path, nargs="?")
    parser.add_argument("--requests", type=int, default=1500)
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--scale", type=float, default=0.25)
    parser.add_argument("--time-scale", type=float, default=0.8)
    parser.add_argument("--weight", type=float, default=1.0, help="apart_weight")
    parser.add_argument("--link", type=float, default=25e9, help="bytes a second between two shards")
    parser.add_argument("--target-itl", type=float, default=None)
    parser.add_argument("--first-token", type=float, default=1.0, help="limit of goodput, seconds")
    parser.add_argument("--gap", type=float, default=0.05, help="the same, of a request's mean gap")
    parser.add_argument("--window", type=float, default=30.0)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--no-sharing", action="store_true")
    arguments = parser.parse_args()
    load = streams if arguments.what == "streams" else trace
    found = {name: load(weight, arguments) for name, weight in (("together", 0.0), ("apart", arguments.weight))}
    for name, watched in found.items():
        print(f"{name:10}", *(f"{key} {value:.4g}" for key, value in watched.told(arguments).items()), flush=True)
    together, apart = (each.goodput(arguments) for each in found.values())
    windows = [(together.get(place, (0, 0)), apart.get(place, (0, 0))) for place in sorted(together | apart)]
    print("goodput by window, together and apart:", *(f"{t[0]}/{t[1]} {a[0]}/{a[1]}" for t, a in windows), sep="\n  ")
    if arguments.picture is not None:
        arguments.picture.write_text(picture(found["apart"], arguments))
    print(json.dumps({name: each.told(arguments) for name, each in found.items()} | {"windows": windows}))


class Watched(Fleet):
    """A fleet that notes each gap and where tokens were computed, by second and shard."""

    def __init__(self, *parts: Any, **named: Any) -> None:
        self.gaps: list[float] = []
        self.ends: list[float] = []  # of them
        self.last: dict[str, float] = {}
        self.mean: dict[str, list[float]] = defaultdict(list)
        self.prompts: Counter[tuple[int, str]] = Counter()
        self.decoded: Counter[tuple[int, str]] = Counter()
        super().__init__(*parts, **named)

    def _took(self, update: SequenceUpdate, *, ended: bool) -> None:
        name = update.request_id
        if update.token_ids:
            if name in self.last:
                self.gaps.append(self.now - self.last[name])
                self.ends.append(self.now)
                self.mean[name].append(self.gaps[-1])
            self.last[name] = self.now
        super()._took(update, ended=ended)

    def _commit(self, shard: SimulatedShard, plan: StepPlan, seconds: float) -> None:
        for seq, count in plan.entries:
            (self.decoded if seq.is_decoding else self.prompts)[int(self.now), shard.name] += count
        super()._commit(shard, plan, seconds)

    def told(self, arguments: argparse.Namespace) -> dict[str, float]:
        trips = list(self.trips.values())
        waits = [(trip.first_token or 0.0) - trip.sent for trip in trips]
        goodput = self.goodput(arguments).values()
        return {
            "requests": len(trips),
            "apart": sum(trip.choice.prefill is not None for trip in trips),
            "fetches": sum(trip.choice.reason == "fetch" for trip in trips),
            "hit": sum(trip.cached for trip in trips) / sum(len(trip.request.prompt_token_ids) for trip in trips),
            "ttft_p50": float(np.quantile(waits, 0.5)),
            "ttft_p99": float(np.quantile(waits, 0.99)),
            "gap_p50": float(np.quantile(self.gaps, 0.5)),
            "gap_p99": float(np.quantile(self.gaps, 0.99)),
            "gap_p999": float(np.quantile(self.gaps, 0.999)),
            "gap_beside_p99": float(np.quantile(self.beside() or [0.0], 0.99)),
            "goodput": sum(good for good, _ in goodput) / sum(count for _, count in goodput),
        }

    def beside(self) -> list[float]:
        """Gaps that end while a prompt of more than 4,000 tokens has come and has no first token."""
        long = [(t.sent, t.first_token) for t in self.trips.values() if len(t.request.prompt_token_ids) > 4000]
        ends, gaps = np.array(self.ends), np.array(self.gaps)
        chosen = np.zeros(len(ends), bool)
        for sent, first in long:
            chosen |= (ends > sent) & (ends - gaps < (first or self.now))
        found: list[float] = gaps[chosen].tolist()
        return found

    def goodput(self, arguments: argparse.Namespace) -> dict[int, tuple[int, int]]:
        """By window: requests that came in it and were served in time, and all that came."""
        found: dict[int, tuple[int, int]] = {}
        for name, trip in self.trips.items():
            place = int(trip.sent / arguments.window)
            soon = trip.first_token is not None and trip.first_token - trip.sent <= arguments.first_token
            good, count = found.get(place, (0, 0))
            even = not self.mean[name] or np.mean(self.mean[name]) <= arguments.gap
            found[place] = good + bool(soon and even), count + 1
        return found


def fleet(weight: float, shards: int, engine: EngineConfig, arguments: argparse.Namespace) -> Watched:
    link = arguments.link if weight else 0.0
    return Watched(load_profile(PROFILE), shards, engine, RoutingConfig(apart_weight=weight), link_bytes=link)


def streams(weight: float, arguments: argparse.Namespace) -> Watched:
    """Four streams of 400 tokens a second, and a prompt of 8,000 tokens in each second from the tenth to the 40th."""
    config = EngineConfig(max_num_seqs=64, max_num_batched_tokens=2048, target_itl=arguments.target_itl)
    watched = fleet(weight, 2, config, arguments)

    def send(name: str, tokens: int, answer: int) -> None:
        prompt = np.random.default_rng(len(watched.trips)).integers(32_000, size=tokens).tolist()
        params = SamplingParams(max_tokens=answer, ignore_eos=True)
        watched.send(Request(request_id=name, prompt_token_ids=prompt, params=params))

    for number in range(200):
        watched.at(0.25 * number, lambda number=number: send(f"s{number}", 200, 400))  # type: ignore[misc]
    for number in range(30):
        watched.at(10.0 + number, lambda number=number: send(f"p{number}", 8000, 100))  # type: ignore[misc]
    watched.run()
    return watched


def trace(weight: float, arguments: argparse.Namespace) -> Watched:
    """As `benchmark_routing.simulated`."""
    profile = load_profile(PROFILE)
    config = EngineConfig(
        max_num_seqs=64, max_num_batched_tokens=2048, target_itl=arguments.target_itl,
        kv_cache_bytes=int(profile.kv_cache_bytes * arguments.scale),
    )  # fmt: skip
    watched = fleet(weight, arguments.shards, config, arguments)

    def send(name: str, row: dict[str, Any]) -> None:
        params = SamplingParams(max_tokens=output_of(row, arguments.scale), ignore_eos=True)
        prompt = tokens_of(row, arguments.scale, 0)
        watched.send(Request(request_id=name, prompt_token_ids=prompt, params=params))

    for index, row in enumerate(rows(arguments)):
        watched.at(at(row, arguments), lambda index=index, row=row: send(str(index), row))  # type: ignore[misc]
    watched.run()
    return watched


def picture(watched: Watched, arguments: argparse.Namespace) -> str:
    """What each shard's steps were spent on, by window, as SVG: on prompts (red) or on streams (blue)."""
    windows, left, top, width, height = int(watched.now / arguments.window) + 1, 60, 24, 24, 22
    names = sorted(watched.shards)
    parts = [f'<text x="{left}" y="14">{"".join(_LEGEND)}</text>']
    for row, name in enumerate(names):
        y = top + row * height
        parts.append(f'<text x="4" y="{y + 15}">{name}</text>')
        for place in range(windows):
            span = range(int(place * arguments.window), int((place + 1) * arguments.window))
            prompts = sum(watched.prompts[second, name] for second in span)
            decoded = sum(watched.decoded[second, name] for second in span)
            if not prompts + decoded:
                continue
            share = prompts / (prompts + DECODED * decoded)
            colour = f"rgb({int(60 + 160 * share)},70,{int(220 - 160 * share)})"
            parts.append(
                f'<rect x="{left + place * width}" y="{y}" width="{width - 1}" height="{height - 1}" fill="{colour}">'
                f"<title>{name}: {prompts} prompt tokens, {decoded} decoded</title></rect>"
            )
    bottom = top + len(names) * height
    times = [(place, divmod(int(place * arguments.window), SECONDS_A_MINUTE)) for place in range(0, windows, 3)]
    parts += [f'<text x="{left + place * width}" y="{bottom + 14}">{m}:{s:02}</text>' for place, (m, s) in times]
    size = f'width="{left + windows * width + 8}" height="{bottom + 22}"'
    style = 'font-family="sans-serif" font-size="11"'
    lines = "\n".join(['<rect width="100%" height="100%" fill="white"/>', *parts])
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>\n{lines}\n</svg>\n'


if __name__ == "__main__":
    main()
