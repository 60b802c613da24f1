"""What goes between a head and who asks it: framed messages over TCP, after both have shown that they know one key.

A frame is two lengths (32 bits each, big-endian), a head in JSON and a body of plain bytes; nothing is ever unpickled.
Who connects is sent a nonce and answers with its own and an HMAC-SHA256 of both; the server then shows its own. Until
then no frame may be longer than `_STRANGERS`, and all of it must be there within `_PATIENCE_SECONDS`. What follows is
neither hidden nor sealed: across networks that others share it belongs into a tunnel. A server that is still at work on
an answer says so every few seconds, whatever it computes, so that one that stands still is known by its silence.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import secrets
import select
import socket
import struct
import time
from contextlib import suppress
from typing import Any

from flowinfer.backends.versions import installed
from flowinfer.errors import LoadError
from flowinfer.stores.ollama import OLLAMA

PROTOCOL = 4
"""Goes up whenever what is said changes."""
VERSION = installed("flowinfer") or "of a source tree"
"""Of flowinfer, told to the other side."""
MOST_HEAD = 64 << 20
"""Bytes of a head: prompts of many rows, or a tokenizer's control tokens."""
MOST_BODY = 2 << 30
"""Bytes of a body: logits of many rows."""
_STRANGERS = 4096
_PATIENCE_SECONDS = 10.0
_TOGETHER = 1 << 16
"""Bytes of a body up to which it is sent together with its head."""
_LENGTHS = struct.Struct("!II")
BEAT_SECONDS, SILENT_SECONDS = 5.0, 30.0
"""Between signs of life of a server at work, and after how long without one it stands still."""
_AT_WORK = {"at": "work"}
"""A sign of life."""
_ANSWER_SECONDS = 600.0
"""Longest that a server may be at work on an answer: it may be asked by others too."""
_SEND_SECONDS = 600.0
"""Longest that the other side may take to read a message."""
_KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 20_000}
"""Seconds of silence, seconds between questions whether somebody is there, how many of them; milliseconds in which what
was sent must have arrived."""


class WireError(Exception):
    """The other side has gone, or says what cannot be understood; tells which in a few words."""


