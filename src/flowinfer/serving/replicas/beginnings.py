"""Which replica has read which beginnings of questions, so that a conversation goes on where it was."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from flowinfer.serving.flows import Asking

_BLOCK = 256
"""Characters; what is shorter has no beginning worth knowing."""
_MOST_BLOCKS = 256
"""Of a question."""
_MOST_KEPT = 1 << 16


def beginnings(asking: Asking) -> list[int]:
    """Return a hash of each beginning of a question that ends with a block, the shortest first."""
    text = "\n".join([*(turn.content for turn in asking.turns), asking.question])
    found, last = [], hash(asking.flow.name)
    for start in range(0, min(len(text) - _BLOCK + 1, _MOST_BLOCKS * _BLOCK), _BLOCK):
        last = hash((last, text[start : start + _BLOCK]))
        found.append(last)
    return found


class Beginnings:
    """What each replica has read lately."""

    def __init__(self) -> None:
        self._read: OrderedDict[int, int] = OrderedDict()
        """By hash, the last replica; the latest last."""

    def note(self, hashes: Sequence[int], replica: int) -> None:
        """Note that a replica reads a question."""
        for one in hashes:
            self._read[one] = replica
            self._read.move_to_end(one)
        while len(self._read) > _MOST_KEPT:
            self._read.popitem(last=False)

    def replica(self, hashes: Sequence[int]) -> int | None:
        """Return the replica that has read the longest beginning of a question, if that is half of it at least."""
        for one in reversed(hashes[max(0, (len(hashes) + 1) // 2 - 1) :]):
            if one in self._read:
                return self._read[one]
        return None

    def forget(self, replica: int) -> None:
        """Forget what a replica has read that has ended."""
        for one in [one for one, reader in self._read.items() if reader == replica]:
            del self._read[one]
