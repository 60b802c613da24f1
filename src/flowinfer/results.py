"""What goes into a run and what comes out of it: questions, traces, scores, records.

Records are what `samples.jsonl` holds, one JSON object per line; pydantic because they cross the program's border.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

FinishReason = Literal["eos", "stop", "length", "context", "vote", "error"]
"""eos: voted to end; stop: a stop text; length: max_tokens; context: a head's position limit; vote: no decoding."""

Status = Literal["ok", "no_answer", "ambiguous", "truncated"]


class _Border(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


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


class HeadTimes(_Border):
    """What one head of a step cost for one question (paper table 5)."""

    node: str
    model: str
    prompt_tokens: int
    """Ids of the rendered prompt."""
    fed_tokens: int
    """Ids fed after the prompt."""
    forward_seconds: float
    """Sum over its forwards, shared equally among the rows of each batch."""
    transfer_seconds: float
    """Moving distributions to the fusing device."""
    agreement: float | None = None
    """Share of emitted tokens that were this head's own argmax."""


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
    tokens: int
    """Emitted tokens, EOS not counted."""
    finish_reason: FinishReason
    seconds: float
    """Wall clock from the row's admission to its end."""
    fuse_seconds: float = 0.0
    batch: int = 1
    """Rows that shared the decoding loop when the row was admitted."""
    heads: tuple[HeadTimes, ...] = ()
    near_ties: int = 0
    """Emitted tokens whose lead over the runner-up was within rounding."""
    rounds: int | None = None
    """Forwards of each head after the prompt's, where drafts let one emit several tokens; None: one a token."""
    drafted_tokens: int = 0
    """Tokens that were guessed ahead and verified."""
    accepted_tokens: int = 0
    """Those of them that were emitted."""
    cached_from: str | None = None
    """Run whose result this is a copy of; its seconds are that run's."""


class Trace(_Border):
    """A plan's whole work on one question."""

    question_id: str
    answer: str
    """Final text, as scored."""
    finish_reason: FinishReason
    seconds: float
    """Sum along the steps (concurrent steps: the longest)."""
    steps: tuple[StepResult, ...]
    error: str | None = None
    """Why the question failed; its answer is then empty."""


class Score(_Border):
    """A judge's verdict on one output."""

    correct: bool
    extracted: str | None
    """The answer found, normalized; None where there is none."""
    status: Status
    rule: str
    """Rule that found it, e.g. "boxed", "anchor", "last_number"."""
    span: tuple[int, int] | None = None
    """Where in the output it stands: start, end in code points."""


class Record(_Border):
    """One line of samples.jsonl."""

    version: int = 1
    question: Question
    trace: Trace
    score: Score | None = None
    """None where the question failed or there is no reference."""
