"""Zoos, prompt sets and the registry."""

from __future__ import annotations

from pathlib import Path

import pytest

from flowinfer import registry
from flowinfer.errors import DataError, FlowError, UsageError
from flowinfer.language import prompts
from flowinfer.language.check import check
from flowinfer.registry import FuserInfo
from flowinfer.zoo import load_zoo, read_zoo, select_zoo


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "zoo.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_local_refs_are_relative_to_the_zoo_file(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    zoo = read_zoo(write(tmp_path, '[models.A]\nref = "weights"\n[models.B]\nref = "org/b"\ndtype = "float16"\n'))
    assert zoo.models["A"].ref == str((tmp_path / "weights").resolve())
    assert (zoo.models["B"].ref, zoo.models["B"].dtype) == ("org/b", "float16")


@pytest.mark.parametrize(
    ("text", "message", "cure"),
    [
        ("[models.A\n", "not a valid TOML file", None),
        ("a = " + "[" * 10_000, "not a valid TOML file: nested too deep", None),
        ("", "no models", "write"),
        ("[modells.A]\nref='x'", "unexpected key 'modells'", "models.NAME"),
        ("[models.A]\ndtype='float16'", "'ref'", "keys"),
        ("[models.A]\nref='x'\ndtipe='float16'", "'dtipe': unknown key", "did you mean 'dtype'?"),
        ("[models.A]\nref='x'\ndtype='int3'", "'dtype'", "keys"),
        ("[models]\nA = 3", r"\[models.A\] must be a table", "ref"),
    ],
)
def test_a_malformed_zoo_says_where_what_and_the_cure(
    tmp_path: Path, text: str, message: str, cure: str | None
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read_zoo(write(tmp_path, text))
    assert "zoo.toml" in str(caught.value)
    assert cure is None or cure in str(caught.value.help)


FAR = '[models.A]\nref="x"\nbackend="openai"\nbase_url="http://h/v1"\n'


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('headers = { "X-Api-Key" = "k3y" }', "option 'headers' would hold a secret, 'X-Api-Key'"),
        ('headers = { "X-Org" = "sk-ABCDEFGHIJKLMNOP123" }', "option 'headers' would hold a secret in 'X-Org'"),
        ('headers = { "X Y" = "z" }', "option 'headers' has no header of HTTP: 'X Y'"),
        ('headers = { "X" = "a\\nb" }', "option 'headers' has no header of HTTP: 'X'"),
        ('headers = { "Host" = "z" }', "option 'headers' cannot have 'Host', which every request has"),
        ("headers = { X = 3 }", "'headers.X': input should be a valid string"),
        ("extra_body = { temperature = 1 }", "option 'extra_body' cannot have 'temperature', which every request has"),
        ('extra_body = { a = [{ api_key = "k3y" }] }', "option 'extra_body' would hold a secret, 'api_key'"),
        ("extra_body = { day = 2020-01-01 }", "option 'extra_body' holds what JSON has no form for"),
        ("parallel = 0", "'parallel': input should be greater than or equal to 1"),
        ("input_cost = -1", "'input_cost': input should be greater than or equal to 0"),
    ],
)
def test_what_an_endpoint_cannot_be_sent_is_refused_and_no_secret_repeated(
    tmp_path: Path, line: str, message: str
) -> None:
    with pytest.raises(DataError) as caught:
        read_zoo(write(tmp_path, FAR + line))
    assert message in caught.value.message
    assert not any(secret in f"{caught.value} {caught.value.help}" for secret in ("k3y", "ABCDEFGH"))


def test_a_local_model_has_no_use_for_what_endpoints_are_sent(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="option 'parallel' does nothing: backend 'hf' takes no notice of it"):
        read_zoo(write(tmp_path, '[models.A]\nref="org/x"\nparallel=3\n'))


def test_tables_of_a_model_belong_into_a_zoo_file() -> None:
    with pytest.raises(FlowError) as caught:
        check('model A = "x" { backend=openai, base_url="http://h/v1", headers="X" }\nA')
    (problem,) = caught.value.diagnostics
    assert problem.help == "'headers' is a table of a zoo file, below [models.NAME]: --zoo FILE"


