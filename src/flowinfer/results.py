"""What goes into a run and what comes out of it: questions, traces, scores, records.

Records are what `samples.jsonl` holds, one JSON object per line; pydantic because they cross the program's border.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

FinishReason = Literal["eos", "stop", "length", "context", "content_filter", "vote", "likelihood", "error"]
"""eos: voted to end; stop: a stop text; length: max_tokens; context: a head's position limit; content_filter: an
endpoint refused or filtered it; vote: no decoding; likelihood: chosen among given texts."""

Status = Literal["ok", "no_answer", "ambiguous", "truncated"]


Seconds = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=0, le=10**12)]


def _listed(default: Any = ...) -> Any:  # a field of any type
    """Return a field whose tuple JSON writes as a list."""
    return Field(default, strict=False)


class _Border(BaseModel):
    """Strict: what is no number, truth value or text is refused, not turned into one."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Question(_Border):
    """One item of a data set."""

    id: str
    question: str
    """Text as asked, without choices."""
    reference: str
    """Gold answer in the data set's own form ("" where there is none)."""
    kind: str = "exact"
    """Judge: gsm8k, ceval, mathematics or exact."""
    choices: Mapping[str, str] = Field(default_factory=dict)
    """Letter -> text, shown under the question as lines "A. text"."""
    subject: str | None = None
    """Subject or module, for tables."""
    columns: Mapping[str, str] = Field(default_factory=dict)
    """Further fields of the item that a prompt of the flow shows."""
    intro: str | None = None
    """What stands above it in a prompt: a header, examples; None: what its judge's questions have (tasks/base.py)."""

    @property
    def bare(self) -> Question:
        """Return it without what a run puts around it: the same question, asked with examples or without."""
        return self.model_copy(update={"intro": None, "columns": {}})

    @property
    def options(self) -> str:
        """Return its choices as lines "A. text", or nothing."""
        return "\n".join(f"{letter}. {text}" for letter, text in self.choices.items())

    @property
    def whole(self) -> str:
        """Return its text with its choices below it."""
        return f"{self.question}\n{self.options}" if self.choices else self.question

    @property
    def gold(self) -> str:
        """Return the last line of the reference: worked answers end in what counts."""
        return self.reference.rsplit("\n", 1)[-1]


class HeadTimes(_Border):
    """What one head of a step cost for one question (paper table 5)."""

    node: str
    model: str
    prompt_tokens: Count
    """Ids of the rendered prompt."""
    fed_tokens: Count
    """Ids fed after the prompt."""
    forward_seconds: Seconds
    """Sum over its forwards, shared equally among the rows of each batch."""
    transfer_seconds: Seconds
    """Moving distributions to the fusing device."""
    agreement: float | None = None
    """Share of emitted tokens that were this head's own argmax; one about which it was not asked is not."""
    lost_at: Count | None = None
    """Tokens that there were when it was lost, from where the text goes on without it; None where it was not."""
    forwards: Count | None = None
    """After the prompt's, where heads do not go in lock step (fuse=safe); None elsewhere."""


class Usage(_Border):
    """What an endpoint says that it has read for one question, and what it cost."""

    input_tokens: Count = 0
    """0 = not told."""
    cached_tokens: Count = 0
    """Those of them that it had read before."""
    cost: Annotated[float, Field(ge=0)] | None = None
    """In the money of the model's options; None where these say no price, or the endpoint tells no tokens."""


class StepResult(_Border):
    """One decoding loop for one question."""

    step: str
    """Step id of the plan."""
    text: str
    """What the step wrote, whole."""
    passed_on: str
    """What later stages read: the text after think=strip."""
    prompts: Mapping[str, str]
    """Node id -> prompt as given to its tokenizer (chat template applied)."""
    tokens: Count
    """Emitted tokens, EOS not counted."""
    finish_reason: FinishReason
    seconds: Seconds
    """Wall clock from the row's admission to its end."""
    fuse_seconds: Seconds = 0.0
    batch: Count = 1
    """Rows that shared the decoding loop when the row was admitted."""
    heads: tuple[HeadTimes, ...] = _listed(())
    near_ties: Count = 0
    """Emitted tokens whose lead over the runner-up was within rounding."""
    lstripped: Count | None = None
    """Heads whose first token counted without a space before it; None where nobody looked whether it should."""
    confidence: float | None = None
    """Geometric mean of the fused probabilities of its emitted tokens; None where nobody recorded it."""
    lead: float | None = None
    """Mean lead of the best slot over the second; None where nobody recorded it."""
    agreement: float | None = None
    """Share of emitted tokens, the end included, that every head favoured; None where nobody recorded it."""
    rounds: Count | None = None
    """Forwards of each head after the prompt's, where drafts let one emit several tokens; with fuse=safe, how often the
    writer's tokens were verified; None: one a token."""
    drafted_tokens: Count = 0
    """Tokens that were guessed ahead and verified."""
    accepted_tokens: Count = 0
    """Those of them that were emitted."""
    fused_tokens: Count | None = None
    """Tokens, the end included, that all heads chose, where one writes and the others verify (fuse=safe)."""
    likelihoods: Mapping[str, float] | None = None
    """Where the step chose among texts (by=likelihood): logarithm of each one's probability."""
    usage: Usage | None = None
    """What an endpoint read and cost; None where no endpoint was asked."""
    cached_from: str | None = None
    """Run whose result this is a copy of; its seconds are that run's."""


