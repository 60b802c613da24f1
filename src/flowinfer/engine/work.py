"""One question on its way through shared steps: what it wants, what it has, and its trace along a plan's path."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from flowinfer.backends.base import Turn
from flowinfer.engine.adoption import moved
from flowinfer.engine.faults import reason
from flowinfer.language.prompts import prompt_set, render
from flowinfer.planning.merge import Use
from flowinfer.planning.plan import Plan, Step, members
from flowinfer.results import Ballot, FinishReason, Question, StepResult, Trace
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
    candidates: tuple[str, ...] = ()
    """What steps by likelihood choose from; the letters of its choices if not given."""
    noise_id: str | None = None
    """See `Row.noise_id`."""
    errors: dict[str, str] = field(default_factory=dict)
    """Why a shared step could not run, or was not needed any more."""

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

    def needless(self) -> list[str]:
        """Return the wanted steps that stand behind a failed one in every plan: no trace shows them."""
        needed = set()
        for path in self.paths:
            end = next((index for index, one in enumerate(path) if one in self.errors), len(path))
            needed |= set(path[:end])
        return [one for one in self.wanted if one not in needed]


def trace_of(
    plan: Plan,
    uses: Mapping[str, Use],
    asked: Asked,
    vote: Vote | None = None,
    foreign: Mapping[str, str] | None = None,
) -> Trace:
    """Return a question's trace along a plan: its steps up to the first that failed.

    Args:
        uses: the plan's steps as shared ones.
        asked: holds the results; no step of the plan is wanted any more.
        vote: chooses among the answers of a `&` group that ends the flow; its first one counts if not given.
        foreign: for the steps that another run made, its name.
    """
    ended: dict[str, StepResult] = {}
    error = None
    for step in plan.steps:
        use = uses[step.id]
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
            answer = _answer(plan, ended, asked.question, vote)
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
    )


@dataclass(frozen=True)
class _Answer:
    """What a question's trace says in the end."""

    text: str
    why: FinishReason
    ballot: Ballot | None = None


def _answer(plan: Plan, ended: Mapping[str, StepResult], question: Question, vote: Vote | None) -> _Answer:
    finals = [ended[step_id] for step_id in plan.answer.steps]
    if plan.answer.kind == "text" or len(finals) == 1:
        return _Answer(finals[0].passed_on, finals[0].finish_reason)
    ballot = vote(question, [final.passed_on for final in finals]) if vote else None
    return _Answer(finals[ballot.winner if ballot else 0].passed_on, "vote", ballot)


def _seconds(plan: Plan, ended: Mapping[str, StepResult]) -> float:
    """Return the time along the longest chain of steps that read one another."""
    ends: dict[str, float] = {}
    for step in plan.steps:
        if step.id in ended:
            start = max((ends.get(read, 0.0) for read in step.reads), default=0.0)
            ends[step.id] = start + ended[step.id].seconds
    return max(ends.values(), default=0.0)


def render_prompts(
    plan: Plan, step: Step, question: Question, text: str, passed_on: Mapping[str, str]
) -> dict[str, str]:
    """Render a step's prompts by node.

    Args:
        text: what fills {question}.
        passed_on: what each step that this one reads has handed on.
    Raises:
        UnicodeEncodeError: a prompt has half of a surrogate pair.
    """
    join = prompt_set(plan.prompts).join
    rendered = {}
    for member in members(step.source):
        values = {**question.columns, "question": text, "choices": question.options}
        for field_name, step_ids in member.fields.items():
            values[field_name] = join([passed_on[step_id] for step_id in step_ids])
        rendered[member.node] = render(member.template, values)
        rendered[member.node].encode()  # half of a surrogate pair is no text that a model could read
    return rendered
