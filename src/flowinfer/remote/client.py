"""A head elsewhere as a model like any other: what is asked of it goes over one connection.

What needs no answer (ids that were wrong, rows that have ended) waits for the next question, so that a round of a
batch is one message there and one back. Where the connection breaks, the rows that it held are decoded again over a new
one; where there is none to be had for `PATIENCE_SECONDS`, the run ends and can go on later.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any

import torch
from pydantic import ValidationError
from tokenizers import Tokenizer
from torch import Tensor

from flowinfer.backends.aside import waiting
from flowinfer.backends.base import Prompt, Session, TokenModel, Traffic, Turn
from flowinfer.errors import HeadCut, HeadLost, LoadError, MemoryShort, RunError
from flowinfer.fusion.certified import Candidates
from flowinfer.fusion.vocab import HeadVocabulary, TokenBytes
from flowinfer.remote import asked
from flowinfer.remote.wire import MOST_BODY, KeyRefused, Wire, WireError, call, last_part, parted
from flowinfer.spec import ModelSpec

PATIENCE_SECONDS = 20.0
"""How long a head that was there is waited for."""
_ANSWER_SECONDS = 600.0
"""Longest that a head may take: it may be asked by others too."""
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


def load(spec: ModelSpec, device: str, dtype: str) -> RemoteModel:
    """Connect to a head; backend `remote`.

    Args:
        spec: with the head's HOST:PORT as base_url, and the variable of the key as api_key_env.

    Raises:
        LoadError: nobody is there, it knows another key, or it holds another model.
    """
    return RemoteModel(spec)


class RemoteModel(TokenModel):
    """A model in another process; see the module's text."""

    is_elsewhere = True

    def __init__(self, spec: ModelSpec) -> None:
        self.name, self.device = spec.name, torch.device("cpu")
        place = parted(spec.address or "")
        if place is None:
            raise LoadError(f"model '{spec.name}': '{spec.base_url}' is no HOST:PORT", help='base_url="gpu2:7070"')
        self._host, self._port = place
        self._key = _key_of(spec)
        self.where = f"head '{spec.name}' at {self._host}:{self._port}"
        self._lock = threading.Lock()
        self._numbers = count()
        self._wire: Wire | None = None
        self.traffic = Traffic()
        """What has gone there and come back; counted on by a copy of the model too."""
        self._is_lost = False
        self.ended: list[int] = []
        """Sessions that the head may forget; it is told with the next question."""
        self._vocabularies: dict[tuple[str, ...], HeadVocabulary] = {}
        self._tokenizer: Tokenizer | None = None
        try:
            about = self._connect()
        except WireError as error:
            raise LoadError(f"{self.where}: {error}", help=_cure(error, self._host, self._port)) from error
        self._fingerprint, self._has_tokenizer = about.vocabulary, about.has_tokenizer
        self.num_columns = about.columns
        """V_k."""
        self.max_positions, self.is_exact = about.max_positions, about.is_exact
        self.notes = tuple(about.notes)
        ours = last_part(spec.ref)
        if ours not in (about.ref, about.name):
            self.close()
            raise LoadError(
                f"{self.where} holds '{about.ref}', the flow says '{ours}'",
                help="name in the flow what the head serves, or another head",
            )

    @property
    def tokenizer(self) -> Tokenizer | None:
        """Return the head's own tokenizer, fetched when it is first wanted."""
        if self._tokenizer is None and self._has_tokenizer:
            _, body = self._ask(asked.Tokenizer())
            try:
                self._tokenizer = Tokenizer.from_str(bytes(body).decode())
            except Exception as error:  # its library raises no other kind
                raise LoadError(f"{self.where} sends a tokenizer that cannot be read: {error}") from error
        return self._tokenizer

    def vocabulary(self, stop_tokens: Sequence[str] = ()) -> HeadVocabulary:
        """Return the head's token bytes, as it has verified them."""
        key = tuple(stop_tokens)
        if key not in self._vocabularies:
            about, body = self._ask(asked.Vocabulary(stop_tokens=list(key)))
            try:
                self._vocabularies[key] = _vocabulary(about, bytes(body))
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                raise LoadError(f"{self.where} sends a vocabulary that cannot be read: {error}") from error
        return self._vocabularies[key]

    def prompt(self, text: str, prefill: str = "", turns: Sequence[Turn] = ()) -> Prompt:
        """Let the head render and tokenize a prompt."""
        about, _ = self._ask(asked.Render(text=text, prefill=prefill, turns=list(turns)))
        try:
            found = asked.Rendered.model_validate(about)
        except ValidationError as error:
            raise RunError(f"{self.where}: what came is no prompt") from error
        return Prompt(found.text, tuple(found.ids), found.opens_thinking, found.opener)

    def open(self) -> Session:
        """Return an empty session, over a new connection where the last one broke.

        Raises:
            HeadLost: there is none to be had.
        """
        with waiting(), self._lock:
            self._reconnect()
        return RemoteSession(self, next(self._numbers))

    def close(self) -> None:
        """Close the connection."""
        if self._wire is not None:
            self._wire.close()
            self._wire = None

    def _reconnect(self) -> None:
        """Connect anew where the connection broke.

        Raises:
            HeadLost: there is none to be had.
        """
        until = time.monotonic() + (0.0 if self._is_lost else PATIENCE_SECONDS)
        while self._wire is None:
            try:
                about = self._connect()
                self._is_lost = False
            except WireError as error:
                if time.monotonic() >= until or isinstance(error, KeyRefused):
                    self._is_lost = True
                    raise HeadLost(f"{self.where} is lost: {error}") from error
                time.sleep(0.5)
                continue
            if about.vocabulary != self._fingerprint:
                raise HeadLost(f"{self.where} is lost: it holds another model now", help="begin a new run")

    def _connect(self) -> asked.About:
        """Connect and show the key; return what the head says of itself."""
        wire, about = call(self._host, self._port, self._key)
        wire.trust(seconds=_ANSWER_SECONDS, most_body=MOST_BODY)
        try:
            found = asked.About.model_validate(about)
        except ValidationError as error:
            wire.close()
            raise WireError("what it says of itself cannot be read") from error
        self._wire = wire
        return found

    def _ask(self, question: asked.Question) -> tuple[dict[str, Any], bytearray]:
        """Ask and wait for the answer; what needs no session is asked again where the connection breaks.

        Raises:
            HeadCut: the connection broke, and the session with it.
            RunError: the head cannot do it.
            MemoryShort: it has not enough memory.
            HeadLost: it is not there any more.
        """
        with waiting(), self._lock:
            if not isinstance(question, asked.Work):
                self._reconnect()
            try:
                head, body = self._exchanged(question)
            except HeadCut:
                if isinstance(question, asked.Work):
                    raise
                self._reconnect()
                head, body = self._exchanged(question)
        if "failed" in head:
            kind = MemoryShort if head["failed"] == "memory" else RunError
            raise kind(f"{self.where}: {head.get('why')}")
        return head, body

    def _exchanged(self, question: asked.Question) -> tuple[dict[str, Any], bytearray]:
        if self._wire is None:
            raise HeadCut(f"{self.where}: its connection broke")
        ended, self.ended = self.ended, []
        sent, received, start = self._wire.num_sent, self._wire.num_received, time.perf_counter()
        try:
            self._wire.send(question.model_dump() | {"ended": ended})
            head, body = self._wire.receive()
            self.traffic.count(
                self._wire.num_sent - sent,
                self._wire.num_received - received,
                time.perf_counter() - start,
                head.pop("seconds", None),
            )
            return head, body
        except WireError as error:
            self.close()
            raise HeadCut(f"{self.where}: {error}") from error
        except BaseException:  # an interrupt: an answer that nobody has read would be the next question's
            self.close()
            raise


