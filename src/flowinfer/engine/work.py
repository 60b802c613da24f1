"""One question on its way through shared steps: what it wants, what it has, and its trace along a plan's path."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from flowinfer.backends.base import Turn
from flowinfer.engine.adoption import moved
from flowinfer.engine.deciding import Pick, Trial, by_text, judged
from flowinfer.engine.faults import reason
from flowinfer.language.prompts import prompt_set, render
from flowinfer.planning.merge import SharedSelection, SharedStep, Use
from flowinfer.planning.plan import Plan, Selection, Step, When, members
from flowinfer.results import Ballot, FinishReason, Question, StepResult, Taken, Trace
from flowinfer.spec import Decoding

Vote = Callable[[Question, Sequence[str]], Ballot]
FAILED: FinishReason = "error"


@dataclass(frozen=True)
class Lost:
    """A member of a quorum whose answer is not there."""

    why: str
    steps: tuple[str, ...]
    """Its shared steps that have no result."""
    seconds: float
    """How long it was waited for; 0 where it failed by itself."""


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
    vote: Vote | None = None
    """Reads answers out of texts and lets them vote; if not given, texts are compared as they are."""
    skipped: set[str] = field(default_factory=set)
    """Shared steps that a selection has made needless."""
    tried: dict[str, list[Trial]] = field(default_factory=dict)
    """By shared selection: how each candidate was judged so far."""
    taken: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """By shared selection that is taken: the shared steps whose texts are its candidate's."""
    lost: dict[str, dict[int, Lost]] = field(default_factory=dict)
    """By quorum: the members that failed or came too late."""
    begun: dict[str, float] = field(default_factory=dict)
    """By quorum that goes by the clock: when its first step began."""
    enough: dict[str, float] = field(default_factory=dict)
    """By such a quorum: when there were enough answers."""

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
            if one.picks:
                tried = self.tried.get(one.selection)
                if not tried or not tried[one.tried].is_accepted:
                    return False if tried else None
                continue
            if one.selection in self.taken and len(self.tried[one.selection]) <= one.tried:
                return False
            if len(self.tried.get(one.selection, ())) < one.tried:
                return None
        return True

    def decide(self, selection: SharedSelection) -> bool:
        """Judge the candidates of a selection whose texts are there; return whether anything has been decided."""
        if selection.selection.quorum is not None:
            return self._gather(selection)
        if selection.selection.routes is not None:
            return self._pick_up(selection)
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

    def pick(self, selection: SharedSelection, pick: Pick) -> None:
        """Take note of which member the routes pick, before any runs."""
        self.tried[selection.id] = [Trial(score, index == pick.member) for index, score in enumerate(pick.scores)]

    def _pick_up(self, selection: SharedSelection) -> bool:
        """Take what the picked member has written, if it has."""
        picked = _accepted(self.tried[selection.id])
        texts = self._candidate(selection, picked)
        if texts is not None:
            self.taken[selection.id] = texts
        return texts is not None

    def _gather(self, selection: SharedSelection) -> bool:
        """Take what the members of a quorum have written, if it need not wait for any other."""
        if self.missing(selection):
            return False
        found = (self._candidate(selection, index) for index in range(len(selection.candidates)))
        self.taken[selection.id] = tuple(step for steps in found if steps for step in steps)
        return True

    def missing(self, quorum: SharedSelection) -> list[int]:
        """Return the members that are neither there nor lost."""
        members = range(len(quorum.candidates))
        return [k for k in members if k not in self.lost.get(quorum.id, {}) and self._candidate(quorum, k) is None]

    def can_lose(self, quorum: SharedSelection, count: int) -> bool:
        """Return whether so many more members may be lost, and enough be left."""
        left = len(quorum.candidates) - len(self.lost.get(quorum.id, ())) - count
        return quorum.selection.quorum is not None and left >= quorum.selection.quorum.least

    def overdue(self, quorum: SharedSelection, now: float) -> float | None:
        """Return how many seconds a quorum has waited, if that is long enough for those that are missing."""
        rule, missing = quorum.selection.quorum, self.missing(quorum)
        if rule is None or not missing:
            return None
        if self.can_lose(quorum, len(missing)):
            self.enough.setdefault(quorum.id, now)
        waited = now - self.begun[quorum.id]
        is_enough = rule.wait is not None and now - self.enough.get(quorum.id, now) >= rule.wait
        is_enough = is_enough and quorum.id in self.enough
        return waited if is_enough or (rule.timeout is not None and waited >= rule.timeout) else None

    def lose(self, quorum: SharedSelection, member: int, why: str, seconds: float = 0.0) -> list[str]:
        """Go on without a member; return its steps that have not ended, which nobody wants any more."""
        steps = [step for step in quorum.lanes[member] if step not in self.results and step not in self.skipped]
        self.lost.setdefault(quorum.id, {})[member] = Lost(why, tuple(steps), seconds)
        return [step for step in steps if step in self.wanted]

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


