"""A hub on this machine: repositories with files, as the real one answers its client for them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub(ThreadingHTTPServer):
    """Answers for files, by `repository/name`; of repositories that are not named nobody knows.

    Args:
        files: what each holds; None = one that may be had by those only who have asked for it.
    """

    def __init__(self, files: Mapping[str, bytes | None]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = files
        self.asked: list[str] = []
        """Methods and paths, in turn."""

    @property
    def address(self) -> str:
        """Its own."""
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeHub

    def do_HEAD(self) -> None:
        """Say what a file is like."""
        self.server.asked.append(f"{self.command} {self.path}")
        owner, repository, _, revision, name = ["", *unquote(self.path).split("/", 5)[1:], *[""] * 5][1:6]
        known = {one.rpartition("/")[0] for one in self.server.files}
        if not name:
            return self._refuse(HTTPStatus.OK, "")
        if f"{owner}/{repository}" not in known:
            return self._refuse(HTTPStatus.UNAUTHORIZED, "RepoNotFound")
        if revision not in ("main", COMMIT):
            return self._refuse(HTTPStatus.NOT_FOUND, "RevisionNotFound")
        if (key := f"{owner}/{repository}/{name}") not in self.server.files:
            return self._refuse(HTTPStatus.NOT_FOUND, "EntryNotFound")
        body = self.server.files[key]
        if body is None:
            return self._refuse(HTTPStatus.FORBIDDEN, "GatedRepo")
        self.send_response(HTTPStatus.OK)
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)
        return None

    do_GET = do_HEAD

    def _refuse(self, status: HTTPStatus, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", f"the hub's own words for {code}")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""
