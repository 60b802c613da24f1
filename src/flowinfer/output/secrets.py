"""Keys and passwords: what this process knows of them, and texts without them.

A key that has been read is known until the process ends, so that no text that leaves it (messages, tracebacks, records,
plans, logs, caches) shows it, whichever object it comes through. Passwords in addresses never get as far: a
`ModelSpec` shows its address without them.
"""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, quote_plus, unquote

MASK = "***"
_LEAST = 6
"""Characters of a secret that is hidden wherever it stands; shorter ones only with what stands around them."""
_NO_SECRETS = frozenset(("ollama", "lm-studio", "not-needed", "no-key-required", "sk-no-key-required"))
"""What servers that ask for no key are given in its place, in lower case; words that texts may well hold."""
_TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_TOKEN")
_PROXY_VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
_SECRET_PARAMETER = r"[\w.-]*(?:key|token|secret|password|passwd|signature|sig|auth|code)"
_SHAPES = re.compile(
    r"""(?<=://)[^\s/'"<>\x00-\x1f]+(?=@)"""
    r"""|(?i:(?<=bearer\ )|(?<=basic\ ))[\w.~+/=-]{6,}"""
    rf"""|(?i:(?P<name>[?&]{_SECRET_PARAMETER}=))[^&\s'"#]+"""
    r"""|(?i:(?P<option>\bapi_?key\w*\s*=\s*["']))(?![A-Z_][A-Z0-9_]*["'])[^"'\n]+"""
    r"""|\b(?:sk-|gsk_|xai-)(?=[\w-]*[0-9A-Z])[\w-]{16,}|\b(?:hf_|ghp_|AIza)\w{20,}""",
    re.VERBOSE,
)
"""How secrets look where nobody has said that they are some: in addresses, headers and the options of a model."""
_known: set[str] = set()
_pattern: list[re.Pattern[str]] = []
"""One pattern of everything known, longest first; empty until it is needed and whenever something is learnt."""


def learn(secret: str) -> None:
    """Know a secret in all forms in which it may be written."""
    secret = secret.strip()
    if len(secret) >= _LEAST and secret.lower() not in _NO_SECRETS:
        _add(secret)


def learn_address(address: str) -> None:
    """Know what of an address is secret: user and password, as written, decoded and as a header, and key parameters."""
    userinfo, parameters = _secrets_of(address)
    for value in parameters:
        learn(unquote(value))
    if not userinfo.strip("*"):  # none, or hidden before
        return
    user, _, password = (unquote(part) for part in userinfo.partition(":"))
    _add(userinfo + "@")
    _add(f"{user}:{password}")
    learn(password or user)


def learn_environment(environment: Mapping[str, str], *variables: str) -> None:
    """Know the keys that variables hold, the hub's tokens and the passwords of proxies."""
    for name in (*variables, *_TOKEN_VARIABLES):
        learn(environment.get(name, ""))
    for name in _PROXY_VARIABLES:
        learn_address(environment.get(name, "") or environment.get(name.lower(), ""))


def num_known() -> int:
    """Return how many forms of secrets are known: as long as it stays, so does what a text is without them."""
    return len(_known)


def redacted(text: str) -> str:
    """Return a text without the secrets that are known."""
    if not _known:
        return text
    if not _pattern:
        _pattern.append(
            re.compile("|".join(re.escape(one) for one in sorted(_known, key=lambda one: (-len(one), one))))
        )
    return _pattern[0].sub(MASK, text)


def redacted_data(data: Any) -> Any:  # plain data, as JSON has it
    """Return plain data without the secrets that are known; numbers stay as they are."""
    match data:
        case str():
            return redacted(data)
        case Mapping():
            return {redacted_data(key): redacted_data(value) for key, value in data.items()} if _known else data
        case list() | tuple():
            return [redacted_data(item) for item in data] if _known else data
    return data


def shown(text: str, *, keeps_length: bool = False) -> str:
    """Return a message, or a text of flows, without secrets that are known or look like some.

    Args:
        keeps_length: put as many stars as characters, for a line with a caret below.
    """

    def masked(match: re.Match[str]) -> str:
        kept = match["name"] or match["option"] or ""
        if not match[0][len(kept) :].strip("*"):
            return match[0]  # hidden before
        return kept + ("*" * (len(match[0]) - len(kept)) if keeps_length else MASK)

    text = _SHAPES.sub(masked, text)
    if keeps_length and _known and redacted(text) != text:
        text = _pattern[0].sub(lambda match: "*" * len(match[0]), text)
    return redacted(text)


def is_secret_name(name: str) -> bool:
    """Return whether what has this name is a secret: a header, or a field of a request."""
    return re.fullmatch(r"(?i)(proxy-)?authorization|cookie|" + _SECRET_PARAMETER, name) is not None


def begun_secret(text: str) -> int:
    """Return how many characters at the end of a text may be the beginning of a secret that is known."""
    most = min(len(text), max(map(len, _known), default=1) - 1)
    return next((size for size in range(most, 0, -1) if any(one.startswith(text[-size:]) for one in _known)), 0)


def public_address(address: str) -> str:
    """Return an address with a mask for user and password and for the values of key parameters."""
    userinfo, parameters = _secrets_of(address)
    if userinfo:
        address = address.replace(userinfo + "@", MASK + "@", 1)
    for value in parameters:
        address = address.replace("=" + value, "=" + MASK, 1)
    return address


def _secrets_of(address: str) -> tuple[str, list[str]]:
    """Return user and password of an address as written, and the values of its key parameters."""
    if not address:
        return "", []
    _, _, rest = address.rpartition("://") if "://" in address else ("", "", address)
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    userinfo = authority.rpartition("@")[0]
    found = re.finditer(rf"(?i:[?&]{_SECRET_PARAMETER}=)([^&#]+)", rest)
    return userinfo, [match[1] for match in found]


def _add(secret: str) -> None:
    padded = base64.b64encode(secret.encode("utf-8", errors="surrogatepass")).decode()
    coded = [padded, padded.rstrip("=")]
    written = [
        secret,
        *(quote(secret, safe=safe, errors="replace") for safe in ("", "/")),
        quote_plus(secret, errors="replace"),
    ]
    escaped = [json.dumps(secret)[1:-1], html.escape(secret), repr(secret)[1:-1]]
    _known.update(form for form in (*coded, *written, *escaped) if form)
    _pattern.clear()
