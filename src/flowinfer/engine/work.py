"""One question on its way through shared steps: what it wants, what it has, and its trace along a plan's path."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from flowinfer.backends.base import Turn
from flowinfer.engine.adoption import moved
from flowinfer.engine.deciding import Trial, by_text, judged
from flowinfer.engine.faults import reason
from flowinfer.language.prompts import prompt_set, render
from flowinfer.planning.merge import SharedSelection, SharedStep, Use
from flowinfer.planning.plan import Plan, Step, When, members
from flowinfer.results import Ballot, FinishReason, Question, StepResult, Taken, Trace
from flowinfer.spec import Decoding

Vote = Callable[[Question, Sequence[str]], Ballot]
FAILED: FinishReason = "error"


@dataclass(eq=False)
class Asked:
    """One question, asked of one plan or of many at once."""

    question: Question
    text: Callable[[Question], str]
    """Gives what fills {question}."""
    dataset: int = 0
    """Index of its data set."""
    paths: list[tuple[str, ...]] = field(default_factory=list)
    """For each plan that it is asked of, the ids of its shared steps in the plan's order."""
    wanted: dict[str, None] = field(default_factory=dict)
    """Ids of the shared steps that have still to end, in order."""
    results: dict[str, StepResult] = field(default_factory=dict)
    """By shared step; what another run made says so."""
    decodings: Mapping[str, Decoding] = field(default_factory=dict)
    """Its own options by shared step, where they are not the step's."""
    turns: Mapping[str, tuple[Turn, ...]] = field(default_factory=dict)
    """What was said before it, by shared step."""
    noise_id: str | None = None
    """See `Row.noise_id`."""
    errors: dict[str, str] = field(default_factory=dict)
    """Why a shared step could not run, or was not needed any more."""
    vote: Vote | None = None
    """Reads answers out of texts and lets them vote; if not given, texts are compared as they are."""
    skipped: set[str] = field(default_factory=set)
    """Shared steps that a selection has made needless."""
    tried: dict[str, list[Trial]] = field(default_factory=dict)
    """By shared selection: how each candidate was judged so far."""
    taken: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """By shared selection that is taken: the shared steps whose texts are its candidate's."""

    def of(self, uses: Mapping[str, Use]) -> Asked:
        """Ask the question of one more plan, whose steps are these; return it."""
        path = tuple(use.shared for use in uses.values())
        self.paths.append(path)
        self.wanted |= dict.fromkeys(path)
        return self

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to run."""
        return not self.wanted

    def accept(self, shared: str, result: StepResult) -> None:
        """Take a finished step."""
        self.results[shared] = result
        self.wanted.pop(shared, None)

    def fail(self, shared: str, reason: str) -> None:
        """Take the reason why a step could not run."""
        self.errors[shared] = reason
        self.wanted.pop(shared, None)

    def skip(self, shared: str) -> None:
        """Take note that a step need not run."""
        self.skipped.add(shared)
        self.wanted.pop(shared, None)

    def texts(self, read: str) -> tuple[str, ...] | None:
        """Return the ended steps whose texts a step or a selection stands for; None where that is not known yet."""
        return (read,) if read in self.results else self.taken.get(read)

    def may_begin(self, shared: SharedStep) -> bool:
        """Return whether all that a step reads is there and its conditions hold."""
        return all(self.texts(read) is not None for read in shared.reads.values()) and self.holds(shared.when) is True

    def is_open(self, selection: SharedSelection) -> bool:
        """Return whether a selection is one of its plans', and not taken yet."""
        return selection.id not in self.taken and any(selection.gated in path for path in self.paths)

    def holds(self, conditions: Sequence[When]) -> bool | None:
        """Return whether all conditions hold, or one never will; None where that is not known yet."""
        for one in conditions:
            if one.selection in self.taken and len(self.tried[one.selection]) <= one.tried:
                return False
            if len(self.tried.get(one.selection, ())) < one.tried:
                return None
        return True

    def decide(self, selection: SharedSelection) -> bool:
        """Judge the candidates of a selection whose texts are there; return whether anything has been decided."""
        tried = self.tried.setdefault(selection.id, [])
        before, last = len(tried), len(selection.candidates) - 1
        while selection.id not in self.taken:
            index = len(tried)
            former, texts = self._candidate(selection, index - 1), self._candidate(selection, index)
            judge = selection.judges[index] if selection.judges and index < last else None
            if texts is None or (judge is not None and judge not in self.results):
                break
            said = self.results[judge].passed_on if judge is not None else None
            found = judged(
                selection.selection.rule, self._results(former or ()), self._results(texts), said, self._read
            )
            tried.append(found)
            if found.is_accepted or index == last:
                self.taken[selection.id] = texts
            else:
                tried += [Trial(None)] * min(found.skips, last - len(tried))
        return len(tried) > before

    def _results(self, steps: Sequence[str]) -> list[StepResult]:
        return [self.results[step] for step in steps]

    def _candidate(self, selection: SharedSelection, index: int) -> tuple[str, ...] | None:
        """Return the ended steps whose texts a candidate is; None where they are not all there, or there is none."""
        if index < 0:
            return None
        first = 0 if selection.selection.gathers else index
        found = [self.texts(text) for texts in selection.candidates[first : index + 1] for text in texts]
        return None if None in found else tuple(step for steps in found if steps for step in steps)

    def _read(self, texts: Sequence[str]) -> tuple[str | None, ...]:
        """Return the answer that each text gives; None where it gives none."""
        return self.vote(self.question, texts).answers if self.vote else by_text(texts)

    def needless(self) -> list[str]:
        """Return the wanted steps that stand behind a failed one in every plan: no trace shows them."""
        needed = set()
        for path in self.paths:
            end = next((index for index, one in enumerate(path) if one in self.errors), len(path))
            needed |= set(path[:end])
        return [one for one in self.wanted if one not in needed]