def _accepted(tried: Sequence[Trial]) -> int:
    """Return the candidate that was taken: the accepted one, else the last."""
    return next((index for index, trial in enumerate(tried) if trial.is_accepted), max(0, len(tried) - 1))


@dataclass(frozen=True)
class Finished:
    """A shared step of a question has a result, or an error."""

    shared: SharedStep
    asked: Asked
    is_fresh: bool
    """Whether it was decoded just now."""


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
        seconds=_seconds(plan, uses, ended, asked),
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
    steps = [own[shared] for text in plan.answer.texts for shared in asked.texts(names[text]) or ()]
    finals = [ended[step] for step in steps]
    if len(finals) == 1:
        return _Answer(finals[0].passed_on, finals[0].finish_reason)
    ballot = asked.vote(asked.question, [final.passed_on for final in finals]) if asked.vote else None
    if ballot is not None and plan.answer.weights:
        ballot = ballot.weighed([plan.answer.weights.get(step, 1.0) for step in steps])
    return _Answer(finals[ballot.winner if ballot else 0].passed_on, "vote", ballot)


def _selection_names(plan: Plan, uses: Mapping[str, Use]) -> dict[str, str]:
    """Return the shared id of each selection of a plan."""
    return {own: shared for step in plan.steps for own, shared in uses[step.id].selections.items()}


def _taken(plan: Plan, uses: Mapping[str, Use], asked: Asked) -> tuple[Taken, ...]:
    """Return how the selections of a plan were taken, as far as they were."""
    names = _selection_names(plan, uses)
    return tuple(_one_taken(one, names[one.id], asked) for one in plan.selections if names[one.id] in asked.taken)


def _one_taken(one: Selection, shared: str, asked: Asked) -> Taken:
    tried, lost = asked.tried.get(shared, ()), asked.lost.get(shared, {})
    values: list[float | None] = [trial.value for trial in tried]
    if one.quorum is not None:
        values = [float(member not in lost) for member in range(len(one.candidates))]
    return Taken(
        selection=one.id,
        title=one.title,
        rule=one.routes.name if one.routes else str(one.rule),
        values=tuple(values),
        taken=_accepted(tried),
        most=len(one.candidates),
        gathers=one.gathers,
        is_picked=one.routes is not None,
        lost={str(member + 1): of.why for member, of in sorted(lost.items())} if one.quorum else None,
    )


def _seconds(plan: Plan, uses: Mapping[str, Use], ended: Mapping[str, StepResult], asked: Asked) -> float:
    """Return the time along the longest chain of steps that waited for one another, be it in vain."""
    waited = {step: of.seconds for lost in asked.lost.values() for of in lost.values() for step in of.steps[:1]}
    ends: dict[str, float] = {}
    for step in plan.steps:
        seconds = ended[step.id].seconds if step.id in ended else waited.get(uses[step.id].shared)
        if seconds is not None:
            start = max((ends.get(name, 0.0) for name in plan.before(step)), default=0.0)
            ends[step.id] = start + seconds
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
