from octavo.cost_model import attended


def test_what_waits_is_known_without_looking(fake):
    engine = fake.engine(num_blocks=200)
    for i in range(20):
        engine.add(fake.request(f"r{i}", [1] * (i + 1), n=1 + i % 3, max_tokens=3))
        if i % 4 == 0:
            engine.abort(f"r{i}")
    queue = engine.scheduler._waiting
    assert queue.tokens == sum(seq.num_known for seq in queue) > 0
    assert queue.attended == sum(attended(0, seq.num_known) for seq in queue)
    fake.run(engine)
    assert (queue.tokens, queue.attended, queue._amounts) == (0, 0, {})
