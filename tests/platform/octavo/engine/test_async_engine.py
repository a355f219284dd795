import asyncio
import gc
import threading
import time
import weakref
from types import SimpleNamespace

import pytest

from octavo.config import EngineConfig
from octavo.constraint import Grammar
from octavo.engine import async_engine
from octavo.engine.async_engine import AsyncEngine
from octavo.errors import BadRequest, EngineDead, OctavoError, Overloaded
from octavo.text.grammars import tokens


@pytest.fixture(params=[False, True])
def slow_engine(fake, request):
    """An engine that takes 2 ms a step, so that things happen in its middle; also one that plans steps ahead."""
    engine = fake.engine(num_blocks=256, max_num_queued_requests=4, async_scheduling=request.param)
    model = fake.model(engine)
    launch = model.launch

    def slowly(batch):
        time.sleep(0.002)
        return launch(batch)

    model.launch = slowly
    running = AsyncEngine(engine)
    yield running
    running.close()


async def collect(engine, request):
    tokens: dict[int, list[int]] = {}
    async for updates in engine.generate(request):
        for update in updates:
            tokens.setdefault(update.index, []).extend(update.token_ids)
    return tokens


async def freed(engine, seconds=1.0):
    end = time.monotonic() + seconds
    while engine.engine.pool.num_owned and time.monotonic() < end:
        await asyncio.sleep(0.002)
    return engine.engine.pool.num_owned == 0


def test_streams_say_what_the_loop_without_threads_says(fake, slow_engine):
    async def main():
        requests = [fake.request(f"r{i}", list(range(i, i + 9)), max_tokens=30) for i in range(4)]
        return await asyncio.gather(*(collect(slow_engine, r) for r in requests))

    out = asyncio.run(main())
    assert [tokens[0] for tokens in out] == [fake.expected(list(range(i, i + 9)), 30) for i in range(4)]


def test_a_consumer_that_leaves_frees_its_blocks(fake, slow_engine):
    async def main():
        task = asyncio.create_task(collect(slow_engine, fake.request("cancelled", [1, 2, 3], max_tokens=900)))
        stream = slow_engine.generate(fake.request("closed", [1, 2, 3], n=3, max_tokens=900))
        await anext(stream)
        while slow_engine.stats().state.num_running < 4:  # the other request's task may not have begun
            await asyncio.sleep(0.002)
        await stream.aclose()
        task.cancel()
        assert await freed(slow_engine)
        slow_engine.engine.check_integrity()

    asyncio.run(main())


def test_a_late_consumer_gets_everything_at_once(fake, slow_engine):
    async def main():
        stream = slow_engine.generate(fake.request("a", [1], max_tokens=50))
        sizes = []
        async for updates in stream:
            sizes.append(len(updates))
            await asyncio.sleep(0.05)
        return sizes

    sizes = asyncio.run(main())
    assert sum(sizes) == 50
    assert len(sizes) < 15


def test_the_loop_has_each_step_before_the_next_begins(fake, monkeypatch):
    monkeypatch.setattr("octavo.engine.async_engine._HAND_OVER", 60.0)
    running = AsyncEngine(fake.engine())

    class Listener:
        def __init__(self):
            self.loop, self.done, self.steps = asyncio.get_running_loop(), asyncio.Event(), []

        def updated(self, updates):
            self.steps.append(running.stats().steps)
            if updates[0].finish_reason is not None:
                self.done.set()

    async def main():
        listener = Listener()
        running.submit(fake.request("a", [1, 2, 3], max_tokens=40), listener)
        await listener.done.wait()
        return listener.steps

    assert asyncio.run(main()) == list(range(1, 41))
    running.close()


def test_what_a_suspect_says_has_been_taken_before_the_next_step(fake, monkeypatch):
    monkeypatch.setattr("octavo.engine.async_engine._HAND_OVER", 0.0)
    monkeypatch.setattr("octavo.engine.async_engine._TRIAL_HAND_OVER", 60.0)
    running = AsyncEngine(fake.engine())
    launch, taken, known = running.engine.executor.launch, [], []

    class Listener:
        def __init__(self):
            self.loop, self.done = asyncio.get_running_loop(), asyncio.Event()

        def updated(self, updates):
            time.sleep(0.005)
            taken.extend(len(update.token_ids) for update in updates)
            if updates[0].finish_reason is not None:
                self.done.set()

    def look(batch):
        known.append(list(taken))
        return launch(batch)

    running.engine.executor.launch = look

    async def main():
        suspect = fake.request("a", [1, 2, 3], max_tokens=5)
        suspect.alone = True
        listener = Listener()
        running.submit(suspect, listener)
        await listener.done.wait()

    asyncio.run(main())
    running.close()
    assert known[:3] == [[0], [0, 1], [0, 1, 1, 0]]  # begins, a token, another and is no suspect any more


