"""Checked flows: names, options, weights, roles, prompts; and every refusal word for word."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowinfer.errors import DataError, FlowError, UsageError
from flowinfer.language.check import check, check_file
from flowinfer.language.codes import CODES
from flowinfer.language.diagnostics import full
from flowinfer.language.examples import known
from flowinfer.language.formatting import format_text
from flowinfer.language.pinning import pin
from flowinfer.language.prompts import foreign_note
from flowinfer.planning.plain import fingerprint
from flowinfer.planning.plan import columns, compile
from flowinfer.spec import Flow, Node, Parallel, Series, nodes
from flowinfer.tasks.base import load_questions
from tests.zoos import NAMES, PAPER_NAMES

REFUSED = Path(__file__).parents[1] / "flows" / "refused"
OK = sorted((Path(__file__).parents[1] / "flows" / "ok").glob("*.flow"))


def checked(text: str, **options: object) -> Flow:
    return check(text, zoo=NAMES, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("path", sorted(REFUSED.glob("*.flow")), ids=lambda path: path.stem)
def test_a_refused_flow_gets_exactly_this_message(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REFUSED)
    try:
        zoo = None if path.stem == "E0112" else PAPER_NAMES  # which is about the zoo that the flow itself names
        found = check(path.read_bytes().decode(), file=path.name, zoo=zoo).warnings
    except FlowError as error:
        found = error.diagnostics
    assert "\n".join(full(diagnostic) for diagnostic in found) + "\n" == path.with_suffix(".txt").read_text("utf-8")


@pytest.mark.parametrize("code", CODES)
def test_every_code_has_a_refused_flow_and_a_right_example(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REFUSED)
    assert f"[{code}]" in (REFUSED / f"{code}.txt").read_text("utf-8")
    check(CODES[code].right.replace('import "', 'import "parts/'), zoo=PAPER_NAMES)


@pytest.mark.parametrize("path", OK, ids=lambda path: path.stem)
def test_a_valid_flow_is_accepted(path: Path) -> None:
    text = path.read_bytes().decode()
    if path.stem == "full_width":
        with pytest.raises(FlowError, match="full-width"):
            checked(text)
        return
    assert checked(text, base=path.parent).root


def test_the_packaged_table_of_routes_is_of_the_lab_zoo_as_it_is() -> None:
    assert not check_file(known()["route"]).warnings


@pytest.mark.parametrize("weight", ["1e999", "1e400"])
def test_a_weight_must_be_finite(weight: str) -> None:
    with pytest.raises(FlowError, match="a weight must be finite"):
        checked(f"(Qwen:{weight} | Ds:1)")


SLIPS = [
    ("Qwen => Ds", "E0008", 6),
    ("Qwen ==> Ds", "E0008", 6),
    ("Qwen --> Ds", "E0008", 6),
    ("Qwen ->> Ds", "E0008", 6),
    ("Qwen - > Ds", "E0008", 6),
    ("Qwen – > Ds", "E0008", 6),
    ("Qwen —> Ds", "E0008", 6),
    ("Qwen > Ds", "E0008", 6),
    ("Qwen ⇒ Ds", "E0008", 6),
    ("Qwen －＞ Ds", "E0002", 6),
    ("Qwen <- Ds", "E0001", 6),
    ("Qwen - Ds", "E0001", 6),
    ("Qwen; Ds", "E0001", 5),
    ("Qwen / Ds", "E0011", 6),
    ("Qwen + Ds", "E0001", 6),
    ("Qwen -> 7B-chat", "E0001", 9),
    ("Qwen\0 -> Ds", "E0001", 5),
    ("Qwen\u200b -> Ds", "E0001", 5),
    ("(Qwen || Ds)", "E0007", 8),
    ("(Qwen && Ds)", "E0007", 8),
    ("Qwen ->-> Ds", "E0007", 8),
    ("(Qwen，Ds)", "E0009", 6),
    ("Qwen | Ds | Yi", "E0011", 6),
    ("(Qwen | )", "E0012", 7),
    ("(Qwen:0,7 | Ds:1)", "E0013", 8),
    ("(0.7:Qwen | Ds)", "E0013", 2),
    ("(Qwen:０．７ | Ds:1)", "E0002", 7),
    ("Qwen[max_tokens=５]", "E0002", 17),
    ("Qwen{max_tokens=3}", "E0014", 5),
    ("Qwen(max_tokens=3)", "E0014", 5),
    ("Qwen as a[seed=1]", "E0014", 10),
    ("Qwen as a as b", "E0014", 11),
    ("x = Qwen -> Ds", "E0015", 1),
    ("flow: Qwen -> Ds", "E0015", 1),
    ("Qwen as model -> Ds", "E0016", 9),
    ("Qwen[stop='\\d']", "E0018", 12),
    ('Qwen[prompt="{{prev}} {prev}"]', "E0402", 23),
    ('Qwen -> Ds[prompt="{result_1}{result_12}"]', "E0401", 30),
    ('model Mine = "a" { device cuda }\nMine -> Qwen', "E0014", 27),
    ('prompt p = """Say {query}\nQwen', "E0003", 12),
    ('model A = "a\nA', "E0003", 11),
    ('model A = "a”\nA', "E0003", 11),
    ("model A = x\nA", "E0201", 11),
    ("prompt p = 3\nQwen[prompt=p]", "E0201", 12),
    ('model A = "a" { device=gpu }\nA', "E0202", 24),
    ('model A = "a" { backend=openai }\nA', "E0207", 25),
    ("Qwen[temperature=1e999]", "E0202", 18),
    ("defaults { seed=1 }\ndefaults { seed=2 }\nQwen", "E0204", 12),
    (f"Qwen[max_tokens={'9' * 5000}]", "E0201", 17),
    (f"{'(' * 200}Qwen{')' * 200}", "E0022", 65),
    (f"Qwen[stop={'[' * 200}{']' * 200}]", "E0022", 74),
    ('import "a\\u0000b"\nQwen', "E0018", 10),
    (f'import "{"a" * 5000}"\nQwen', "E0107", 8),
    ('import "."\nQwen', "E0107", 8),
    ("(Qwen | Yi / Ds)[accept=answered]", "E0010", 12),
    ("(Qwen / )[accept=answered]", "E0012", 7),
    ("(Qwen:0.5 / Yi:0.5)[accept=answered]", "E0304", 7),
    ("(Qwen / Yi)[at=0.5]", "E0306", 13),
    ("(Qwen / Yi)[accept=answered, at=0.5]", "E0306", 30),
    ("(Qwen / Yi)[accept=confident, at=0.5]", "E0206", 20),
    ("(Qwen / Yi)[accept=unchanged]", "E0206", 20),
    ("(Qwen / Yi)[accept=confidence, at=1.5]", "E0202", 35),
    ("(Qwen / Yi)[accept=confidence, at=high]", "E0202", 35),
    ("(Qwen / Yi)[accept=judge]", "E0306", 20),
    ("(Qwen / Yi)[accept=answered(Ds)]", "E0306", 20),
    ("(Qwen / Yi)[accept=judge(Dss)]", "E0100", 26),
    ("(Qwen / Yi)[accept=votes, at=0.5]", "E0307", 20),
    ("(Qwen / Yi)[accept=answered, fuse=mean]", "E0205", 30),
    ("(Qwen | Yi)[accept=answered]", "E0200", 13),
    ("Qwen[until=unchanged]", "E0200", 6),
    ("((Qwen / Yi)[accept=answered] | Ds)", "E0303", 2),
    ("((Qwen)*2 | Ds)", "E0303", 2),
    ("Qwen*3", "E0024", 5),
    ("(Qwen)*", "E0024", 7),
    ("(Qwen)*n", "E0024", 7),
    ("(Qwen)*2.5", "E0024", 8),
    ("(Qwen)*65", "E0024", 8),
    ("(Qwen)*3[until=never]", "E0206", 16),
    ("(Qwen)*3[until=agree]", "E0307", 16),
    ("(Qwen)*3[at=0.4]", "E0306", 10),
    ("((Qwen)*64 -> (Yi)*64)*64", "E0111", 1),
    ('Qwen -> (Yi[prompt="{prev} {result_2}"])*2', "E0401", 28),
    ('(Qwen[prompt="question} {round}"])*2', "E0404", 23),
    ('(Qwen & Ds[prompt="{own} {"])*2', "E0404", 26),
    ("Qwen as own -> Ds", "E0109", 9),
    ("Qwen[enough=0.9, temperature=1]", "E0308", 6),
    ("Qwen[samples=1, temperature=1]", "E0202", 14),
    ("Qwen[samples=16, temperature=1, enough=0.5]", "E0202", 40),
    ("(Qwen & Ds)[samples=3, temperature=1]", "E0200", 13),
    ("(Qwen[samples=3] | Ds)", "E0200", 7),
    ("(Qwen & Ds)[min=3]", "E0309", 17),
    ("(Qwen & Ds)[min=1, wait=soon]", "E0202", 25),
    ("(Qwen & Ds)[min=2, wait=3]", "E0309", 20),
    ("(Qwen | Ds)[min=1]", "E0309", 1),
    ("(Qwen & Ds)*2[min=1]", "E0309", 15),
    ("(Qwen[samples=900, temperature=1])*2", "E0111", 1),
    ("param n: int = 900\n(Qwen[samples=$n, temperature=1])*2", "E0111", 1),
    ("Qwen[samples=1001, temperature=1]", "E0202", 14),
    ("(Qwen)*99999999999999999999", "E0024", 8),
    ("(Qwen & Ds)[min=1, timeout=0]", "E0202", 28),
    ("(Qwen[by=likelihood] / Ds)[accept=lead, at=0.5]", "E0307", 35),
]


