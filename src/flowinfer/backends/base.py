"""The contract of a backend: everything that flowinfer asks of a loaded model, and nothing else.

A backend is a `Loader`, named by an entry point of the group `flowinfer.backends`. What it loads is a `TokenModel`,
which gives next-token distributions and can be a head of a `|` group, or a `TextModel`, which only completes prompts.
Nothing else is ever asked of a model, but the network of one that is `TransformersBacked`. What has a value here may be
left out by a class that inherits from the protocol. docs/backends.md shows a backend of each kind, whole.

Faults: a `FlowInferError` (LoadError at load, RunError later) is told as it stands. Whatever else is raised fails the
question at which it was raised; short memory (MemoryError, torch.OutOfMemoryError) halves the batch.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, runtime_checkable

from flowinfer.results import FinishReason
from flowinfer.spec import Decoding, ModelSpec

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from flowinfer.fusion.certified import Candidates
    from flowinfer.fusion.encoder import Encoder
    from flowinfer.fusion.vocab import HeadVocabulary


class Loader(Protocol):
    """What an entry point of `flowinfer.backends` names: a function, or the model's class itself.

    Three attributes say what it serves, before anything is loaded: `text_only = True` where it loads text models,
    `options`, names of the options of models and steps that it heeds (without it, all that its kind of model is given),
    and `splits = True` where it can lay a model's layers over several GPUs: then it takes one more argument by name,
    `split`, a sequence of `flowinfer.spec.Share`, where the plan does so. Ids go to the first of these
    devices, and its logits are there.
    """

    def __call__(self, spec: ModelSpec, device: str, dtype: str) -> TokenModel | TextModel:
        """Load a model.

        Args:
            spec: what the zoo or flow says; `spec.ref` means what the backend wants it to mean.
            device: the plan's choice, `cpu` or `cuda:N`; `endpoint` for text models.
            dtype: auto, float32, bfloat16 or float16; `-` for text models.
        Raises:
            LoadError: it cannot be loaded; says why, and the cure.
            MemoryShort: it does not fit.
        """


class Turn(NamedTuple):
    """Something that was said before a question."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True)
class Prompt:
    """A prompt as one model reads it."""

    text: str
    """With the chat template applied, and the prefill."""
    ids: tuple[int, ...]
    """At least one."""
    opens_thinking: bool = False
    """Whether the answer begins inside a thought (templates of R1-like models)."""
    opener: str = ""
    """What begins an answer without a thought, where something must: it closes the thought that the template opened, or
    opens the final channel of gpt-oss. Beside heads that do not think, it is the prompt's prefill."""


class Session(Protocol):
    """The decoding state of one model over a batch of rows that come and go.

    One call of `add`, `feed` or `verify` is one forward. Rows are named by handles that stay valid until removed.
    Logits are of any float type, on the model's device, and follow from a row's own ids. One thread calls at a time.
    """

    def add(self, prompts: Sequence[Sequence[int]]) -> list[int]:
        """Prefill new rows and return their handles."""

    def feed(self, chunks: Mapping[int, Sequence[int]]) -> None:
        """Append ids to rows, any number each, also none, also to no row; rows that are not named stay as they are."""

    def logits(self, rows: Sequence[int]) -> Tensor:
        """Return the next-token logits of rows: shape (R, V_k)."""

    def verify(self, segments: Mapping[int, Sequence[Sequence[int]]]) -> Tensor:
        """Append several segments to each named row and return the next-token logits behind every segment.

        Roll back what is not accepted; `logits` of these rows are those behind their last segments until then.

        Args:
            segments: for each row its segments in order, none of them empty.
        Returns:
            shape (S, V_k): all segments of the first row named, then those of the second, ...
        """

    def rollback(self, row: int, count: int) -> None:
        """Forget a row's last ids; feed it before reading its logits again."""

    def remove(self, rows: Sequence[int]) -> None:
        """End rows and free their memory."""

    def length(self, row: int) -> int:
        """Return the number of ids in a row, prompt included."""


class CandidateSession(Session, Protocol):
    """A session of a model elsewhere (`is_elsewhere`): it can tell the most probable columns alone."""

    @property
    def is_cut(self) -> bool:
        """Return whether its rows are lost, since the connection broke that held them."""

    def leave_out(self, banned: Tensor) -> None:
        """Count no column that writes nothing: (V_k,) bool; before anything is asked."""

    def best(self, rows: Sequence[int], count: int) -> Candidates:
        """Return the candidates behind rows, as `logits` does all columns."""

    def verify_best(self, segments: Mapping[int, Sequence[Sequence[int]]], count: int) -> Candidates:
        """Append segments as `verify` does; return the candidates behind each."""


@runtime_checkable
class TokenModel(Protocol):
    """A loaded model whose next-token distributions can be read.

    An ordinary object without a method `complete`, which would make it a text model. One whose work another process
    does may say so (`is_elsewhere = True`) and how many rows it takes (`most_rows`), and one whose forwards leave
    Python to others meanwhile, how many bytes they read (`bytes_beside`): then it may be asked in a thread of its own.
    `flowinfer profile` makes a shallow copy of it and gives that another `vocabulary`.
    """

    name: str
    """As in the flow; stands in messages."""
    device: torch.device
    """Where its logits are."""
    max_positions: int
    """Most ids in a row, prompt and answer together."""
    is_exact: bool
    """Whether its arithmetic is float32 or wider, so that ties are real."""
    notes: tuple[str, ...] = ()
    """What the user should know of it; told once, when it is loaded."""

    @property
    def tokenizer(self) -> Encoder | None:
        """Return what canonical contexts encode with, as `tokenizers.Tokenizer` does; None: its contexts are native."""
        return None

    def vocabulary(self, stop_tokens: Sequence[str] = ()) -> HeadVocabulary:
        """Return its token bytes, end ids and number of logit columns; stop tokens that it has end answers too."""

    def prompt(self, text: str, prefill: str = "", turns: Sequence[Turn] = ()) -> Prompt:
        """Apply the chat template, if any, and tokenize.

        Args:
            text: the last turn.
            prefill: what the answer begins with.
            turns: what was said before, given only where there is some: a server's chats.
        """

    def open(self) -> Session:
        """Return an empty session; several may be open at once."""

    def close(self) -> None:
        """Free its memory; it cannot be used again."""


