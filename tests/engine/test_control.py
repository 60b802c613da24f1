"""Steps that may be skipped: choices, repeats, debates, and the signals that they go by."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowinfer.engine.deciding import says_yes
from flowinfer.engine.work import trace_of
from flowinfer.language.check import check
from flowinfer.language.samples import certainty
from flowinfer.planning.bounds import bounds
from flowinfer.planning.merge import beside, loops_in_turn, merge
from flowinfer.planning.plain import fingerprint
from flowinfer.planning.plan import members
from flowinfer.results import StepResult, Trace
from flowinfer.spec import written
from tests.engine.scripted import Said, Script, Write, asked, planned, run, scheduler
from tests.zoos import NAMES

BESIDE = "(Qwen & (Yi & Yi & Yi)[min=2, timeout=5])"
CASCADE = "(Qwen / Yi / Ds)[accept=confidence, at=0.9]"


def test_the_first_answer_that_is_accepted_is_taken_and_no_other_is_written() -> None:
    trace, script = run(CASCADE, {"Qwen": Said("a", 0.5), "Yi": Said("b", 0.95), "Ds": Said("c")})
    assert (trace.answer, script.calls) == ("b", ["Qwen", "Yi"])
    assert [step.step for step in trace.steps] == ["s1", "s2"] and trace.seconds == 2
    assert str(trace.selections[0]) == "(Qwen / Yi / Ds): took 2 of 3 (confidence >= 0.9: 0.5, 0.95)"


def test_the_last_answer_is_taken_as_it_comes() -> None:
    trace, _ = run(CASCADE, {"Qwen": Said("a", 0.1), "Yi": Said("b", 0.1), "Ds": Said("c", 0.1)})
    assert trace.answer == "c" and trace.finish_reason == "eos"


def test_a_choice_whose_first_answer_is_accepted_is_its_first_member() -> None:
    said = {"Qwen": Said("a", 0.9), "Yi": Said("b")}
    alone, choice = run("Qwen", said)[0], run("(Qwen / Yi)[accept=confidence, at=0.9]", said)[0]
    assert choice.model_copy(update={"selections": ()}) == alone


def test_a_later_stage_reads_the_answer_that_was_taken() -> None:
    trace, script = run(
        "(Qwen / (Yi & Yi))[accept=answered] -> Ds[prompt='read {prev}']", {"Qwen": "?", "Yi": "b", "Ds": "c"}
    )
    assert trace.answer == "c" and script.prompts[-1] == "read Answer 1: b\n\nAnswer 2: b"


def test_a_choice_with_several_answers_ends_in_a_vote() -> None:
    flow = "(Qwen / (Yi & Ds & Ds))[accept=answered]"
    voted, _ = run(flow, {"Qwen": "?", "Yi": "b", "Ds": "c"})
    assert voted.answer == "c" and voted.finish_reason == "vote" and voted.ballot
    single, _ = run(flow, {"Qwen": "a", "Yi": "b", "Ds": "c"})
    assert single.answer == "a" and single.ballot is None


@pytest.mark.parametrize(("says", "calls"), [("Yes.", ["Qwen", "Ds"]), ("是错的 -> 否", ["Qwen", "Ds", "Yi"])])
def test_a_model_that_is_asked_about_an_answer_accepts_it(says: str, calls: list[str]) -> None:
    trace, script = run("(Qwen / Yi)[accept=judge(Ds)]", {"Qwen": "a", "Yi": "b", "Ds": says})
    assert script.calls == calls and trace.answer == ("a" if len(calls) == 2 else "b")
    assert script.prompts[1] == "Question: q\n\nAnswer: a\n\nIs this answer right? Say only yes or no."
    assert trace.selections[0].values == ((1,) if len(calls) == 2 else (0, None)), "the last one is not judged"


def test_a_choice_inside_a_choice_that_is_not_reached_does_not_run() -> None:
    flow = "(Qwen / (Yi / Ds)[accept=confidence, at=0.9] -> Yi)[accept=answered]"
    trace, script = run(flow, {"Qwen": "a", "Yi": "b", "Ds": "c"})
    assert script.calls == ["Qwen"] and [taken.selection for taken in trace.selections] == ["d1"]


def test_a_member_that_fails_fails_the_question_and_leaves_nothing_behind() -> None:
    trace, script = run(CASCADE, {"Qwen": Said("a", 0.1), "Yi": Said(None), "Ds": Said("c")})
    assert (trace.error, trace.answer, script.calls) == ("it cannot", "", ["Qwen", "Yi"])


def test_what_cannot_be_decided_fails_the_question() -> None:
    one, merged = asked(), merge([plan := planned(CASCADE.replace("confidence, at=0.9", "answered"))])
    one.vote = lambda question, texts: 1 / 0
    list(scheduler(merged, Script(lambda *_: Said("a"))).run([one.of(merged.uses[0])]))
    assert one.is_done and "ZeroDivisionError" in str(trace_of(plan, merged.uses[0], one).error)


def test_once_is_the_part() -> None:
    assert fingerprint(planned("(Qwen -> (Yi | Ds))*1")) == fingerprint(planned("Qwen -> (Yi | Ds)"))


def test_a_repeat_reads_its_own_last_text_until_its_answer_stays() -> None:
    texts = iter(["a", "b", "b", "c"])
    flow = "Ds -> (Qwen[prompt='{round}: {prev} after {result_1}'])*4[until=unchanged]"
    trace, script = run(flow, lambda title, prompt: Said("d") if title == "Ds" else Said(next(texts)))
    assert script.prompts[1:] == ["1: d after d", "2: a after d", "3: b after d"]
    assert trace.answer == "b" and trace.selections[0].values == (0, 0, 1)


def test_a_repeat_without_an_end_runs_all_its_rounds() -> None:
    trace, script = run("(Qwen)*3", lambda title, prompt: Said(f"<{len(prompt)}>"))
    assert len(script.calls) == 3 and trace.answer == trace.steps[-1].text and not trace.selections


def test_a_prompt_that_reads_what_only_later_rounds_have_is_used_from_then_on() -> None:
    _, script = run("(Qwen[prompt='mend {prev}'])*2", {"Qwen": "a"})
    assert script.prompts == ["q", "mend a"]


def test_members_of_a_debate_read_the_others_and_their_own_until_they_agree() -> None:
    flow = "(Qwen[prompt='{own}|{answers}'] & Ds & Yi)*3[until=agree]"
    trace, script = run(flow, lambda title, prompt: Said("x" if "|" in prompt or "Answer" in prompt else title))
    assert script.calls == ["Qwen", "Ds", "Yi"] * 2
    assert script.prompts[3] == "Qwen|Answer 1: Ds\n\nAnswer 2: Yi"
    assert trace.answer == "x" and trace.ballot and trace.ballot.votes == 3


def test_equal_steps_of_plans_with_and_without_a_choice_are_decoded_once() -> None:
    plans = [planned("Qwen -> Yi"), planned("(Qwen / Ds)[accept=answered]"), planned("(Qwen / Yi)[accept=answered]")]
    merged, one, script = merge(plans), asked(), Script(lambda title, prompt: Said("a"))
    for uses in merged.uses:
        one.of(uses)
    list(scheduler(merged, script).run([one]))
    assert script.calls == ["Qwen", "Yi"]
    assert [len(trace_of(plan, uses, one).steps) for plan, uses in zip(plans, merged.uses, strict=True)] == [2, 1, 1]


class Shelf(dict[str, StepResult]):
    """A cache of steps."""

    put = dict.__setitem__


def test_a_stored_result_of_which_nobody_knows_how_sure_it_was_is_not_taken() -> None:
    shelf, flow = Shelf(), CASCADE
    for confidence, calls in ((None, 1), (0.95, 1), (0.95, 0)):
        plan, one = planned("Qwen" if confidence is None else flow), asked()
        merged, script = merge([plan]), Script(lambda title, prompt, told=confidence: Said("a", told))
        list(scheduler(merged, script, shelf).run([one.of(merged.uses[0])]))
        assert len(script.calls) == calls


@pytest.mark.parametrize(
    "flow",
    [
        "((Qwen & Ds & Yi) / (Qwen & Ds)*3[until=agree])[accept=votes, at=0.5]",
        "(Qwen / Yi)[accept=judge(Ds)] -> Ds[samples=4, enough=0.9]",
        "((Qwen -> Yi)*2[until=confidence, at=0.9] & Ds)[min=1, timeout=2.5]",
        "(Qwen & Ds & Yi)[min=2, wait=3]",
    ],
)
def test_a_flow_is_written_with_what_decides_how_much_of_it_runs(flow: str) -> None:
    checked = check(flow.replace("enough=0.9", "enough=0.9, temperature=1"), zoo=NAMES)
    assert written(checked.root) == flow


def some_flow(rng: random.Random, depth: int = 3) -> str:
    """Return a random flow of choices, repeats, debates and chains."""
    if not depth or rng.random() < 0.2:
        return rng.choice(["Qwen", "Yi", "Ds"])
    parts = [some_flow(rng, depth - 1) for _ in range(2)]
    signal = rng.choice(["answered", "confidence, at=0.5", "judge(Ds)"])
    return rng.choice(
        [
            " -> ".join(parts),
            f"({' / '.join(parts)})[accept={signal}]",
            f"({parts[0]})*{rng.randint(1, 3)}[until={rng.choice(['unchanged', signal])}]",
            f"({' & '.join(parts)})*2[until=agree]",
            f"({' & '.join(parts)})",
            f"({' & '.join([*parts, 'Qwen'])})[min=2]",
            f"({' & '.join([*parts, 'Qwen'])})[min={rng.randint(1, 3)}, timeout=1e6]",
            f"Qwen[samples=6, temperature=1, enough={rng.choice(['0.6', '0.95', '1'])}]",
            "(Qwen | Yi)",
        ]
    )


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_a_plan_writes_beside_others_what_it_writes_alone_and_every_step_ends_once(seed: int) -> None:
    rng = random.Random(seed)
    plans = [planned(some_flow(rng)) for _ in range(3)]

    def write(title: str, prompt: str) -> Said:
        own = random.Random(f"{title}{prompt}")
        return Said(own.choice(["a", "b", "?", "yes", "yes", None]), own.random())

    seen: dict[int, Trace] = {}
    for merged in (merge(plans), beside(plans), *map(merge, ([plan] for plan in plans))):
        waves = loops_in_turn(merged.steps) if rng.random() < 0.5 else ()
        one = asked()
        of = plans if len(merged.uses) > 1 else [merged.steps[0].plan]
        for uses in merged.uses:
            one.of(uses)
        wanted = Counter(list(one.wanted))
        ended = Counter(event.shared.id for event in scheduler(merged, Script(write)).run([one], waves=waves))
        assert ended == wanted and one.is_done
        for plan, uses in zip(of, merged.uses, strict=True):
            trace = trace_of(plan, uses, one)
            assert alike(trace, seen.setdefault(id(plan), trace))
            found, calls = bounds(plan), sum(len(list(members(plan.step(step.step).source))) for step in trace.steps)
            is_whole = trace.error is None and not any(taken.lost for taken in trace.selections)
            assert calls <= found.most.calls and (not is_whole or calls >= found.least.calls)


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_what_decides_nothing_changes_nothing_of_any_flow(seed: int) -> None:
    """Of any part: once, or the first of a choice that takes it as it is, and a quorum of all of its members."""
    rng = random.Random(seed)
    part, other = some_flow(rng), some_flow(rng)

    def write(title: str, prompt: str) -> Said:
        own = random.Random(f"{title}{prompt}")
        return Said(own.choice(["a", "b", "?", "yes"]), own.random())

    assert fingerprint(planned(f"({part})*1")) == fingerprint(planned(part))
    plain = fingerprint(planned(f"({part} & {other})"))
    assert fingerprint(planned(f"({part} & {other})[min=2]")) == plain
    alone, choice = run(part, write)[0], run(f"({part} / {other})[accept=confidence, at=0]", write)[0]
    assert (choice.answer, choice.ballot, choice.error) == (alone.answer, alone.ballot, alone.error)
    assert [step.text for step in choice.steps] == [step.text for step in alone.steps]


def test_a_clock_that_runs_out_behind_a_failed_group_ends_nothing_else() -> None:
    """Two of three have failed, and with them the question, while a member beside the group still writes."""
    now, said = [0.0], {"Yi": Said(None), "Qwen": Said("a")}
    script, plan, one = Slow(Counter(Qwen=50), now, lambda title, prompt: said[title]), planned(BESIDE), asked()
    merged = merge([plan])
    list(scheduler(merged, script, clock=lambda: now[0]).run([one.of(merged.uses[0])]))
    assert trace_of(plan, merged.uses[0], one).error == "it cannot" and script.calls.count("Qwen") == 1


def alike(one: Trace, other: Trace) -> bool:
    """Return whether traces are equal, save for what lost members wrote and took, and questions that failed."""
    if one.error or other.error:
        return bool(one.error and other.error)
    is_whole = not any(taken.lost for taken in one.selections)
    said = [(trace.answer, trace.ballot, is_whole and (trace.selections, trace.steps)) for trace in (one, other)]
    return said[0] == said[1]


def test_no_more_samples_are_drawn_once_the_majority_is_certain() -> None:
    """Four equal ones are 31/32 certain; one that differs asks for as many more as could make up for it."""
    drawn = iter("aabaaaaaaa")
    trace, script = run("Qwen[samples=16, temperature=1, enough=0.95]", lambda title, prompt: Said(next(drawn)))
    assert len(script.calls) == 7 and trace.answer == "a" and trace.ballot and trace.ballot.votes == 6
    assert [value for value in trace.selections[0].values if value is not None] == [7 / 8, 13 / 16, 1 - 9 / 2**8]
    assert str(trace.selections[0]) == "Qwen[samples=16]: drew 7 of 16 (enough >= 0.95: 0.965)"


def test_enough_of_1_draws_all_samples() -> None:
    said = {"Qwen": "a"}
    some = run("Qwen[samples=5, temperature=1, enough=1]", said)[0]
    assert some == run("Qwen[samples=5, temperature=1]", said)[0] and len(some.steps) == 5


def test_samples_that_never_agree_are_drawn_to_the_last() -> None:
    drawn = iter("abcdef")
    trace, _ = run("Qwen[samples=6, temperature=1, enough=0.9] -> Ds", lambda *_: Said(next(drawn, "z")))
    assert len(trace.steps) == 7 and trace.answer == "z"


def test_a_dead_member_does_not_fail_the_question_where_the_others_are_enough() -> None:
    said = {"Qwen": Said(None), "Yi": "b", "Ds": "b"}
    trace, script = run("(Qwen -> Ds & Yi & Ds)[min=2] -> Yi[prompt='{answers}']", said)
    assert trace.error is None and script.prompts[-1] == "Answer 1: b\n\nAnswer 2: b"
    assert [step.step for step in trace.steps] == ["s3", "s4", "s5"]
    assert str(trace.selections[0]) == "(Qwen -> Ds & Yi & Ds): 2 of 3 answered; 1 lost: it cannot"
    assert run("(Qwen & Yi)[min=2, timeout=1e6]", said)[0].error == "it cannot"


def test_a_quorum_of_all_is_the_plain_group() -> None:
    assert fingerprint(planned("(Qwen & Yi & Ds)[min=3]")) == fingerprint(planned("(Qwen & Yi & Ds)"))


@pytest.mark.parametrize(
    ("flow", "answer", "said"),
    [
        ("(Qwen:3 & Yi:1 & Ds:1)", "a", "1 of 3 votes, 1.8 of 3 by weight (a, b, b)"),
        (
            "(Qwen:2 & Yi:1 & Ds:1)",
            "a",
            "tie, 1 of 3 votes, 1.5 of 3 by weight: the first of the equals counts (a, b, b)",
        ),
        ("(Qwen:1 & Yi:1 & Ds:1)", "b", "2 of 3 votes (a, b, b)"),
        ("(Qwen:3 & Yi:1 & Ds:1)*2[until=answered]", "a", "1 of 3 votes, 1.8 of 3 by weight (a, b, b)"),
        ("(Qwen & (Yi:1 & Ds:3))", "b", "2 of 3 votes, 2 of 3 by weight (a, b, b)"),
    ],
)
def test_votes_count_what_their_weights_say(flow: str, answer: str, said: str) -> None:
    trace, _ = run(flow, {"Qwen": "a", "Yi": "b", "Ds": "b"})
    assert (trace.answer, str(trace.ballot)) == (answer, said)


def timed(flow: str, slow: Counter[str]) -> tuple[Trace, Script]:
    """Run a flow whose steps of some models take so many turns, of a second each."""
    now = [0.0]
    script, plan, one = Slow(slow, now), planned(flow), asked()
    merged = merge([plan])
    list(scheduler(merged, script, clock=lambda: now[0]).run([one.of(merged.uses[0])]))
    return trace_of(plan, merged.uses[0], one), script


class Slow(Script):
    """Loops that take some turns, each of a second."""

    def __init__(self, turns: Counter[str], now: list[float], write: Write = lambda title, prompt: Said(title)) -> None:
        super().__init__(write)
        self._left, self._now = turns, now

    def is_ready(self, title: str) -> bool:
        self._now[0] += 1
        self._left[title] -= 1
        return self._left[title] < 0


def test_a_group_waits_for_slow_members_as_long_as_it_says() -> None:
    slow = {"Qwen": 2, "Yi": 1000, "Ds": 4}
    for options, answers in (
        ("min=2, wait=50", "Qwen Ds"),
        ("min=1, wait=0", "Qwen"),
        ("min=1, timeout=20", "Qwen Ds"),
    ):
        trace, _ = timed(f"(Qwen & Yi & Ds)[{options}]", Counter(slow))
        assert [step.text for step in trace.steps] == answers.split() and trace.error is None
        assert "after" in str(trace.selections[0]) and trace.seconds > 1
    trace, _ = timed("(Qwen & Yi & Ds)[min=3, timeout=30]", Counter(slow))
    assert trace.error and trace.error.startswith("fewer answers than min=3 after 3")


SIGNALS = [
    (("a", "a", "a"), 15 / 16),
    (("a", "a", "?"), 7 / 8),
    (("a", "b"), 1 / 2),
    (("?", "?"), 1 / 2),
    (("a", "a", "b"), 11 / 16),
]


@pytest.mark.parametrize(("answers", "expected"), SIGNALS)
def test_certainty_is_the_mass_of_the_leader_above_one_half(answers: tuple[str, ...], expected: float) -> None:
    assert certainty(Counter(answer for answer in answers if answer != "?")) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("Yes", True), ("No, yes is wrong. no", False), ("是", True), ("不是", False), ("", False), ("It is yes.", True)],
)
def test_the_last_yes_or_no_counts(text: str, expected: bool) -> None:
    assert says_yes(text) is expected
