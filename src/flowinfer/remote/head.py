"""One model as a head for others: what it answers to the questions of `asked`, each client's in sessions of its own.

What cannot be done (a prompt too long for memory, ids that the model has not) is answered with the reason. What would
break a GPU for all clients, such as an index beyond a table, is found before anything is done.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from typing import Any

import torch
from pydantic import ValidationError
from tokenizers import Tokenizer
from torch import Tensor

from flowinfer.backends.base import Session, TokenModel
from flowinfer.errors import FlowInferError, MemoryShort, is_device_lost, is_memory_short
from flowinfer.remote import asked
from flowinfer.remote.direct import Direct, backend_of, gpu_id
from flowinfer.remote.wire import VERSION, Wire, last_part

MOST_SESSIONS = 16
"""Of one connection: decoding loops that are open at once."""
_DTYPES = {dtype: name for name, dtype in asked.DTYPES.items()}

_log = logging.getLogger(__name__)


@dataclass
class Open:
    """A session and what the client calls its rows."""

    session: Session
    rows: dict[int, int] = field(default_factory=dict)
    banned: Tensor | None = None
    """Columns that count in no candidates."""
    kept: dict[int, Tensor] = field(default_factory=dict)
    """Logits by the number of the answer that gave candidates of them."""


@dataclass
class Client:
    """What a head keeps for one connection."""

    sessions: dict[int, Open] = field(default_factory=dict)
    direct: Direct | None = None
    """By which whole distributions go to it."""


class Head:
    """A loaded model that answers several clients, one at a time.

    Args:
        model: loaded.
        ref: what the zoo or the command says that it is.
        rows: most rows of a session.
        open_session: makes a session; the model's own if not given.
        is_direct: whether whole distributions may go beside the connection (`remote.direct`).
    """

    def __init__(
        self,
        model: TokenModel,
        ref: str,
        *,
        rows: int = 256,
        open_session: Callable[[], Session] | None = None,
        is_direct: bool = False,
    ) -> None:
        self._model, self._most_rows = model, rows
        self._open_session = open_session or model.open
        self._turn = threading.Lock()
        self.lost: str | None = None
        """Why its device can do nothing more."""
        found = model.vocabulary()
        self._num_columns = found.num_columns
        self.about: dict[str, Any] = {
            "version": VERSION,
            "name": model.name,
            "ref": last_part(ref),
            "max_positions": model.max_positions,
            "is_exact": model.is_exact,
            "device": str(model.device),
            "vocabulary": found.tokens.fingerprint,
            "columns": found.num_columns,
            "tokenizer": sha256(raw).hexdigest() if (raw := self._tokenizer()) else "",
            "notes": list(model.notes),
            "rows": rows,
            "direct": (is_direct and backend_of(model.device)) or "",
            "gpu": gpu_id(model.device) if is_direct else "",
        }
        """What clients are told that have shown the key."""

    @property
    def device(self) -> torch.device:
        """Return where its logits are."""
        return self._model.device

    def client(self) -> Client:
        """Return a new one."""
        return Client()

    def forget(self, client: Client) -> None:
        """Let a client's rows go, and what was begun with it."""
        if client.direct is not None:
            client.direct.close()
        with self._turn:
            client.sessions.clear()

    def answer(self, raw: bytearray, client: Client) -> asked.Answer:
        """Return what is answered, or why it cannot be."""
        try:
            question = asked.QUESTION.validate_json(raw)
            if isinstance(question, asked.Echo):
                return asked.Answer({}, bytes(question.size))
            with self._turn, torch.inference_mode(), self._on_device():
                return self._do(question, client)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            return asked.Answer({"failed": "asked", "why": f"{where}: {first['msg']}"})
        except Exception as error:  # whatever the model raises is the client's news, and the next client's no business
            if is_device_lost(error):
                self.lost = str(error).splitlines()[0]
            kind = "memory" if is_memory_short(error) else "model"
            why = error.message if isinstance(error, FlowInferError) else f"{type(error).__name__}: {error}"
            _log.debug("a question failed", exc_info=True)
            return asked.Answer({"failed": kind, "why": why[:900]})

    def begin_direct(self, wire: Wire) -> Direct:
        """Begin what has been agreed on with a client."""
        return Direct(wire, self.about["direct"], self.device, is_head=True)

    def _do(self, question: asked.Question, client: Client) -> asked.Answer:
        for number in question.ended:
            client.sessions.pop(number, None)
        match question:
            case asked.Vocabulary(stop_tokens=stop_tokens):
                return self._vocabulary(stop_tokens)
            case asked.Tokenizer():
                return asked.Answer({}, self._tokenizer())
            case asked.Render(text=text, prefill=prefill, turns=turns):
                build = self._model.prompt
                prompt = build(text, prefill, turns) if turns else build(text, prefill)
                return asked.Answer(asdict(prompt))
            case asked.Echo():
                raise AssertionError("answered before")
            case asked.Direct():
                if not self.about["direct"]:
                    raise ValueError("this head sends all over the connection")
                return asked.Answer({"begins": self.about["direct"]})
            case asked.Work(session=number, deeds=deeds):
                return self._work(number, deeds, client)

    def _tokenizer(self) -> bytes:
        """Return the tokenizer as JSON; nothing where it is none that can be sent."""
        own = self._model.tokenizer
        return own.to_str().encode() if isinstance(own, Tokenizer) else b""

    def _vocabulary(self, stop_tokens: list[str]) -> asked.Answer:
        found = self._model.vocabulary(stop_tokens)
        tokens = found.tokens
        about = {
            "eos_ids": sorted(found.eos_ids),
            "num_columns": found.num_columns,
            "num_pieces": len(tokens.pieces),
            "specials": dict(tokens.specials),
            "has_dummy_prefix": tokens.has_dummy_prefix,
            "byte_pieces": sorted(tokens.byte_pieces),
            "marks": dict(tokens.marks),
            "losses": list(tokens.losses),
        }
        return asked.Answer(about, asked.packed_pieces(tokens.pieces))

    def _work(self, number: int, deeds: list[asked.Deed], client: Client) -> asked.Answer:
        sessions = client.sessions
        if number not in sessions:
            if len(sessions) >= MOST_SESSIONS:
                raise ValueError(f"{MOST_SESSIONS} sessions are open")
            sessions[number] = Open(self._open_session())
        answer = asked.Answer({})
        try:
            for deed in deeds:
                if getattr(deed, "is_direct", False) and client.direct is None:
                    raise ValueError("nothing was begun beside the connection")
                self._check(deed, sessions[number])
                answer = _done(deed, sessions[number])
        except BaseException:
            del sessions[number]  # what its rows hold is not known any more
            raise
        return answer

    def _check(self, deed: asked.Deed, own: Open) -> None:
        """Refuse what lies beyond the model's tables.

        Raises:
            MemoryShort: there are more rows than a session has.
            ValueError: it does.
        """
        match deed:
            case asked.Add(rows=names, prompts=prompts):
                if len(own.rows) + len(names) > self._most_rows:
                    raise MemoryShort(f"{self._most_rows} rows are most: --batch {self._most_rows}")
                if len(names) != len(prompts) or len(set(names)) != len(names) or own.rows.keys() & set(names):
                    raise ValueError("rows need a new name each, and a prompt")
                if not all(prompts):
                    raise ValueError("a prompt without ids")
                for ids in prompts:
                    self._check_ids(ids, 0)
            case asked.Feed(chunks=chunks):
                for row, ids in chunks:
                    self._check_ids(ids, own.session.length(own.rows[row]))
            case asked.Verify(segments=segments):
                for row, of_row in segments:
                    self._check_ids([one for ids in of_row for one in ids], own.session.length(own.rows[row]))
            case asked.LeaveOut(columns=columns):
                self._check_ids(columns, -len(columns))
            case asked.Fetch(number=number, at=at):
                if max(at, default=0) >= len(own.kept[number]):
                    raise ValueError("more texts than were answered")

    def _check_ids(self, ids: list[int], length: int) -> None:
        """Refuse ids that the model has not, or more of them behind a text of some length than it reads."""
        if max(ids, default=0) >= self._num_columns:
            raise ValueError(f"ids from {self._num_columns} on, which the model has not")
        if length + len(ids) > self._model.max_positions:
            raise ValueError(f"a text of more than {self._model.max_positions} ids")

    def _on_device(self) -> AbstractContextManager[Any]:
        """Return what makes the model's GPU the current one."""
        return torch.cuda.device(self._model.device) if self._model.device.type == "cuda" else nullcontext()


