"""A head elsewhere as a model like any other: what is asked of it goes over one connection.

What needs no answer (ids that were wrong, rows that have ended) waits for the next question, so that a round of a
batch is one message there and one back. Where the connection breaks, the rows that it held are decoded again over a new
one; where there is none to be had for `PATIENCE_SECONDS`, the run ends and can go on later.
"""

from __future__ import annotations

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
from flowinfer.errors import HeadCut, HeadLoading, HeadLost, LoadError, MemoryShort, RunError
from flowinfer.fusion.vocab import HeadVocabulary, TokenBytes
from flowinfer.remote import asked
from flowinfer.remote.direct import Direct, device_for
from flowinfer.remote.session import RemoteSession
from flowinfer.remote.wire import (
    MOST_BODY,
    SILENT_SECONDS,
    VERSION,
    KeyRefused,
    NoHead,
    NotYet,
    Silent,
    Wire,
    WireError,
    call,
    called,
    key_in,
    last_part,
    parted,
    shown_place,
)
from flowinfer.spec import ModelSpec

PATIENCE_SECONDS = 20.0
"""How long a head that was there is waited for."""
_REST = 3
"""Times what the last try took, that a lost head is left alone: one that stands still, or whose packets vanish, takes
ten seconds to find that out, one whose port is closed none."""


def load(spec: ModelSpec, device: str, dtype: str) -> RemoteModel:
    """Connect to a head; backend `remote`.

    Args:
        spec: with the head's HOST:PORT as base_url, and the variable of the key as api_key_env.

    Raises:
        LoadError: nobody is there, it knows another key, or it holds another model.
        HeadLoading: it loads its model.
    """
    return RemoteModel(spec)


