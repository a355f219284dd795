"""Layers with a window give back what no token sees any more, and nothing else."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from octavo.block_hash import hash_chain, hash_in_group, root_hash
from octavo.kvcache.block_pool import BlockPool
from octavo.kvcache.block_table import BlockTable, lay_out
from octavo.layer_groups import LayerGroups, layer_groups
from octavo.routing.index import Chain, ShardBlocks, usable

SIZE = 4
ROOT = root_hash("m")


class Text:
    """A sequence: its tokens, all of which are computed, and its blocks."""

    def __init__(self, table: BlockTable, tokens: list[int]) -> None:
        self.table, self.tokens = table, tokens


class Pool(RuleBasedStateMachine):
    """Whatever happens, each position that the next token sees is in its sequence's blocks as it was written there."""

    texts: list[Text]

    @initialize(window=st.integers(1, 14), whole=st.integers(0, 2), windowed=st.integers(1, 3))
    def begin(self, window, whole, windowed):
        self.groups = LayerGroups(1, whole, windowed, window, 9)
        self.pool = BlockPool(14 * (whole + windowed), SIZE, groups=self.groups)
        self.texts = []
        self.written: dict[int, dict[int, tuple]] = {}  # block -> offset -> group, and all tokens up to there

    def write(self, text: Text, more: list[int]) -> bool:
        """Compute further tokens of a text, as a step does."""
        start, table = len(text.tokens), text.table
        table.pass_by(start)
        copies = table.grow(start, start + len(more))
        if copies is None:
            return False
        for source, target in copies:
            self.written[target] = dict(self.written.get(source, {}))
        text.tokens += more
        for group, blocks in enumerate(table.tables):
            for place in range(start, len(text.tokens)):
                block = self.written.setdefault(blocks[place // SIZE], {})
                assert not self.pool.is_visible(blocks[place // SIZE]), "others could read it"
                block[place % SIZE] = group, tuple(text.tokens[: place + 1])
        table.publish(hash_chain(ROOT, text.tokens, SIZE), len(text.tokens))
        return True

    @rule(tokens=st.lists(st.integers(0, 1), min_size=1, max_size=30))
    def start(self, tokens):
        found = self.pool.match(hash_chain(ROOT, tokens, SIZE)[: (len(tokens) - 1) // SIZE])
        text = Text(BlockTable(self.pool, found), tokens[: len(found) * SIZE])
        for begin in range(len(text.tokens), len(tokens), 9):
            if not self.write(text, tokens[begin : begin + 9]):
                text.table.free()
                return
        self.texts.append(text)

    @precondition(lambda self: self.texts)
    @rule(data=st.data(), more=st.lists(st.integers(0, 1), min_size=1, max_size=9))
    def extend(self, data, more):
        self.write(data.draw(st.sampled_from(self.texts)), more)

    @precondition(lambda self: self.texts)
    @rule(data=st.data())
    def give_back(self, data):
        text = data.draw(st.sampled_from(self.texts))
        keep = data.draw(st.integers(0, len(text.tokens)))
        keep = keep if text.table.goes_on_from(keep) else 0
        text.table.shrink(keep)
        del text.tokens[keep:]

    @precondition(lambda self: self.texts)
    @rule(data=st.data())
    def fork(self, data):
        text = data.draw(st.sampled_from(self.texts))
        self.texts.append(Text(text.table.fork(), list(text.tokens)))

    @precondition(lambda self: self.texts)
    @rule(data=st.data())
    def free(self, data):
        self.texts.pop(data.draw(st.integers(0, len(self.texts) - 1))).table.free()

    @precondition(lambda self: self.texts)
    @rule(data=st.data())
    def fail(self, data):
        """A step that filled a text's blocks raised."""
        text = data.draw(st.sampled_from(self.texts))
        self.pool.unpublish(text.table.held())

    @invariant()
    def the_window_is_there(self):
        for text in self.texts:
            end, table = len(text.tokens), text.table
            for group, blocks in enumerate(table.tables):
                first = 0 if group < self.groups.whole else max(0, end - self.groups.window + 1)
                for place in range(first, end):
                    found = self.written[blocks[place // SIZE]][place % SIZE]
                    assert found == (group, tuple(text.tokens[: place + 1]))

    @invariant()
    def sums_agree(self):
        self.pool.check_integrity([text.table.held() for text in self.texts])

    @invariant()
    def nothing_but_the_window_is_held(self):
        for text in self.texts:
            assert len(text.table.held()) <= self.groups.held(len(text.tokens), SIZE)

    @invariant()
    def routers_expect_what_is_found(self):
        heard = ShardBlocks(2**20)
        heard.part(0, 0, 1, self.pool.snapshot()[1])
        for text in self.texts:
            chain = hash_chain(ROOT, text.tokens, SIZE)
            found = usable(Chain(chain), len(chain), heard.matched(chain), heard, self.groups, SIZE)
            assert found == len(self.pool.match(chain))

    @invariant()
    def what_is_published_is_what_was_written(self):
        for text in self.texts:
            chain = hash_chain(ROOT, text.tokens, SIZE)
            for group in range(self.groups.count):
                for place, block_hash in enumerate(chain):
                    block = self.pool.find(hash_in_group(block_hash, group))
                    if block is not None:
                        end = tuple(text.tokens[: (place + 1) * SIZE])
                        assert self.written[block][SIZE - 1] == (group, end)


Pool.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestPool = Pool.TestCase


def computed(pool: BlockPool, tokens: list[int], step: int = 4) -> BlockTable:
    table, chain = BlockTable(pool), hash_chain(ROOT, tokens, SIZE)
    for start in range(0, len(tokens), step):
        table.pass_by(start)
        assert table.grow(start, start + step) == []
        table.publish(chain, start + step)
    return table


def test_a_hit_needs_the_window_before_its_end_and_no_more():
    pool = BlockPool(100, SIZE, groups=LayerGroups(1, 1, 2, 8, 4))
    tokens = list(range(40))
    chain = hash_chain(ROOT, tokens, SIZE)
    computed(pool, tokens).free()
    assert len(pool.match(chain)) == 10
    lost = pool.find(hash_in_group(chain[5], 2))  # in the second of the windowed groups
    pool.unpublish([lost])
    assert len(pool.match(chain)) == 10
    assert [len(pool.match(chain[:length])) for length in range(11)] == [0, 1, 2, 3, 4, 5, 5, 5, 8, 9, 10]
    found = pool.match(chain[:8])
    assert found.first == 6  # tokens from 32 on see 25 to 31
    assert [table[:6] for table in found.tables[1:]] == [[0] * 6] * 2
    pool.unpublish([pool.find(chain[3])])  # all tokens see it
    assert len(pool.match(chain)) == 3


def test_blocks_out_of_the_window_go_before_all_others_unless_they_came_back():
    pool = BlockPool(8, SIZE, groups=LayerGroups(1, 0, 1, 5, 4))
    old, tokens = [7] * 8, list(range(24))
    computed(pool, old, 8).free()
    running = computed(pool, tokens)
    chain = hash_chain(ROOT, tokens, SIZE)
    assert (running.first, pool.num_owned, pool.num_cached) == (4, 2, 6)
    BlockTable(pool, pool.match(chain[:2])).free()  # asks for the second block alone
    for gone in ([0], [0, 2], [0, 2, 3]):  # blocks of the text
        assert len(pool.match(hash_chain(ROOT, old, SIZE))) == 2
        pool.take(1)
        assert [place for place, h in enumerate(chain) if pool.find(h) is None] == gone
    pool.take(1)
    assert len(pool.match(hash_chain(ROOT, old, SIZE))) == 1


@given(
    windows=st.lists(st.one_of(st.none(), st.integers(1, 40)), min_size=1, max_size=70),
    longest=st.integers(1, 100), step=st.integers(1, 50),
)  # fmt: skip
def test_every_layer_has_a_place_of_its_own(windows, longest, step):
    groups = layer_groups(windows, longest, step)
    assert len(set(groups.layers)) == len(windows)
    for (group, place), window in zip(groups.layers, windows, strict=True):
        assert (group < groups.count, place < groups.depth) == (True, True)
        if group >= groups.whole:
            assert window is not None
            assert window <= groups.window < longest
    assert groups.depth * groups.count <= 2 * len(windows)
    needed = groups.held(longest, SIZE)
    assert groups.most_tokens(needed, SIZE) >= longest
    assert groups.most_tokens(needed - 1, SIZE) < longest or groups.most_tokens(needed - 1, SIZE) % SIZE == 0


@pytest.mark.parametrize(
    ("whole", "windowed", "expected"),
    [
        (18, 0, (18, 1, 0)),
        (3, 15, (3, 1, 5)),  # Gemma 3 270M
        (4, 22, (4, 1, 6)),  # 1B
        (12, 12, (12, 1, 1)),  # gpt-oss
        (0, 32, (32, 0, 1)),  # Mistral
        (21, 7, (7, 3, 1)),
        (10, 9, (5, 2, 2)),  # with blocks of nine layers, eight places of eighteen would be empty
        (40, 1, (41, 1, 0)),  # not worth a table for each layer
    ],
)
def test_few_groups_with_few_empty_places(whole, windowed, expected):
    groups = layer_groups([None] * whole + [512] * windowed, 8192, 1024)
    assert (groups.depth, groups.whole, groups.windowed) == expected


def test_a_window_that_no_sequence_outgrows_is_none():
    assert layer_groups([512, None], 512, 64).windowed == 0
    assert layer_groups([512, None], 513, 64).windowed == 1


def test_tables_are_laid_out_by_group():
    pool = BlockPool(20, SIZE, groups=LayerGroups(1, 1, 1, 4, 4))
    one, two = computed(pool, list(range(12))), computed(pool, list(range(100, 104)))
    laid_out = lay_out([one, two], spare=1)
    assert laid_out.shape == (2, 2, 4)
    assert laid_out[0, 0, :3].tolist() == list(one.blocks)
    assert laid_out[1, 0, one.first : 3].tolist() == list(one.tables[1][one.first :])
    assert laid_out[:, 1, 0].tolist() == [table[0] for table in two.tables]
