"""Routes: one member of a choice group is picked by the question, before any runs."""

from __future__ import annotations

import json
import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from flowinfer.engine.routing import _first, counted, router_of
from flowinfer.engine.work import trace_of
from flowinfer.language.check import check
from flowinfer.planning.bounds import bounds
from flowinfer.planning.merge import beside, loops_in_turn, merge
from flowinfer.planning.plain import fingerprint, to_json
from flowinfer.planning.plan import Plan, compile
from flowinfer.results import Trace
from flowinfer.runs.replicas.wire import plan_data, read_plans
from tests.engine.scripted import Said, Script, asked, planned, scheduler
from tests.engine.test_control import Shelf
from tests.routed import PLAIN, table, write
from tests.zoos import NAMES

SUMS = {f"What is {n} + {n + 1}?": "10" for n in range(20)}
CAPITALS = {f"What is the capital of {land}?": "01" for land in ("France", "Spain", "Italy", "Norway", "Chad")}


def routed(
    folder: Path,
    members: Sequence[str],
    examples: Mapping[str, str],
    flow: str = "{}",
    tokens: Sequence[float] | None = None,
) -> Plan:
    """Return the plan of a flow whose `{}` is a group of these members with a table of these examples."""
    learned = table([flow.replace("{}", one) for one in members], examples, tokens=tokens)
    write(folder / "routes.json", learned)
    group = f'({" / ".join(members)})[pick="routes.json"]'
    return compile(check(PLAIN + flow.replace("{}", group), zoo=NAMES, base=folder))


def answer(plan: Plan, question: str) -> tuple[Trace, Script]:
    """Run a plan whose models say their names and prompts."""
    script = Script(lambda title, prompt: Said(f"{title}<{prompt}>"))
    merged, one = merge([plan]), asked(question)
    list(scheduler(merged, script).run([one.of(merged.uses[0])]))
    return trace_of(plan, merged.uses[0], one), script


def test_alike_questions_pick_who_was_right_about_them_and_nothing_else_runs(tmp_path: Path) -> None:
    plan = routed(tmp_path, ["Qwen", "Yi"], SUMS | CAPITALS)
    for question, member in (("What is 77 + 5?", "Qwen"), ("What is the capital of Peru?", "Yi")):
        trace, script = answer(plan, question)
        assert script.calls == [member] and len(trace.steps) == 1
    assert str(trace.selections[0]) == "(Qwen / Yi): picked 2 of 2 (by routes.json, likely right: 0.41, 0.59)"


def test_a_question_like_no_other_picks_the_best_single_member(tmp_path: Path) -> None:
    plan = routed(tmp_path, ["Yi", "Qwen"], {question: marks[::-1] for question, marks in (SUMS | CAPITALS).items()})
    assert answer(plan, "ßøæ")[1].calls == ["Qwen"]


def test_of_equally_likely_members_the_cheapest_is_picked(tmp_path: Path) -> None:
    plan = routed(tmp_path, ["Qwen", "Yi", "Ds"], dict.fromkeys(SUMS, "111"), tokens=[30, 10, 20])
    assert answer(plan, "What is 3 + 9?")[1].calls == ["Yi"]


MEMBERS = ["Qwen", "Ds -> Yi", "(Qwen | Yi)", "(Qwen / Ds)[accept=answered]", "(Qwen & Ds & Yi)"]


@pytest.mark.parametrize("index", range(5), ids=MEMBERS)
@pytest.mark.parametrize("flow", ["{}", "Ds -> {}", "{} -> Ds"])
def test_routes_that_always_name_a_member_give_that_members_texts(flow: str, index: int, tmp_path: Path) -> None:
    marks = "".join(str(int(number == index)) for number in range(len(MEMBERS)))
    plan = routed(tmp_path, MEMBERS, dict.fromkeys(SUMS, marks), flow)
    alone = planned(flow.replace("{}", MEMBERS[index]))
    (picked, script), (whole, other) = answer(plan, "What is 1 + 1?"), answer(alone, "What is 1 + 1?")
    assert (picked.answer, picked.finish_reason) == (whole.answer, whole.finish_reason)
    assert [step.text for step in picked.steps] == [step.text for step in whole.steps]
    assert script.prompts == other.prompts
    drawn = [plan.step(step.step).stream for step in picked.steps]
    inside = [bool(plan.step(step.step).when) or flow.endswith("{}") for step in picked.steps]
    alone_drawn = [step.step for step in whole.steps]
    assert all(mine == theirs for mine, theirs, is_own in zip(drawn, alone_drawn, inside, strict=True) if is_own), (
        "where it samples, it draws the same noise"
    )


@pytest.mark.parametrize("flow", ["((Qwen / Yi)[pick='r.json'])*2", "(Qwen / Yi)*2[pick='r.json']"])
def test_every_round_of_a_repeat_picks_the_same_member(flow: str, tmp_path: Path) -> None:
    write(tmp_path / "r.json", table(["(Qwen)*2", "(Yi)*2"], CAPITALS))
    checked = check(PLAIN + flow, zoo=NAMES, base=tmp_path)
    assert not checked.warnings
    assert answer(compile(checked), "What is the capital of Peru?")[1].calls == ["Yi", "Yi"]


