"""One question to an endpoint and its answer, within bounds of size and time whatever the other side does."""

from __future__ import annotations

import asyncio
import math
import threading
import zlib
from collections.abc import AsyncGenerator, Callable, Mapping
from concurrent.futures import CancelledError
from contextlib import aclosing
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import unquote

import httpx

from flowinfer.backends.base import Hearing
from flowinfer.errors import RunError
from flowinfer.output.secrets import redacted, shown

Feed = Callable[[bytes], bool]
"""Takes a part of a stream; returns whether the rest is of no interest."""
MOST_PAUSE_SECONDS = 60.0
"""Longest wait that an endpoint may ask for."""
_ANY_NUMBER = httpx.Limits(max_connections=None, max_keepalive_connections=None)
"""Connections at once; who asks says how many."""
_TROUBLE_BYTES = 64 << 10
"""What is read of an answer that is none: a refusal, an error page."""


@dataclass(frozen=True)
class Limits:
    """What an exchange may take."""

    seconds: float = 600.0
    """From the question to the answer's last byte."""
    num_bytes: int = 64 << 20
    """Of the answer, unpacked."""
    connect_seconds: float = 20.0


@dataclass(frozen=True)
class Reply:
    """What came back."""

    status: int
    text: str
    """The body, without secrets; of anything but a 200 only the beginning."""
    headers: Mapping[str, str]
    is_stream: bool = False
    """Whether it came as a stream of events, which were fed to who asked."""

    def pause(self, now: float) -> float:
        """Return how many seconds it asks to wait, within reason; see `wanted_pause`."""
        return wanted_pause(self.headers.get("retry-after", ""), now) or 0.0


def speaks_otherwise(error: Exception) -> bool:
    """Return whether somebody has answered in what is no HTTP, such as a head of flowinfer; h11 says no more of it."""
    return isinstance(error, httpx.RemoteProtocolError) and "illegal" in str(error)


def wanted_pause(asked: str, now: float) -> float | None:
    """Return how many seconds a Retry-After asks to wait, within reason; None where it says nothing.

    Args:
        asked: a number, or a date of HTTP.
        now: seconds since 1970.
    """
    try:
        seconds = float(asked)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(asked).timestamp() - now
        except (ValueError, TypeError, OverflowError):
            return None
    return min(max(seconds, 0.0), MOST_PAUSE_SECONDS) if math.isfinite(seconds) else None


class Unreached(Exception):
    """Nothing was there to connect to; it may pass."""


class Broken(Unreached):
    """Something was there, and the connection broke; it may pass."""


