"""Reading characters: `.flow` text -> tokens, with a message for every character that the language does not know.

Full-width punctuation, wrong arrows and texts that are not closed get their own messages and are mended in place, by
as many characters as they had, so that places stay true and the rest of the text can still be judged.
"""

from __future__ import annotations

import re
import unicodedata

from lark import Token
from lark.lexer import Lexer, LexerThread

from flowinfer.language.reporter import Reporter

_DIGITS = "０１２３４５６７８９"
FULL_WIDTH = {
    "（": "(",
    "）": ")",
    "｜": "|",
    "：": ":",
    "，": ",",
    "“": '"',
    "”": '"',
    "＝": "=",
    "＆": "&",
    "［": "[",
    "］": "]",
    "【": "[",
    "】": "]",
    "｛": "{",
    "｝": "}",
    "＄": "$",
    "＃": "#",
    "＂": '"',
    "、": ",",
    "‘": "'",
    "’": "'",
    "－": "-",
    "−": "-",
    "–": "-",
    "．": ".",
    **{wide: str(digit) for digit, wide in enumerate(_DIGITS)},
}
"""Full-width characters and what was meant; equal lengths, so that places stay true."""

NAME = r"[^\W\d](?:\w|[.\-](?=\w))*"
"""As in the grammar."""
_DASHES = r"\-–—―−－~="
_MOST_DASHES = 80
"""Longest wrong arrow that is told whole: where no head follows, its dashes are looked at again one by one."""
_PIECE = re.compile(
    r"(?P<comment>#[^\r\n]*)"
    r'|(?P<long>"""(?:[^\\]|\\[\s\S])*?""")|(?P<text>"(?!"")(?:[^"\\\r\n]|\\.)*"|\'(?:[^\'\\\r\n]|\\.)*\')'
    r"|(?P<wide_text>“(?:[^”\\\r\n]|\\.)*”|‘(?:[^’\\\r\n]|\\.)*’|＂(?:[^＂\\\r\n]|\\.)*＂)"
    r'|(?P<open>"""[\s\S]*|["\'“‘＂][^\r\n]*)'
    rf"|(?P<wide>[−－–](?=[0-9.])|[{_DIGITS}]+(?:[.．][{_DIGITS}]+)?(?!\w)|[（）｜：，＝＆［］【】｛｝＄＃、])"
    rf"|(?P<back><[{_DASHES}]*>?)"
    rf"|(?P<arrow>(?:[{_DASHES}]{{1,{_MOST_DASHES}}}[ \t]*)?[>＞]+(?:[ \t]*[>＞]+)*|--+|[–—―−－~]+|[⇒⟶⟹➔➜➝➞➡⇨⇢►▶▸»]+)"
    rf"|(?P<good>{NAME}|\$[^\W\d]\w*|[()\[\]{{}}|&:,→*]|/(?![/*])|=(?!=)"
    r"|[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?(?![\w.]))"
    r"|(?P<digit>\d(?:\w|[.\-](?=\w))*)|(?P<minus>-)"
    r"|(?P<bad>=+|[^\s\w\"'#()\[\]{}|&:,=$→>\-（）｜：，“‘＂＝＆［］【】｛｝＄＃、]+|[\w$])"
)
_HARMLESS = frozenset({"comment", "long", "text", "good"})


def lex(lexer: Lexer, text: str, report: Reporter) -> list[Token]:
    """Cut a text into tokens, blanks too if the lexer ignores none; what fits nowhere is reported and passed over."""
    return list(LexerThread.from_text(lexer, sanitize(text, report)).lex(None))


def sanitize(text: str, report: Reporter) -> str:
    """Report characters that the language does not know and return a text of the same length without them.

    What remains the grammar's terminals take whole. Every pattern here and there looks at a character a bounded number
    of times, so that reading is linear in the text.
    """
    pieces: list[str] = []
    at = 0
    for match in _PIECE.finditer(text):
        kind, found, start = str(match.lastgroup), match[0], match.start()
        if kind in _HARMLESS or found == "->":
            continue
        _report(kind, found, start, report)
        pieces.append(text[at:start])
        before = text[at:start] or "".join(pieces[-2:])
        pieces.append(_mend(kind, found, follows_quote=before.endswith('"')))
        at = match.end()
    return "".join([*pieces, text[at:]])


