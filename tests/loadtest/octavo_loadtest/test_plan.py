from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo_loadtest import plan
from octavo_loadtest.errors import LoadTestError
from octavo_loadtest.load import Load
from octavo_loadtest.text import Calibration, Segment
from octavo_loadtest.workloads import presets


def test_the_same_load_gives_the_same_plan() -> None:
    load = Load(workload="chat-sharegpt", rate=3, requests=60)
    assert plan.make(load) == plan.make(load)
    assert plan.make(load) != plan.make(plan.reseed(load, 1))


def test_requests_and_duration_limit_a_plan() -> None:
    assert plan.make(Load(requests=17)).requests == 17
    assert plan.make(Load()).requests == 100
    assert plan.make(Load(workload="chat-sharegpt", requests=31)).requests == 31
    lasting = plan.make(Load(rate=20, duration=10))
    assert lasting.sessions[-1].at < 10
    assert lasting.requests == pytest.approx(200, rel=0.25)


def test_a_closed_loop_of_a_duration_is_planned_in_a_moment() -> None:
    """It was a million requests, and minutes before the first was sent."""
    assert plan.make(Load(arrivals="closed", concurrency=2, duration=5)).requests == 1200
    assert plan.MOST_CLOSED < 50_000
    assert plan.make(Load(arrivals="closed", concurrency=2, duration=5, requests=7)).requests == 7


@pytest.mark.parametrize("arrivals", ["gamma:cv=4", "onoff", "ramp", "step"])
def test_a_duration_holds_the_rate(arrivals: str) -> None:
    made = plan.make(Load(rate=20, duration=200, arrivals=arrivals))
    assert made.requests == pytest.approx(4000, rel=0.35)


def test_history_is_part_of_a_later_prompt_and_meant_to_be_cached() -> None:
    made = plan.make(Load(workload="chat-sharegpt", requests=80))
    turns = next(session.requests for session in made.sessions if len(session.requests) > 2)
    for before, after in pairwise(turns):
        assert after.cached_tokens == before.prompt_tokens + before.ask.output_tokens
        assert after.prompt_tokens == after.cached_tokens + after.ask.segments[0].tokens


def test_shared_prefixes_are_meant_to_be_cached_once_they_were_sent() -> None:
    made = plan.make(Load(workload="shared-prefix", requests=100))
    cached = np.array([session.requests[0].cached_tokens for session in made.sessions])
    assert sorted(set(cached.tolist())) == [0, 1000]
    assert (cached == 0).sum() == 8


def test_seen_counts_a_part_of_a_passage() -> None:
    seen = plan.Seen()
    a, b = Segment("a", 10), Segment("b", 5)
    assert seen.add((a, b)) == 0
    assert seen.add((a, Segment("b", 9), a)) == 15
    assert seen.add((Segment("a", 4), b)) == 4
    assert seen.add((b,)) == 0


def test_prompts_share_words_only_where_it_is_planned() -> None:
    made = plan.make(Load(workload="tool-agent", requests=12, scale=0.02))
    sessions = plan.sessions(made, "salt", Calibration())
    for i, session in enumerate(sessions):
        words = session.turns[0].text.split()
        shared = max((_common(words, other.turns[0].text.split()) for other in sessions[:i]), default=0)
        assert abs(shared - session.turns[0].cached_tokens) <= 2  # equal words by chance
    again = plan.sessions(made, "pepper", Calibration())
    assert _common(sessions[0].turns[0].text.split(), again[0].turns[0].text.split()) <= 2


