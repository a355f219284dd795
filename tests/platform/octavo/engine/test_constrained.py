"""Grammars, budgets for thinking and lists of tokens: the same tokens however a request is scheduled."""

from __future__ import annotations

import json
import random
import re

import jsonschema
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from octavo.constraint import Grammar, Thinking
from octavo.engine import constrained, masks
from octavo.errors import BadRequest
from octavo.request import Request, SamplingParams
from octavo.text.output import SequenceText

SCHEMA = {
    "type": "object",
    "properties": {
        "first_name": {"enum": ["Ada", "Grace"]},
        "year_of_birth": {"type": "integer", "minimum": 1000, "maximum": 9999},
        "languages": {"type": "array", "items": {"enum": ["fr", "de"]}, "maxItems": 3},
    },
    "required": ["first_name", "year_of_birth", "languages"],
    "additionalProperties": False,
}
JSON = Grammar(source=json.dumps({"grammars": [{"json_schema": SCHEMA}]}), is_json=True)
REGEX = r"(yes|no|maybe), (the|this) [a-c]{2,4} is done"
LARK = Grammar(source=f"start: /{REGEX}/")


@pytest.fixture
def say(fake, tiny_tokenizer):
    """Runs requests; returns what is told of each sequence: tokens, text, finish reason and log probabilities."""

    def run(*requests: Request, proposer=None, **options):
        engine = fake.engine(tokenizer=tiny_tokenizer, **{"num_blocks": 400, "max_num_batched_tokens": 64, **options})
        engine.scheduler.proposer = proposer or engine.scheduler.proposer
        for request in requests:
            engine.add(request)
        told = drain(engine)
        for seen in told.values():
            seen.text = tiny_tokenizer.decode(seen.tokens)
        run.engine = engine
        return told

    run.tokenizer = tiny_tokenizer
    run.letters = lambda text: tiny_tokenizer.encode(text, add_special_tokens=False)
    return run


def take_step(engine, told: dict[tuple[str, int], Told]) -> None:
    for update in engine.step():
        told.setdefault((update.request_id, update.index), Told()).take(update)


def drain(engine, told=None) -> dict[tuple[str, int], Told]:
    told = {} if told is None else told
    for _ in range(5000):
        if not engine.has_work:
            break
        take_step(engine, told)
    assert not engine.has_work
    engine.check_integrity()
    assert engine.pool.num_owned == 0
    return told


class Told:
    def __init__(self) -> None:
        self.tokens, self.updates, self.logprobs = [], [], []
        self.sampled = 0
        self.finish = self.stop = None
        self.cumulative, self.text = 0.0, ""

    def take(self, update) -> None:
        assert self.finish is None
        self.updates.append(list(update.token_ids))
        self.tokens += update.token_ids
        self.logprobs += update.logprobs or []
        self.sampled += len(update.token_ids) - update.num_forced
        self.finish, self.stop = update.finish_reason, update.stop_reason
        self.cumulative = update.cumulative_logprob

    def __eq__(self, other) -> bool:
        return self.all == other.all

    @property
    def all(self):
        return self.tokens, self.finish, self.stop, self.logprobs, round(self.cumulative, 6)

    def __repr__(self) -> str:
        return repr((self.text, self.updates, self.finish, self.stop))


def request(name: str, seed: int = 0, emitted=None, prompt=(1, 2, 3), **params) -> Request:
    return Request(
        request_id=name,
        prompt_token_ids=list(prompt),
        params=SamplingParams(**{"seed": seed, "max_tokens": 80, **params}),
        emitted=emitted,
    )


def check_json(told: Told) -> None:
    assert told.finish in ("stop", "length"), told
    if told.finish == "stop":
        jsonschema.validate(json.loads(told.text), SCHEMA)


