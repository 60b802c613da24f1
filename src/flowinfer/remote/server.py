"""One model as a head for others: each connection has sessions of its own, all share the weights.

A thread per connection reads what is asked; one at a time uses the model. A connection that ends takes its rows with
it. What cannot be done (a prompt too long for memory, ids that the model has not) is answered with the reason, and the
connection goes on.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import Any

import torch
from pydantic import ValidationError
from tokenizers import Tokenizer
from torch import Tensor

from flowinfer.backends.base import Session, TokenModel
from flowinfer.errors import FlowInferError, is_device_lost, is_memory_short
from flowinfer.remote import asked
from flowinfer.remote.wire import Wire, WireError, last_part, welcome

MOST_CONNECTIONS = 64
"""Of clients that know the key; so many others may be about to show it."""
MOST_SESSIONS = 16
"""Of one connection: decoding loops that are open at once."""
_LOOK_SECONDS = 0.2
"""How often the listener looks whether it is over."""
_DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16", torch.float64: "float64"}

_log = logging.getLogger(__name__)


@dataclass
class _Open:
    """A session and what the client calls its rows."""

    session: Session
    rows: dict[int, int] = field(default_factory=dict)
    banned: list[int] = field(default_factory=list)
    """Columns that count in no candidates."""
    kept: dict[int, Tensor] = field(default_factory=dict)
    """Logits by the number of the answer that gave candidates of them."""


class HeadServer:
    """Serve one model.

    Args:
        model: loaded.
        ref: what the zoo or the command says that it is.
        key: who connects must know it; b"" = anybody may.
        rows: most rows of a session.
        open_session: makes a session; the model's own if not given.
        say: is told who comes, goes and is refused.
    """

    def __init__(
        self,
        model: TokenModel,
        ref: str,
        key: bytes,
        *,
        rows: int = 256,
        open_session: Callable[[], Session] | None = None,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._model, self._ref, self._key, self._say = model, ref, key, say
        self._open_session, self._most_rows = open_session or model.open, rows
        self._turn = threading.Lock()
        self._wires: set[Wire] = set()
        self._strangers: dict[Wire, None] = {}
        """Those of `_wires` that have not shown the key yet, the first first."""
        self._listener: socket.socket | None = None
        self._is_over = False
        self._about = self._described()

    def listen(self, host: str, port: int) -> tuple[str, int]:
        """Take an address and return it; port 0 = any that is free.

        Raises:
            OSError: it cannot be had.
        """
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        self._listener = socket.create_server(address[:2], family=family)
        self._listener.settimeout(_LOOK_SECONDS)
        own = self._listener.getsockname()
        return str(own[0]), int(own[1])

    def serve(self) -> None:
        """Serve until `close`; `listen` must have been called."""
        assert self._listener is not None, "listen comes before serve"
        with self._listener:
            self._accept(self._listener)

    def _accept(self, listener: socket.socket) -> None:
        while not self._is_over:
            try:
                connection, address = listener.accept()
            except TimeoutError:
                continue
            except OSError as error:  # too many open files, or a client that was gone at once
                self._say(f"nobody can come: {error.strerror}")
                time.sleep(_LOOK_SECONDS)
                continue
            who = f"{address[0]}:{address[1]}"
            if len(self._wires) - len(self._strangers) >= MOST_CONNECTIONS:
                self._say(f"{who} is turned away: {MOST_CONNECTIONS} are connected")
                connection.close()
                continue
            if len(self._strangers) >= MOST_CONNECTIONS:  # who knows the key shows it at once
                first = next(iter(self._strangers))
                self._forget(first)
                first.close()
            wire = Wire(connection)
            self._wires.add(wire)
            self._strangers[wire] = None
            threading.Thread(target=self._attend, args=(wire, who), daemon=True).start()

    def close(self) -> None:
        """Stop listening and end all connections."""
        self._is_over = True
        for wire in list(self._wires):
            wire.close()

    def _attend(self, wire: Wire, who: str) -> None:
        """Do what one client asks for until it goes."""
        sessions: dict[int, _Open] = {}
        try:
            theirs = welcome(wire, self._key, self._about)
            self._strangers.pop(wire, None)
            self._say(f"{who} has come, flowinfer {str(theirs.get('version', '?'))[:40]!a}")
            wire.trust(seconds=None)
            while True:
                asked_for, _ = wire.receive_text()
                start = time.perf_counter()
                head, body = self._answer(asked_for, sessions)
                wire.send(head | {"seconds": round(time.perf_counter() - start, 6)}, body)
        except WireError as error:
            self._say(f"{who} has gone: {error}")
        finally:
            self._forget(wire)
            wire.close()
            with self._turn:
                sessions.clear()

    def _forget(self, wire: Wire) -> None:
        self._strangers.pop(wire, None)
        self._wires.discard(wire)

    def _described(self) -> dict[str, Any]:
        model = self._model
        found = model.vocabulary()
        return {
            "version": version("flowinfer"),
            "name": model.name,
            "ref": last_part(self._ref),
            "max_positions": model.max_positions,
            "is_exact": model.is_exact,
            "device": str(model.device),
            "vocabulary": found.tokens.fingerprint,
            "columns": found.num_columns,
            "has_tokenizer": isinstance(model.tokenizer, Tokenizer),
            "notes": list(model.notes),
        }

    def _answer(self, head: bytearray, sessions: dict[int, _Open]) -> tuple[dict[str, Any], bytes | memoryview]:
        """Return what is answered, or why it cannot be."""
        try:
            question = asked.QUESTION.validate_json(head)
            if isinstance(question, asked.Echo):
                return {}, bytes(question.size)
            with self._turn, torch.inference_mode():
                return self._do(question, sessions)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            return {"failed": "asked", "why": f"{where}: {first['msg']}"}, b""
        except Exception as error:  # whatever the model raises is the client's news, and the next client's no business
            if is_device_lost(error):
                self._say(f"error: the device has failed: {str(error).splitlines()[0]}")
                self.close()
            kind = "memory" if is_memory_short(error) else "model"
            why = error.message if isinstance(error, FlowInferError) else f"{type(error).__name__}: {error}"
            _log.debug("a question failed", exc_info=True)
            return {"failed": kind, "why": why[:900]}, b""

    def _do(self, question: asked.Question, sessions: dict[int, _Open]) -> tuple[dict[str, Any], bytes | memoryview]:
        for number in question.ended:
            sessions.pop(number, None)
        match question:
            case asked.Vocabulary(stop_tokens=stop_tokens):
                return self._vocabulary(stop_tokens)
            case asked.Tokenizer():
                own = self._model.tokenizer
                return {}, own.to_str().encode() if isinstance(own, Tokenizer) else b""
            case asked.Render(text=text, prefill=prefill, turns=turns):
                build = self._model.prompt
                prompt = build(text, prefill, turns) if turns else build(text, prefill)
                return asdict(prompt), b""
            case asked.Echo():
                raise AssertionError("answered before")
            case asked.Work(session=number, deeds=deeds):
                return self._work(number, deeds, sessions)

    def _vocabulary(self, stop_tokens: list[str]) -> tuple[dict[str, Any], bytes]:
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
        return about, asked.packed_pieces(tokens.pieces)

    def _work(
        self, number: int, deeds: list[asked.Deed], sessions: dict[int, _Open]
    ) -> tuple[dict[str, Any], bytes | memoryview]:
        if number not in sessions:
            if len(sessions) >= MOST_SESSIONS:
                raise ValueError(f"{MOST_SESSIONS} sessions are open")
            sessions[number] = _Open(self._open_session())
        answer: tuple[dict[str, Any], bytes | memoryview] = {}, b""
        try:
            for deed in deeds:
                if isinstance(deed, asked.Add) and len(sessions[number].rows) + len(deed.rows) > self._most_rows:
                    raise ValueError(f"{self._most_rows} rows are most: --batch {self._most_rows}")
                answer = _done(deed, sessions[number])
        except BaseException:
            del sessions[number]  # what its rows hold is not known any more
            raise
        return answer


def _done(deed: asked.Deed, own: _Open) -> tuple[dict[str, Any], bytes | memoryview]:
    """Do one thing to a session; return what it is answered with."""
    session, rows = own.session, own.rows
    match deed:
        case asked.Add(rows=names, prompts=prompts):
            if len(names) != len(prompts) or len(set(names)) != len(names) or rows.keys() & set(names):
                raise ValueError("rows need a new name each, and a prompt")
            if not all(prompts):
                raise ValueError("a prompt without ids")
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
            own.banned = columns
        case asked.Fetch(number=number, at=at):
            return _sent(own.kept[number][at])
    return {}, b""


def _answered(
    deed: asked.Logits | asked.Verify, logits: Tensor, own: _Open
) -> tuple[dict[str, Any], bytes | memoryview]:
    """Return logits (N, V_k), or candidates of them: columns (N, k) in 4 bytes each, then probabilities."""
    if not deed.best:
        return _sent(logits)
    own.kept[deed.number] = logits
    while len(own.kept) > asked.KEPT:
        del own.kept[next(iter(own.kept))]
    wide = logits.float()
    if own.banned:
        wide = wide.index_fill(1, torch.tensor(own.banned, device=wide.device), -torch.inf)
    best = wide.softmax(-1).topk(min(deed.best, wide.shape[-1]), dim=-1)  # as SharedVocabulary.lift
    _, columns = _sent(best.indices.int())
    _, probs = _sent(best.values)
    return {"best": list(best.values.shape)}, bytes(columns) + bytes(probs)


def _sent(found: Tensor) -> tuple[dict[str, Any], memoryview]:
    there = found.to("cpu").contiguous()
    head = {"shape": list(there.shape), "dtype": _DTYPES.get(there.dtype, "")}
    return head, memoryview(there.view(torch.uint8).numpy().data).cast("B")
