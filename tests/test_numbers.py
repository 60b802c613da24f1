"""Numbers that are none, or are beyond all sense: refused where they enter, never reckoned with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flowinfer.backends.completions import _count
from flowinfer.errors import DataError, FlowError, UsageError
from flowinfer.language.check import check
from flowinfer.results import Record
from flowinfer.runs.store import read_records
from flowinfer.spec import Parallel
from flowinfer.zoo import read_zoo
from tests.runs.test_store import new_run, record
from tests.zoos import NAMES


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        (("1e308", "1e308"), (0.5, 0.5)),
        (("1e-320", "1e-320"), (0.5, 0.5)),
        (("1.7e308", "1.7e308", "1.7e308"), (1 / 3, 1 / 3, 1 / 3)),
        (("3", "1"), (0.75, 0.25)),
        (("1", "1e-8"), (1.0, 1e-8)),
    ],
)
def test_weights_of_any_size_are_normalized(weights: tuple[str, ...], expected: tuple[float, ...]) -> None:
    names = ("Qwen", "Ds", "Yi")
    flow = check("(" + " | ".join(f"{name}:{w}" for name, w in zip(names, weights, strict=False)) + ")", zoo=NAMES)
    assert isinstance(flow.root, Parallel)
    shares = [branch.weight for branch in flow.root.branches]
    assert shares == pytest.approx(expected, rel=1e-6) and sum(shares) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize(
    "text",
    [
        "(Qwen:1e-320 | Ds:1)",
        "(Qwen:1e308 | Ds:1e-308)",
        "(Qwen:1e-10 | Ds:1)",
        "((Qwen:1e-6 | Yi:1):1e-6 | Ds:1)",
        "(Ds:1 | (Yi:1 | (Qwen:1e-4 | Small:1):1):1e-6)",
    ],
)
def test_a_share_that_could_not_change_a_token_is_refused_once(text: str) -> None:
    with pytest.raises(FlowError, match="it cannot change a token") as refused:
        check(text, zoo=NAMES)
    assert [one.code for one in refused.value.diagnostics] == ["E0301"]


def test_a_group_that_writes_a_text_of_its_own_shares_nothing_with_the_group_around_it() -> None:
    check("(((Qwen:1e-6 | Yi:1) -> Small):1e-6 | Ds:1)", zoo=NAMES)


@pytest.mark.parametrize(
    "option",
    ["temperature=1e308", "max_tokens=99999999999999999999", "top_p=0", "near_tie_eps=2"],
)
def test_an_option_beyond_all_sense_is_refused(option: str) -> None:
    with pytest.raises(FlowError):
        check(f"Qwen[{option}]", zoo=NAMES)


def test_a_fusers_number_beyond_all_sense_is_refused() -> None:
    with pytest.raises(FlowError, match="must be at most"):
        check("(Qwen | Ds)[fuse=unite, k=99999999999999999999]", zoo=NAMES)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *(("strict", text) for text in ("yes", "1", "True", "on")),
        *(("lstrip_first", text) for text in ("yes", "1", "True", "on")),
        *(("temperature", text) for text in ("nan", "inf", "-1", "1e308")),
        *(("max_tokens", text) for text in ("nan", "1e3", "true", "9" * 5000)),
        *(("t", text) for text in ("nan", "inf", "1e999", "true")),
        *(("flag", text) for text in ("yes", "1", "on")),
    ],
)
def test_a_set_value_that_is_none_of_its_kind_is_refused(name: str, text: str) -> None:
    flow = "param t: float = 0.5\nparam flag: bool = true\nQwen[temperature=$t, strict=$flag]"
    with pytest.raises(UsageError, match=f"--set {name}="):
        check(flow, zoo=NAMES, overrides={name: text})


@pytest.mark.parametrize("line", ['trust_remote_code = "yes"', "trust_remote_code = 1", "system = 3", "revision = nan"])
def test_a_zoo_turns_no_value_into_another(tmp_path: Path, line: str) -> None:
    (tmp_path / "zoo.toml").write_text(f'[models.A]\nref = "org/a"\n{line}\n')
    with pytest.raises(DataError, match=r"zoo.toml: \[models.A\] '"):
        read_zoo(tmp_path / "zoo.toml")


@pytest.mark.parametrize(
    ("count", "expected"),
    [(7, 7), (0, 0), (-(10**23), 0), (10**23, 0), (True, 0), (7.5, 0), ("7", 0), (None, 0), (float("nan"), 0)],
)
def test_a_count_of_tokens_that_is_none_is_unknown(count: Any, expected: int) -> None:
    assert _count(count) == expected


@pytest.mark.parametrize(
    ("part", "value"),
    [
        (("score", "correct"), "yes"),
        (("score", "correct"), 1),
        (("trace", "seconds"), float("nan")),
        (("trace", "seconds"), float("inf")),
        (("trace", "seconds"), -1.0),
        (("trace", "seconds"), "1"),
        (("trace", "steps", 0, "tokens"), -(10**23)),
        (("trace", "steps", 0, "tokens"), True),
        (("trace", "steps", 0, "tokens"), "3"),
        (("question", "id"), 7),
    ],
)
def test_a_record_with_a_value_of_another_kind_is_damaged(tmp_path: Path, part: tuple[Any, ...], value: Any) -> None:
    run = new_run(tmp_path)
    row = record("a").model_dump(mode="json")
    place: Any = row
    for key in part[:-1]:
        place = place[key]
    place[part[-1]] = value
    (run.path / "samples.jsonl").write_text(json.dumps(row) + "\n")
    run.close()
    with pytest.raises(DataError, match=r"samples.jsonl:1: damaged record"):
        list(read_records(run.path))


def test_records_of_before_are_read() -> None:
    row = record("a").model_dump(mode="json")
    del row["trace"]["ballot"]
    assert Record.model_validate(row) == record("a")