@pytest.mark.parametrize("seed", range(6))
def test_text_matches_its_grammar(say, seed):
    told = say(request("j", seed, grammar=JSON), request("r", seed, grammar=LARK), request("f", seed, max_tokens=9))
    check_json(told["j", 0])
    assert told["r", 0].finish == "stop"
    assert re.fullmatch(REGEX, told["r", 0].text)
    assert told["f", 0].finish == "length"


@pytest.mark.parametrize("kind", [JSON, LARK])
def test_forcing_changes_nothing_but_the_number_of_steps(say, fake, monkeypatch, kind):
    with_forcing = say(request("r", 3, grammar=kind))
    steps = len(fake.model(say.engine).batches)
    monkeypatch.setattr(constrained, "FORCING", False)
    assert say(request("r", 3, grammar=kind)) == with_forcing
    assert steps < len(fake.model(say.engine).batches)
    assert max(map(len, with_forcing["r", 0].updates)) > 1
    assert with_forcing["r", 0].sampled == steps < len(with_forcing["r", 0].tokens)


KINDS = [
    {"grammar": JSON}, {"grammar": LARK}, {}, {"grammar": JSON, "n": 3}, {"grammar": LARK, "logprobs": 1},
    {"grammar": JSON, "logprobs": 0, "n": 2}, {"grammar": JSON, "best_of": 3, "n": 1},
    {"grammar": Grammar(source="start: /[a-z]{3} ok\\./", after_tokens=(4,), again=True), "logit_bias": {}},
    {"grammar": Grammar(source="start: /[a-z]{3} ok\\./", after_texts=("e",))},
    {"thinking": Thinking(budget=7, close=(3,))}, {"thinking": Thinking(budget=5, open_tokens=(2,), close=(10, 3, 11))},
    {"grammar": Grammar(source=LARK.source, after_tokens=(3,)), "thinking": Thinking(budget=3, close=(3,))},
    {"allowed_token_ids": [20, 21, 22, 30]}, {"bad_token_ids": [[i] for i in range(0, 999, 2)] + [[5, 7], [9, 11, 13]]},
    {"grammar": JSON, "max_tokens": 7}, {"grammar": JSON, "max_tokens": 2, "n": 2}, {"grammar": LARK, "min_tokens": 30},
    {"grammar": JSON, "prompt_logprobs": 1, "logprobs": 0}, {"grammar": JSON, "presence_penalty": 1.0},
    {"grammar": JSON, "max_tokens": 3, "logprobs": 2}, {"allowed_token_ids": [0, 1, 20], "min_tokens": 7},
    {"thinking": Thinking(budget=4, close=(10, 3, 11)), "logprobs": 1, "n": 2},
    {"thinking": Thinking(budget=6, close=(10, 3, 11)), "logprobs": 0, "max_tokens": 8},
    {"grammar": Grammar(source='start: "it is " /[a-c]/ " done"', after_texts=("a", "e", "i")), "logprobs": 0},
    {"allowed_token_ids": [20, 21, 22], "bad_token_ids": [[20, 21], [21, 21, 22], [22, 20]]},
    {"grammar": Grammar(source="start: /[a-z]{2}!/", after_texts=("a", "b"), again=True), "min_tokens": 30},
    {"bad_token_ids": [[i, j] for i in range(0, 999, 3) for j in range(0, 999, 180)], "min_tokens": 9},
]  # fmt: skip


def requests_of_all_kinds(seed: int) -> list[Request]:
    return [
        request(f"r{i}", seed + i, prompt=[*range(50, 50 + 3 * (i % 5)), i + 1], **kind) for i, kind in enumerate(KINDS)
    ]


ALONE: dict[int, dict] = {}