class Wire:
    """One connection, on either side; one thread at a time.

    Args:
        connection: open, over TCP.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._most_head, self._most_body = _STRANGERS, 0
        self.num_sent = self.num_received = 0
        """Bytes so far."""
        self._until: float | None = time.monotonic() + _PATIENCE_SECONDS
        """When the handshake must be over."""
        self._seconds: float | None = None
        """How long a part of a message is waited for afterwards."""
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEPALIVE.items():
            if hasattr(socket, name):  # macOS has another name for the first
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def send(self, head: dict[str, Any], body: bytes | bytearray | memoryview = b"") -> None:
        """Send a message.

        Raises:
            WireError: the other side has gone.
        """
        raw = json.dumps(head, separators=(",", ":")).encode()
        try:
            self._socket.settimeout(_SEND_SECONDS if self._until is None else self._left())
            first = _LENGTHS.pack(len(raw), len(body)) + raw
            if len(body) <= _TOGETHER:  # one packet wakes the other side once
                self._socket.sendall(first + bytes(body))
            else:
                self._socket.sendall(first)
                self._socket.sendall(body)
        except OSError as error:
            raise _told(error) from error
        self.num_sent += _LENGTHS.size + len(raw) + len(body)

    def tell_of_work(self) -> None:
        """Send a sign of life, as long as the other side reads what it is sent; to one that has gone, nothing."""
        with suppress(WireError, OSError, ValueError):  # who waits for its next question hears that it has gone
            looks = select.poll()
            looks.register(self._socket, select.POLLOUT)
            if looks.poll(0):
                self.send(_AT_WORK)

    def receive(self) -> tuple[dict[str, Any], bytearray]:
        """Wait for a message and return its head and body; signs of life are none.

        Raises:
            Silent: it did not come in time.
            WireError: the other side has gone, or what it says is none.
        """
        until = time.monotonic() + _ANSWER_SECONDS
        while True:
            found, body = self._message()
            if found != _AT_WORK:
                return found, body
            if time.monotonic() > until:
                raise Silent(f"it did not answer within {_ANSWER_SECONDS:.0f} s")

    def _message(self) -> tuple[dict[str, Any], bytearray]:
        head, body = self.receive_text()
        try:
            found = json.loads(head)
        except (ValueError, RecursionError) as error:
            raise WireError("what came is no JSON") from error
        if not isinstance(found, dict):
            raise WireError("what came is no JSON object")
        return found, body

    def receive_text(self) -> tuple[bytearray, bytearray]:
        """Wait for a message and return its head as it is, and its body.

        Raises:
            WireError: the other side has gone, or the message is too long.
        """
        head, body = _LENGTHS.unpack(self._bytes(_LENGTHS.size))
        if head > self._most_head or body > self._most_body:
            raise WireError(f"a message of {head} + {body} bytes, where {self._most_head} + {self._most_body} are most")
        return self._bytes(head), self._bytes(body)

    def trust(self, *, seconds: float | None, most_body: int = 0) -> None:
        """Take long messages from here on; wait so long for a part of one; None = as long as the connection stands."""
        self._most_head, self._most_body = MOST_HEAD, most_body
        self._until, self._seconds = None, seconds

    @property
    def own_host(self) -> str:
        """Return the address at which this side is reached."""
        return str(self._socket.getsockname()[0])

    @property
    def is_gone(self) -> bool:
        """Return whether the other side has closed the connection; reads nothing."""
        try:
            self._socket.settimeout(0)
            return not self._socket.recv(1, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            return True

    def close(self) -> None:
        """Close the connection; a thread that waits for it goes on with a `WireError`."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _left(self) -> float:
        """Return how many seconds of the handshake are left.

        Raises:
            TimeoutError: none.
        """
        assert self._until is not None, "afterwards there is no end to it"
        left = self._until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left

    def _bytes(self, count: int) -> bytearray:
        found = bytearray(count)
        view, at = memoryview(found), 0
        while at < count:
            try:
                self._socket.settimeout(self._seconds if self._until is None else self._left())
                here = self._socket.recv_into(view[at:])
            except OSError as error:
                raise _told(error, self._seconds if self._until is None else _PATIENCE_SECONDS) from error
            if not here:
                raise WireError("the connection was closed")
            at += here
        self.num_received += count
        return found


def call(host: str, port: int, key: bytes, *, seconds: float = 10.0) -> tuple[Wire, dict[str, Any]]:
    """Connect to a head and show the key; return the connection and what the head says of itself.

    Raises:
        WireError: nobody is there, or it is no head of this protocol.
        KeyRefused: one of the two does not know the key.
        NotYet: it is loading its model.
    """
    try:
        connection = socket.create_connection((host, port), seconds)
    except OSError as error:
        raise _told(error) from error
    except UnicodeError as error:  # a label of the host's name that is empty or too long
        raise WireError(f"'{host}' is no name of a host") from error
    wire = Wire(connection)
    try:
        return wire, introduce(wire, key, {"version": VERSION})
    except WireError:
        wire.close()
        raise


def welcome(wire: Wire, key: bytes, about: dict[str, Any] | None) -> dict[str, Any]:
    """Do the server's part of the handshake; return what the client said of itself.

    Args:
        key: both know it; b"" = anybody may come.
        about: what the client is told when it has shown the key; None = that there is nothing yet.

    Raises:
        WireError: it has not.
    """
    nonce = secrets.token_hex(16)
    wire.send({"flowinfer": PROTOCOL, "nonce": nonce})
    theirs, _ = wire.receive()
    answer = theirs.get("nonce")
    if not isinstance(answer, str) or not _is_shown(theirs.get("proof"), key, "client", nonce, answer):
        wire.send({"refused": "key"})
        raise WireError("it does not know the key")
    wire.send({"proof": _proof(key, "server", nonce, answer), "about": about})
    return theirs


