"""Verdicts on whether a run can be trusted. Each is good, warn or bad, and states its numbers."""

from __future__ import annotations

import math
from typing import Any

LAG_BOUND = 0.03  # s at p99: a client that wakes up later stamps bytes later
CPU_BOUND = 0.85  # of one core
LATE_BOUND = 0.05  # s at p99 between schedule and send
LENGTH_BOUND = 0.05  # of the planned length


def judge(summary: dict[str, Any]) -> list[dict[str, str]]:
    """All verdicts on a summary."""
    answers = (_prompts,) if summary["target"]["api"] == "embeddings" else (_cache, _lengths, _chunks)
    checks = (_client, _schedule, _whole, _steady, _warmup, _failures, *answers, _enough, _queue)
    return [check(summary) for check in checks] + _slos(summary)


def _line(level: str, name: str, text: str) -> dict[str, str]:
    return {"level": level, "name": name, "text": text}


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms"


def _client(summary: dict[str, Any]) -> dict[str, str]:
    client = summary["client"]
    lag, cpu = client["lag_p99_s"], client["cpu_share_max"]
    ttft = summary["latency"]["ttft"]["from_sent"]["p50"] or math.inf
    numbers = f"event loop {_ms(lag)} late at p99, busiest sender {cpu:.0%} of a core"
    if cpu > CPU_BOUND:
        return _line("bad", "client", f"the client was the limit: {numbers}; use more --processes")
    if lag > LAG_BOUND:
        return _line(
            "bad", "client", f"the client came late: {numbers}; the machine it runs on is busy with other work"
        )
    if lag > 0.1 * ttft:
        return _line("warn", "client", f"the client's own delay is over a tenth of the TTFT: {numbers}")
    return _line("good", "client", f"not the limit: {numbers}")


def _schedule(summary: dict[str, Any]) -> dict[str, str]:
    client = summary["client"]
    if summary["closed"]:
        return _line("good", "schedule", "closed loop: there is none, and waiting before a send does not show")
    numbers = f"sent {_ms(client['late_p50_s'])} after the schedule at p50, {_ms(client['late_p99_s'])} at p99"
    if client["late_p99_s"] <= LATE_BOUND:
        return _line("good", "schedule", f"kept: {numbers}")
    if summary["load"]["concurrency"]:
        return _line("warn", "schedule", f"held back by the cap on requests in flight, and charged for it: {numbers}")
    return _line("bad", "schedule", f"not kept: {numbers}")


def _whole(summary: dict[str, Any]) -> dict[str, str]:
    planned, due, sent = (summary["counts"][key] for key in ("planned", "due", "sent"))
    if sent >= planned:
        return _line("good", "plan", f"all {planned} requests were sent")
    unsent = f", {due - sent} more were due and not sent: failures" if due > sent else ""
    if summary["counts"]["interrupted"]:
        return _line("warn", "plan", f"interrupted after {sent} of {planned} requests{unsent}")
    return _line("warn", "plan", f"{sent} of {planned} requests were sent before the end{unsent}; --drain waits longer")


def _steady(summary: dict[str, Any]) -> dict[str, str]:
    steady, overall = summary["throughput"]["steady"], summary["throughput"]["overall"]
    if steady["end"] == overall["end"]:
        return _line(
            "warn", "steady", "arrivals took less than two answers: rates are of the whole run, ramp and drain"
        )
    return _line("good", "steady", f"rates are of {steady['end'] - steady['start']:.1f} s without ramp and drain")


def _warmup(summary: dict[str, Any]) -> dict[str, str]:
    asked, done = summary["load"]["warmup"], summary["counts"]["warmup"]
    if not asked:
        return _line("warn", "warm-up", "none was asked for: the first requests may pay for a cold server")
    return _line("good" if done else "warn", "warm-up", f"{done} requests before the run, not counted")


def _cache(summary: dict[str, Any]) -> dict[str, str]:
    cache = summary["cache"]
    if not cache["reported_by"]:
        return _line("warn", "prefix cache", "the server does not report cached tokens: contamination cannot be seen")
    prompts = max(1, cache["prompt_tokens"])
    numbers = f"{cache['reported'] / prompts:.1%} of prompt tokens cached, {cache['intended'] / prompts:.1%} intended"
    if cache["contaminated"]:
        return _line(
            "bad", "prefix cache", f"contaminated: {numbers}, {cache['unintended']:.0f} tokens beyond the plan"
        )
    return _line("good", "prefix cache", f"clean: {numbers}")


def _failures(summary: dict[str, Any]) -> dict[str, str]:
    counts = summary["counts"]
    if not counts["failed"] and not counts["interrupted"]:
        return _line("good", "failures", f"none of {counts['due']} requests")
    parts = [f"{number} {name}" for name, number in counts["errors"].items()]
    parts += ["interrupted"] if counts["interrupted"] else []
    text = f"{counts['failed']} of {counts['due']} requests, infinite in the headline: {', '.join(parts)}"
    return _line("bad" if counts["failed"] > 0.01 * counts["due"] else "warn", "failures", text)