class Exchange:
    """Connections to one endpoint; safe to ask from several threads at once.

    Requests run on an event loop in a thread of their own, because only there a time limit holds at every point, also
    where an answer's head trickles in byte by byte. Redirects are not followed, so that no key goes elsewhere.

    Args:
        address: with user and password, and with parameters that go with every request, where it has some.
        key: sent as a bearer token.
        below: what to add to the address's path.
        headers: what else every request has.
    Raises:
        ValueError: it is no address.
    """

    def __init__(
        self,
        address: str,
        key: str | None = None,
        limits: Limits | None = None,
        *,
        below: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._limits = limits or Limits()
        bearer = {"Authorization": f"Bearer {key}"} if key else {}
        sent = httpx.Headers({"Accept-Encoding": "identity", **bearer})
        sent.update(headers or {})
        try:
            url = httpx.URL(address)
        except (httpx.InvalidURL, ValueError) as error:
            raise ValueError(shown(str(error))) from None
        if url.scheme not in ("http", "https") or not url.host:
            raise ValueError("it begins with neither http:// nor https://")
        self.url = url.copy_with(userinfo=b"", query=None, fragment=None, path=url.path.rstrip("/") + below)
        """Without anything secret."""
        auth = (unquote(url.username), unquote(url.password)) if url.userinfo else None
        timeout = httpx.Timeout(None, connect=self._limits.connect_seconds)
        try:
            self._client = httpx.AsyncClient(
                params=url.params, headers=sent, auth=auth, timeout=timeout, limits=_ANY_NUMBER
            )
        except (httpx.InvalidURL, ValueError, ImportError, OSError) as error:
            raise ValueError(f"a proxy or certificate of the environment cannot be used: {shown(str(error))}") from None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def ask(
        self,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        seconds: float | None = None,
        hearing: Hearing | None = None,
        feed: Feed | None = None,
    ) -> Reply:
        """Post a body, or get where there is none.

        Args:
            seconds: a shorter time than usual.
            hearing: who may want the answer no more; then the request is broken off.
            feed: takes a stream of events as it comes.
        Raises:
            Unreached: nothing there, or the connection broke (`Broken`).
            RunError: too large, too slow, wanted no more, or packed in a way that was not asked for.
            Exception: what `feed` raises.
        """
        if self._loop.is_closed():
            raise RunError("the connection has been closed")
        limit = min(seconds or self._limits.seconds, self._limits.seconds)
        bounded = asyncio.wait_for(self._ask(path, body, feed), limit)
        try:
            coming = asyncio.run_coroutine_threadsafe(bounded, self._loop)
            if hearing is not None:
                hearing.when_over(coming.cancel)
            return coming.result()
        except TimeoutError:
            raise RunError(f"no whole answer within {limit:g} s", help="is the server busy? lower max_tokens") from None
        except CancelledError:
            is_over = hearing is not None and hearing.is_over
            raise RunError("wanted no more" if is_over else "the connection has been closed") from None
        except (httpx.ConnectError, httpx.ConnectTimeout, UnicodeError) as error:  # the last: no host has such a name
            raise Unreached(shown(str(error)) or type(error).__name__) from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            told = "what answers there does not speak HTTP" if speaks_otherwise(error) else shown(str(error))
            raise Broken(told or type(error).__name__) from None

    def close(self) -> None:
        """Close the connections."""
        if self._loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._client.aclose()

    async def _ask(self, path: str, body: Mapping[str, Any] | None, feed: Feed | None) -> Reply:
        method = "GET" if body is None else "POST"
        async with self._client.stream(method, f"{self.url}/{path}", json=body) as response:
            is_answer = response.status_code == 200
            is_stream = response.headers.get("content-type", "").lower().startswith("text/event-stream")
            data = bytearray()
            async with aclosing(self._unpacked(response)) as chunks:
                async for chunk in chunks:
                    data += chunk
                    if len(data) > self._limits.num_bytes and is_answer:
                        most = f"{self._limits.num_bytes / (1 << 20):g} MiB"
                        raise RunError(f"the endpoint's answer is larger than {most}")
                    if len(data) > _TROUBLE_BYTES and not is_answer:
                        break
                    if is_stream and is_answer and feed is not None and feed(chunk):
                        break
            text = bytes(data if is_answer else data[:_TROUBLE_BYTES]).decode("utf-8", errors="replace")
            headers = {name.lower(): redacted(value) for name, value in response.headers.items()}
            return Reply(response.status_code, redacted(text), headers, is_stream=is_stream and is_answer)

    async def _unpacked(self, response: httpx.Response) -> AsyncGenerator[bytes, None]:
        """Yield a body in pieces, none larger than the limit by much; it was asked for unpacked, but who knows."""
        packing = response.headers.get("content-encoding", "identity").strip().lower()
        if packing in ("identity", ""):
            async for chunk in response.aiter_raw():
                yield chunk
            return
        if packing not in ("gzip", "x-gzip", "deflate"):
            raise RunError(f"the endpoint's answer is packed as '{packing[:40]}', which was not asked for")
        unpacker = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)
        async for chunk in response.aiter_raw():
            try:
                yield unpacker.decompress(chunk, self._limits.num_bytes + 1)
            except zlib.error as error:
                raise RunError("the endpoint's answer is packed wrongly") from error
