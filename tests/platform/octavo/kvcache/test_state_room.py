from hypothesis import given
from hypothesis import strategies as st

from octavo.kvcache.state_room import BLOCKS_PER_STATE, divide


@given(st.integers(1, 2**40), st.integers(1, 2**22), st.integers(1, 2**30), st.integers(1, 4096))
def test_what_is_divided_fits(total, block, state, sequences):
    room = divide(total, block, state, sequences)
    assert max(room.blocks, 0) * block + room.states * state <= total
    assert room.states <= 2 * sequences + 2 + max(room.blocks, 0) // room.interval
    assert room.interval * block >= BLOCKS_PER_STATE * state


def test_sequences_come_first_and_get_half_at_most():
    assert divide(10_000, 10, 10, 4) == (792, 10 + 198, 4)
    assert divide(10_000, 10, 1000, 64) == (400, 5 + 1, 400)
