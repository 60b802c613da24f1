"""One question on its way through a plan: prompts out of finished steps, and in the end its trace."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from flowinfer.engine.faults import reason
from flowinfer.language.prompts import prompt_set, render
from flowinfer.planning.plan import Plan, Step, members
from flowinfer.results import Ballot, FinishReason, Question, StepResult, Trace

Vote = Callable[[Question, Sequence[str]], Ballot]
FAILED: FinishReason = "error"


class Work:
    """The state of one question."""

    def __init__(
        self,
        plan: Plan,
        question: Question,
        question_text: Callable[[Question], str] | None,
        vote: Vote | None,
    ) -> None:
        self.question = question
        self.error: str | None = None
        self._plan = plan
        self._question_text = question_text
        self._vote = vote
        self._results: dict[str, StepResult] = {}
        self._begun: set[str] = set()
        self._index = {step.id: index for index, step in enumerate(plan.steps)}
        self._end = len(plan.steps)
        """Index of the step from which on none is wanted: the first that failed."""

    @staticmethod
    def factory(
        plan: Plan,
        vote: Vote | None,
        question_text: Callable[[Question], str] | None,
    ) -> Callable[[Question], Work]:
        """Return a function that starts work on a question."""

        def make(question: Question) -> Work:
            return Work(plan, question, question_text, vote)

        return make

    def prompts(self, step: Step) -> Mapping[str, str]:
        """Render a step's prompts by node, from what earlier steps passed on."""
        passed_on = {step_id: self._results[step_id].passed_on for step_id in step.reads}
        text = self._question_text(self.question) if self._question_text else self.question.question
        return render_prompts(self._plan, step, self.question, text, passed_on)

    def sources(self, step: Step) -> tuple[str, ...]:
        """Return the texts that earlier steps passed on to a step."""
        return tuple(self._results[step_id].passed_on for step_id in step.reads)

    def wants(self, step: Step) -> bool:
        """Return whether a step has still to end; no step after a failed one has, whatever it reads."""
        return self._index[step.id] < self._end and step.id not in self._results

    def can_begin(self, step: Step) -> bool:
        """Return whether a step is wanted, has not begun, and all that it reads is there."""
        is_new = step.id not in self._begun and self.wants(step)
        return is_new and all(read in self._results for read in step.reads)

    def begin(self, step: Step) -> Mapping[str, str]:
        """Note that a step begins; return its prompts."""
        self._begun.add(step.id)
        return self.prompts(step)

    def accept(self, result: StepResult) -> None:
        """Take a finished step."""
        self._results[result.step] = result

    def fail(self, step: Step, reason: str) -> None:
        """Take the reason why a step could not run; of several failed steps the plan's first one counts."""
        if self._index[step.id] < self._end:
            self._end, self.error = self._index[step.id], reason

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to run."""
        return not any(self.wants(step) for step in self._plan.steps)

    def trace(self) -> Trace:
        """Return the finished question's trace."""
        answer, why, ballot = "", FAILED, None
        if self.error is None:
            try:
                answer, why, ballot = self._answer()
            except BaseException as error:  # what is not the question's is raised
                self.error = reason(error)
        return Trace(
            question_id=self.question.id,
            answer=answer,
            finish_reason=why,
            seconds=self._seconds(),
            steps=tuple(self._results[step.id] for step in self._ended()),
            error=self.error,
            ballot=ballot,
        )

    def _answer(self) -> tuple[str, FinishReason, Ballot | None]:
        """Return the answer, why it ended, and the ballot that chose it."""
        finals = [self._results[step_id] for step_id in self._plan.answer.steps]
        if self._plan.answer.kind == "text" or len(finals) == 1:
            return finals[0].passed_on, finals[0].finish_reason, None
        ballot = self._vote(self.question, [final.passed_on for final in finals]) if self._vote else None
        return finals[ballot.winner if ballot else 0].passed_on, "vote", ballot

    def _ended(self) -> list[Step]:
        return [step for step in self._plan.steps[: self._end] if step.id in self._results]

    def _seconds(self) -> float:
        """Return the time along the longest chain of steps that read one another."""
        ends: dict[str, float] = {}
        for step in self._ended():
            start = max((ends.get(read, 0.0) for read in step.reads), default=0.0)
            ends[step.id] = start + self._results[step.id].seconds
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
    choices = "\n".join(f"{letter}. {option}" for letter, option in question.choices.items())
    rendered = {}
    for member in members(step.source):
        values = {**question.columns, "question": text, "choices": choices}
        for field, step_ids in member.fields.items():
            values[field] = join([passed_on[step_id] for step_id in step_ids])
        rendered[member.node] = render(member.template, values)
        rendered[member.node].encode()  # half of a surrogate pair is no text that a model could read
    return rendered