class TransformersBacked(TokenModel, Protocol):
    """A token model that shows its network: then the packed engine runs that itself, over flat tokens and pages."""

    @property
    def transformers_model(self) -> Any:  # untyped in transformers
        """Return the decoder-only transformers model whose logits the sessions give, or None.

        Flowinfer's own backend may return a `KnownNetwork`, which becomes one when it is asked for its `whole()`.
        Whether it can be packed is tried, and said where it cannot; then sessions serve, as for every other model.
        """


@dataclass(frozen=True)
class TextCompletion:
    """What a text-only model wrote."""

    text: str
    tokens: int
    """Tokens that were written; 0 = not known."""
    finish_reason: FinishReason
    """eos, stop, length or content_filter."""
    seconds: float
    input_tokens: int = 0
    """Tokens that were read; 0 = not known."""
    cached_tokens: int = 0
    """Those of them that were read before, where a model keeps prompts."""
    notes: tuple[str, ...] = ()
    """What the user should know of how it was come by; each is told once."""


class Hearing:
    """Who waits for a text: hears it as it is written, and may want it no more. Any thread may call.

    Args:
        wrote: hears the pieces, in order; None = nobody wants them.
    """

    def __init__(self, wrote: Callable[[str], None] | None = None) -> None:
        self.wrote = wrote
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._stop: Callable[[], object] | None = None

    @property
    def is_over(self) -> bool:
        """Return whether the text is wanted no more."""
        return self._over.is_set()

    def end(self) -> None:
        """Want the text no more: what it costs is to be broken off."""
        with self._lock:
            self._over.set()
            stop = self._stop
        if stop is not None:
            stop()

    def when_over(self, stop: Callable[[], object]) -> None:
        """Say how to break off what is under way now."""
        with self._lock:
            self._stop = stop
        if self.is_over:
            stop()

    def pause(self, seconds: float) -> None:
        """Wait, no longer than the text is wanted."""
        self._over.wait(seconds)


@runtime_checkable
class TextModel(Protocol):
    """A model behind an endpoint: prompts in, texts out."""

    name: str
    notes: tuple[str, ...] = ()
    """See `TokenModel.notes`."""

    def complete(self, prompt: str, decoding: Decoding, *, seed: int, turns: Sequence[Turn] = ()) -> TextCompletion:
        """Complete one prompt; called from several threads at once.

        Args:
            prompt: the text, without any chat template.
            decoding: of which max_tokens, temperature, top_p and stop are to be heeded.
            seed: of this question and step, 32 bits.
            turns: what was said before, given only where there is some: a server's chats.
        Raises:
            RunError: it failed for good; the question fails with it.
        """

    def close(self) -> None:
        """Close its connections; nothing is asked of it afterwards."""


@runtime_checkable
class StreamingModel(TextModel, Protocol):
    """A text model that tells of its text while it writes it, and stops when nobody wants it any more."""

    streams: bool
    """True: `complete` takes one more argument."""

    def complete(
        self,
        prompt: str,
        decoding: Decoding,
        *,
        seed: int,
        turns: Sequence[Turn] = (),
        hearing: Hearing | None = None,
    ) -> TextCompletion:
        """Complete one prompt; see `TextModel.complete`.

        Args:
            hearing: is told of the text as it is written, where it wants to be; ends it, where it is wanted no more.
        """


def lacks(model: object, kind: type) -> list[str]:
    """Name what an object does not have of what one of these protocols names."""
    asked = dict.fromkeys([*kind.__annotations__, *vars(kind)])
    return [name for name in asked if not name.startswith("_") and not hasattr(model, name)]


def network_of(model: TokenModel) -> Any | None:  # untyped in transformers
    """Return the network that a model shows (see `TransformersBacked`), None where it shows none."""
    return getattr(model, "transformers_model", None)


def is_elsewhere(model: TokenModel) -> bool:
    """Return whether another process does a model's work, so that other heads can work meanwhile."""
    return bool(getattr(model, "is_elsewhere", False))


@dataclass
class Traffic:
    """What was asked of a model in another process so far."""

    messages: int = 0
    """Each there and back."""
    sent: int = 0
    received: int = 0
    """Bytes."""
    waited: float = 0.0
    """Seconds, the head's own work included."""
    worked: float = 0.0
    """Seconds of them in which the other says that it worked, or waited for others that it serves."""

    def count(self, sent: int, received: int, waited: float, worked: object) -> None:
        """Count a message."""
        self.messages += 1
        self.sent += sent
        self.received += received
        self.waited += waited
        self.worked += min(waited, worked) if isinstance(worked, float) and worked > 0 else 0.0


def traffic_of(model: TokenModel) -> Traffic | None:
    """Return what went to a model elsewhere and came back, None where nobody counts that."""
    return getattr(model, "traffic", None) if is_elsewhere(model) else None


def bytes_beside(model: TokenModel) -> int:
    """Return what a forward reads of a model that leaves Python to others, so that other heads can work meanwhile."""
    return int(getattr(model, "bytes_beside", 0))
