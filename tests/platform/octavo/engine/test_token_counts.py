import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from octavo.engine.token_counts import TokenCounts

TOKENS = st.lists(st.integers(0, 300), max_size=400)


@given(prompt=TOKENS, output=TOKENS, more=TOKENS)
def test_counts_are_those_of_the_output(prompt, output, more):
    counts = TokenCounts(prompt)
    for token in output:
        counts.add(token)
    then, other = counts.now(), counts.copy()
    for token in more:
        counts.add(token)
    for (tokens, numbers), said in ((then, output), (counts.now(), output + more), (other.now(), output)):
        assert dict(zip(tokens.tolist(), numbers.tolist(), strict=True)) == {
            token: said.count(token) for token in [*prompt, *said]
        }
        assert (tokens.dtype, numbers.dtype) == (np.int64, np.float32)