class RemoteModel(TokenModel):
    """A model in another process; see the module's text."""

    is_elsewhere = True

    def __init__(self, spec: ModelSpec) -> None:
        self.name, self.device = spec.name, torch.device("cpu")
        place = parted(spec.address or "")
        if place is None:
            raise LoadError(f"model '{spec.name}': '{spec.base_url}' is no HOST:PORT", help='device="gpu2:7070"')
        self._host, self._port = place
        self._key = key_in(spec.api_key_env, f"model '{spec.name}': ")
        self.where = f"head '{spec.name}' at {shown_place(self._host, self._port)}"
        self._lock = threading.Lock()
        self._numbers = count()
        self._wire: Wire | None = None
        self._direct: Direct | None = None
        """By which whole distributions come; None = over the connection."""
        self.traffic = Traffic()
        """What has gone there and come back; counted on by a copy of the model too."""
        self._lost: tuple[float, str] | None = None
        """Until when a head that is lost is not looked for, and why it is lost."""
        self.ended: list[int] = []
        """Sessions that the head may forget; it is told with the next question."""
        self._vocabularies: dict[tuple[str, ...], HeadVocabulary] = {}
        self._tokenizer: Tokenizer | None = None
        try:
            about = self._connect()
        except NotYet as error:
            raise HeadLoading(f"{self.where}: {error}") from error
        except WireError as error:
            raise LoadError(f"{self.where}: {error}", help=_cure(error, self._host, self._port)) from error
        self._fingerprint = (about.vocabulary, about.tokenizer)
        self.num_columns = about.columns
        """V_k."""
        self.max_positions, self.is_exact = about.max_positions, about.is_exact
        self.most_rows = about.rows
        self.notes = tuple(about.notes)
        if about.version != VERSION:
            self.notes += (f"{self.where} runs flowinfer {about.version}, this is {VERSION}",)
        if called(spec.ref) not in (called(about.ref), called(about.name)):
            self.close()
            raise LoadError(
                f"{self.where} holds '{about.ref}', the flow says '{last_part(spec.ref)}'",
                help="name in the flow what the head serves, or another head",
            )

    @property
    def tokenizer(self) -> Tokenizer | None:
        """Return the head's own tokenizer, fetched when it is first wanted."""
        if self._tokenizer is None and self._fingerprint[1]:
            body = self._ask(asked.Tokenizer()).body
            try:
                self._tokenizer = Tokenizer.from_str(bytes(body).decode())
            except Exception as error:  # its library raises no other kind
                raise LoadError(f"{self.where} sends a tokenizer that cannot be read: {error}") from error
        return self._tokenizer

    def vocabulary(self, stop_tokens: Sequence[str] = ()) -> HeadVocabulary:
        """Return the head's token bytes, as it has verified them."""
        key = tuple(stop_tokens)
        if key not in self._vocabularies:
            told = self._ask(asked.Vocabulary(stop_tokens=list(key)))
            try:
                self._vocabularies[key] = _vocabulary(told.head, bytes(told.body))
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                raise LoadError(f"{self.where} sends a vocabulary that cannot be read: {error}") from error
        return self._vocabularies[key]

    def prompt(self, text: str, prefill: str = "", turns: Sequence[Turn] = ()) -> Prompt:
        """Let the head render and tokenize a prompt."""
        told = self._ask(asked.Render(text=text, prefill=prefill, turns=list(turns)))
        try:
            found = asked.Rendered.model_validate(told.head)
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
        if self._direct is not None:
            self._direct.close()
            self._direct = None

    def _reconnect(self) -> None:
        """Connect anew where the connection broke.

        Raises:
            HeadLost: there is none to be had.
        """
        if self._wire is None and self._lost and time.monotonic() < self._lost[0]:
            raise HeadLost(self._lost[1])
        until = time.monotonic() + (0.0 if self._lost else PATIENCE_SECONDS)
        while self._wire is None:
            start = time.monotonic()
            try:
                about = self._connect()
                self._lost = None
            except WireError as error:
                now = time.monotonic()
                if now >= until or isinstance(error, KeyRefused):
                    self._lost = now + _REST * (now - start), f"{self.where} is lost: {error}"
                    raise HeadLost(self._lost[1]) from error
                time.sleep(0.5)
                continue
            if (about.vocabulary, about.tokenizer) != self._fingerprint:
                raise HeadLost(f"{self.where} is lost: it holds another model now", help="begin a new run")

    def _connect(self) -> asked.About:
        """Connect, show the key, begin what the head offers beside the connection; return what it says of itself."""
        wire, about = call(self._host, self._port, self._key)
        wire.trust(seconds=SILENT_SECONDS, most_body=MOST_BODY)
        try:
            found = asked.About.model_validate(about)
            device = device_for(found.direct, found.gpu) if found.direct else None
            if found.direct and device is not None:
                wire.send(asked.Direct().model_dump())
                wire.receive()
                self._direct = Direct(wire, found.direct, device, is_head=False)
        except ValidationError as error:
            wire.close()
            raise WireError("what it says of itself cannot be read") from error
        except BaseException:
            wire.close()
            raise
        self._wire = wire
        return found

    @property
    def is_direct(self) -> bool:
        """Return whether whole distributions come beside the connection."""
        return self._direct is not None

    def _ask(self, question: asked.Question) -> asked.Answer:
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
                answer = self._exchanged(question)
            except HeadCut:
                if isinstance(question, asked.Work):
                    raise
                self._reconnect()
                answer = self._exchanged(question)
        if "failed" in answer.head:
            kind = MemoryShort if answer.head["failed"] == "memory" else RunError
            raise kind(f"{self.where}: {answer.head.get('why')}")
        return answer

    def _exchanged(self, question: asked.Question) -> asked.Answer:
        if self._wire is None:
            raise HeadCut(f"{self.where}: its connection broke")
        ended, self.ended = self.ended, []
        sent, received, start = self._wire.num_sent, self._wire.num_received, time.perf_counter()
        try:
            self._wire.send(question.model_dump() | {"ended": ended})
            head, body = self._wire.receive()
            beside = self._beside(question, head)
            self.traffic.count(
                self._wire.num_sent - sent,
                self._wire.num_received - received + (0 if beside is None else beside.nbytes),
                time.perf_counter() - start,
                head.pop("seconds", None),
            )
            return asked.Answer(head, body, beside)
        except WireError as error:
            self.close()
            raise HeadCut(f"{self.where}: {error}") from error
        except BaseException:  # an interrupt: an answer that nobody has read would be the next question's
            self.close()
            raise

    def _beside(self, question: asked.Question, head: Mapping[str, Any]) -> Tensor | None:
        """Take what was asked for beside the connection; None where nothing was, or the head cannot do it.

        Raises:
            WireError: what is announced is more than logits of many rows.
        """
        is_asked = isinstance(question, asked.Work) and getattr(question.deeds[-1], "is_direct", False)
        if self._direct is None or not is_asked or "failed" in head:
            return None
        shape, dtype = asked.shape_of(head.get("shape")), asked.DTYPES.get(str(head.get("dtype")))
        if shape is None or dtype is None or shape[0] * shape[1] * dtype.itemsize > MOST_BODY:
            raise WireError("what it announces are no logits")
        return self._direct.receive(shape, dtype)


def _cure(error: WireError, host: str, port: int) -> str:
    if isinstance(error, KeyRefused):
        return "api_key_env must name a variable that holds the same key as the head's --key-env"
    starts = f"`flowinfer head MODEL --listen {shown_place(host, port)}` starts one there"
    if isinstance(error.__cause__, Silent):
        return f"a head that stands still is ended and started again; where none is, {starts}"
    if isinstance(error, NoHead):
        return f'name a head\'s port: {starts}; an endpoint has backend=openai and base_url="http://..."'
    return f"is it running? {starts}"


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