@example(seed=0, ahead=True, blocks=400, chunk=64, caching=True, places=20, first=1)  # a held one's blocks change
@example(seed=1, ahead=False, blocks=40, chunk=4, caching=True, places=20, first=1)
@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2),
    ahead=st.booleans(),
    blocks=st.sampled_from([40, 400]),
    chunk=st.sampled_from([4, 64]),
    caching=st.booleans(),
    places=st.sampled_from([3, 20]),
    first=st.sampled_from([1, 99]),
)
def test_tokens_do_not_know_how_they_were_scheduled(say, seed, ahead, blocks, chunk, caching, places, first):
    requests = requests_of_all_kinds(seed)
    if seed not in ALONE:
        ALONE[seed] = {key: told for each in requests for key, told in say(each).items()}
    alone = ALONE[seed]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(masks, "AHEAD", first)  # masks that are made ahead from one on, or none
        together = say(
            *requests, num_blocks=blocks, async_scheduling=ahead, max_num_batched_tokens=chunk,
            enable_prefix_caching=caching, max_num_seqs=places, max_model_len=140,
        )  # fmt: skip
    assert together == alone
    for (name, _), told in alone.items():
        assert told.finish not in ("error", "refused"), told
        kind = KINDS[int(name[1:])]
        if kind.get("grammar") is JSON:
            check_json(told)
        if kind.get("logprobs") is not None:
            assert len(told.logprobs) == len(told.tokens)
            assert all(token in entry for token, entry in zip(told.tokens, told.logprobs, strict=True))


class Knows:
    """Proposes the rest of the true answers, with mistakes."""

    def __init__(self, answers: dict, right: float, seed: int) -> None:
        self._answers, self._right, self._rng = answers, right, random.Random(seed)

    def begin(self, running, room) -> bool:
        return True

    def check_integrity(self) -> None:
        pass

    def close(self) -> None:
        pass

    def follows(self, seq) -> bool:
        return seq.index < 2

    def propose(self, seq, most: int) -> list[int]:
        answer = self._answers[seq.group.request.request_id, seq.index].tokens
        rest = answer[seq.num_output :][: self._rng.randrange(9)]
        return [token if self._rng.random() < self._right else self._rng.randrange(600) for token in rest]

    def verified(self, seq, right: int, proposed: int):
        return "text"

    def took(self, work, proposed: int, seconds: float) -> None:
        pass

    def checked(self, seq, kept: int, proposed: int, seconds: float) -> None:
        assert 0 <= kept <= proposed
        assert seconds >= 0

    def raised(self, sequences) -> None:
        raise AssertionError(list(sequences))

    def ended(self, seq) -> None:
        pass


@pytest.mark.parametrize("right", [0.0, 0.8, 1.0])
def test_guesses_change_no_token(say, monkeypatch, right):
    requests = requests_of_all_kinds(0)
    if 0 not in ALONE:
        ALONE[0] = {key: told for each in requests for key, told in say(each).items()}
    knows = Knows(ALONE[0], right, int(10 * right))
    ahead = right == 0.8
    monkeypatch.setattr(masks, "AHEAD", 1)
    together = say(*requests, max_num_seqs=60, async_scheduling=ahead, max_model_len=140, proposer=knows)
    assert together == ALONE[0]
    accepted = say.engine.stats().counters.accepted
    assert sum(accepted) >= 100 * right


def test_guesses_under_a_grammar_save_steps(say, fake):
    grammar = Grammar(source="start: /[a-z]{40}[0-9]/")
    plain = say(request("r", 3, grammar=grammar))
    steps = len(fake.model(say.engine).batches)
    assert say(request("r", 3, grammar=grammar), proposer=Knows(plain, 1.0, 0)) == plain
    assert len(fake.model(say.engine).batches) < steps / 2
    assert max(len(batch.sampling.masked) for batch in fake.model(say.engine).batches) > 4