class RemoteSession(Session):
    """Rows that a head holds.

    Args:
        model: the head.
        number: its own among the sessions of the connection.
    """

    def __init__(self, model: RemoteModel, number: int) -> None:
        self._model, self._number, self._wire = model, number, model._wire
        self._made = 0
        self._lengths: dict[int, int] = {}
        self._queued: list[asked.Deed] = []
        self._numbers = count()
        self.num_answered = self.num_fetched = 0
        """Texts behind which candidates came, and those whose logits had to be fetched."""

    def __del__(self) -> None:
        """Let the head forget the rows; nothing is sent from here, which may be anywhere."""
        self._model.ended.append(self._number)

    @property
    def is_cut(self) -> bool:
        """Return whether the head has forgotten its rows."""
        return self._model._wire is not self._wire

    def add(self, prompts: Sequence[Sequence[int]]) -> list[int]:
        """Let the head read prompts, in one message."""
        rows = list(range(self._made, self._made + len(prompts)))
        self._made += len(prompts)
        self._do(asked.Add(rows=rows, prompts=[list(prompt) for prompt in prompts]))
        self._lengths |= {row: len(prompt) for row, prompt in zip(rows, prompts, strict=True)}
        return rows

    def feed(self, chunks: Mapping[int, Sequence[int]]) -> None:
        """Append ids, with the next question."""
        self._queued.append(asked.Feed(chunks=[(row, list(ids)) for row, ids in chunks.items()]))
        self._grow({row: len(ids) for row, ids in chunks.items()})

    def leave_out(self, banned: Tensor) -> None:
        """Say which columns write nothing, with the next question."""
        self._queued.append(asked.LeaveOut(columns=banned.nonzero()[:, 0].tolist()))

    def logits(self, rows: Sequence[int]) -> Tensor:
        """Return rows' logits, (R, V_k)."""
        return self._whole(asked.Logits(rows=list(rows)), len(rows))

    def best(self, rows: Sequence[int], count: int) -> Candidates:
        """Return the candidates behind rows."""
        return self._some(asked.Logits(rows=list(rows), best=count, number=next(self._numbers)), len(rows))

    def verify(self, segments: Mapping[int, Sequence[Sequence[int]]]) -> Tensor:
        """Append segments and return the logits behind each, (S, V_k)."""
        found = self._whole(asked.Verify(segments=_plain(segments)), sum(map(len, segments.values())))
        self._grow({row: sum(map(len, of_row)) for row, of_row in segments.items()})
        return found

    def verify_best(self, segments: Mapping[int, Sequence[Sequence[int]]], count: int) -> Candidates:
        """Append segments and return the candidates behind each."""
        deed = asked.Verify(segments=_plain(segments), best=count, number=next(self._numbers))
        found = self._some(deed, sum(map(len, segments.values())))
        self._grow({row: sum(map(len, of_row)) for row, of_row in segments.items()})
        return found

    def rollback(self, row: int, count: int) -> None:
        """Forget ids, with the next question."""
        if count:
            self._queued.append(asked.Rollback(row=row, count=count))
            self._lengths[row] -= count

    def remove(self, rows: Sequence[int]) -> None:
        """End rows, with the next question."""
        self._queued.append(asked.Remove(rows=list(rows)))
        for row in rows:
            del self._lengths[row]

    def length(self, row: int) -> int:
        """Return the number of ids in a row."""
        return self._lengths[row]

    def _grow(self, by: Mapping[int, int]) -> None:
        for row, more in by.items():
            self._lengths[row] += more

    def _whole(self, deed: asked.Deed, count: int) -> Tensor:
        """Return the logits behind so many texts."""
        head, body = self._do(deed)
        dtype, shape = _DTYPES.get(str(head.get("dtype"))), _shape(head.get("shape"))
        if (
            dtype is None
            or shape is None
            or shape != (count, self._model.num_columns)
            or len(body) != dtype.itemsize * shape[0] * shape[1]
        ):
            raise RunError(f"{self._model.where}: what came are no logits")
        return torch.frombuffer(body, dtype=dtype).view(shape) if body else torch.empty(shape, dtype=dtype)

    def _some(self, deed: asked.Logits | asked.Verify, wanted: int) -> Candidates:
        """Return the candidates behind so many texts."""
        head, body = self._do(deed)
        shape = _shape(head.get("best"))
        if shape is None or shape[0] != wanted or shape[1] < 1 or len(body) != 8 * shape[0] * shape[1]:
            raise RunError(f"{self._model.where}: what came are no candidates")
        count = shape[0] * shape[1]
        columns = torch.frombuffer(body, dtype=torch.int32, count=count).view(shape).long()
        if count and not 0 <= int(columns.min()) <= int(columns.max()) < self._model.num_columns:
            raise RunError(f"{self._model.where}: what came are candidates of another vocabulary")
        probs = torch.frombuffer(body, dtype=torch.float32, count=count, offset=4 * count).view(shape)

        def fetch(at: Sequence[int]) -> Tensor:
            self.num_fetched += len(at)
            return self._whole(asked.Fetch(number=deed.number, at=list(at)), len(at))

        self.num_answered += shape[0]
        return Candidates(columns, probs, fetch)

    def _do(self, deed: asked.Deed) -> tuple[dict[str, Any], bytearray]:
        """Send what is queued and one thing more; wait for its answer."""
        if self.is_cut:
            raise HeadCut(f"{self._model.where}: its connection broke")
        deeds, self._queued = [*self._queued, deed], []
        return self._model._ask(asked.Work(session=self._number, deeds=deeds))