def introduce(wire: Wire, key: bytes, about: dict[str, Any]) -> dict[str, Any]:
    """Do the client's part of the handshake; return what the server says of its head.

    Raises:
        WireError: it is a head of another protocol.
        NoHead: it is none.
        KeyRefused: one of the two does not know the key.
        NotYet: it is loading its model.
    """
    try:
        hello, _ = wire.receive()
    except Silent as error:
        told = f"something listens there and says nothing for {_PATIENCE_SECONDS:g} s"
        raise NoHead(f"{told}: it is no head, or one that stands still") from error
    except WireError as error:
        raise NoHead(f"something listens there that does not speak as a head does: {error}") from error
    nonce = hello.get("nonce")
    if not isinstance(nonce, str) or "flowinfer" not in hello:
        raise NoHead("something listens there that does not speak as a head does")
    if hello["flowinfer"] != PROTOCOL:
        raise WireError(f"it speaks version {hello['flowinfer']} of the protocol, this flowinfer {PROTOCOL}")
    own = secrets.token_hex(16)
    wire.send({**about, "nonce": own, "proof": _proof(key, "client", nonce, own)})
    answer, _ = wire.receive()
    if "refused" in answer:
        raise KeyRefused("it refuses the key")
    if not _is_shown(answer.get("proof"), key, "server", nonce, own):
        raise KeyRefused("it does not know the key")
    about_it = answer.get("about")
    if about_it is None:
        raise NotYet("it is loading its model")
    if not isinstance(about_it, dict):
        raise WireError("what it says of itself cannot be read")
    return about_it


def key_in(variable: str | None, whose: str = "") -> bytes:
    """Return the key that an environment variable holds, b"" where none is named.

    Args:
        variable: of the environment.
        whose: what a message begins with.
    Raises:
        LoadError: it holds none, or one that a head would have refused.
    """
    if variable is None:
        return b""
    key = os.environ.get(variable, "").strip()
    if not key:
        raise LoadError(f"{whose}the variable {variable} is not set, or empty", help="it holds the head's key")
    if not key.isascii():
        raise LoadError(f"{whose}the variable {variable} holds no key of a head", help="heads' keys are ASCII")
    return key.encode()


def parted(address: str) -> tuple[str, int] | None:
    """Return host and port of HOST:PORT, None where it is none; an IPv6 address stands in brackets."""
    found = re.fullmatch(r"(?P<host>[\w.-]+|\[[0-9a-fA-F:.]+\]):(?P<port>\d{1,5})", address)
    if found is None or int(found["port"]) >= 1 << 16:
        return None
    return found["host"].strip("[]"), int(found["port"])


def shown_place(host: str, port: int) -> str:
    """Return HOST:PORT as `parted` reads it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def last_part(ref: str) -> str:
    """Return what a folder or hub id is called, wherever it lies."""
    return ref.replace("\\", "/").rstrip("/").rpartition("/")[-1]


def called(ref: str) -> str:
    """Return what is equal for two spellings of one model's name: cases are nothing to the hub and to Ollama."""
    return last_part(ref).removeprefix(OLLAMA).removesuffix(":latest").casefold()


class Silent(WireError):
    """The other side did not answer in time."""


class NoHead(WireError):
    """Somebody is there, who is no head."""


class KeyRefused(WireError):
    """Two sides with two keys."""


class NotYet(WireError):
    """A head that is there, and still loads its model."""


def _proof(key: bytes, side: str, *nonces: str) -> str:
    return hmac.new(key, "\n".join((f"flowinfer head {PROTOCOL}", side, *nonces)).encode(), hashlib.sha256).hexdigest()


def _is_shown(proof: object, key: bytes, side: str, *nonces: str) -> bool:
    return isinstance(proof, str) and hmac.compare_digest(proof.encode(), _proof(key, side, *nonces).encode())


def _told(error: OSError, seconds: float | None = None) -> WireError:
    if isinstance(error, TimeoutError):
        return Silent(f"it says nothing for {seconds:g} s" if seconds else "it did not answer in time")
    return WireError((error.strerror or str(error) or type(error).__name__).lower())