@pytest.mark.parametrize("ahead", [False, True])
def test_a_step_that_raises_takes_nothing_from_the_others(say, fake, ahead):
    requests = requests_of_all_kinds(1)
    quiet = say(*requests, async_scheduling=ahead, max_num_seqs=40)
    engine = fake.engine(
        400, tokenizer=say.tokenizer, max_num_batched_tokens=64, max_num_seqs=40, async_scheduling=ahead
    )
    launch = fake.model(engine).launch
    poison = min(set(range(700, 999)) - {token for seen in quiet.values() for token in seen.tokens})

    def raising(batch):
        if poison in batch.token_ids:
            raise RuntimeError("a step fails")
        return launch(batch)

    fake.model(engine).launch = raising
    for each in requests:
        engine.add(each)
    told: dict[tuple[str, int], Told] = {}
    take_step(engine, told)
    take_step(engine, told)
    engine.add(request("poison", prompt=[5, 6, poison], max_tokens=30))
    told = drain(engine, told)
    assert told.pop(("poison", 0)).finish == "error"
    for seen in told.values():
        seen.text = ""
    assert told == quiet


@pytest.mark.parametrize("kind", range(len(KINDS)))
def test_it_goes_on_elsewhere_from_any_update(say, kind):
    whole = say(request("r", 11, **KINDS[kind]))
    longest = max(len(told.updates) for told in whole.values())
    for cut in sorted({*range(1, min(4, longest)), *range(4, longest, 30)}):
        emitted = [
            None if len(told.updates) <= cut else [token for tokens in told.updates[:cut] for token in tokens]
            for _, told in sorted(whole.items())
        ]  # fmt: skip
        rest = say(request("r", 11, emitted=emitted, **{**KINDS[kind], "prompt_logprobs": None}))
        for (name, index), told in rest.items():
            assert emitted[index] + told.tokens == whole[name, index].tokens
            assert told.finish == whole[name, index].finish


def test_thinking_stops_at_its_budget(say):
    for budget in (0, 1, 6):
        told = say(request("r", 5, thinking=Thinking(budget=budget, close=(10, 3)), bad_token_ids=[[3]]))["r", 0]
        assert told.tokens[budget : budget + 2] == [10, 3]
        assert 3 not in told.tokens[:budget]


def test_a_close_that_the_model_has_begun_goes_on_where_it_is(say):
    thinking = Thinking(budget=4, close=(10, 11, 3))
    for allowed, tokens in (([10], [10, 10, 10, 10, 11, 3]), ([20], [20, 20, 20, 20, 10, 11, 3])):
        told = say(request("r", 5, thinking=thinking, allowed_token_ids=allowed, max_tokens=9))["r", 0]
        assert told.tokens[: len(tokens)] == tokens


def test_a_model_that_closes_its_thinking_itself_is_left_alone(say):
    told = say(request("r", 5, thinking=Thinking(budget=40, close=(10, 3)), allowed_token_ids=[3, 20]))["r", 0]
    assert 3 in told.tokens[:40]
    assert 10 not in told.tokens


def test_a_grammar_begins_after_thinking(say):
    grammar = Grammar(source=LARK.source, after_tokens=(3,))
    told = say(request("r", 5, thinking=Thinking(budget=9, close=(3,)), grammar=grammar, bad_token_ids=[[3]]))["r", 0]
    assert told.tokens.index(3) == 9
    assert re.fullmatch(REGEX, say.engine.compiler.vocabulary.tokenizer.decode(told.tokens[10:]))


def test_a_grammar_begins_again_and_again(say, tiny_tokenizer):
    grammar = Grammar(source='start: "<" /[a-c]{2}/ ">"', after_tokens=(4,), again=True)
    params = {"allowed_token_ids": [4, 20, *range(5, 600)], "max_tokens": 400, "logit_bias": None}
    text = ""
    for seed in range(4):
        told = say(request("r", seed, grammar=grammar, **params), async_scheduling=bool(seed % 2))["r", 0]
        pieces = tiny_tokenizer.decode(told.tokens, skip_special_tokens=False).split("<call>")
        assert all(re.match(r"<[a-c]{2}>", piece) for piece in pieces[1:-1])
        text += "<call>".join(pieces)
    assert text.count("<call>") > 1


