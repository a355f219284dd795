"""Which layers share a block, and how many blocks a sequence holds where some of them have a window.

A block has the keys and values of `block_size` tokens in `depth` layers, so that blocks of all layers have one size and
come from one pool. Layers that see all of a text and layers with a window are in different groups; a sequence has a
table of blocks for each group (vLLM's hybrid KV cache manager does so).

    tokens           0 ............................... computed ... end of the step
    whole groups     [ held                                                       ]
    windowed groups  [ given back ....... ][ held: the window, and what is computed ]

A prefix is of use to a windowed group if the blocks are there that hold the window before its end. Where no layer has a
window, or none that is shorter than the longest sequence, there is one group, and a block has all layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

_MOST_GROUPS = 16
_SPARE = 0.1
"""Of the layers that see all: how many more a block may have room for, so that there are fewer groups."""

_NO_END = 2**31


@dataclass(frozen=True, slots=True)
class LayerGroups:
    """The groups of a model's layers: first those whose layers see all of a text, then those with a window.

    Attributes:
        depth: layers in a block; the last group of a kind may have fewer.
        whole, windowed: groups of each kind.
        window: positions that a token sees, itself included, in the windowed groups.
        step: tokens of one sequence that a step computes at most.
        layers: of each layer that attends, its group and its place in the group's blocks.
    """

    depth: int = 1
    whole: int = 1
    windowed: int = 0
    window: int = 0
    step: int = 0
    layers: tuple[tuple[int, int], ...] = ()

    @property
    def count(self) -> int:
        """Groups, of which there is one at least."""
        return self.whole + self.windowed

    def first(self, num_computed: int, block_size: int) -> int:
        """The first block of a windowed group that tokens after the first `num_computed` see something of."""
        return max(0, num_computed - self.window + 1) // block_size

    def held(self, tokens: int, block_size: int) -> int:
        """Most blocks that a sequence of so many tokens holds at a time, which is while its prompt is computed."""
        return self._held(tokens, block_size, self.step)

    def sequences(self, blocks: int, tokens: int, block_size: int) -> int:
        """How many sequences of so many tokens are held at once in so many blocks, of which one computes its prompt."""
        alone, beside = self.held(tokens, block_size), self._held(tokens, block_size, 1)
        return 0 if blocks < alone else 1 + (blocks - alone) // beside

    def most_tokens(self, blocks: int, block_size: int) -> int:
        """The longest sequence for which so many blocks suffice; 2**31 where any would do."""
        live = self._live(block_size, self.step)
        if blocks < self.count * live:
            return blocks // self.count * block_size
        return (blocks - self.windowed * live) // self.whole * block_size if self.whole else _NO_END

    def usable(self, most: int, block_size: int, has: Callable[[int, int], bool]) -> int:
        """Blocks of a prefix that all windowed groups can go on from: `most`, or as many before that.

        Args:
            has: whether a place's block is there in a group.
        """
        end, place = most, most - 1
        while place >= self.first(end * block_size, block_size):
            if not all(has(place, group) for group in range(self.whole, self.count)):
                end = place
            place -= 1
        return end

    def _held(self, tokens: int, block_size: int, step: int) -> int:
        blocks = -(-tokens // block_size)
        return self.whole * blocks + self.windowed * min(blocks, self._live(block_size, step))

    def _live(self, block_size: int, step: int) -> int:
        """Blocks that a window and a step's tokens can touch."""
        return -(-(self.window + step - 2) // block_size) + 1 if self.windowed else 0


ONE_GROUP = LayerGroups()
"""Of whatever has no layers: who only counts blocks need not know how many layers are in one."""


def layer_groups(windows: Sequence[int | None], longest: int, step: int) -> LayerGroups:
    """The groups of layers.

    Args:
        windows: positions that a layer's tokens see, themselves included; None: all.
        longest: tokens of a sequence, at most.
        step: tokens that a step computes, at most.
    """
    window = max((window for window in windows if window is not None), default=0)
    whole = [layer for layer, own in enumerate(windows) if own is None]
    windowed = [layer for layer, own in enumerate(windows) if own is not None]
    depth = _depth(len(whole), len(windowed))
    count = -(-len(whole) // depth) - (-len(windowed) // depth)
    if not windowed or window >= longest or count > _MOST_GROUPS:
        return LayerGroups(len(windows), 1, 0, 0, step, tuple((0, layer) for layer in range(len(windows))))
    before = -(-len(whole) // depth)
    places = {layer: divmod(place, depth) for place, layer in enumerate(whole)}
    places |= {layer: divmod(before * depth + place, depth) for place, layer in enumerate(windowed)}
    layers = tuple(places[layer] for layer in range(len(windows)))
    return LayerGroups(depth, before, count - before, window, step, layers)


def _depth(whole: int, windowed: int) -> int:
    """Layers of a block: as many as the smaller kind has, or fewer where too much of the blocks would stay empty."""
    if not whole or not windowed:
        return whole + windowed
    return next(n for n in range(min(whole, windowed), 0, -1) if -whole % n <= _SPARE * whole)