@pytest.mark.parametrize(("text", "code", "column"), SLIPS, ids=[text[:24] for text, _, _ in SLIPS])
def test_one_mistake_is_told_once_and_at_its_place(text: str, code: str, column: int) -> None:
    with pytest.raises(FlowError) as caught:
        checked(text)
    assert [(d.code, d.span.column) for d in caught.value.diagnostics] == [(code, column)]


def test_lets_that_double_at_every_line_are_refused_at_once() -> None:
    lines = ["let a0 = (Qwen | Ds)", *(f"let a{i} = (a{i - 1} | a{i - 1})" for i in range(1, 40)), "a39"]
    with pytest.raises(FlowError, match="more than 1000 model calls"):
        checked("\n".join(lines))


@pytest.mark.parametrize(
    ("text", "codes"),
    [
        ("let a = (a | a)\na", ["E0105", "E0105"]),
        ("let Qwen = (Qwen | Ds)\nQwen", ["E0105"]),
        ("let a = (b & Qwen)\nlet b = Ds -> (Qwen | a)\nQwen", ["E0105"]),
        (
            "\n".join(f"let a{i} = (a{i - 1} | a{i - 1})" if i else "let a0 = Qwen" for i in range(60)) + "\na59",
            ["E0111"],
        ),
        ("\n".join(f"let a{i} = (a{i + 1})" for i in range(70)) + "\nlet a70 = Qwen\na0", ["E0022"]),
        ("let a = " + "(" * 40 + "b" + ")" * 40 + "\nlet b = " + "(" * 40 + "Qwen" + ")" * 40 + "\na", ["E0022"]),
    ],
)
def test_lets_that_cannot_be_expanded_are_told_without_expanding_them(text: str, codes: list[str]) -> None:
    with pytest.raises(FlowError) as caught:
        checked(text)
    assert [d.code for d in caught.value.diagnostics if d.code != "W0300"] == codes