@pytest.mark.parametrize("idle", [0.0, 1.0])
def test_requests_that_keep_coming_run_together(fake, monkeypatch, idle):
    """Who comes right after the engine became idle waits for others; who comes to one that has been idle does not."""
    engine = fake.engine()
    clock, came = [0.0], []

    def sleep(seconds):
        came.append(seconds)
        running.submit(fake.request("second", [3, 4], max_tokens=1), listener)

    class Listener:
        loop = None

        def updated(self, updates):
            pass

        def failed(self, request_id, error):
            raise AssertionError

    listener = Listener()
    listener.loop = asyncio.new_event_loop()
    monkeypatch.setattr(async_engine, "time", SimpleNamespace(monotonic=lambda: clock[0], sleep=sleep))
    monkeypatch.setattr(AsyncEngine, "_run", lambda self: None)
    running = AsyncEngine(engine)
    running._thread.join()
    monkeypatch.setattr(running, "check_health", lambda: None)
    running.submit(fake.request("first", [1, 2], max_tokens=1), listener)
    carry_out = running._carry_out

    def later(command, news):
        clock[0] += idle
        return carry_out(command, news)

    monkeypatch.setattr(running, "_carry_out", later)
    assert running._take_commands()
    engine.step()
    assert fake.model(engine).batches[0].num_seqs == (2 if not idle else 1)
    assert len(came) == (not idle)
    listener.loop.close()


def test_errors_reach_their_own_caller_only(fake, slow_engine):
    async def main():
        good = [asyncio.create_task(collect(slow_engine, fake.request(f"g{i}", [1], max_tokens=60))) for i in range(8)]
        await asyncio.sleep(0.03)
        with pytest.raises(BadRequest, match="empty"):
            await collect(slow_engine, fake.request("bad", []))
        results = await asyncio.gather(
            *(collect(slow_engine, fake.request(f"o{i}", [1], max_tokens=2)) for i in range(9)), return_exceptions=True
        )
        assert sum(isinstance(r, Overloaded) for r in results) == 5
        return [len((await task)[0]) for task in good]

    assert asyncio.run(main()) == [60] * 8


def test_a_request_that_cannot_be_laid_out_ends_alone(fake, slow_engine):
    async def main():
        other = asyncio.create_task(collect(slow_engine, fake.request("other", [1, 2], max_tokens=30)))
        bad = fake.request("bad", [1, 2], max_tokens=30, logit_bias={1: 2.0})
        bad.params.logit_bias = {1: "two"}
        with pytest.raises(OctavoError, match="cannot be taken in: ValueError"):
            await collect(slow_engine, bad)
        assert (await collect(slow_engine, fake.request("bad", [1, 2], max_tokens=30))) == await other

    asyncio.run(main())


def test_a_dead_engine_says_so(fake):
    engine = fake.engine()

    def broken(batch):
        raise RuntimeError("the device is gone")

    engine.executor.launch = broken
    running = AsyncEngine(engine)

    async def main():
        with pytest.raises(EngineDead, match="the device is gone"):
            await collect(running, fake.request("a", [1]))
        with pytest.raises(EngineDead):
            await collect(running, fake.request("b", [1]))

    asyncio.run(main())
    with pytest.raises(EngineDead):
        running.check_health()


def test_a_stuck_engine_fails_its_health_check_and_a_slow_one_does_not(fake, monkeypatch):
    engine, go, begun = fake.engine(), threading.Event(), threading.Event()
    launch = engine.executor.launch

    def hang(batch):
        begun.set()
        go.wait(60)
        return launch(batch)

    running = AsyncEngine(engine)

    async def main():
        for name, wait in (("slow", 60.0), ("stuck", 0.0)):  # seconds that the model is said to take per token
            monkeypatch.setattr("octavo.engine.patience.Patience.seconds", lambda self, work, idle, wait=wait: wait)
            engine.executor.launch = hang
            begun.clear()
            task = asyncio.create_task(collect(running, fake.request(name, [1], max_tokens=1)))
            await asyncio.to_thread(begun.wait, 60)
            await asyncio.sleep(0.01)
            if name == "slow":
                running.check_health()
            else:
                with pytest.raises(EngineDead, match="not finished a step"):
                    running.check_health()
            go.set()
            await task
            go.clear()

    asyncio.run(main())
    running.check_health()
    running.close()