class Ballot(_Border):
    """How a `&` group at the end of a flow settled on one of its answers."""

    answers: tuple[str | None, ...] = _listed()
    """What each member's answer was found to be, in the flow's order; None where none was found."""
    winner: Count
    """Index of the member whose text is the answer."""
    weights: tuple[float, ...] | None = _listed(None)
    """What each member's vote counts; None = all the same."""

    def weighed(self, weights: Sequence[float]) -> Ballot:
        """Return the same answers with votes that count differently; of equals the first wins."""
        ballot = self.model_copy(update={"weights": tuple(weights)})
        heaviest = max(map(ballot._weight, self.answers))
        winner = next(index for index, answer in enumerate(self.answers) if ballot._weight(answer) == heaviest)
        return ballot.model_copy(update={"winner": winner})

    def _weight(self, answer: str | None) -> float:
        """Return what the votes for an answer count together."""
        if answer is None:
            return 0.0
        weights = self.weights or (1.0,) * len(self.answers)
        return math.fsum(weight for one, weight in zip(self.answers, weights, strict=True) if one == answer)

    @property
    def votes(self) -> int:
        """Return how many members gave the winning answer; 0 where no member gave any."""
        won = self.answers[self.winner]
        return 0 if won is None else self.answers.count(won)

    @property
    def is_tie(self) -> bool:
        """Whether another answer has as many votes, or none has any: then the order of the members decided."""
        won = self.answers[self.winner]
        others = set(self.answers) - {won, None}
        return not self.votes or any(self._weight(one) == self._weight(won) for one in others)

    def __str__(self) -> str:
        said = ", ".join("-" if answer is None else answer for answer in self.answers)
        if not self.votes:
            return f"no member gave an answer, the first one's text counts ({said})"
        share = f"{self.votes} of {len(self.answers)} votes"
        if self.weights:
            won = self._weight(self.answers[self.winner])
            share += f", {won:.3g} of {math.fsum(self.weights):.3g} by weight"
        return f"tie, {share}: the first of the equals counts ({said})" if self.is_tie else f"{share} ({said})"


class Taken(_Border):
    """How one of several texts was taken, so that those after it need not be written."""

    selection: str
    """Id of the selection in the plan."""
    title: str
    """What is chosen from, as written in the flow."""
    rule: str
    """When a text is accepted, e.g. "confidence >= 0.9"."""
    values: tuple[float | None, ...] = _listed()
    """The signal of each candidate that was tried; None where it was not asked for, or could not be had."""
    taken: Count
    """Index of the candidate that was taken."""
    most: Count
    """Candidates that there are."""
    gathers: bool = False
    """Whether a candidate has the texts of those before it too: samples, the first of which are two."""
    is_picked: bool = False
    """Whether it was picked by routes before any was written; the values are how likely each was to be right."""
    lost: Mapping[str, str] | None = None
    """Of a quorum: the members that are not among the answers, by number, and why."""

    def __str__(self) -> str:
        if self.lost is not None:
            why = "".join(f"; {number} lost: {reason}" for number, reason in self.lost.items())
            return f"{self.title}: {self.most - len(self.lost)} of {self.most} answered{why}"
        if self.gathers:
            return f"{self.title}: drew {self.taken + 2} of {self.most + 1} ({self.rule}: {self.values[-1]:.3g})"
        if self.is_picked:
            likely = ", ".join(f"{value or 0:.2f}" for value in self.values)
            return f"{self.title}: picked {self.taken + 1} of {self.most} (by {self.rule}, likely right: {likely})"
        seen = ", ".join("-" if value is None else f"{value:.3g}" for value in self.values)
        return f"{self.title}: took {self.taken + 1} of {self.most} ({self.rule}: {seen})"


class Trace(_Border):
    """A plan's whole work on one question."""

    question_id: str
    answer: str
    """Final text, as scored."""
    finish_reason: FinishReason
    seconds: Seconds
    """Sum along the steps (concurrent steps: the longest)."""
    steps: tuple[StepResult, ...] = _listed()
    """Those that ran, in the plan's order."""
    error: str | None = None
    """Why the question failed; its answer is then empty."""
    ballot: Ballot | None = None
    """How its final group voted; None where nothing was voted on, and in records of before."""
    selections: tuple[Taken, ...] = _listed(())
    """Which of several texts were taken, where steps may be skipped."""


class Score(_Border):
    """A judge's verdict on one output."""

    correct: bool
    extracted: str | None
    """The answer found, normalized; None where there is none."""
    status: Status
    rule: str
    """Rule that found it, e.g. "boxed", "anchor", "last_number"."""
    span: tuple[int, int] | None = _listed(None)
    """Where in the output it stands: start, end in code points."""


class Record(_Border):
    """One line of samples.jsonl; it counts in an accuracy where it has a score."""

    version: int = 1
    question: Question
    trace: Trace
    score: Score | None = None
    """None where the question failed or there is no reference."""