def test_a_let_of_a_models_name_is_told_to_take_another() -> None:
    with pytest.raises(FlowError) as caught:
        checked("let Qwen = (Qwen | Ds)\nQwen")
    assert caught.value.diagnostics[0].help == "choose another name than the model's"


def test_a_hundred_errors_are_told_and_the_others_counted() -> None:
    with pytest.raises(FlowError, match=r"\(and 249 more\)") as caught:
        checked("Qwen @ Ds\n" * 250)
    assert (len(caught.value.diagnostics), caught.value.num_untold) == (100, 150)


def test_formatting_sees_a_mistake_behind_a_hundred_that_it_would_mend() -> None:
    with pytest.raises(FlowError):
        format_text("Qwen ＞ Ds\n" * 101 + "Qwen @ -> Ds")


def test_a_result_of_thousands_of_digits_is_too_early() -> None:
    with pytest.raises(FlowError) as caught:
        checked('Qwen -> Ds[prompt="{result_' + "9" * 5000 + '}"]')
    (found,) = caught.value.diagnostics
    assert found.code == "E0401" and len(found.message) < 400


def test_mistakes_in_an_imported_file_show_its_lines(tmp_path: Path) -> None:
    (tmp_path / "parts.flow").write_text('# one\nmodel A = "a" { devise=1 }\n', encoding="utf-8")
    with pytest.raises(FlowError) as caught:
        check('import "parts.flow"\nA', zoo=NAMES, base=tmp_path)
    (found,) = caught.value.diagnostics
    assert found.span.file.endswith("parts.flow") and found.source_line == 'model A = "a" { devise=1 }'


