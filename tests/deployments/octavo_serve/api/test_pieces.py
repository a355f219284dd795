from __future__ import annotations

from octavo.request import Logprob
from octavo_serve.api.pieces import Begun, Ended, Piece, Whole


def test_the_whole_is_the_sum_of_its_pieces_and_leaves_them_as_they_were() -> None:
    first = Piece(1, "a", [1], [{1: Logprob(-1.0, 1)}], cumulative_logprob=-1.0)
    last = Piece(1, "bc", [2, 3], [{2: Logprob(-2.0, 1)}, {3: Logprob(-3.0, 1)}], "stop", 3, -6.0)
    other = Piece(0, "", [9], None, "length")
    begun = Begun(0, None, 5)
    whole = Whole()
    whole.add([begun, first])
    whole.add([other, last, Ended()])
    joined = Piece(1, "abc", [1, 2, 3], [*(first.logprobs or ()), *(last.logprobs or ())], "stop", 3, -6.0)
    assert whole.choices() == whole.choices() == [other, joined]
    assert (whole.begun, whole.tokens) == ({0: begun}, 4)
    assert (first.text, first.token_ids, len(first.logprobs or ())) == ("a", [1], 1)
