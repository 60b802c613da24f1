"""Training data as numbers, made on the fly by worker processes.

A row is one document: the prompt's ids, then the answer's. Only the answer is learnt. To go on from text that it would
have split otherwise, as a model must in a fused group, a part of the answers and prompts is split with BPE dropout; a
token that leaves the usual split is shown but not learnt, what follows it is.
"""

from __future__ import annotations

import json
import multiprocessing
import queue
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from flowinfer.fusion.vocab import token_bytes
from lab import documents
from lab.documents import Document, Mix

LENGTHS = (96, 128, 160, 192, 256)
"""Rows are padded to one of these; longer documents are left out."""
NOT_LEARNT = -100
_DROPOUT = 0.2
_ANSWERS_SPLIT = 0.35
_PROMPTS_SPLIT = 0.08
_DOCUMENTS = 1024
"""Documents in one shard."""

Ids = NDArray[np.int16]


@dataclass(frozen=True)
class Shard:
    """Rows of one length."""

    ids: Ids
    """Shape (rows, length)."""
    targets: Ids
    """Shape (rows, length): the id that follows, or NOT_LEARNT."""


class Encoder:
    """Turns documents into rows of ids for one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, rng: random.Random) -> None:
        self._usual: Tokenizer = tokenizer.backend_tokenizer
        self._dropping = _with_dropout(self._usual)
        self._widths = [len(piece) if piece else 1 for piece in token_bytes(tokenizer).pieces]
        self._rng = rng
        marked = tokenizer.apply_chat_template(
            [{"role": "user", "content": "\ue000"}], tokenize=False, add_generation_prompt=True
        )
        self._before, _, self._after = str(marked).partition("\ue000")
        self._opens_thought = self._after.rstrip().endswith("<think>")
        self._end = int(tokenizer.eos_token_id)
        self._pad = int(tokenizer.pad_token_id)

    def shards(self, made: Sequence[Document]) -> dict[int, Shard]:
        """Encode documents into one shard per length."""
        prompts = [self._before + document.prompt + self._opened(document) for document in made]
        answers = [self._written(document) for document in made]
        prompt_ids = self._encode(prompts, _PROMPTS_SPLIT)
        answer_ids = self._encode(answers, _ANSWERS_SPLIT)
        rows: dict[int, list[tuple[list[int], list[int]]]] = {length: [] for length in LENGTHS}
        for (prompt, _), (answer, learnt) in zip(prompt_ids, answer_ids, strict=True):
            ids = [*prompt, *answer, self._end]
            targets = [NOT_LEARNT] * (len(prompt) - 1)
            targets += [i if is_learnt else NOT_LEARNT for i, is_learnt in zip(answer, learnt, strict=True)]
            targets += [self._end, NOT_LEARNT]
            length = next((length for length in LENGTHS if len(ids) <= length), None)
            if length is not None:
                rows[length].append((ids, targets))
        return {length: self._padded(found, length) for length, found in rows.items() if found}

    def _opened(self, document: Document) -> str:
        """Return what the template puts before the answer, with an empty thought where the model does not think."""
        if self._opens_thought and not document.thinks:
            return self._after + "\n</think>\n\n"
        return self._after

    def _written(self, document: Document) -> str:
        if self._opens_thought and document.thinks:
            return f"{document.solution.thought}\n</think>\n\n{document.solution.text}"
        return document.solution.text

    def _encode(self, texts: list[str], share: float) -> list[tuple[list[int], list[bool]]]:
        """Return ids, and for each whether it may be learnt; a share of the texts is split with dropout."""
        usual = self._usual.encode_batch_fast(texts, add_special_tokens=False)
        split = [self._rng.random() < share for _ in texts]
        other = iter(
            self._dropping.encode_batch(
                [text for text, is_split in zip(texts, split, strict=True) if is_split], add_special_tokens=False
            )
        )
        found: list[tuple[list[int], list[bool]]] = []
        for encoding, is_split in zip(usual, split, strict=True):
            ids = list(encoding.ids)
            if is_split:
                dropped = next(other)
                found.append((list(dropped.ids), _stays(ids, dropped.ids, self._widths)))
            else:
                found.append((ids, [True] * len(ids)))
        return found

    def _padded(self, rows: Sequence[tuple[list[int], list[int]]], length: int) -> Shard:
        ids = np.full((len(rows), length), self._pad, dtype=np.int16)
        targets = np.full((len(rows), length), NOT_LEARNT, dtype=np.int16)
        for index, (row, target) in enumerate(rows):
            ids[index, : len(row)] = row
            targets[index, : len(target)] = target
        return Shard(ids, targets)


class Feed:
    """Worker processes that make shards for one model without end; use as a context."""

    def __init__(self, model: str, folder: Path, mix: Mix, *, workers: int, seed: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._queue: Any = context.Queue(maxsize=4 * workers)  # untyped in multiprocessing
        self._workers = [
            context.Process(target=_work, args=(model, folder, mix, f"{seed}/{index}", self._queue), daemon=True)
            for index in range(workers)
        ]

    def __enter__(self) -> Feed:
        for worker in self._workers:
            worker.start()
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.terminate()
        for worker in self._workers:
            worker.join()

    def take(self, seconds: float) -> dict[int, Shard] | None:
        """Return the next shards by length, or None if none came in that time."""
        try:
            found: dict[int, Shard] = self._queue.get(timeout=seconds)
        except queue.Empty:
            if not any(worker.is_alive() for worker in self._workers):
                raise RuntimeError("all workers that make training data have died") from None
            return None
        return found


def stream(model: str, tokenizer: PreTrainedTokenizerFast, mix: Mix, seed: str) -> Iterator[dict[int, Shard]]:
    """Make shards by length without end, the same for the same seed."""
    rng = random.Random(seed)
    encoder = Encoder(tokenizer, rng)
    while True:
        yield encoder.shards([documents.make(model, rng, mix) for _ in range(_DOCUMENTS)])


def _work(model: str, folder: Path, mix: Mix, seed: str, shards: Any) -> None:  # a multiprocessing queue
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    for made in stream(model, tokenizer, mix, seed):
        shards.put(made)


def _with_dropout(tokenizer: Tokenizer) -> Tokenizer:
    document = json.loads(tokenizer.to_str())
    document["model"]["dropout"] = _DROPOUT
    return Tokenizer.from_str(json.dumps(document))


def _stays(usual: Sequence[int], split: Sequence[int], widths: Sequence[int]) -> list[bool]:
    """Return for each id of a split whether it may be learnt: not if it leaves the usual way where it could follow it.

    Example: usual [ab, c], split [a, b, c] -> [False, True, True].
    """
    ends: dict[int, int] = {}
    at = 0
    for token in usual:
        ends[at] = at + widths[token]
        at = ends[at]
    stays, at = [], 0
    for token in split:
        end = at + widths[token]
        stays.append(ends.get(at, end) == end)
        at = end
    return stays
