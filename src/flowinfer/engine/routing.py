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
from collections.abc import Sequence
from functools import lru_cache
from itertools import chain

import numpy as np
from scipy.sparse import csr_matrix, vstack

from flowinfer.engine.deciding import Pick
from flowinfer.spec import Routes
from flowinfer.startup import STARTUP

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
_BLOCK = 4096
"""Texts that are counted, or weighed, at once."""
_AT_ONCE = 64
"""Questions whose likeness to all others is held at once."""
_DIGITS = 9
"""To which likeness and scores are rounded, so that no machine orders equals otherwise."""


@lru_cache(maxsize=8)
def router_of(routes: Routes) -> Router:
    """Return what picks by a table, made once however many plans and questions go by it."""
    with STARTUP.waiting_for("routes", routes.name):
        return Router(routes, counted(routes.questions))


class Router:
    """Pick members by a table.

    Args:
        routes: the table, as the group has it; its questions are not looked at.
        counts: of its questions.
    """

    def __init__(self, routes: Routes, counts: csr_matrix) -> None:
        self._routes = routes
        num_questions = counts.shape[0]
        frequencies = np.bincount(counts.indices, minlength=counts.shape[1])
        self._rarity = 1.0 + np.log(1 + num_questions) - np.log(1 + frequencies)
        blocks = (counts[begin : begin + _BLOCK] for begin in range(0, num_questions, _BLOCK))
        self._questions_of = vstack([self._weighed(block) for block in blocks], format="csr").T.tocsr()  # (C, N)
        marks = np.frombuffer("".join(routes.right).encode(), dtype=np.uint8).reshape(num_questions, -1)
        self._right = (marks - ord("0")).astype(np.float64)  # (N, M)
        self._base = self._right.mean(axis=0)  # (M,)

    def pick(self, question: str) -> Pick:
        """Return the member for a question, given with its choices."""
        return self.picks(counted([question]))[0]

    def picks(self, counts: csr_matrix) -> list[Pick]:
        """Return the member for each question: (B, C)."""
        found = []
        for begin in range(0, counts.shape[0], _AT_ONCE):
            asked = self._weighed(counts[begin : begin + _AT_ONCE])
            likeness = np.round((asked @ self._questions_of).toarray(), _DIGITS)  # (b, N)
            found += [self._pick(row) for row in likeness]
        return found

    def _pick(self, likeness: np.ndarray) -> Pick:
        nearest = _first(likeness, self._routes.neighbours)
        weights = likeness[nearest]
        found = weights @ self._right[nearest] + _PRIOR * self._base  # (M,)
        scores = np.round(found / (weights.sum() + _PRIOR), _DIGITS)
        order = sorted(range(len(scores)), key=lambda member: (-scores[member], self._routes.tokens[member], member))
        return Pick(tuple(float(score) for score in scores), order[0])

    def _weighed(self, counts: csr_matrix) -> csr_matrix:
        """Return texts as vectors of length 1: words and runs by how rare they are, what a text is like by `_FORM`."""
        texts = np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr))
        is_form = counts.indices >= _WIDTH
        values = np.where(is_form, 1.0, (1 + np.log(counts.data)) * self._rarity[counts.indices])
        for is_part, length in ((~is_form, 1.0), (is_form, _FORM)):
            squares = np.bincount(texts, weights=np.where(is_part, values**2, 0.0), minlength=counts.shape[0])
            scales = length / np.sqrt(np.where(squares > 0, squares, 1.0))
            values[is_part] *= scales[texts[is_part]]
        whole = np.sqrt(np.bincount(texts, weights=values**2, minlength=counts.shape[0]))
        return csr_matrix((values / whole[texts], counts.indices, counts.indptr), shape=counts.shape)


def counted(texts: Sequence[str]) -> csr_matrix:
    """Count each text's words and runs of characters, by hashed column; what it is like is counted once: (N, C)."""
    return vstack([_counted(texts[begin : begin + _BLOCK]) for begin in range(0, len(texts), _BLOCK)], format="csr")


def _counted(texts: Sequence[str]) -> csr_matrix:
    plain = [re.sub(r"\d+", "0", unicodedata.normalize("NFKC", text).lower()) for text in texts]
    others = [
        [*(_hashed(f"w{word}") for word in re.findall(r"\w+", own)), *_form(text)]
        for own, text in zip(plain, texts, strict=True)
    ]
    numbers = np.repeat(np.arange(len(texts)), [len(own) for own in others])
    rows, columns = [numbers], [np.fromiter(chain.from_iterable(others), np.int64)]
    spaced = [f" {' '.join(own.split())} " for own in plain]
    of_character = np.repeat(np.arange(len(texts)), [len(own) for own in spaced])
    codes = np.frombuffer("".join(spaced).encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    state = _crc(np.full(len(codes), _C, dtype=np.uint32), codes)
    for further in (1, 2):  # runs of two characters, then of three
        state = _crc(state[:-1], codes[further:])
        is_within = of_character[:-further] == of_character[further:]
        rows.append(of_character[:-further][is_within])
        columns.append((~state[is_within] % _WIDTH).astype(np.int64))
    where = (np.concatenate(rows), np.concatenate(columns))
    found = csr_matrix((np.ones(len(where[0]), dtype=np.int32), where), shape=(len(texts), _WIDTH + len(_FORMS)))
    found.sum_duplicates()  # older releases of scipy leave them
    return found


_CRC = np.array([zlib.crc32(bytes([value]), 0xFFFFFFFF) ^ 0xFFFFFFFF for value in range(256)], dtype=np.uint32)
_C = zlib.crc32(b"c") ^ 0xFFFFFFFF
"""Checksum of what stands before each run, without its last step."""


def _hashed(found: str) -> int:
    return zlib.crc32(found.encode(errors="surrogatepass")) % _WIDTH


def _crc(state: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Go on with checksums over a character each, as UTF-8 has it: CRC-32 of many texts at once, without the last step.

    Args:
        state: (T,) uint32.
        codes: (T,) uint32, code points.
    """
    lengths = 1 + (codes >= 0x80) + (codes >= 0x800) + (codes >= 0x10000)
    for at in range(int(lengths.max(initial=1))):
        shift = 6 * np.maximum(lengths - 1 - at, 0).astype(np.uint32)
        first = np.array([0, 0, 0xC0, 0xE0, 0xF0], dtype=np.uint32)[lengths]
        byte = (codes >> shift) | first if at == 0 else (codes >> shift) & 0x3F | 0x80
        state = np.where(lengths > at, _CRC[(state ^ byte) & 0xFF] ^ (state >> 8), state)
    return state


def _first(likeness: np.ndarray, count: int) -> np.ndarray:
    """Return the most alike questions, of equals the first: (N,) -> (count,), or (N,) where that is less."""
    if count < len(likeness):
        least = np.partition(likeness, -count)[-count]
        near = np.flatnonzero(likeness >= least)
    else:
        near = np.arange(len(likeness))
    return near[np.argsort(-likeness[near], kind="stable")[:count]]


_FORMS = (
    *("chinese", "latin", "options", "numbers", "formula"),
    *(f"length {n}" for n in range(16)),
)


def _form(text: str) -> list[int]:
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
    return [_WIDTH + index for index, name in enumerate(_FORMS) if holds.get(name)]
