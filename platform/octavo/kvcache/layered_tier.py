"""A small quick tier in front of a large slow one.

What is written goes to both, and what is read of the second to the first.

The second has all that the first has, but for what it failed to write or has given up since: so nothing is written when
the first gives a block up.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence

from octavo.kvcache.tier import Bytes, Failure, Tier


class LayeredTier:
    """A tier (`octavo.kvcache.tier.Tier`) of two."""

    def __init__(self, first: Tier, second: Tier) -> None:
        self._first, self._second = first, second
        self.changes: deque[tuple[bool, bytes]] = deque()
        self.failures: Counter[Failure] = second.failures  # in memory nothing fails

    def hashes(self) -> list[bytes]:
        """As in `Tier`."""
        return list({*self._first.hashes(), *self._second.hashes()})

    def lookup(self, chain: Sequence[bytes]) -> int:
        """As in `Tier`."""
        found = 0
        while found < len(chain) and (more := self._run(chain[found:])[1]):
            found += more
        return found

    def read(self, hashes: Sequence[bytes], into: Bytes) -> int:
        """As in `Tier`."""
        done = 0
        while done < len(hashes) and (count := (found := self._run(hashes[done:]))[1]):
            here, rows = hashes[done : done + count], into[done : done + count]
            good = found[0].read(here, rows)
            if found[0] is self._second and good:
                self._first.write(here[good - 1 :: -1], rows[good - 1 :: -1])
            done += good
            if good < count and not (found[0] is self._first and self._second.lookup(here[good : good + 1])):
                break  # what the first gave up in between, the second has
        self._tell()
        return done

    def write(self, hashes: Sequence[bytes], data: Bytes) -> int:
        """As in `Tier`."""
        first, second = self._first.write(hashes, data), self._second.write(hashes, data)
        self._tell()
        return max(first, second)

    def close(self) -> None:
        """As in `Tier`: what the second keeps stays."""
        self._first.close()
        self._second.close()

    def _run(self, chain: Sequence[bytes]) -> tuple[Tier, int]:
        """The layer that has the first of these blocks, and how many of them in a row, before the other is asked."""
        if count := self._first.lookup(chain):
            return self._first, count
        count = self._second.lookup(chain)
        beyond = next((i for i in range(count) if self._first.lookup(chain[i : i + 1])), count)
        return self._second, beyond

    def _tell(self) -> None:
        for layer, other in ((self._first, self._second), (self._second, self._first)):
            while layer.changes:
                came, block_hash = layer.changes.popleft()
                if came or not other.lookup((block_hash,)):
                    self.changes.append((came, block_hash))