def _done(deed: asked.Deed, own: Open) -> asked.Answer:
    """Do one thing to a session; return what it is answered with."""
    session, rows = own.session, own.rows
    match deed:
        case asked.Add(rows=names, prompts=prompts):
            rows.update(zip(names, session.add(prompts), strict=True))
        case asked.Feed(chunks=chunks):
            session.feed({rows[row]: ids for row, ids in chunks})
        case asked.Rollback(row=row, count=count):
            if count >= session.length(rows[row]):
                raise ValueError("more ids than a row has")
            session.rollback(rows[row], count)
        case asked.Remove(rows=names):
            session.remove([rows.pop(row) for row in names])
        case asked.Logits(rows=names):
            return _answered(deed, session.logits([rows[row] for row in names]), own)
        case asked.Verify(segments=segments):
            return _answered(deed, session.verify({rows[row]: of_row for row, of_row in segments}), own)
        case asked.LeaveOut(columns=columns):
            own.banned = torch.tensor(columns, dtype=torch.int64) if columns else None
        case asked.Fetch(number=number, at=at):
            return _sent(own.kept[number][at], is_direct=deed.is_direct)
    return asked.Answer({})


def _answered(deed: asked.Logits | asked.Verify, logits: Tensor, own: Open) -> asked.Answer:
    """Return logits (N, V_k), or candidates of them: columns (N, k) in 4 bytes each, then probabilities."""
    if not deed.best:
        return _sent(logits, is_direct=deed.is_direct)
    own.kept[deed.number] = logits
    while len(own.kept) > asked.KEPT:
        del own.kept[next(iter(own.kept))]
    wide = logits.float()
    if own.banned is not None:
        own.banned = own.banned.to(wide.device)
        wide = wide.index_fill(1, own.banned, -torch.inf)
    best = wide.softmax(-1).topk(min(deed.best, wide.shape[-1]), dim=-1)  # as SharedVocabulary.lift
    both = torch.stack([best.indices.int(), best.values.view(torch.int32)])  # (2, N, k)
    return asked.Answer({"best": list(best.values.shape)}, _here(both))


def _sent(found: Tensor, *, is_direct: bool) -> asked.Answer:
    """Return how logits (N, V_k) are announced, and they themselves, or their bytes."""
    head = {"shape": list(found.shape), "dtype": _DTYPES.get(found.dtype, "")}
    return asked.Answer(head, beside=found) if is_direct else asked.Answer(head, _here(found))


def _here(found: Tensor) -> memoryview:
    """Return a tensor's bytes; from a GPU by one copy to pinned memory."""
    there = torch.empty(found.shape, dtype=found.dtype, pin_memory=found.device.type == "cuda")
    there.copy_(found)
    return memoryview(there.view(torch.uint8).numpy().data).cast("B")