def test_the_order_of_choice_is_option_environment_file_then_default(tmp_path: Path) -> None:
    path = str(write(tmp_path, '[models.A]\nref = "x"\n'))
    environment = {"FLOWINFER_ZOO": path, "HF_HUB_CACHE": str(tmp_path)}
    assert select_zoo(explicit="paper", declared=path, environment=environment).why == "--zoo"
    assert select_zoo(declared="paper", environment=environment).why == "FLOWINFER_ZOO"
    assert select_zoo(declared=path, environment={}).why == "the flow's defaults"


@pytest.mark.parametrize(
    ("text", "is_told"),
    [
        ("Qwen", True),
        ('model M = "x/y"\nM', False),
        ('model M = "x/y"\nM -> Qwen', True),
        ('model Qwen = "x/y"\nQwen[speculate=Ds]', True),
    ],
)
def test_the_lab_zoo_says_what_it_is_where_a_model_of_it_is_called(text: str, is_told: bool) -> None:
    assert (check(text, zoo="lab").zoo_note is not None) == is_told


def test_a_file_that_is_not_there_is_no_misspelt_zoo() -> None:
    with pytest.raises(UsageError, match=r"unknown zoo 'x\.toml'") as caught:
        load_zoo("x.toml")
    assert str(caught.value.help).startswith("known zoos: ")


def test_an_unknown_zoo_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="unknown zoo 'papper'") as caught:
        load_zoo("papper")
    assert caught.value.help == "did you mean 'paper'?"


def test_the_paper_zoo_holds_the_papers_three_models() -> None:
    assert {name: spec.ref for name, spec in load_zoo("paper").models.items()} == {
        "Qwen": "Qwen/Qwen2.5-7B-Instruct",
        "Ds": "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B",
        "Yi": "01-ai/Yi-1.5-9B-Chat",
    }


def test_the_paper_set_shows_question_answer_and_instruction() -> None:
    review = prompts.template_for("paper", "review", 1)
    shown = prompts.render(review, {"question": "Q", "prev": "P"})
    assert shown.startswith("你是一位严谨的审校专家,") and shown.endswith("给出更准确的中间结论.问题:Q.助手回答:P.")


def test_the_literal_table_has_no_question_after_the_draft() -> None:
    for role in ("review", "verify"):
        assert "{question}" not in prompts.template_for("paper-table2", role, 2)


def test_rendering_never_expands_a_value_again() -> None:
    assert prompts.render("{{x}} {prev}", {"prev": "{question} {{}}"}) == "{x} {question} {{}}"


@pytest.mark.parametrize("template", ["{", "a } b", "{a b}", "{}", "{prev"])
def test_unpaired_braces_are_refused(template: str) -> None:
    with pytest.raises(prompts.TemplateError):
        prompts.fields_of(template)


def test_fields_come_with_their_places() -> None:
    assert [(f.name, f.offset) for f in prompts.fields_of("a {prev}{{b}} {question}")] == [
        ("prev", 2),
        ("question", 14),
    ]


def test_one_answer_is_joined_as_it_is_and_several_are_numbered() -> None:
    join = prompts.prompt_set("en").join
    assert join(["a {x}"]) == "a {x}" and join(["a", "b"]) == "Answer 1: a\n\nAnswer 2: b"


@pytest.mark.parametrize(
    "info",
    [*registry.BUILT_IN_FUSERS, *registry.BUILT_IN_BACKENDS, *registry.tasks().values(), *registry.BUILT_IN_ZOOS],
    ids=lambda i: i.name,
)
def test_every_built_in_loads_by_its_own_door(info: registry.Info) -> None:
    target = registry.load(info)
    if isinstance(info, FuserInfo):
        target(**{name: p.default for name, p in info.parameters.items()})  # type: ignore[operator]


def test_a_name_that_cannot_be_imported_says_which() -> None:
    with pytest.raises(UsageError, match="'ghost' cannot be loaded from 'no_such_module:x'"):
        registry.load(FuserInfo("ghost", "no_such_module:x", ""))


def test_models_that_a_registered_zoo_makes_when_they_are_needed_are_not_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLOWINFER_CACHE", str(tmp_path))
    assert check("Qwen", zoo="toy").warnings == ()
    assert [told.code for told in check('model A = "./no/such/folder"\nA', zoo="toy").warnings] == ["W0101"]