def test_one_letter_is_not_near_a_long_name() -> None:
    with pytest.raises(FlowError) as caught:
        checked("Z -> Qwen")
    assert "did you mean" not in (caught.value.diagnostics[0].help or "")


def test_all_errors_of_a_file_come_in_one_run_sorted_by_place() -> None:
    with pytest.raises(FlowError) as caught:
        checked('model A = "a" { devise=1 }\nQwem -> (Yi:1 | Ds) -> A[max_tokens=0]')
    places = [(d.span.line, d.span.column) for d in caught.value.diagnostics]
    assert len(places) == 4 and places == sorted(places)


@pytest.mark.parametrize(
    ("text", "roles"),
    [
        ("Qwen", ["draft"]),
        ("(Qwen | Ds)", ["draft", "draft"]),
        ("Qwen -> Ds", ["draft", "verify"]),
        ("Qwen -> Ds -> Yi", ["draft", "review", "verify"]),
        ("Qwen -> (Ds | Yi)", ["draft", "verify", "verify"]),
        ("(Qwen | Ds) -> Yi", ["draft", "draft", "verify"]),
        ("Qwen -> Ds -> (Yi | Qwen)", ["draft", "review", "verify", "verify"]),
        ("(Qwen -> Ds | Yi)", ["draft", "verify", "draft"]),
        ("(Qwen & Ds) -> Yi", ["draft", "draft", "verify"]),
    ],
)
def test_roles_come_from_the_place_in_the_flow(text: str, roles: list[str]) -> None:
    assert [node.role for node in nodes(checked(text).root)] == roles


def test_verify_after_one_stage_uses_the_two_phase_words() -> None:
    two, three = (list(nodes(checked(t).root))[-1].template for t in ("Qwen -> Ds", "Qwen -> Ds -> Yi"))
    assert two.endswith("问题:{question}.助手回答:{prev}.") and three.endswith("问题:{question}.审校专家分析:{prev}.")


def test_weights_are_normalized() -> None:
    root = checked("(Qwen:3 | Ds:1)").root
    assert isinstance(root, Parallel) and [b.weight for b in root.branches] == [0.75, 0.25]


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=5))
def test_normalized_weights_sum_to_one(weights: list[float]) -> None:
    root = checked("(" + " | ".join(f"Qwen:{w:.4f}" for w in weights) + ")").root
    assert isinstance(root, Parallel) and sum(b.weight for b in root.branches) == pytest.approx(1, abs=1e-12)


def test_options_flow_from_defaults_to_groups_to_stages() -> None:
    root = checked("defaults { max_tokens=9, seed=3 }\nQwen[max_tokens=4] -> (Ds | Yi)[seed=5] -> Yi").root
    assert isinstance(root, Series)
    assert [(p.decoding.max_tokens, p.decoding.seed) for p in root.stages if not isinstance(p, Series)] == [
        (4, 3),
        (9, 5),
        (9, 3),
    ]


def test_fuser_options_get_defaults_and_values() -> None:
    root = checked("(Qwen | Ds)[fuse=gated, tau=0.8]").root
    assert isinstance(root, Parallel)
    assert (root.decoding.fuse, dict(root.decoding.fuse_options)) == ("gated", {"tau": 0.8, "primary": ""})


