"""What is counted of a request, from its first token to its last."""

from __future__ import annotations

import pytest

from octavo.request import Placement
from octavo_serve.api import telemetry as module
from octavo_serve.api.telemetry import Tally, Telemetry


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which the test sets."""
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_a_requests_times(clock: list[float]) -> None:
    telemetry = Telemetry()
    timer = telemetry.request("m", 7, "chat")
    for choice, count, later in ((0, 1, 0.5), (1, 1, 0.0), (0, 4, 0.4), (1, 4, 0.0)):
        clock[0] += later
        timer.tokens(choice, count)
    timer.finished("length")
    timer.done()
    tally = telemetry.tallies["m", "chat"]
    assert (tally.prompt_tokens, tally.generation_tokens, dict(tally.finished)) == (7, 10, {"length": 1})
    assert tally.first_token.sum == pytest.approx(0.5)
    assert tally.each_token.cumulative(()) == [8], "tokens that arrive together share the time since the last arrival"
    assert tally.each_token.sum == pytest.approx(0.8)
    assert tally.duration.sum == pytest.approx(0.9)
    assert tally.decoding.sum == pytest.approx(0.4)
    assert tally.mean_token.sum == pytest.approx(0.1), "four tokens of each sequence after its first, in 0.4 s"
    assert (tally.prompt.sum, tally.generated.sum) == (7, 10)


def test_a_request_without_tokens_has_no_times_of_tokens() -> None:
    telemetry = Telemetry()
    timer = telemetry.request("m", 7)
    timer.tokens(0, 0)
    timer.done()
    tally = telemetry.tallies["m", "text_completion"]
    seen = [each.cumulative(()) for each in (tally.first_token, tally.decoding, tally.mean_token, tally.duration)]
    assert seen == [[0], [0], [0], [1]]


def test_predictions_are_held_against_what_came(clock: list[float]) -> None:
    telemetry = Telemetry()
    timer = telemetry.request("m", 100)
    clock[0] += 0.25
    timer.placed(Placement("ticket", "a", "load", cached_tokens=48, first_token=0.75), cached_tokens=32)
    tally = telemetry.tallies["m", "text_completion"]
    assert (tally.cached_error.sum, tally.first_token_error.sum) == (16, pytest.approx(0.5))


def test_the_queue_is_what_a_shard_did_not_compute(clock: list[float]) -> None:
    telemetry = Telemetry()
    timer = telemetry.request("m", 100)
    clock[0] += 0.75
    timer.began(0.5)
    tally = telemetry.tallies["m", "text_completion"]
    assert (tally.queued.sum, tally.prefilling.sum) == (pytest.approx(0.25), 0.5)


def test_tallies_add_up(clock: list[float]) -> None:
    telemetry = Telemetry()
    for operation in ("chat", "text_completion"):
        timer = telemetry.request("m", 5, operation)  # type: ignore[arg-type]
        clock[0] += 1.0
        timer.tokens(0, 1)
        timer.finished("stop")
        timer.done()
    both = Tally()
    for tally in telemetry.tallies.values():
        both.add(tally)
    assert (both.prompt_tokens, both.generation_tokens, both.finished["stop"]) == (10, 2, 2)
    assert both.first_token.sum == both.duration.sum == 2.0


def test_moves_and_errors_are_counted_by_what_they_are() -> None:
    telemetry = Telemetry()
    telemetry.moves_of("m")("lost")
    telemetry.failed(429, "overloaded")
    telemetry.failed(500, None)
    assert dict(telemetry.moves) == {("m", "lost"): 1}
    assert dict(telemetry.errors) == {(429, "overloaded"): 1, (500, ""): 1}