def _common(a: list[str], b: list[str]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def test_a_trace_is_replayed_at_its_times(tmp_path: Path) -> None:
    file = tmp_path / "trace.jsonl"
    file.write_text("".join(f'{{"input_length": 9, "output_length": 2, "at": {at}}}\n' for at in (5, 6, 8)))
    made = plan.make(Load(workload=str(file), time_scale=0.5))
    assert [session.at for session in made.sessions] == [0.0, 0.5, 1.5]
    assert str(made.arrivals) == "replay"


def test_a_plan_is_saved_line_by_line(tmp_path: Path) -> None:
    made = plan.make(Load(requests=5))
    plan.save(made, tmp_path / "plan.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "plan.jsonl").read_text().splitlines()]
    assert [row["index"] for row in rows] == list(range(5))
    assert rows[3]["at"] == made.sessions[3].at


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(LoadTestError, match="concurrency"):
        plan.make(Load(arrivals="closed"))
    with pytest.raises(LoadTestError, match="brings no times"):
        plan.make(Load(arrivals="replay"))


PASSAGES = st.builds(Segment, st.sampled_from("abc"), st.integers(1, 4))


@given(st.lists(st.lists(PASSAGES, min_size=1, max_size=4), min_size=1, max_size=8))
def test_seen_is_a_cache_of_every_prompt_there_was(prompts: list[list[Segment]]) -> None:
    seen, before = plan.Seen(), []
    for prompt in prompts:
        words = [(segment.key, i) for segment in prompt for i in range(segment.tokens)]
        assert seen.add(tuple(prompt)) == max((_shared(words, other) for other in before), default=0)
        before.append(words)


def _shared(a: list[tuple[str, int]], b: list[tuple[str, int]]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


@pytest.mark.parametrize("workload", sorted(presets()))
def test_a_plan_of_every_workload_adds_up(workload: str) -> None:
    load = Load(workload=workload, scale=0.1, rate=5, requests=40)
    made = plan.make(load)
    requests = [request for session in made.sessions for request in session.requests]
    assert [request.index for request in requests] == list(range(made.requests)) == list(range(40))
    assert all(0 <= request.cached_tokens <= request.prompt_tokens for request in requests)
    assert all(request.ask.output_tokens >= 1 for request in requests)
    at = [session.at for session in made.sessions]
    assert at == sorted(at)
    assert made.span == at[-1] - at[0]
    texts = [turn for session in plan.sessions(made, "salt", Calibration()) for turn in session.turns]
    assert [turn.prompt_tokens for turn in texts] == [request.prompt_tokens for request in requests]
    assert all(turn.text for turn in texts)


def test_a_workload_without_a_request(tmp_path: Path) -> None:
    file = tmp_path / "trace.jsonl"
    file.write_text('{"input_length": 9, "output_length": 2, "at": 5}\n')
    with pytest.raises(LoadTestError, match="has no request for this load"):
        plan.make(Load(workload=str(file), duration=1))


def trace(folder: Path, *at: float) -> str:
    file = folder / "trace.jsonl"
    file.write_text(
        "".join(f'{{"input_length": {i + 3}, "output_length": 2, "at": {time}}}\n' for i, time in enumerate(at))
    )
    return str(file)


def test_a_trace_is_sent_in_the_order_of_its_times(tmp_path: Path) -> None:
    """Who waits for the later one first sends the other late, and the client was called too slow for it."""
    made = plan.make(Load(workload=trace(tmp_path, 9, 5, 7)))
    assert [(session.name, session.at) for session in made.sessions] == [("s1", 0.0), ("s2", 2.0), ("s0", 4.0)]
    assert [session.requests[0].prompt_tokens for session in made.sessions] == [4, 5, 3]
    assert made.span == 4.0


@pytest.mark.parametrize(("content", "name"), [("[]", "chats.json"), ('[{"conversations": []}]', "chats.json"),
                                               ("TIMESTAMP,ContextTokens,GeneratedTokens\n", "trace.csv")])  # fmt: skip
def test_a_file_that_asks_for_nothing(content: str, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(LoadTestError, match="has no request for this load"):
        plan.make(Load(workload=str(tmp_path / name)))


def test_a_files_own_times_are_kept_only_where_they_are_wanted(tmp_path: Path) -> None:
    workload = trace(tmp_path, 0, 50, 100)
    assert [session.at for session in plan.make(Load(workload=workload, arrivals="constant", rate=4)).sessions] == [
        0.0, 0.25, 0.5,
    ]  # fmt: skip
    assert str(plan.make(Load(workload=workload, concurrency=2)).arrivals) == "closed"
    assert [session.at for session in plan.make(Load(workload=workload, duration=60)).sessions] == [0.0, 50.0]
    assert [session.at for session in plan.make(Load(workload=workload, duration=60, time_scale=0.5)).sessions] == [
        0.0, 25.0, 50.0,
    ]  # fmt: skip


def test_the_last_session_is_cut_where_the_requests_end() -> None:
    """All turns that are planned are sent; those behind the limit are none, and neither is a session without any."""
    whole = plan.make(Load(workload="chat-sharegpt", requests=60))
    for limit in range(1, 12):
        cut = plan.make(Load(workload="chat-sharegpt", requests=limit))
        assert cut.requests == limit
        flat = [request for session in whole.sessions for request in session.requests][:limit]
        assert [request for session in cut.sessions for request in session.requests] == flat


def test_seeds_of_repeats_do_not_meet_those_of_a_sweep() -> None:
    """A sweep's i-th point has the seed of repeat 100 i: with up to 100 repeats no two runs are the same."""
    load = Load(seed=3)
    seeds = [plan.reseed(plan.reseed(load, 100 * i), repeat).seed for i in range(20) for repeat in range(100)]
    assert len(set(seeds)) == len(seeds)
    assert plan.reseed(load, 0) == load