def test_a_let_is_expanded_in_place() -> None:
    direct, named = checked("Qwen -> Ds -> (Yi | Qwen)"), checked("let chain = Qwen -> Ds\nchain -> (Yi | Qwen)")
    assert [n.role for n in nodes(direct.root)] == [n.role for n in nodes(named.root)]
    assert isinstance(named.root, Series) and len(named.root.stages) == 3


def test_params_take_their_default_or_the_override() -> None:
    text = "param cap: int = 64\nQwen[max_tokens=$cap]"
    for overrides, cap in (({}, 64), ({"cap": "8"}, 8)):
        root = checked(text, overrides=overrides).root
        assert isinstance(root, Node) and root.decoding.max_tokens == cap


def test_set_also_reaches_the_defaults() -> None:
    root = checked("Qwen", overrides={"max_tokens": "7", "prompts": "en"}).root
    assert isinstance(root, Node) and root.decoding.max_tokens == 7 and root.template.startswith("You are")


@pytest.mark.parametrize("override", [{"cap": "3"}, {"max_tokens": "no"}, {"prompts": "nope"}, {"top_p": "7"}])
def test_an_override_that_fits_nothing_is_a_usage_error(override: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="--set"):
        checked("Qwen", overrides=override)


def test_imports_bring_declarations_relative_to_the_importing_file(tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "models.flow").write_text('import "more.flow"\nmodel A = "./weights"\n')
    (tmp_path / "lib" / "more.flow").write_text('prompt p = "{question}!"\n')
    (tmp_path / "main.flow").write_text('import "lib/models.flow"\nimport "lib/more.flow"\nA[prompt=p]\n')
    flow = check_file(tmp_path / "main.flow", zoo=NAMES)
    assert flow.models["A"].ref == str(tmp_path / "lib" / "weights") and flow.name == "main"


def test_a_text_only_model_may_answer_beside_others_but_not_write_with_them() -> None:
    declared = 'model T = "t" { backend=openai, base_url="http://localhost/v1" }\n'
    checked(declared + "(T & Qwen) -> T")
    with pytest.raises(FlowError, match="texts only"):
        checked(declared + "(T | Qwen)")


@given(st.text(max_size=60))
def test_random_text_is_checked_or_refused_but_never_crashes(text: str) -> None:
    try:
        checked(text)
    except FlowError as error:
        for diagnostic in error.diagnostics:
            assert diagnostic.span.line >= 1 and diagnostic.span.column >= 1 and full(diagnostic)


_SOURCES = [path.read_bytes().decode() for path in (*OK, *sorted(REFUSED.glob("*.flow")))]
_PIECES = re.compile(r'\w+|->|"""|\s+|.', re.DOTALL)
_STRAY = [
    "|",
    "&",
    "->",
    "(",
    ")",
    "[",
    "{",
    ":",
    "=",
    '"',
    "'",
    '"""',
    "\n",
    "\r",
    "\0",
    "\ufeff",
    "（",
    "“",
    "let",
    "as",
]
_STRAY += [
    "1e999",
    "7B",
    "\u202e",
    "\u2003",
    "e\u0301",
    "\\",
    "\\ud800",
    "{{",
    "{prev}",
    "=>",
    "—",
    "%",
    "\x1b",
    "\ud800",
    "９",
]
_TERMINAL = re.compile(
    r"\b(?:[LR](?:PAR|SQB|BRACE)|_[A-Z]+|EQUAL|COMMA|COLON|NUMBER|STRING|PARAMETER|VisitError)\b|\$END"
)


@st.composite
def _mutants(draw: st.DrawFn) -> str:
    """Return a flow of the tests with pieces deleted, doubled, swapped or replaced by stray ones."""
    pieces = _PIECES.findall(draw(st.sampled_from(_SOURCES)))
    for _ in range(draw(st.integers(1, 4))):
        at, other = (draw(st.integers(0, len(pieces) - 1)) for _ in range(2))
        match draw(st.integers(0, 3)):
            case 0 if len(pieces) > 1:
                del pieces[at]
            case 1:
                pieces.insert(at, draw(st.sampled_from(_STRAY)))
            case 2:
                pieces[at], pieces[other] = pieces[other], pieces[at]
            case _:
                pieces.insert(at, pieces[other])
    return "".join(pieces)