def trace_of(plan: Plan, uses: Mapping[str, Use], asked: Asked, foreign: Mapping[str, str] | None = None) -> Trace:
    """Return a question's trace along a plan: the steps that ran, up to the first that failed.

    Args:
        uses: the plan's steps as shared ones.
        asked: holds the results; no step of the plan is wanted any more.
        foreign: for the steps that another run made, its name.
    """
    ended: dict[str, StepResult] = {}
    error = None
    for step in plan.steps:
        use = uses[step.id]
        if use.shared in asked.skipped:
            continue
        error = asked.errors.get(use.shared)
        if error is not None:
            break
        result = moved(asked.results[use.shared], use.nodes, step)
        if result.cached_from is None and step.id in (foreign or {}):
            result = result.model_copy(update={"cached_from": (foreign or {})[step.id]})
        ended[step.id] = result
    answer = _Answer("", FAILED)
    if error is None:
        try:
            answer = _answer(plan, uses, ended, asked)
        except BaseException as fault:  # what is not the question's is raised
            error = reason(fault)
    return Trace(
        question_id=asked.question.id,
        answer=answer.text,
        finish_reason=answer.why,
        seconds=_seconds(plan, ended),
        steps=tuple(ended.values()),
        error=error,
        ballot=answer.ballot,
        selections=_taken(plan, uses, asked),
    )


@dataclass(frozen=True)
class _Answer:
    """What a question's trace says in the end."""

    text: str
    why: FinishReason
    ballot: Ballot | None = None


def _answer(plan: Plan, uses: Mapping[str, Use], ended: Mapping[str, StepResult], asked: Asked) -> _Answer:
    own = {uses[step].shared: step for step in ended}
    names = _selection_names(plan, uses) | {step.id: uses[step.id].shared for step in plan.steps}
    finals = [ended[own[shared]] for text in plan.answer.texts for shared in asked.texts(names[text]) or ()]
    if len(finals) == 1:
        return _Answer(finals[0].passed_on, finals[0].finish_reason)
    ballot = asked.vote(asked.question, [final.passed_on for final in finals]) if asked.vote else None
    return _Answer(finals[ballot.winner if ballot else 0].passed_on, "vote", ballot)


def _selection_names(plan: Plan, uses: Mapping[str, Use]) -> dict[str, str]:
    """Return the shared id of each selection of a plan."""
    return {
        own.selection: shared.selection
        for step in plan.steps
        for own, shared in zip(step.when, uses[step.id].when, strict=True)
    }


def _taken(plan: Plan, uses: Mapping[str, Use], asked: Asked) -> tuple[Taken, ...]:
    """Return how the selections of a plan were taken, as far as they were."""
    names = _selection_names(plan, uses)
    return tuple(
        Taken(
            selection=one.id,
            title=one.title,
            rule=str(one.rule),
            values=tuple(judged.value for judged in asked.tried[names[one.id]]),
            taken=len(asked.tried[names[one.id]]) - 1,
            most=len(one.candidates),
            gathers=one.gathers,
        )
        for one in plan.selections
        if names[one.id] in asked.taken
    )


def _seconds(plan: Plan, ended: Mapping[str, StepResult]) -> float:
    """Return the time along the longest chain of steps that waited for one another."""
    ends: dict[str, float] = {}
    for step in plan.steps:
        if step.id in ended:
            start = max((ends.get(name, 0.0) for name in plan.before(step)), default=0.0)
            ends[step.id] = start + ended[step.id].seconds
    return max(ends.values(), default=0.0)


def render_prompts(
    plan: Plan, step: Step, question: Question, text: str, passed_on: Mapping[str, Sequence[str]]
) -> dict[str, str]:
    """Render a step's prompts by node.

    Args:
        text: what fills {question}.
        passed_on: what each step or selection that this one reads has handed on.
    Raises:
        UnicodeEncodeError: a prompt has half of a surrogate pair.
    """
    join = prompt_set(plan.prompts).join
    rendered = {}
    for member in members(step.source):
        values = {**question.columns, "question": text, "choices": question.options}
        for field_name, step_ids in member.fields.items():
            values[field_name] = join([said for step_id in step_ids for said in passed_on[step_id]])
        rendered[member.node] = render(member.template, values)
        rendered[member.node].encode()  # half of a surrogate pair is no text that a model could read
    return rendered
