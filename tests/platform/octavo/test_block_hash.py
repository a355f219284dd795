from hypothesis import given
from hypothesis import strategies as st

from octavo.block_hash import HASH_BYTES, Origin, Turn, extend_chain, hash_chain, root_hash
from octavo.request import Adapter

tokens = st.lists(st.integers(0, 2**31 - 1), max_size=60)


@given(tokens=tokens, cut=st.integers(0, 60), size=st.integers(1, 9))
def test_a_chain_grown_in_parts_is_the_chain_of_the_whole(tokens, cut, size):
    root = root_hash("m")
    chain = hash_chain(root, tokens[:cut], size)
    extend_chain(chain, root, tokens, size)
    assert chain == hash_chain(root, tokens, size)
    assert len(chain) == len(tokens) // size
    assert all(len(h) == HASH_BYTES for h in chain)


def test_model_adapter_and_salt_start_different_chains():
    roots = {root_hash(*parts) for parts in (("m",), ("m", "a"), ("m", "", "a"), ("ma",))}
    assert len(roots) == 4


def test_a_hash_covers_all_that_came_before():
    root = root_hash("m")
    assert hash_chain(root, [1, 2, 3, 4], 2)[1] != hash_chain(root, [9, 2, 3, 4], 2)[1]


def test_a_turn_changes_the_chain_from_its_block_on():
    root, tokens = root_hash("m"), list(range(8))
    plain, turned, later = (hash_chain(root, tokens, 2, turn) for turn in (None, Turn(4, "a"), Turn(5, "a")))
    assert turned[:2] == plain[:2] == later[:2]
    assert not {*plain[2:]} & {*turned[2:]} | {*turned[2:]} & {*later[2:]}
    grown = hash_chain(root, tokens[:3], 2, Turn(4, "a"))
    extend_chain(grown, root, tokens, 2, Turn(4, "a"))
    assert grown == turned


def test_an_adapter_begins_at_the_last_place_that_invokes_it():
    late = Adapter("late", "a", "", (7, 0))
    starts = {(7, 0): 0, (1, 7, 0, 7, 0, 7): 3, (7, 1): None, (1792, 0, 0): None, (7, 0, 1792, 0, 0): 0}
    for prompt, start in starts.items():
        assert late.begins_at(prompt) == start
        turn = None if start is None else Turn(start, "a")
        assert Origin.of("m", late, "", prompt) == (root_hash("m"), turn)
    assert Origin.of("m", Adapter("whole", "a", ""), "", (7, 0)) == (root_hash("m", "a"), None)