def shown(text: str) -> str:
    """Return a text as a message can show it: short, and invisible characters by their numbers."""
    seen = "".join(c if c.isprintable() else f"U+{ord(c):04X}" for c in text[:12])
    return seen + ("..." if len(text) > 12 else "")


def _mend(kind: str, found: str, *, follows_quote: bool) -> str:
    """Return what stands for a slip; behind a quote no other, or three of them would begin a long text."""
    match kind:
        case "open":
            if found.startswith('"""'):
                return '"x"' + re.sub(r"[^\r\n]", " ", found[3:])
            return "'" + re.sub(r"[\\']", "x", found[1:-1]) + "'" if len(found) > 1 else " "
        case "wide_text":
            inner = found[1:-1]
            if "'" in inner and not follows_quote:
                return '"' + inner.replace('"', "'") + '"'
            return "'" + inner.replace("'", '"') + "'"
        case "arrow":
            return "->".ljust(len(found)) if len(found) > 1 else "→"
        case "minus":
            return "→"  # as long as the slip
        case "wide":
            return "".join(FULL_WIDTH.get(character, character) for character in found)
    return " " * len(found)


def _report(kind: str, found: str, start: int, report: Reporter) -> None:
    span = report.place(start, start + len(found))
    match kind:
        case "open":
            quote = '"""' if found.startswith('"""') else FULL_WIDTH.get(found[0], found[0])
            wide = next((mark for mark in found[1:] if mark in "”＂’" and FULL_WIDTH[mark] == quote), None)
            hint = f"end it with {quote}" + (f", not with {wide}" if wide else "")
            if len(found) == 1:
                report.spoiled_lines.add(span.line)
            report.error("E0003", f"text is not closed: no {quote} follows", span, hint)
        case "wide_text":
            for offset in (0, len(found) - 1):
                _full_width(found[offset], start + offset, report)
        case "wide":
            _full_width(found, start, report)
        case "arrow":
            if all(mark in "－＞" for mark in found):
                report.error("E0002", f"full-width '{found}'", span, "write '->'; `fmt` does it")
            else:
                report.error("E0008", f"'{shown(found)}' is not an operator", span, "stages are joined by '->'")
        case _:
            _unexpected(found, start, report)


def _full_width(found: str, start: int, report: Reporter) -> None:
    meant = "".join(FULL_WIDTH.get(character, character) for character in found)
    report.error(
        "E0002", f"full-width '{found}'", report.place(start, start + len(found)), f"write '{meant}'; `fmt` does it"
    )


def _unexpected(found: str, start: int, report: Reporter) -> None:
    span = report.place(start, start + len(found))
    report.spoiled_lines.add(span.line)
    if found == "-":
        message, hint = "a lone '-'", "stages are joined by '->'; names may hold '-' inside"
    elif found[0] == "<":
        message, hint = f"unexpected '{shown(found)}'", "a flow runs from left to right: A -> B"
    elif found[0].isdigit():
        message, hint = (
            f"'{shown(found)}' is neither a number nor a name",
            f'names begin with a letter; quote it: "{found}"',
        )
    elif found[0] in "%％":
        message = f"unexpected '{shown(found)}'"
        share = re.search(r"=\s*(\d+(?:\.\d+)?)\s*$", report.before(span))
        hint = "weights are plain numbers, made to sum to 1: write 70 or 0.7 for 70%"
        if share:
            hint = f"an option is a plain number: write {float(share[1]) / 100:g} for {share[1]}%"
    elif found.startswith(("//", "/*")):
        message, hint = f"unexpected characters '{shown(found)}'", "a comment begins with '#'"
        if re.search(r"=\s*\w+:$", report.before(span)):
            hint = 'an address stands in quotes: "http://..."'
    elif found[0] in ";；":
        message, hint = f"unexpected character '{shown(found)}'", "a statement ends with its line; remove it"
    else:
        name = unicodedata.name(found[0], "").lower()
        named = f" ({name})" if name and not found[0].isprintable() else ""
        message = f"unexpected character{'s' if len(found) > 1 else ''} '{shown(found)}'{named}"
        hint = "remove it, or quote the name it is in"
    report.error("E0001", message, span, hint)
