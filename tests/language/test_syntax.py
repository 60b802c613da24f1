"""The grammar and the reader of statements."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lark import Lark
from lark.lexer import BasicLexer

from flowinfer.errors import FlowError
from flowinfer.language.formatting import format_text
from flowinfer.language.syntax import grammar_text, parse
from flowinfer.language.tree import Call, FlowStatement, Group, Let, Model, Prompt

OK = sorted((Path(__file__).parents[1] / "flows" / "ok").glob("*.flow"))


def test_the_grammar_has_no_conflicts_in_strict_mode() -> None:
    """LALR tables and terminals are free of collisions."""
    Lark(grammar_text(), parser="lalr", lexer="basic", start=["start", "statement"], strict=True)


def test_the_grammar_reads_whole_files_too() -> None:
    """The file rule of the grammar states what the statement splitter does."""
    whole = Lark(grammar_text(), parser="lalr", lexer="basic", start=["start", "statement"])
    tree = whole.parse('model A = "a"\n\nA -> (Qwen | A)\n', start="start")
    assert len([child for child in tree.children if hasattr(child, "data")]) == 2


def test_no_lexer_is_made_anew_for_a_text(monkeypatch: pytest.MonkeyPatch) -> None:
    parse("Qwen -> Ds")
    monkeypatch.delattr(BasicLexer, "__init__")
    assert parse("Qwen -> Yi  # another").is_whole


@pytest.mark.parametrize("path", OK, ids=lambda path: path.stem)
def test_a_valid_flow_has_its_canonical_form(path: Path) -> None:
    expected = path.with_suffix(".fmt").read_text(encoding="utf-8")
    assert format_text(path.read_bytes().decode()) == expected
    assert format_text(expected) == expected


def flow_of(text: str) -> FlowStatement:
    document = parse(text)
    assert not document.problems
    (found,) = [s for s in document.statements if isinstance(s, FlowStatement)]
    return found


def test_a_file_may_be_one_line() -> None:
    stages = flow_of("Qwen -> Ds -> (Yi | Qwen)").chain.stages
    assert [type(stage) for stage in stages] == [Call, Call, Group]


@pytest.mark.parametrize("name", ["modelX", "letter", "as1", "Qwen2.5-7B", "千问", "promptly", "import_me", "_x"])
def test_names_may_begin_with_keywords_and_hold_dots_hyphens_and_chinese(name: str) -> None:
    (call,) = flow_of(name).chain.stages
    assert isinstance(call, Call) and call.name.text == name


def test_an_arrow_ends_a_name_that_touches_it() -> None:
    assert [s.name.text for s in flow_of("A->B-1->C").chain.stages if isinstance(s, Call)] == ["A", "B-1", "C"]


def test_options_may_be_named_like_keywords() -> None:
    (call,) = flow_of("A[model=1, let=2, prompt=draft, import=x]").chain.stages
    assert [option.key for option in call.options] == ["model", "let", "prompt", "import"]


def test_spans_count_code_points_from_one() -> None:
    call = flow_of("千问 -> 模型").chain.stages[1]
    assert (call.span.line, call.span.column, call.span.end_column) == (1, 7, 9)


def test_long_texts_are_dedented() -> None:
    (prompt,) = [s for s in parse('prompt p = """\n    a\n      b\n    """\nQwen').statements if isinstance(s, Prompt)]
    assert prompt.template.data == "a\n  b"


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (r'"a\nb\t\"\'\\"', "a\nb\t\"'\\"),
        (r"'a\u5343\x41'", "a千A"),
        ('"""\\boxed{{}} \\nabla"""', "\\boxed{{}} \\nabla"),
        (r'"""a\\b \" c"""', 'a\\b " c'),
    ],
)
def test_short_texts_know_escapes_and_long_ones_keep_backslashes(written: str, meant: str) -> None:
    (prompt,) = [s for s in parse(f"prompt p = {written}\nQwen").statements if isinstance(s, Prompt)]
    assert prompt.template.data == meant


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_lines_may_end_in_any_way(ending: str) -> None:
    document = parse(ending.join(["# one", "Qwen ->", "  Ds", "Yi ->"]))
    assert [(d.code, d.span.line) for d in document.problems] == [("E0012", 4)]


@pytest.mark.parametrize("blank", ["\t", "\u00a0", "\u3000", "\u2003", "\v"])
def test_any_blank_separates(blank: str) -> None:
    assert len(flow_of(f"Qwen{blank}->{blank}Ds").chain.stages) == 2