@given(_mutants())
def test_a_broken_flow_gets_places_in_the_text_and_words_of_the_user(text: str) -> None:
    try:
        found = checked(text, file="f.flow").warnings
    except FlowError as error:
        found = error.diagnostics
    lines = re.split(r"\r\n|\n|\r", text.removeprefix("\ufeff"))
    for diagnostic in found:
        span = diagnostic.span
        assert span.file != "f.flow" or 1 <= span.column <= len(lines[span.line - 1]) + 1
        assert not _TERMINAL.search(full(diagnostic).split("\n")[0]) or _TERMINAL.search(text)


@given(_mutants())
def test_formatting_a_broken_flow_refuses_or_keeps_its_meaning(text: str) -> None:
    try:
        formatted = format_text(text)
    except FlowError:
        return
    assert format_text(formatted) == formatted
    assert _meaning(formatted) == _meaning(text)


def _meaning(text: str) -> object:
    try:
        return fingerprint(compile(checked(text)))
    except FlowError as error:
        mended = ("E0002", "E0008")
        codes = {d.code for d in error.diagnostics if d.code.startswith("E") and d.code not in mended}
        return sorted(codes) if codes else _meaning(format_text(text))


def test_the_compiler_half_imports_no_heavy_library() -> None:
    code = (
        "import sys, flowinfer.cli\n"
        "from flowinfer.language.check import check; from flowinfer import machine\n"
        "from flowinfer.planning import plan, placement\n"
        "from flowinfer.drawing import text, svg, mermaid, dot\n"
        "flow = check('Qwen -> (Yi | Ds)', zoo='toy'); text.render(flow); svg.render(flow)\n"
        "placement.place(plan.compile(flow), machine.Machine((machine.Device('cuda:0', '', 10**12, 10**12),)))\n"
        "heavy = {'torch', 'transformers', 'datasets', 'tokenizers', 'scipy', 'sympy', 'pandas'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("(Qwen | Ds)[fuse=vote, topk=certified]", "with fuse=vote"),
        ("(Qwen | Ds)[temperature=0.5, topk=certified]", "that samples"),
        ("(Qwen | (Ds | Yi))[topk=certified]", "with groups inside"),
        ("defaults { topk=certified }\n(Qwen | Ds)[fuse=vote]", "with fuse=vote"),
    ],
)
def test_certified_candidates_are_refused_where_they_cannot_serve(text: str, why: str) -> None:
    """Before any model is loaded."""
    with pytest.raises(FlowError, match=f"option 'topk' cannot be 'certified' in a group {why}"):
        check(text, zoo=PAPER_NAMES)


@pytest.mark.parametrize(
    "text",
    [
        "(Qwen | Ds)[topk=certified]",
        "(Qwen:0.3 | Ds:0.7)[fuse=weighted, topk=certified]",
        "defaults { topk=certified }\nQwen -> (Qwen -> Ds | Yi)",
        "defaults { topk=certified }\n(Qwen & Ds)",
    ],
)
def test_certified_candidates_are_accepted_elsewhere(text: str) -> None:
    check(text, zoo=PAPER_NAMES)


@pytest.mark.parametrize("text", ["defaults { by=likelihood }\nYi -> (Qwen -> Ds | Yi)", "Yi -> (Qwen -> Ds | Yi)"])
def test_by_in_defaults_or_set_is_meant_for_the_stages_that_answer(text: str) -> None:
    overrides = {} if "defaults" in text else {"by": "likelihood"}
    steps = compile(check(text, zoo=PAPER_NAMES, overrides=overrides)).steps
    assert [step.decoding.by for step in steps] == ["text", "text", "likelihood"]


def test_options_that_nothing_is_written_with_are_told() -> None:
    flow = check("Qwen[by=likelihood, temperature=0.7, max_tokens=5]", zoo=PAPER_NAMES)
    assert [warning.message for warning in flow.warnings] == [
        "option 'temperature' does nothing with by=likelihood: nothing is written",
        "option 'max_tokens' does nothing with by=likelihood: nothing is written",
    ]


