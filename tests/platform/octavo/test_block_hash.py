from hypothesis import given
from hypothesis import strategies as st

from octavo.block_hash import HASH_BYTES, extend_chain, hash_chain, root_hash

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