def test_thousands_of_aborts_are_one_message_to_each_listener(fake):
    running = AsyncEngine(fake.engine(num_blocks=256, max_num_queued_requests=5000))
    go, begun, launch = threading.Event(), threading.Event(), running.engine.executor.launch
    running.engine.executor.launch = lambda batch: (begun.set(), go.wait(60), launch(batch))[2]

    class Listener:
        def __init__(self):
            self.loop, self.told, self.done = asyncio.get_running_loop(), [], asyncio.Event()

        def updated(self, updates):
            self.told.append([update.finish_reason for update in updates])
            if sum(map(len, self.told)) >= 3000:
                self.done.set()

        def failed(self, request_id, error):
            raise error

    async def main():
        listener = Listener()
        running.submit(fake.request("runs", [1, 2], max_tokens=1), Listener())
        await asyncio.to_thread(begun.wait, 60)
        for i in range(3000):
            running.submit(fake.request(f"r{i}", [1, 2], max_tokens=40), listener)
        for i in range(3000):
            running.abort(f"r{i}")
        go.set()
        await listener.done.wait()
        assert listener.told == [["abort"] * 3000]

    asyncio.run(main())
    running.close()


class Prompt(list):
    """One that can be watched."""


def test_an_idle_engine_holds_no_request(fake):
    running = AsyncEngine(fake.engine())

    async def main():
        prompt = Prompt(range(20))
        await collect(running, fake.request("a", prompt, max_tokens=3))
        return weakref.ref(prompt)

    gone = asyncio.run(main())
    running.close()
    gc.collect()
    assert gone() is None


GRAMMAR = Grammar(source="start: /(yes|no), it is/")


def test_what_grammars_need_of_the_vocabulary_is_made_before_anything_runs(tiny_model, monkeypatch):
    running = AsyncEngine.load(str(tiny_model("qwen2")), EngineConfig(kv_cache_bytes=2**22, threads=1))
    try:
        vocabulary = running.engine.compiler.vocabulary
        assert vocabulary.size == running.engine.limits.vocab_size
        monkeypatch.setattr(tokens, "_build", lambda *of: pytest.fail("it is built again"))
        assert vocabulary.blank().any()
    finally:
        running.close()


@pytest.fixture
def grammar_engine(fake, tiny_tokenizer):
    running = AsyncEngine(fake.engine(tokenizer=tiny_tokenizer, max_num_batched_tokens=64))
    yield running
    running.close()


def test_a_request_waits_for_its_grammar_and_nobody_waits_for_it(fake, grammar_engine, monkeypatch):
    compiler, held = grammar_engine.engine.compiler, []
    submit = compiler.submit
    monkeypatch.setattr(compiler, "submit", lambda grammar, done, asker: held.append((grammar, done)))

    async def main():
        late = asyncio.create_task(collect(grammar_engine, fake.request("late", [1, 2], grammar=GRAMMAR)))
        await asyncio.sleep(0)
        quick = await collect(grammar_engine, fake.request("quick", [1, 2], max_tokens=5))
        assert quick[0] == fake.expected([1, 2], 5)
        assert not late.done()
        submit(*held[0])
        assert (await late)[0]
        again = collect(grammar_engine, fake.request("again", [1, 2], grammar=GRAMMAR))
        assert await again == late.result()
        assert len(held) == 1

    asyncio.run(main())


def test_a_wrong_grammar_is_one_requests_error(fake, grammar_engine):
    async def main():
        wrong = collect(grammar_engine, fake.request("wrong", [1], grammar=Grammar(source="start: (", param="grammar")))
        right = collect(grammar_engine, fake.request("right", [1], grammar=GRAMMAR))
        return await asyncio.gather(wrong, right, return_exceptions=True)

    error, tokens = asyncio.run(main())
    assert isinstance(error, BadRequest)
    assert error.param == "grammar"
    assert tokens[0]


