"""A measured run beside the prediction, and the cost model fitted to it."""

import json
import random

import pytest

from octavo.errors import ConfigError
from octavo.planning.machines import MACHINES
from octavo.planning.measured import MeasuredRequest, MeasuredRun, MeasuredStep, compare, read_run
from octavo.planning.memory import Holding
from octavo.planning.roofline import Roofline


@pytest.fixture
def line(llama_8b):
    return Roofline(Holding(llama_8b, "bfloat16", "bfloat16", None, "bfloat16", 1), MACHINES["h100"])


def steps_of(seconds, number=60):
    """Mixed steps whose duration is `seconds(tokens, sequences, attended)`."""
    draw = random.Random(0)
    steps = []
    for _ in range(number):
        sequences = draw.randint(1, 64)
        tokens = sequences + draw.choice([0, 0, 128, 512, 900])
        attended = tokens * draw.randint(20, 2000)
        steps.append(MeasuredStep(tokens, sequences, attended, seconds(tokens, sequences, attended)))
    return steps


def test_an_engine_at_half_the_roofline_reaches_half(line):
    run = MeasuredRun(steps=steps_of(lambda *content: 2 * line.step_seconds(*content)))
    comparison = compare(run, line, 1024)
    assert {speed.kind: speed.share for speed in comparison.speeds} == {
        "prefill": pytest.approx(0.5), "decode": pytest.approx(0.5)
    }  # fmt: skip


def test_the_cost_model_is_found_again(line):
    true = {"step": 5e-3, "token": 8e-5, "sequence": 3e-4, "attended position": 2e-8}
    a, b, c, d = true.values()
    steps = steps_of(lambda tokens, sequences, attended: a + b * tokens + c * sequences + d * attended)
    comparison = compare(MeasuredRun(steps=steps), line, 1024)
    assert comparison.coefficients == {name: pytest.approx(value, rel=0.02) for name, value in true.items()}
    assert comparison.median_error < 0.01


def test_steps_too_much_alike_fit_nothing(line):
    """With one sequence in each, a step's own time and a sequence's cannot be told apart."""
    alone = [MeasuredStep(n, 1, n * (n + 1) // 2, 1e-3 * n) for n in range(1, 40)]
    assert compare(MeasuredRun(steps=alone), line, 1024).coefficients is None
    assert compare(MeasuredRun(steps=steps_of(lambda *_: 0.1, number=7)), line, 1024).coefficients is None


def test_a_request_alone_is_two_kinds_of_steps(line):
    request = MeasuredRequest(
        prompt_tokens=300, cached_tokens=100, output_tokens=11, start=1.0, first_token=1.5, end=2.5
    )
    prefill, decode = compare(MeasuredRun(requests=[request]), line, 1024).speeds
    assert (prefill.kind, prefill.steps, prefill.measured) == ("prefill", 1, pytest.approx(200 / 0.5))
    assert prefill.ceiling == pytest.approx(200 / line.step_seconds(200, 1, sum(range(101, 301))))
    assert (decode.kind, decode.steps, decode.measured) == ("decode", 10, pytest.approx(10.0))


def test_requests_that_overlap_or_take_several_steps_are_left_out(line):
    together = [
        MeasuredRequest(prompt_tokens=50, output_tokens=5, start=s, first_token=s + 1, end=s + 3) for s in (0, 2)
    ]
    long = MeasuredRequest(prompt_tokens=5000, output_tokens=5, start=10, first_token=11, end=12)
    alone = MeasuredRequest(prompt_tokens=50, output_tokens=1, start=20, first_token=21, end=21)
    comparison = compare(MeasuredRun(requests=[*together, long, alone]), line, 1024)
    assert comparison.left_out == 3
    assert [(speed.kind, speed.steps) for speed in comparison.speeds] == [("prefill", 1)]
    with pytest.raises(ConfigError, match="nothing can be compared"):
        compare(MeasuredRun(requests=together), line, 1024)


def test_bytes(line):
    weights = round(line.holding.weight_bytes())
    comparison = compare(MeasuredRun(bytes={"weights": weights + 7, "kv_per_token": 131_072}), line, 1024)
    assert comparison.bytes == {"weights": (weights, weights + 7), "kv_per_token": (131_072, 131_072)}


def test_files(tmp_path):
    content = {
        "steps": [{"tokens": 4, "sequences": 4, "attended": 400, "seconds": 0.01}],
        "requests": [{"prompt_tokens": 9, "output_tokens": 2, "start": 0, "first_token": 1, "end": 2}],
        "bytes": {"weights": 10},
    }
    (tmp_path / "run.json").write_text(json.dumps(content))
    run = read_run(tmp_path / "run.json")
    assert run.steps == [MeasuredStep(4, 4, 400, 0.01)]
    assert run.requests == [MeasuredRequest(prompt_tokens=9, output_tokens=2, start=0, first_token=1, end=2)]
    assert run.bytes == {"weights": 10}


def test_records_of_the_load_tester(tmp_path):
    from octavo_loadtest.record import Chunk, Record, dump

    def record(**more):
        counts = {"planned_prompt_tokens": 7, "planned_output_tokens": 3, "planned_cached_tokens": 0}
        facts = counts | {"index": 0, "session": "s", "turn": 0, "process": 0, "scheduled": 0, "sent": 2_000_000_000}
        return Record(**facts | more)

    usage = {"prompt_tokens": 8, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 4}}
    times = [("empty", 2.1), ("text", 2.5), ("text", 2.75), ("text", 3.0), ("usage", 3.1)]
    chunks = [Chunk(int(at * 1e9), kind, 3, None) for kind, at in times]
    lines = [record(usage=usage, chunks=chunks), record(error="refused")]
    (tmp_path / "requests.jsonl").write_text("\n".join(map(dump, lines)))
    expected = MeasuredRequest(prompt_tokens=8, cached_tokens=4, output_tokens=3, start=2.0, first_token=2.5, end=3.0)
    assert read_run(tmp_path / "requests.jsonl").requests == [expected]


@pytest.mark.parametrize("text", ["", "[]", '{"steps": [{"tokens": 3}]}', '{"requests": [{"start": 3, "typo": 1}]}'])
def test_what_a_file_lacks_is_said(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ConfigError, match="expected steps of tokens, sequences, attended, seconds"):
        read_run(tmp_path / "run.json")
    with pytest.raises(ConfigError, match="no measured run"):
        read_run(tmp_path / "absent.json")
