"""Guesses under a grammar end where they must, and the rows behind them keep to what they would without."""

from __future__ import annotations

import numpy as np

from octavo.constraint import Grammar
from octavo.engine.batch import build_batch
from octavo.engine.behind import checked, may_guess


def drawing(fake, tokenizer, **params):
    """An engine whose only sequence has drawn its first token, and that sequence."""
    engine = fake.engine(tokenizer=tokenizer, max_num_batched_tokens=64, speculation=False)
    engine.add(fake.request("r", [1, 2, 3], **{"max_tokens": 60, **params}))
    engine.step()
    (seq,) = engine.scheduler.sequences("r")
    return engine, seq


def ids(tokenizer, text: str) -> list[int]:
    return [token for letter in text for token in tokenizer.encode(letter, add_special_tokens=False)]


def test_rows_behind_guesses_have_the_masks_of_single_steps(fake, tiny_tokenizer):
    grammar = Grammar(source="start: /[a-z]{30}/")
    params = {"grammar": grammar, "bad_token_ids": [[70], [71, 72]], "min_tokens": 5}
    engine, seq = drawing(fake, tiny_tokenizer, **params)
    known = len(seq.token_ids)
    masks = []
    for _ in range(5):
        plan = engine.scheduler.schedule()
        batch = build_batch(plan)
        masks.append(batch.sampling.masks[0].copy())
        result = engine.executor.launch(batch)()
        engine.scheduler.commit(engine.scheduler.advance(plan), result)
    _, again = drawing(fake, tiny_tokenizer, **params)
    found = checked(again, seq.token_ids[known : known + 4])
    assert found.tokens == seq.token_ids[known : known + 4]
    assert all(np.array_equal(row.mask, mask) for row, mask in zip(found.behind, masks[1:], strict=True))
    assert found.seconds > 0
    assert again.token_ids == seq.token_ids[:known]


def test_guesses_end_before_what_the_grammar_forbids_completes_or_forces(fake, tiny_tokenizer):
    _, seq = drawing(fake, tiny_tokenizer, grammar=Grammar(source='start: /[b-d]/ /[a-c]{3}/ "then more" /[xyz]/'))
    seq.constraint.matcher.reset()
    said = ids(tiny_tokenizer, "bacb")
    assert checked(seq, said[:2]).tokens == said[:2]
    assert checked(seq, [said[0], *ids(tiny_tokenizer, "q")]).tokens == said[:1]
    assert checked(seq, [*said, *ids(tiny_tokenizer, "then")]).tokens == said[:3]  # the last one forces what follows
    assert not checked(seq, ids(tiny_tokenizer, "q")).tokens


def test_no_guesses_where_log_probabilities_are_told_or_the_grammar_is_slow(fake, tiny_tokenizer):
    grammar = Grammar(source="start: /[a-z]{30}/")
    _, seq = drawing(fake, tiny_tokenizer, grammar=grammar)
    assert may_guess(seq)
    seq.constraint.suspect = 2
    assert not may_guess(seq)
    assert not may_guess(drawing(fake, tiny_tokenizer, grammar=grammar, logprobs=1)[1])
    assert may_guess(drawing(fake, tiny_tokenizer, logprobs=1)[1])
