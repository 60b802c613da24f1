"""What texts in quotes mean, and how a text is quoted."""

from __future__ import annotations

import re
import textwrap

_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", '"': '"', "'": "'", "\\": "\\"}
_ESCAPE = re.compile(r"\\(?:u[0-9a-fA-F]{4}|x[0-9a-fA-F]{2}|[\s\S])")


def unquote(text: str) -> str:
    r"""Return what a quoted text means.

    Short texts know the escapes \n \t \r \" \' \\ \xHH \uHHHH. Long ones are dedented, their first and last line
    breaks cut, and know \" and \\ only, so that formulas may stand in them as they are.
    """
    if text.startswith('"""'):
        body = textwrap.dedent(text[3:-3].removeprefix("\n"))
        body = body[: body.rindex("\n")] if "\n" in body and not body.rsplit("\n", 1)[1].strip() else body
        return re.sub(r'\\(["\\])', r"\1", body)
    return _ESCAPE.sub(lambda match: _escaped(match[0]) or match[0], text[1:-1])


def requote(raw: str) -> str:
    """Return a short text as written, in double quotes."""
    if raw.startswith('"'):
        return raw
    inner = re.sub(r"\\[\s\S]|\"", lambda match: {"\\'": "'", '"': '\\"'}.get(match[0], match[0]), raw[1:-1])
    return f'"{inner}"'


def quote(text: str) -> str:
    """Return a text in double quotes, with escapes where it needs them."""
    marks = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t", "\r": "\\r"}
    return '"' + "".join(marks.get(character, character) for character in text) + '"'


def whole_pairs(text: str) -> str:
    """Return a text with its surrogates joined in pairs, and U+FFFD for halves that are left over."""
    return text.encode("utf-16-le", errors="surrogatepass").decode("utf-16-le", errors="replace")


def is_escape(text: str) -> bool:
    """Return whether a backslash and what follows stand for a character."""
    return _escaped(text) is not None


def _escaped(text: str) -> str | None:
    if text[1:] in _ESCAPES:
        return _ESCAPES[text[1:]]
    if not _ESCAPE.fullmatch(text) or len(text) < 4:
        return None
    character = chr(int(text[2:], 16))
    return None if character == "\0" or "\ud800" <= character <= "\udfff" else character