def _lengths(summary: dict[str, Any]) -> dict[str, str]:
    pair, prompt, counter = (summary["lengths"][key] for key in ("output", "prompt", "counted_by"))
    off = abs(pair["realised_mean"] / pair["planned_mean"] - 1) if pair["planned_mean"] else math.nan
    numbers = f"answers {pair['realised_mean']:.0f} tokens of {pair['planned_mean']:.0f} planned (mean)"
    if counter == "chunks":
        numbers += "; the server sends no usage, so chunks were counted as tokens: --tokenizer counts them"
        return _line("warn", "lengths", numbers)
    if math.isnan(prompt["planned_mean"]):
        return _line("warn", "lengths", f"{numbers}, counted by the {counter}; of prompts it says nothing")
    numbers += f", prompts {prompt['realised_mean']:.0f} of {prompt['planned_mean']:.0f}"
    off = max(off, abs(prompt["realised_mean"] / prompt["planned_mean"] - 1))
    return _line("good" if off <= LENGTH_BOUND else "warn", "lengths", numbers)


def _prompts(summary: dict[str, Any]) -> dict[str, str]:
    prompt = summary["lengths"]["prompt"]
    if math.isnan(prompt["planned_mean"]):
        return _line("warn", "lengths", "the server does not say how many tokens a text had")
    off = abs(prompt["realised_mean"] / prompt["planned_mean"] - 1)
    numbers = f"texts of {prompt['realised_mean']:.0f} tokens, {prompt['planned_mean']:.0f} planned (mean)"
    return _line("good" if off <= LENGTH_BOUND else "warn", "lengths", numbers)


def _chunks(summary: dict[str, Any]) -> dict[str, str]:
    chunks = summary["chunks"]
    mean, first = chunks["tokens_per_chunk_mean"], chunks["first_chunk_mean"]
    how = "counted" if chunks["counted"] else "estimated from characters"
    text = f"{mean:.2f} tokens a chunk, {first:.2f} in the first ({how})"
    if chunks["whole"]:
        text += f"; {chunks['whole']} answers came whole and have no time per token"
    if mean <= 1.2 and first <= 1.2:
        return _line("warn" if chunks["whole"] else "good", "chunks", text)
    text += ": gaps are between chunks, and token gaps deal each evenly to its tokens"
    unsure = "" if chunks["counted"] else "; TPOT is as good as the estimate: --tokenizer counts exactly"
    return _line("warn", "chunks", text + unsure)


def _enough(summary: dict[str, Any]) -> dict[str, str]:
    headline = summary["latency"]["e2e"]["headline"]
    n, alone = summary["counts"]["due"], int(headline["worth"])
    wanting = [name for name, least in (("p90", 44), ("p95", 90), ("p99", 459)) if n < least]
    if wanting:
        text = f"{n} requests are too few for {', '.join(wanting)} (44, 90 and 459 are needed)"
        return _line("warn", "sample", text)
    unbounded = [name for name in ("p90", "p95", "p99") if headline[f"{name}_bound"] == math.inf]
    if unbounded and math.isfinite(headline["p90"]):
        text = f"{n} requests, which depend on each other, are worth {alone} independent ones: nothing bounds"
        return _line("warn", "sample", f"{text} {', '.join(unbounded)} from above; a longer run does")
    return _line(
        "good", "sample", f"{n} requests, worth {alone} independent ones, bound percentiles at 99 % confidence"
    )


def _queue(summary: dict[str, Any]) -> dict[str, str]:
    if summary["closed"]:
        return _line("good", "queue", "closed loop: the load waits for the server")
    if summary["saturation"]["rising"]:
        return _line(
            "warn", "queue", "requests in flight and waiting rose through the whole run: the server was overloaded"
        )
    return _line("good", "queue", "did not grow through the run")


def _slos(summary: dict[str, Any]) -> list[dict[str, str]]:
    lines = []
    for slo in summary["slos"]:
        low, high = slo["interval"]
        text = f"{'met' if slo['met'] else 'missed'}: {slo['share']:.1%} of requests, {slo['target']:.0%} asked; "
        sure = f"{slo['verdict']}, {low:.1%} to {high:.1%} with 95 % confidence"
        unsure = f"{slo['verdict']}: so few requests say {low:.1%} to {high:.1%}"
        text += unsure if slo["verdict"] == "unresolved" else sure
        level = {"passed": "good", "failed": "bad"}.get(slo["verdict"], "warn" if slo["met"] else "bad")
        lines.append(_line(level, f"SLO {slo['name']}", text))
    return lines
