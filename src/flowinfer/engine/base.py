"""The seams of the engine: rows in, completions out; what observers hear; what a cache of steps must do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from flowinfer.backends.base import Turn
from flowinfer.planning.plan import Member, Plan, Step
from flowinfer.results import StepResult
from flowinfer.spec import Decoding


@dataclass(frozen=True)
class Row:
    """One question's turn in one step."""

    question_id: str
    step: str
    prompts: Mapping[str, str]
    """Node id -> prompt text, before any chat template."""
    sources: tuple[str, ...] = ()
    """What earlier steps have passed on to it: texts that its answer may repeat."""
    decoding: Decoding | None = None
    """Its own max_tokens, temperature, top_p, seed and stop texts; None = the step's. The other options are the loop's
    and must be equal (`Decoding.of_loop`)."""
    noise_id: str | None = None
    """What its noise is drawn by, where that is not its question's id: a server's requests have ids of their own."""
    stream: str | None = None
    """By what step's id its noise is drawn, where that is not its own; see `Step.stream`."""
    turns: tuple[Turn, ...] = ()
    """What was said before its prompts; the first may be of the system."""
    candidates: tuple[str, ...] = ()
    """Texts of which it is to give the most likely one, where its step decodes by likelihood."""
    are_letters: bool = False
    """Whether these are the letters of its choices: words, which some prompts want behind a space."""
    members: Mapping[str, Member] = field(default_factory=dict)
    """Node of the loop's step, as in `prompts` -> the member of its own step that stands there, if that is another."""

    def member(self, there: Member) -> Member:
        """Return the member of its own step that stands where one of the loop's does."""
        return self.members.get(there.node, there)


@dataclass(frozen=True)
class Completion:
    """How a row ended: with a result or with the reason why it could not run."""

    row: Row
    result: StepResult | None
    error: str | None = None


@dataclass(frozen=True)
class HeadWish:
    """What one head wanted at one step."""

    node: str
    model: str
    piece: bytes | None
    """Its own argmax; None = to end."""
    probability: float
    """What it gave to its argmax."""
    probability_of_emitted: float


@dataclass(frozen=True)
class Alternative:
    """A token that could have been emitted."""

    piece: bytes | None
    """Its bytes; None = the end."""
    probability: float
    """Fused probability."""


@dataclass(frozen=True)
class TokenEvent:
    """One emitted token."""

    index: int
    piece: bytes | None
    """Its bytes; None = the end."""
    probability: float
    """Fused probability."""
    heads: tuple[HeadWish, ...]
    tops: tuple[Alternative, ...] = ()
    """The most probable ones, best first, as many as the observer wants."""
    is_fused: bool | None = None
    """Whether all heads chose it, where one writes and the others verify (fuse=safe); None elsewhere."""


class Observer:
    """Hears what the engine does; every method does nothing here, override what you need."""

    wants_tokens = False
    """Whether `emitted` is called with each head's wishes; what nobody wants is not computed."""
    num_tops = 0
    """How many alternatives each token is told with; asked for at every step."""
    is_leaving = False
    """Whether nobody waits for models any more that are not loaded yet."""

    def model_loading(self, name: str, device: str) -> None:
        """Hear that a model is about to be loaded."""

    def model_loaded(self, name: str, seconds: float) -> None:
        """Hear that a model is ready."""

    def model_failed(self, name: str) -> None:
        """Hear that a model could not be loaded."""

    def notice(self, message: str) -> None:
        """Hear something that the user should know."""

    def admitted(self, question_id: str, step: str, *, opens_thinking: bool = False) -> None:
        """Hear that a row began to decode, and whether its answer begins inside <think>."""

    def tokens_emitted(self, count: int) -> None:
        """Hear how many tokens all rows together emitted in a decoding step."""

    def emitted(self, question_id: str, step: str, event: TokenEvent) -> None:
        """Hear one token of one row."""

    def wants_text(self, question_id: str, step: str) -> bool:
        """Return whether `wrote` is to be called while an endpoint writes a row's text."""
        return False

    def wrote(self, question_id: str, step: str, text: str) -> None:
        """Hear a part of a row's text from an endpoint, which tells of no tokens and no probabilities."""

    def finished(self, question_id: str, result: StepResult) -> None:
        """Hear that a row's step is done."""

    def batch_halved(self, batch: int) -> None:
        """Hear that memory was short and the batch is now smaller."""

    def replicas(self, states: Sequence[str]) -> None:
        """Hear what each copy of the plan is doing, in words."""


StepKey = Callable[[Plan, Step, Mapping[str, str], str], str]
"""(plan, step, prompts by node, question id) -> what decides the step's text."""
MemberOrder = Callable[[Plan, Step, Mapping[str, str]], Sequence[str]]
"""(plan, step, prompts by node) -> the step's nodes in the order in which cached results hold their heads."""


class StepCache(Protocol):
    """Keeps results of steps by all that decides their text."""

    def get(self, key: str) -> StepResult | None:
        """Return the result stored under a key."""

    def put(self, key: str, result: StepResult) -> None:
        """Store a result under a key."""


class NoCache:
    """Keeps nothing."""

    def get(self, key: str) -> StepResult | None:
        """Return None."""
        return None

    def put(self, key: str, result: StepResult) -> None:
        """Do nothing."""


class RowStream(Protocol):
    """One run of a decoding loop, brought on a turn at a time, so that others can run beside it."""

    is_waiting: bool
    """Whether the last turn found nothing to do before something else (a device, an endpoint) has done its part."""

    @property
    def num_rows(self) -> int:
        """Return how many rows have not ended."""

    def add(self, row: Row) -> None:
        """Take a row, at any time, also when all others have ended."""

    def end(self, row: Row) -> None:
        """Let go of a row that is wanted no more: it gets no completion, and the others' texts stay as they are."""

    def turn(self) -> Sequence[Completion]:
        """Do one round of what can be done without waiting; return the rows that ended."""

    def wait(self) -> None:
        """Wait until another turn can do something."""

    def close(self) -> None:
        """Let go of all rows."""


class Decoder(Protocol):
    """Runs one step's decoding loop; its models, tables and memory outlast a run."""

    @property
    def keeps_host_busy(self) -> bool:
        """Whether its turns compute on the host, so that nothing else goes on meanwhile."""

    def stream(self) -> RowStream:
        """Return a new run without rows; the one before must be closed."""


def decode(decoder: Decoder, rows: Iterable[Row]) -> Iterator[Completion]:
    """Decode rows with nothing beside them; yield each as it ends."""
    stream = decoder.stream()
    try:
        for row in rows:
            stream.add(row)
        while stream.num_rows:
            yield from stream.turn()
            if stream.is_waiting:
                stream.wait()
    finally:
        stream.close()