@pytest.mark.parametrize(
    "text",
    [
        "-" * 50_000,
        '"""' + "a \n" * 20_000,
        '"' + "\\" * 20_001,
        "\u2003" * 20_000 + "Qwen",
        " \n" * 20_000 + "Qwen",
        "Qwen -> " * 5_000,
        "（" * 2_000,
        "".join(chr(33 + i % 94) for i in range(20_000)),
    ],
    ids=["dashes", "open text", "backslashes", "wide blanks", "blank lines", "long chain", "brackets", "noise"],
)
def test_a_huge_file_is_read_once(text: str) -> None:
    """Each of these took minutes, or more memory than there is, when reading it was quadratic."""
    parse(text)


def test_a_mistake_in_one_statement_hides_no_other_statement() -> None:
    document = parse('let = 3\nmodel A = "a"\nlet b = A -> A\n(A | ')
    assert [type(statement) for statement in document.statements] == [Model, Let]
    assert len(document.problems) == 2


@given(st.text(max_size=80))
def test_random_text_gives_diagnostics_and_never_an_exception(text: str) -> None:
    parse(text)


_MARKS = [
    "Qwen",
    "->",
    "|",
    "&",
    "(",
    ")",
    "[",
    "]",
    "{",
    "}",
    ":",
    "0.5",
    "=",
    ",",
    '"x"',
    "let",
    "as",
    "\n",
    "#c",
    "$p",
    "→",
    "（",
    '"""',
    "'",
]


@given(st.lists(st.sampled_from(_MARKS), max_size=25))
def test_random_marks_of_the_language_never_raise(marks: list[str]) -> None:
    parse(" ".join(marks))


_names = st.sampled_from(["Qwen", "Ds", "千问", '"my model"', "Yi-1.5"])
_options = st.sampled_from(["", "[max_tokens=5]", '[prompt="{question}", seed=1]', "[stop=['a', \"b\"]]"])


def _stage(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    chains = st.lists(inner, min_size=1, max_size=3).map(" -> ".join)
    fused = st.lists(chains, min_size=1, max_size=3).map(lambda parts: f"({' | '.join(parts)})")
    answers = st.lists(chains, min_size=2, max_size=3).map(lambda parts: f"({' & '.join(parts)})")
    weighted = st.lists(chains, min_size=2, max_size=3).map(lambda parts: f"({'|'.join(p + ':0.5' for p in parts)})")
    return fused | answers | weighted


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("(Qwen:0.3333333333 | Ds:1234567)", "(Qwen:0.3333333333 | Ds:1234567)"),
        ("(Qwen:0.70 | Ds:3e-1)", "(Qwen:0.7 | Ds:0.3)"),
        ("Qwen[stop=['\\\"', 'a\"b', 'it\\'s']]", 'Qwen[stop=["\\"", "a\\"b", "it\'s"]]'),
        ("import 'a\"b.flow'\nQwen", 'import "a\\"b.flow"\nQwen'),
        ("Qwen –> Ds ⇒ Yi －＞ Qwen", "Qwen -> Ds -> Yi -> Qwen"),
        ("(Qwen：０．７ ｜ Ds：０．３）", "(Qwen:0.7 | Ds:0.3)"),
    ],
)
def test_formatting_keeps_values_and_mends_slips(text: str, expected: str) -> None:
    assert format_text(text) == expected + "\n"


def test_formatting_refuses_rather_than_lose_a_statement() -> None:
    with pytest.raises(FlowError):
        format_text("let a = Qwen\na\nQwen —")


_flows = st.recursive(st.builds(str.__add__, _names, _options), _stage, max_leaves=8)


@settings(max_examples=30)
@given(_flows)
def test_formatting_keeps_the_tree_and_is_idempotent(text: str) -> None:
    once = format_text(text)
    assert format_text(once) == once
    assert _shape(parse(once)) == _shape(parse(text))


def _shape(document: object) -> object:
    """Strip places from a tree."""
    if hasattr(document, "__dataclass_fields__"):
        skipped = ("span", "weight_span", "raw", "text", "file", "comments")
        fields = {
            k: _shape(v)
            for k, v in vars(document).items()
            if k not in skipped or (isinstance(v, str) and k == "text" and len(vars(document)) == 2)
        }
        return (type(document).__name__, fields)
    if isinstance(document, tuple):
        return tuple(_shape(item) for item in document)
    return document