def test_bad_words_are_not_completed(say):
    free = say(request("r", 1))["r", 0].tokens
    bad = [[free[0]], free[3:5], free[6:9]]
    told = say(request("r", 1, bad_token_ids=bad))["r", 0].tokens
    assert all(told[i : i + len(ids)] != ids for ids in bad for i in range(len(told)))
    assert say(request("r", 1, bad_token_ids=bad), async_scheduling=True)["r", 0].tokens == told


@pytest.mark.parametrize("forcing", [True, False])
def test_best_of_does_not_count_what_comes_after_a_stop_string(fake, tiny_tokenizer, monkeypatch, forcing):
    monkeypatch.setattr(constrained, "FORCING", forcing)
    grammar = Grammar(source='start: /[ab]{1,3}/ " then a constant" /[xyz]/')
    asked = request("r", 4, grammar=grammar, best_of=2, stop=["then"])
    engine = fake.engine(400, tokenizer=tiny_tokenizer)
    engine.add(asked)
    texts, rows = [SequenceText(tiny_tokenizer, asked.params, index=i) for i in range(2)], [[], []]
    while engine.has_work:
        for update in engine.step():
            rows[update.index] += update.logprobs
            texts[update.index].push(update)
            if texts[update.index].stopped and update.finish_reason is None:
                engine.abort("r", update.index)
    for text, entries in zip(texts, rows, strict=True):
        kept = [entry[token].logprob for token, entry in zip(text.token_ids, entries, strict=False)]
        assert text.cumulative_logprob == pytest.approx(sum(kept))
        assert text.logprobs is None
        assert "then" not in text.text


def test_what_excludes_itself_ends_one_request(say):
    impossible = request("x", 2, grammar=LARK, allowed_token_ids=[0, 5])
    told = say(impossible, request("r", 2, grammar=LARK), request("f", 2, max_tokens=5))
    assert told["x", 0].finish == "refused"
    assert "no token is left" in told["x", 0].stop
    assert told["r", 0].finish == "stop"
    assert told["f", 0].finish == "length"


@pytest.mark.parametrize("forcing", [True, False])
def test_what_is_forced_keeps_to_the_lists_of_tokens(say, monkeypatch, forcing):
    monkeypatch.setattr(constrained, "FORCING", forcing)
    hello = say.tokenizer.encode("hello", add_special_tokens=False)
    grammar = Grammar(source='start: "my, hello" /[ab]/')
    whole = say(request("r", grammar=grammar))["r", 0].tokens
    for lists in ({"bad_token_ids": [hello]}, {"allowed_token_ids": [0, *set(whole) - set(hello[1:])]}):
        told = say(request("r", grammar=grammar, **lists))["r", 0]
        assert told.finish == "refused"
        assert told.tokens == whole[: len(told.tokens)] != []
    assert say(request("r", grammar=grammar, allowed_token_ids=whole))["r", 0].tokens == whole


def chain(length: int) -> Grammar:
    """Each token of it takes milliseconds."""
    rules = [f'r{i}: r{i + 1} | "a" r{i + 1} "c"' for i in range(length)]
    return Grammar(source="\n".join(["start: r0", *rules, f'r{length}: "b"']))


@pytest.mark.parametrize("suspect", [0.0, 1e9])
def test_a_grammar_whose_tokens_take_long_ends_one_request(say, monkeypatch, suspect):
    monkeypatch.setattr(masks, "SUSPECT", suspect)  # where nobody is suspected, reading tokens tells
    monkeypatch.setattr(constrained, "SLOW_TOKEN", 0.0005)
    monkeypatch.setattr(masks, "AHEAD", 1)
    monkeypatch.setattr(constrained, "SLOW_REQUEST", 0.01)
    others = [request("r", 2, grammar=LARK), request("j", 2, grammar=JSON), request("f", 2, max_tokens=5)]
    slow = request("s", 2, grammar=chain(400), max_tokens=200, allowed_token_ids=say.letters("a"))
    told = say(slow, *others)
    assert told["s", 0].finish == "refused"
    assert "too complex" in told["s", 0].stop
    assert told["r", 0].finish == "stop"
    check_json(told["j", 0])


