"""What is known of a sequence: which text it follows, and how often that held, by where it came from."""

from __future__ import annotations

import pytest

from octavo.engine.followed import Followed
from octavo.engine.recent import Namespace
from octavo.engine.suffix import SuffixIndex


@pytest.fixture
def tokens() -> list[int]:
    return [1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3]


@pytest.fixture
def followed(tokens) -> Followed:
    return Followed(SuffixIndex(tokens, 4096), Namespace())


def test_it_goes_on_in_the_text_that_it_repeats_and_finds_another(followed, tokens):
    followed.look(tokens)
    assert (followed.origin, followed.guesses(3)) == ("text", [4, 5, 6])
    tokens += [4, 5]
    followed.look(tokens)
    assert (followed.length, followed.guesses(2)) == (5, [6, 7])
    tokens += [9, 9, 9]
    followed.look(tokens)
    assert followed.guesses(2) == []


def test_an_answer_begins_as_predicted_and_is_found_again(followed, tokens):
    followed.predicted = SuffixIndex([20, 21, 22, 23, 24, 25], 4096)
    followed.expect(len(tokens))
    followed.look(tokens)
    assert (followed.origin, followed.guesses(2)) == ("predicted", [20, 21])
    tokens += [20, 99, 22, 23, 24]
    followed.look(tokens)
    assert (followed.origin, followed.guesses(9)) == ("predicted", [25])


def test_a_draft_model_is_judged_by_itself_and_by_what_a_grammar_forbids(followed, tokens):
    followed.look(tokens)
    text, draft = followed.chance(0), followed.draft_chance
    followed.is_drafted = True
    followed.learn(right=5, proposed=5)
    assert followed.draft_chance > draft
    better = followed.draft_chance
    followed.was_wrong(0)
    assert followed.draft_chance < better
    followed.is_drafted = False
    assert followed.chance(0) == text