def test_a_request_that_is_aborted_while_its_grammar_compiles_never_runs(fake, grammar_engine, monkeypatch):
    compiler, held = grammar_engine.engine.compiler, []
    submit = compiler.submit
    monkeypatch.setattr(compiler, "submit", lambda grammar, done, asker: held.append((grammar, done)))

    async def main():
        task = asyncio.create_task(collect(grammar_engine, fake.request("a", [1], grammar=GRAMMAR)))
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.sleep(0)
        done = asyncio.Event()
        loop = asyncio.get_running_loop()

        def end(compiled):
            held[0][1](compiled)
            loop.call_soon_threadsafe(done.set)

        submit(held[0][0], end)
        await done.wait()
        await collect(grammar_engine, fake.request("b", [1], max_tokens=2))
        assert grammar_engine.stats().counters.arrived == 1

    asyncio.run(main())


def test_too_many_grammars_at_once_are_refused(fake, grammar_engine, monkeypatch):
    monkeypatch.setattr(grammar_engine.engine.compiler._quick, "_places", 0)

    async def main():
        with pytest.raises(Overloaded, match="grammars"):
            await collect(grammar_engine, fake.request("a", [1], grammar=GRAMMAR))

    asyncio.run(main())


def test_a_grammar_waits_for_its_askers_turn(fake, grammar_engine, monkeypatch):
    askers = []
    submit = grammar_engine.engine.compiler.submit
    monkeypatch.setattr(grammar_engine.engine.compiler, "submit", lambda *all: (askers.append(all[2]), submit(*all)))
    request = fake.request("a", [1], grammar=GRAMMAR)
    request.asker = "alice"
    asyncio.run(collect(grammar_engine, request))
    assert askers == ["alice"]


def test_those_that_wait_for_a_grammar_hear_of_the_engines_end(fake, grammar_engine, monkeypatch):
    monkeypatch.setattr(grammar_engine.engine.compiler, "submit", lambda grammar, done, asker: None)

    async def main():
        task = asyncio.create_task(collect(grammar_engine, fake.request("a", [1], grammar=GRAMMAR)))
        await asyncio.sleep(0.01)
        grammar_engine._commands.put(None)
        with pytest.raises(EngineDead):
            await task

    asyncio.run(main())


def test_what_is_to_be_done_with_the_engine_is_done_between_two_steps(fake, slow_engine):
    """In its thread, also while it idles; an error is the caller's."""
    assert slow_engine.call(lambda engine: (engine, threading.current_thread().name)).result(60) == (
        slow_engine.engine,
        "octavo-engine",
    )

    def raises(engine):
        raise ValueError("no")

    async def main():
        streaming = asyncio.create_task(collect(slow_engine, fake.request("r", [1, 2, 3], max_tokens=20)))
        while not slow_engine.engine.has_work:
            await asyncio.sleep(0)
        with pytest.raises(ValueError, match="no"):
            await asyncio.wrap_future(slow_engine.call(raises))
        return await streaming

    assert asyncio.run(main())[0] == fake.expected([1, 2, 3], 20)


def test_nothing_is_done_with_an_engine_that_has_ended(fake):
    engine = AsyncEngine(fake.engine())
    waiting = threading.Event()
    engine.call(lambda _: waiting.wait(60))
    closing = threading.Thread(target=engine.close)
    closing.start()
    while engine._commands.qsize() < 1:
        time.sleep(0.001)
    too_late = engine.call(lambda _: 1)
    waiting.set()
    closing.join()
    assert too_late.cancelled()
    assert engine.call(lambda _: 1).cancelled()


def test_an_engine_that_finishes_while_it_is_closed_gives_its_model_up_once(fake):
    """The older of two sets of weights, when the server ends."""
    engine = fake.engine()
    running, given_up, begun, goes_on = AsyncEngine(engine), [], threading.Event(), threading.Event()
    give_up = engine.close

    def slowly(*, keeps=True):
        given_up.append(keeps)
        begun.set()
        goes_on.wait()
        give_up(keeps=keeps)

    engine.close = slowly
    both = [threading.Thread(target=running.finish), threading.Thread(target=running.close)]
    both[0].start()
    begun.wait()
    both[1].start()
    both[1].join(0.05)
    goes_on.set()
    for each in both:
        each.join()
    assert given_up == [True]