def test_an_unknown_fuser_in_set_is_refused() -> None:
    with pytest.raises(UsageError, match="--set fuse=meen: unknown fuser"):
        check("(Qwen | Ds)", zoo=NAMES, overrides={"fuse": "meen"})


def test_params_stand_in_prompts_with_their_braces_kept() -> None:
    flow = checked('param who: str = "a {poet}"\nQwen[prompt="You are {$who}. {question}"]', overrides={})
    (node,) = nodes(flow.root)
    assert node.template == "You are a {{poet}}. {question}"


@pytest.mark.parametrize("field", ["context", "document", "subject", "passage_2"])
def test_a_field_that_is_near_no_other_must_come_from_the_data(field: str) -> None:
    flow = checked(f'Qwen[prompt="{{{field}}} {{question}}"]')
    assert [found.code for found in flow.warnings] == ["W0302"] and columns(flow) == {field: "Qwen"}


READERS = [
    ('Qwen -> Ds[prompt="{question}"]', 1),
    ('Qwen -> Ds[prompt="{result_1}"]', 0),
    ('Qwen as a -> Ds[prompt="{a}"]', 0),
    ('Qwen -> (Ds[prompt="{question}"] | Yi)', 0),
    ('Qwen -> (Ds[prompt="{question}"] & Yi[prompt="{question}"])', 1),
    ('(Qwen & Ds) -> Yi[prompt="{answers}"]', 0),
    ('Qwen -> (Ds[prompt="{question}"] -> Yi[prompt="{prev}"] | Ds[prompt="{question}"])', 1),
]


@pytest.mark.parametrize(("text", "count"), READERS, ids=[text for text, _ in READERS])
def test_a_stage_that_reads_nothing_before_it_is_told(text: str, count: int) -> None:
    assert [found.code for found in checked(text).warnings if found.code == "W0301"][:1] == ["W0301"] * count


def test_a_chinese_prompt_set_is_noted_where_questions_are_not_chinese() -> None:
    template = checked("Qwen").root.template  # type: ignore[union-attr]  # a node
    assert "--prompts plain" in (foreign_note("paper", [template], ["What is 2 + 2?"]) or "")
    for name, asked, text in (
        ("paper", template, "二加二等于几?"),
        ("paper", template, "2 + 2 = 4"),
        ("paper", "我的{question}", "What?"),
        ("plain", "{question}", "What?"),
    ):
        assert foreign_note(name, [asked], [text]) is None


def test_data_without_a_column_that_a_prompt_needs_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "own.jsonl"
    file.write_text('{"question": "a?", "answer": "1", "context": "c"}\n{"question": "b?", "answer": "2"}\n', "utf-8")
    loaded = load_questions(str(file), limit=1, columns={"context": "Qwen"})
    assert loaded.questions[0].columns == {"context": "c"}
    assert load_questions(str(file), limit=1).fingerprint != loaded.fingerprint
    with pytest.raises(DataError, match=r"1 of 2 questions have no column 'context' \('1'\)"):
        load_questions(str(file), columns={"context": "Qwen"})


@pytest.mark.parametrize(
    ("text", "overrides", "warned"),
    [
        ("Qwen -> (Yi | Ds)[speculate=ngram]", {}, []),
        ("Qwen -> (Yi | Ds)[draft=ngram]", {}, ["'draft' is called 'speculate' now"]),
        ("defaults { draft=ngram }\nQwen -> (Yi | Ds)", {}, ["'draft' is called 'speculate' now"]),
        ("Qwen -> (Yi | Ds)", {"draft": "ngram"}, ["'--set draft' is called 'speculate' now"]),
        ("defaults { speculate=off }\nQwen -> (Yi | Ds)", {"draft": "ngram"}, ["'--set draft' is called"]),
    ],
)
def test_a_former_word_for_an_option_means_the_present_one(
    text: str, overrides: dict[str, str], warned: list[str]
) -> None:
    flow = checked(text, overrides=overrides)
    assert isinstance(flow.root, Series) and isinstance(flow.root.stages[-1], Parallel)
    assert flow.root.stages[-1].decoding.speculate == "ngram"
    assert [warning.code for warning in flow.warnings] == ["W0201"] * len(warned)
    assert all(part in warning.message for part, warning in zip(warned, flow.warnings, strict=True))
    pinned = checked(pin(text, overrides)).root
    assert isinstance(pinned, Series) and isinstance(pinned.stages[-1], Parallel)
    assert pinned.stages[-1].decoding.speculate == "ngram"


