"""The options of choice groups and repeats: what an answer is accepted by, and how sure that has to be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from flowinfer.errors import Span
from flowinfer.language.nearness import near_or_all
from flowinfer.language.options import Scope
from flowinfer.language.samples import first_draws
from flowinfer.language.tree import Call, Chain, Group, Option
from flowinfer.language.tree import Name as WrittenName
from flowinfer.registry import backends
from flowinfer.spec import AUTO, GRADED, Choice, ModelSpec, Node, Parallel, Part, Quorum, Rule, Series, Signal, nodes

ACCEPT: tuple[Signal, ...] = ("answered", "confidence", "lead", "agreement", "votes", "judge")
"""What a member of a choice group can be accepted by."""
UNTIL: tuple[Signal, ...] = ("unchanged", "agree", *ACCEPT)
"""What ends a repeat."""
MOST_ROUNDS = 64
KEYS = ("accept", "until", "at", "pick")
QUORUM_KEYS = ("min", "timeout", "wait")
SAMPLE_KEYS = ("samples", "enough")
MOST_SAMPLES = 1000


@dataclass(frozen=True)
class Condition:
    """What `accept` or `until` says."""

    rule: Rule
    judge: WrittenName | None
    """The model that says yes or no."""
    span: Span


def rounds(group: Group, scope: Scope) -> int:
    """Return how often a group runs; 1 after reporting what is wrong."""
    times = group.times
    if times is None:
        return 1
    if not isinstance(times.data, int) or not 1 <= times.data <= MOST_ROUNDS:
        message = f"a part runs 1 to {MOST_ROUNDS} times, found *{times.raw}"
        scope.report.error("E0024", message, times.span, "write a whole number: (A -> B)*3")
        return 1
    return times.data


@dataclass(frozen=True)
class Samples:
    """What `samples` and `enough` say."""

    count: int
    rule: Rule | None
    span: Span


def samples(stage: Call | Group, scope: Scope) -> Samples | None:
    """Return how many samples a stage draws; None after reporting what is wrong."""
    given = {option.key: option for option in stage.options if option.key in SAMPLE_KEYS}
    if "samples" not in given:
        hint = "say how many there are at most: samples=16"
        scope.report.error("E0308", "option 'enough' without 'samples'", given["enough"].span, hint)
        return None
    option, enough = given["samples"], given.get("enough")
    count, rule = scope.data(option.value), None
    if not isinstance(count, int) or isinstance(count, bool) or not 2 <= count <= MOST_SAMPLES:
        message = f"option 'samples' must be a whole number from 2 to {MOST_SAMPLES}, found {option.value.raw}"
        scope.report.error("E0202", message, option.value.span)
        return None
    if enough is not None:
        share = scope.data(enough.value)
        if not isinstance(share, int | float) or isinstance(share, bool) or not 0.5 < share <= 1:
            message = f"option 'enough' must be a number above 0.5, up to 1, found {enough.value.raw}"
            scope.report.error("E0202", message, enough.value.span)
            return None
        least = first_draws(float(share)) if share < 1 else count
        rule = Rule("enough", float(share)) if least < count else None
        if rule is None and share < 1:
            message = f"option 'enough' does nothing: {enough.value.raw} takes {least} samples at least, of {count}"
            scope.report.warning("W0200", message, enough.span, "draw more, or leave it out")
    return Samples(count, rule, option.span)


def quorum(group: Group, scope: Scope) -> Quorum | None:
    """Return how many members of a group will do; None where all are to, or something is wrong, which is told."""
    given = {option.key: option for option in group.options if option.key in QUORUM_KEYS}
    if not given:
        return None
    if group.kind == "fuse" and (clock := given.get("timeout") or given.get("wait")):
        hint = "only min is for '|' groups: a head elsewhere that is lost is left out"
        scope.report.error("E0309", f"option '{clock.key}' belongs to a '&' group", clock.span, hint)
        return None
    if "min" not in given:
        option = next(iter(given.values()))
        hint = f"say how many answers there have to be: min={max(1, len(group.branches) - 1)}, {option.key}=..."
        scope.report.error("E0309", f"option '{option.key}' without 'min'", option.span, hint)
        return None
    least, most = scope.data(given["min"].value), len(group.branches)
    if not isinstance(least, int) or isinstance(least, bool) or not 1 <= least <= most:
        message = f"option 'min' must be a whole number from 1 to {most}, found {given['min'].value.raw}"
        scope.report.error("E0309", message, given["min"].value.span, f"the group has {most} members")
        return None
    seconds = {}
    for key in ("timeout", "wait"):
        if key in given:
            data = scope.data(given[key].value)
            is_number = isinstance(data, int | float) and not isinstance(data, bool) and 0 <= data <= 1e6
            if not is_number or (data == 0 and key == "timeout"):  # before anything can have answered
                span = "from 0 to 1e6" if key == "wait" else "above 0, up to 1e6"
                message = f"option '{key}' must be seconds {span}, found {given[key].value.raw}"
                scope.report.error("E0202", message, given[key].value.span)
                return None
            seconds[key] = float(data)
    if least == most and "wait" in seconds:
        hint = "leave it out, or lower min"
        scope.report.error(
            "E0309", f"option 'wait' does nothing where all {most} have to answer", given["wait"].span, hint
        )
        return None
    return Quorum(least, **seconds) if least < most or seconds else None


def condition(group: Group, key: Literal["accept", "until"], scope: Scope) -> Condition | None:
    """Return what a choice or a repeat goes by; None where nothing is written, or something wrong, which is told."""
    given = {option.key: option for option in group.options if option.key in KEYS}
    option, at = given.get(key), given.get("at")
    if option is None:
        if at is not None:
            hint = f"say what is compared with it: {key}=confidence, at={at.value.raw}"
            scope.report.error("E0306", f"option 'at' without '{key}'", at.span, hint)
        return None
    data = scope.data(option.value)
    word, judge = data if option.value.kind == "applied" else (data, None)
    known = ACCEPT if key == "accept" else UNTIL
    if word is None:
        return None
    if word not in known:
        hint = near_or_all(str(word), [*known[:-1], "judge(MODEL)"], "one of")
        hint = f"it ends a repeat: (A)*3[until={word}]" if word in UNTIL else hint
        scope.report.error("E0206", f"option '{key}' cannot be '{option.value.raw}'", option.value.span, hint)
        return None
    if (word == "judge") != (judge is not None):
        hint = "name the model that says yes or no: judge(Ds)" if word == "judge" else f"write {key}={word}"
        message = f"'{key}={option.value.raw}' names {'no' if word == 'judge' else 'a'} model"
        scope.report.error("E0306", message, option.value.span, hint)
        return None
    threshold = _threshold(word, option, at, scope)
    if threshold is None:
        return None
    return Condition(Rule(word, threshold, judge.text if judge else ""), judge, option.value.span)


def _threshold(word: Signal, option: Option, at: Option | None, scope: Scope) -> float | None:
    if at is None:
        if word not in GRADED:
            return 1.0
        hint = f"say how much will do, from 0 to 1: {option.key}={word}, at=0.9"
        scope.report.error("E0306", f"{option.key}={word} without a threshold", option.value.span, hint)
        return None
    if word not in GRADED:
        hint = "leave 'at' out"
        scope.report.error("E0306", f"{option.key}={word} says yes or no and takes no threshold", at.span, hint)
        return None
    data = scope.data(at.value)
    if data is None:
        return None
    if at.value.kind == "word" and data == "auto":
        hint = "run it over questions, then fit it: flowinfer tune FLOW --on RUN"
        scope.report.warning("W0304", "at=auto is not fitted yet: every member is tried", at.value.span, hint)
        return AUTO
    if not isinstance(data, int | float) or isinstance(data, bool) or not 0 <= data <= 1:
        scope.report.error("E0202", f"option 'at' must be a number from 0 to 1, found {at.value.raw}", at.value.span)
        return None
    return float(data)


def check_signal(found: Condition, part: Part, scope: Scope) -> None:
    """Report a signal that a part cannot give."""
    signal, report = found.rule.signal, scope.report
    ends = list(_ends(part))
    if signal in ("confidence", "lead", "agreement"):
        for model in (model for end in ends for model in _writers(end)):
            if backends()[model.backend].text_only:
                hint = "use answered, votes or judge(MODEL)"
                message = f"model '{model.name}' gives texts only: nobody knows its {signal}"
                report.error("E0307", message, found.span, hint)
                return
    if signal in ("lead", "agreement") and any(
        isinstance(end, Node | Parallel) and end.decoding.by == "likelihood" for end in ends
    ):
        message = f"a letter that is chosen by likelihood has no {signal}"
        report.error("E0307", message, found.span, "use confidence, or leave by=likelihood out")
        return
    if signal == "agreement" and (alone := next((end for end in ends if isinstance(end, Node)), None)):
        message = f"agreement is of heads that write together, and '{alone.model.name}' writes alone"
        report.error("E0307", message, found.span, "use it with '|' groups, or confidence or lead")
    if signal in ("votes", "agree") and len(ends) < 2 and not any(isinstance(end, Choice) for end in ends):
        message = f"{signal} is of several answers, and {_named(part)} gives one"
        report.error("E0307", message, found.span, "use it with '&' groups, as in (A & B & C)")


def gives_answers(stage: Call | Group) -> bool:
    """Return whether what a stage passes on may be several answers."""
    if any(option.key == "samples" for option in stage.options):
        return True
    if isinstance(stage, Call):
        return False
    return stage.kind == "answers" or (
        (stage.kind == "choice" or (stage.times is not None and len(stage.branches) == 1))
        and any(_last_gives(branch.chain) for branch in stage.branches)
    )


def _last_gives(chain: Chain) -> bool:
    return gives_answers(chain.stages[-1])


def _ends(part: Part) -> list[Part]:
    """Return what writes the texts of a part."""
    match part:
        case Series(stages):
            return _ends(stages[-1])
        case Parallel(kind="answers"):
            return [end for branch in part.branches for end in _ends(branch.part)]
        case Choice():
            return [end for one in part.tries for end in _ends(one)]
    return [part]


def _writers(end: Part) -> list[ModelSpec]:
    return [node.model for node in nodes(end)]


def _named(part: Part) -> str:
    return f"'{part.model.name}'" if isinstance(part, Node) else "this part"
