"""What the engine asks of a loaded model.

A token model gives next-token distributions and can be a head of a `|` group; a text model only completes prompts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from torch import Tensor

from flowinfer.fusion.vocab import HeadVocabulary
from flowinfer.results import FinishReason
from flowinfer.spec import Decoding

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer


@dataclass(frozen=True)
class Prompt:
    """A prompt as one model reads it."""

    text: str
    """With the chat template applied, and the prefill."""
    ids: tuple[int, ...]
    opens_thinking: bool = False
    """Whether the answer begins inside <think> (templates of R1-like models)."""
    opener: str = ""
    """What the model writes between the prompt and an answer without a thought (the final channel of gpt-oss)."""


class Session(Protocol):
    """The decoding state of one model over a batch of rows that come and go.

    One call of `add`, `feed` or `verify` is one forward. Rows are named by handles that stay valid until removed.
    """

    def add(self, prompts: Sequence[Sequence[int]]) -> list[int]:
        """Prefill new rows and return their handles."""

    def feed(self, chunks: Mapping[int, Sequence[int]]) -> None:
        """Append ids to rows, any number each, also none; rows that are not named stay as they are."""

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


@runtime_checkable
class TokenModel(Protocol):
    """A loaded model whose next-token distributions can be read."""

    name: str
    device: torch.device
    max_positions: int
    """Most ids in a row."""
    is_exact: bool
    """Whether its arithmetic is float32 or wider, so that ties are real."""

    @property
    def tokenizer(self) -> Tokenizer:
        """Return the `tokenizers` object that canonical contexts encode with."""

    def vocabulary(self, stop_tokens: Sequence[str] = ()) -> HeadVocabulary:
        """Return its token bytes, end ids and number of logit columns."""

    def prompt(self, text: str, prefill: str = "") -> Prompt:
        """Apply the chat template, if any, and tokenize."""

    def open(self) -> Session:
        """Return an empty session."""

    def close(self) -> None:
        """Free its memory; it cannot be used again."""


@dataclass(frozen=True)
class TextCompletion:
    """What a text-only model wrote."""

    text: str
    tokens: int
    finish_reason: FinishReason
    seconds: float


@runtime_checkable
class TextModel(Protocol):
    """A model behind an endpoint: prompts in, texts out."""

    name: str

    def complete(self, prompt: str, decoding: Decoding, *, seed: int) -> TextCompletion:
        """Complete one prompt.

        Raises:
            RunError: the endpoint failed for good.
        """

    def close(self) -> None:
        """Close its connections."""