def test_no_text_is_shown_of_a_file_that_is_no_flow(tmp_path: Path) -> None:
    """By its name, or by what it holds; of a flow with mistakes the lines are shown."""
    lines = "root:x:0:0:root:/root:/bin/bash\nhunter2\n"
    named, copied, linked = (tmp_path / name for name in ("passwd", "copy.flow", "link.flow"))
    named.write_text(lines)
    copied.write_text(lines.replace("hunter2", "hunter2:x") * 3)
    linked.symlink_to(named)
    for path in (named, copied):
        with pytest.raises(FlowError) as caught:
            check_file(path, zoo=NAMES)
        said = "\n".join(full(diagnostic) for diagnostic in caught.value.diagnostics) + str(caught.value)
        assert f"{path}:1:" in said and "root" not in said.replace(str(path), "") and "hunter2" not in said
    with pytest.raises(UsageError, match="it links to a file that is no"):
        check_file(linked, zoo=NAMES)
    copied.write_text("Qwen -> Dss\n")
    with pytest.raises(FlowError) as caught:
        check_file(copied, zoo=NAMES)
    assert "1 | Qwen -> Dss" in full(caught.value.diagnostics[0])


@pytest.mark.parametrize(
    ("text", "help"),
    [
        ("Qwen[tau=0.5]", "write it behind the group: (A | B)[fuse=gated, tau=0.5]"),
        ("Qwen[fuse=gated]", "write it behind the group: (A | B)[fuse=mean]"),
        ("Qwen[temperature=70%]", "an option is a plain number: write 0.7 for 70%"),
        ("(Qwen:70% | Ds:30%)", "weights are plain numbers, made to sum to 1: write 70 or 0.7 for 70%"),
        ("Qwen[device=[cuda:0, cuda:1]]", 'quote it: "cuda:0"'),
        ('model A = "a" { base_url=http://host:1/v1 }', 'an address stands in quotes: "http://..."'),
    ],
)
def test_the_help_is_what_one_can_write(text: str, help: str) -> None:
    with pytest.raises(FlowError) as caught:
        checked(text)
    assert caught.value.diagnostics[0].help == help


def test_formatting_writes_the_present_word_for_an_option() -> None:
    assert format_text("Qwen[ draft = off ] as draft") == "Qwen[speculate=off] as draft\n"


@pytest.mark.parametrize("word", ["draft", "speculate"])
def test_messages_name_an_option_by_the_word_that_was_written(word: str) -> None:
    with pytest.raises(FlowError, match=f"option '{word}' cannot be 'upstream' in the first stage"):
        checked(f"Qwen[{word}=upstream]")
    with pytest.raises(UsageError, match=f"--set {word}=nobody: option '{word}' cannot be 'nobody'"):
        checked("Qwen -> Ds", overrides={word: "nobody"})


@pytest.mark.parametrize("option", ["fuse=safe, writer=m", "fuse=safe, writer=Yi", "fuse=gated, primary=m"])
def test_a_fuser_finds_the_model_behind_the_name_of_a_let(option: str) -> None:
    """`writer=m` was accepted and another head wrote; `writer=Yi` was refused."""
    root = check(f"let m = Yi\n(m | Ds)[{option}]", zoo="lab").root
    assert isinstance(root, Parallel)
    assert "Yi" in root.decoding.fuse_options.values()


def test_samples_of_which_all_are_needed_are_told_that_enough_does_nothing() -> None:
    (told,) = checked("Qwen[samples=3, temperature=1, enough=0.95]").warnings
    assert told.message == "option 'enough' does nothing: 0.95 takes 4 samples at least, of 3"
    assert not checked("Qwen[samples=5, temperature=1, enough=0.95]").warnings