def test_a_busy_machine_ends_nobody(say, monkeypatch):
    quiet = say(request("r", 2, grammar=LARK), request("j", 2, grammar=JSON))
    clock = iter(range(10**6))
    monkeypatch.setattr(constrained.time, "perf_counter", lambda: next(clock))
    assert say(request("r", 2, grammar=LARK), request("j", 2, grammar=JSON)) == quiet


def test_masks_that_threads_share_are_those_that_one_makes(say, monkeypatch):
    told = []
    for alone, ahead in ((-1.0, 99), (1e9, 99), (1e9, 1)):
        monkeypatch.setattr(masks, "ALONE", alone)
        monkeypatch.setattr(masks, "AHEAD", ahead)
        told.append(say(request("r", 4, grammar=LARK), request("j", 4, grammar=JSON)))
    assert told[0] == told[1] == told[2]


def test_masks_whose_thread_fails_are_made_again(say, monkeypatch):
    wanted = [request(name, 4, grammar=JSON) for name in "abc"]
    told = say(*wanted)
    asked = []
    monkeypatch.setattr(masks, "AHEAD", 1)
    monkeypatch.setattr(masks, "ALONE", 1e9)
    monkeypatch.setattr(masks, "_threads", asked.append)  # None has no such method
    assert say(*wanted) == told
    assert asked


def test_an_end_token_waits_for_min_tokens_where_it_can(say):
    any_letters = Grammar(source="start: /[a-z]*/")
    told = say(request("r", 2, grammar=any_letters, min_tokens=12, max_tokens=40))["r", 0]
    assert len(told.tokens) >= 12
    assert say(request("r", 2, grammar=Grammar(source='start: "a"'), min_tokens=12))["r", 0].tokens


def test_endless_white_space_ends(say, tiny_tokenizer):
    blank = [token for token in range(600) if not tiny_tokenizer.token_bytes(token).strip(b" \t\r\n")]
    allowed = [
        *blank,
        *(token for token in range(600) if tiny_tokenizer.token_bytes(token).startswith((b"[", b"]", b"1", b","))),
    ]
    grammar = Grammar(
        source=json.dumps({"grammars": [{"json_schema": {"type": "array", "items": {"const": 1}}}]}), is_json=True
    )
    bias = {"allowed_token_ids": allowed, "max_tokens": 60}
    told = say(*(request(f"r{seed}", seed, grammar=grammar, **bias) for seed in range(8)))
    longest = max(len(run) for each in told.values() for run in re.findall(r"[ \t\r\n]+", each.text + " "))
    assert longest < 16 + max(len(tiny_tokenizer.token_bytes(token)) for token in blank)


@pytest.mark.parametrize(
    ("params", "sentence"),
    [
        ({"grammar": Grammar(source="start: (", param="grammar")}, "grammar: .*line 1"),
        ({"grammar": Grammar(source='{"grammars": [{"json_schema": {"type": "strin"}}]}')}, "strin"),
        ({"allowed_token_ids": [1000]}, "allowed_token_ids token ids"),
        ({"thinking": Thinking(budget=4, close=())}, "tokens that close"),
        ({"bad_token_ids": [[2000]]}, "bad_words"),
    ],
)
def test_what_is_wrong_is_said_before_anything_runs(say, params, sentence):
    with pytest.raises(BadRequest, match=sentence):
        say(request("r", **params))


def test_an_engine_without_a_tokenizer_refuses_grammars(fake):
    with pytest.raises(BadRequest, match="tokenizer"):
        fake.engine().add(request("r", grammar=LARK))