def _plain(segments: Mapping[int, Sequence[Sequence[int]]]) -> list[tuple[int, list[list[int]]]]:
    return [(row, [list(segment) for segment in of_row]) for row, of_row in segments.items()]


def _shape(found: object) -> tuple[int, int] | None:
    """Return the shape of a table that a message tells of, None where it is none."""
    if not isinstance(found, list) or len(found) != 2 or not all(type(one) is int and one >= 0 for one in found):
        return None
    return found[0], found[1]


def _key_of(spec: ModelSpec) -> bytes:
    if spec.api_key_env is None:
        return b""
    key = os.environ.get(spec.api_key_env, "").strip()
    if not key:
        raise LoadError(
            f"model '{spec.name}': the variable {spec.api_key_env} is not set", help="it holds the head's key"
        )
    return key.encode()


def _cure(error: WireError, host: str, port: int) -> str:
    if isinstance(error, KeyRefused):
        return "api_key_env must name a variable that holds the same key as the head's --key-env"
    return f"is it running? `flowinfer head MODEL --listen {host}:{port}` starts one there"


def _vocabulary(about: Mapping[str, Any], body: bytes) -> HeadVocabulary:
    pieces = asked.unpacked_pieces(body, int(about["num_pieces"]))
    tokens = TokenBytes(
        pieces,
        dict(about["specials"]),
        bool(about["has_dummy_prefix"]),
        frozenset(about["byte_pieces"]),
        dict(about["marks"]),
        tuple(about["losses"]),
    )
    return HeadVocabulary(tokens, frozenset(about["eos_ids"]), int(about["num_columns"]))
