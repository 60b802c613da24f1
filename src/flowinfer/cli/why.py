"""How verdicts came about, for people and as data; answers are judged again, so that old runs tell it too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flowinfer.output.console import PlainConsole, plain

if TYPE_CHECKING:
    from rich.text import Text

    from flowinfer.results import Record, Score

_AROUND = 240
"""Characters of an answer that are shown before and behind what was found in it."""
_MOST = 100
"""Characters of a stretch that was passed over."""


def print_why(record: Record, console: PlainConsole) -> None:
    """Print a question's verdict by the present rules, its answer with the place marked, and what was passed over."""
    from flowinfer.runs.judging import why

    found = why(record.question, record.trace)
    console.print(plain(f"\nwhy {record.question.id}", "bold"))
    if found is None:
        reason = "it failed" if record.trace.error else "it has no reference"
        console.print(plain(f"  no verdict: {reason}"))
        return
    console.print(plain(f"  verdict      {_verdict(found.score)}, reference {record.question.gold!r}"))
    if record.score is not None and record.score != found.score:
        console.print(plain(f"  in the run   {_verdict(record.score)}; `flowinfer score` writes the new one"))
    console.print(plain("  answer       ") + _marked(record.trace.answer, found.score.span))
    for passed in found.passed_over:
        console.print(plain(f"  passed over  {passed.rule} {_short(passed.text)!r}: {passed.reason}"))


def plain_why(record: Record) -> dict[str, Any] | None:
    """Return the same as data, None where there is no verdict."""
    from flowinfer.runs.judging import why

    found = why(record.question, record.trace)
    if found is None:
        return None
    passed = [one._asdict() for one in found.passed_over]
    return {"score": found.score.model_dump(mode="json"), "text": found.text, "passed_over": passed}


def _verdict(score: Score) -> str:
    said = "right" if score.correct else "wrong"
    if score.extracted is None:
        return f"{said}: {score.status}, by {score.rule}"
    return f"{said}: found {score.extracted!r}, by {score.rule}"


def _marked(answer: str, span: tuple[int, int] | None) -> Text:
    """Return an answer on one line with a stretch of it between marks; far from it cut, without one its end."""
    start, end = span or (len(answer), len(answer))
    before, found, after = answer[:start], answer[start:end], answer[end:]
    left = ("… " if len(before) > _AROUND else "") + _line(before[-_AROUND:])
    right = _line(after[:_AROUND]) + (" …" if len(after) > _AROUND else "")
    return plain(left) + (plain(f"»{_line(found)}«", "reverse") if span else plain("")) + plain(right)


def _line(text: str) -> str:
    """Return a text on one line, line ends as marks."""
    return text.replace("\r\n", "\n").replace("\n", " ⏎ ")


def _short(text: str) -> str:
    return text if len(text) <= _MOST else f"{text[: _MOST // 2]} … {text[-_MOST // 2 :]}"