def test_what_a_picked_member_cannot_answer_fails(tmp_path: Path) -> None:
    plan, one = routed(tmp_path, ["Qwen", "Yi"], SUMS), asked("What is 1 + 1?")
    merged, script = merge([plan]), Script(lambda title, prompt: Said(None))
    list(scheduler(merged, script).run([one.of(merged.uses[0])]))
    assert trace_of(plan, merged.uses[0], one).error == "it cannot" and script.calls == ["Qwen"]


def test_plans_with_and_without_routes_share_what_they_decode(tmp_path: Path) -> None:
    plans = [planned("Yi"), routed(tmp_path, ["Qwen", "Yi"], CAPITALS), planned("Qwen")]
    for merged, is_in_turn in ((merge(plans), False), (beside(plans), False), (merge(plans), True)):
        one, script = asked("What is the capital of Peru?"), Script(lambda title, prompt: Said("a"))
        for uses in merged.uses:
            one.of(uses)
        waves = loops_in_turn(merged.steps) if is_in_turn else ()
        list(scheduler(merged, script, Shelf()).run([one], waves=waves))
        assert sorted(script.calls) == ["Qwen", "Yi"] and one.is_done


def test_a_replica_gets_the_table_with_the_plan(tmp_path: Path) -> None:
    plan = routed(tmp_path, ["Qwen", "Yi"], SUMS)
    sent = json.loads(json.dumps(plan_data(plan, 2)))
    assert read_plans([sent])[0].selections == plan.selections


def test_another_table_makes_another_plan(tmp_path: Path) -> None:
    one, other = (routed(tmp_path, ["Qwen", "Yi"], examples) for examples in (SUMS, CAPITALS))
    assert fingerprint(one) != fingerprint(other)
    said = to_json(one)["selections"][0]["routes"]
    assert (said["name"], said["members"], set(said)) == ("routes.json", ("Qwen", "Yi"), {"name", "digest", "members"})


def test_the_least_and_the_most_are_of_the_cheapest_and_the_dearest_member(tmp_path: Path) -> None:
    members = ["Qwen[max_tokens=100]", "Ds[max_tokens=5] -> Yi[max_tokens=5]", "(Qwen | Yi | Ds)[max_tokens=50]"]
    found = bounds(routed(tmp_path, members, dict.fromkeys(SUMS, "100"), "{} -> Yi[max_tokens=1]"))
    assert (found.least.calls, found.most.calls) == (2, 4)
    assert (found.least.tokens, found.most.tokens) == (11, 101)
    assert (found.least.depth, found.most.depth) == (2, 3)


def test_a_table_picks_the_same_whatever_else_is_asked_with_a_question(tmp_path: Path) -> None:
    routes = routed(tmp_path, ["Qwen", "Yi"], SUMS | CAPITALS).selections[0].routes
    assert routes is not None
    questions = ["What is 5 + 5?", "What is the capital of Oman?\nA. Maskat\nB. Sana", "", "\ud800"]
    router = router_of(routes)
    assert router.picks(counted(questions)) == [router.pick(question) for question in questions]


def test_texts_are_counted_as_one_run_of_characters_after_another() -> None:
    texts = [
        "What is 12 + 345?",
        "Größe: ½ café",
        "小明有3个苹果，还有😀\n两个。",
        "",
        "\ud800 x",
        "a",
        "=\n(A) 1\n(B) 2",
    ]
    found = counted(texts)
    for number, text in enumerate(texts):
        plain = re.sub(r"\d+", "0", unicodedata.normalize("NFKC", text).lower())
        spaced = f" {' '.join(plain.split())} "
        runs = [f"w{word}" for word in re.findall(r"\w+", plain)]
        runs += [f"c{spaced[at : at + n]}" for n in (2, 3) for at in range(len(spaced) - n + 1)]
        named = Counter(zlib.crc32(run.encode(errors="surrogatepass")) % (1 << 18) for run in runs)
        row = found[number]
        own = dict(zip(row.indices.tolist(), row.data.tolist(), strict=True))
        assert {column: count for column, count in own.items() if column < 1 << 18} == named
        assert set(own.values()) >= {1} and sum(column >= 1 << 18 for column in own) >= 2, "its length and its letters"


def test_of_equals_the_first_are_nearest() -> None:
    likeness = np.array([0.5, 0.9, 0.5, 0.5, 0.1])
    assert [_first(likeness, count).tolist() for count in (1, 2, 3, 5, 9)] == [
        [1],
        [1, 0],
        [1, 0, 2],
        [1, 0, 2, 3, 4],
        [1, 0, 2, 3, 4],
    ]


def test_every_picked_member_of_one_text_is_known_to_be_the_answer_as_it_begins(tmp_path: Path) -> None:
    plan = routed(tmp_path, ["Qwen", "Ds -> Yi", "(Qwen & Ds)"], dict.fromkeys(SUMS, "111"))
    assert [plan.step(name).title for name in plan.finals] == ["Qwen", "Yi"]
