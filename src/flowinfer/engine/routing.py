"""Which member of a choice group is most likely right about a question: nearest neighbours over hashed text.

Only the question's text counts. A text is a sparse vector of its words and of its runs of two and three characters
(numbers are all alike), weighted by how rare they are, and of what it is like as a whole: how long, how much of it is
Chinese, whether it has options, numbers, formulas. A member's score is the share of the most alike questions that it
was right about, each weighted by its likeness, drawn to its share of all questions where few are alike.
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from scipy.sparse import csr_matrix

from flowinfer.engine.deciding import Pick
from flowinfer.spec import Routes

RULE = (
    "a member's score is the share of the most alike questions that it was right about, weighted by likeness;"
    " alike are questions that share words and characters and are of one length and form"
)
NEIGHBOURS = 20
_PRIOR = 2.0
"""Likeness that a member's share of all questions counts with among the neighbours."""
_WIDTH = 1 << 18
"""Columns that words and characters are hashed to."""
_FORM = 0.5
"""Weight of what a text is like as a whole, against its words."""
_DIGITS = 9
"""To which likeness and scores are rounded, so that no machine orders equals otherwise."""


@lru_cache(maxsize=8)
def router_of(routes: Routes) -> Router:
    """Return what picks by a table, made once however many plans and questions go by it."""
    return Router(routes)


class Router:
    """Pick members by a table.

    Args:
        routes: the table, as the group has it.
    """

    def __init__(self, routes: Routes) -> None:
        self._routes = routes
        counts = [_counts(text) for text in routes.questions]
        found = Counter(column for one in counts for column in one)
        self._rarest = 1.0 + float(np.log(1 + len(counts)))
        self._rarity = {column: self._rarest - float(np.log(1 + n)) for column, n in found.items()}
        self._rows = _matrix([self._weighed(text, one) for text, one in zip(routes.questions, counts, strict=True)])
        self._right = np.array([[float(mark) for mark in marks] for marks in routes.right])  # (N, M)
        self._base = self._right.mean(axis=0)  # (M,)

    def pick(self, question: str) -> Pick:
        """Return the member for a question, given with its choices."""
        return self.picks([question])[0]

    def picks(self, questions: Sequence[str]) -> list[Pick]:
        """Return the member for each question."""
        asked = _matrix([self._weighed(text, _counts(text)) for text in questions])
        likeness = np.round(np.asarray((asked @ self._rows.T).todense()), _DIGITS)  # (B, N)
        return [self._pick(row) for row in likeness]

    def _pick(self, likeness: np.ndarray) -> Pick:
        nearest = np.argsort(-likeness, kind="stable")[: self._routes.neighbours]
        weights = likeness[nearest]
        found = weights @ self._right[nearest] + _PRIOR * self._base  # (M,)
        scores = np.round(found / (weights.sum() + _PRIOR), _DIGITS)
        order = sorted(range(len(scores)), key=lambda member: (-scores[member], self._routes.tokens[member], member))
        return Pick(tuple(float(score) for score in scores), order[0])

    def _weighed(self, text: str, counts: Counter[int]) -> dict[int, float]:
        """Return a text's vector, of length 1."""
        rarity = self._rarity.get
        words = {column: (1 + float(np.log(n))) * rarity(column, self._rarest) for column, n in counts.items()}
        return _scaled(_scaled(words, 1.0) | _scaled(_form(text), _FORM), 1.0)


def _scaled(vector: dict[int, float], length: float) -> dict[int, float]:
    norm = float(np.sqrt(sum(value * value for value in vector.values())))
    return {column: value * length / norm for column, value in vector.items()} if norm else {}


def _matrix(vectors: Sequence[dict[int, float]]) -> csr_matrix:
    columns = [column for vector in vectors for column in vector]
    values = [value for vector in vectors for value in vector.values()]
    starts = np.cumsum([0, *map(len, vectors)])
    return csr_matrix((values, columns, starts), shape=(len(vectors), _WIDTH + len(_FORMS)))


def _counts(text: str) -> Counter[int]:
    """Count a text's words and runs of characters, by hashed column."""
    plain = re.sub(r"\d+", "0", unicodedata.normalize("NFKC", text).lower())
    spaced = f" {' '.join(plain.split())} "
    found = [f"w{word}" for word in re.findall(r"\w+", plain)]
    found += [f"c{spaced[at : at + n]}" for n in (2, 3) for at in range(len(spaced) - n + 1)]
    return Counter(zlib.crc32(one.encode(errors="surrogatepass")) % _WIDTH for one in found)


_FORMS = (
    *("chinese", "latin", "options", "numbers", "formula"),
    *(f"length {n}" for n in range(16)),
)


def _form(text: str) -> dict[int, float]:
    """Return what a text is like as a whole, by column."""
    chinese = len(re.findall(r"[\u4e00-\u9fff]", text))
    latin = len(re.findall(r"[A-Za-z]", text))
    holds = {
        "chinese": chinese * 2 > latin,
        "latin": latin >= chinese * 2,
        "options": len(re.findall(r"^\s*\(?[A-D][.．、:)]", text, re.MULTILINE)) > 1,
        "numbers": len(re.findall(r"\d+", text)) > 1,
        "formula": bool(re.search(r"[=^\\]|\d\s*[*/+]\s*\w", text)),
        f"length {min(15, len(text).bit_length())}": True,
    }
    return {_WIDTH + index: 1.0 for index, name in enumerate(_FORMS) if holds.get(name)}
