"""The rows of one step between those who ask for them and the decoder that writes them."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing

from flowinfer.engine.base import Completion, Row, RowStream, StreamingDecoder
from flowinfer.engine.decoders import Decoders, free_cached
from flowinfer.planning.plan import Plan, Step


class StepFeed:
    """Rows of a step: they come when their prompts are known and go when they have ended.

    Args:
        decoders: make the step's decoder when its first row is to be decoded.
        plan: knows the models.
        step: what to decode.
    """

    def __init__(self, decoders: Decoders, plan: Plan, step: Step) -> None:
        self._decoders, self._plan, self._step = decoders, plan, step
        self._left: dict[int, Row] = {}
        self._stream: RowStream | None = None

    @property
    def num_rows(self) -> int:
        """Return how many rows have not ended."""
        return len(self._left)

    @property
    def is_streamed(self) -> bool:
        """Return whether the step's decoder can run beside others, a turn at a time."""
        return isinstance(self._decoders.decoder(self._step.id, self._plan, self._step), StreamingDecoder)

    @property
    def is_waiting(self) -> bool:
        """Return whether only the device can bring the stream on."""
        return self._stream is not None and self._stream.is_waiting

    def add(self, row: Row) -> None:
        """Take a row."""
        self._left[id(row)] = row
        if self._stream is not None:
            self._stream.add(row)

    def withdraw(self, row: Row) -> None:
        """Give a row up if it has not been handed to the decoder."""
        if self._stream is None:
            self._left.pop(id(row), None)

    def turn(self) -> Sequence[Completion]:
        """Bring the stream on; where it breaks, go on with half the batch, or look for the row whose fault it is."""
        ended: Sequence[Completion] = ()
        self._decoders.decoder(self._step.id, self._plan, self._step)  # what it raises is the run's
        after = None
        try:
            ended = self._opened().turn()
        except BaseException as error:  # what is not a question's is raised
            self.close()
            after = self._decoders.after(self._step.id, self._step, error, list(self._left.values()))
        for completion in ended:
            self._decoders.ended(self._step.id, completion)
            del self._left[id(completion.row)]
        if after is None:
            return ended
        free_cached()  # only now is nothing left that the error held on to
        for completion in after.failed:
            del self._left[id(completion.row)]
        return [*after.failed, *(self.drain() if len(after.groups) > 1 else ())]

    def drain(self) -> Generator[Completion, None, None]:
        """Decode all rows that are there; yield each as it ends."""
        rows = list(self._left.values())
        with closing(self._decoders.decode(self._step.id, self._plan, self._step, rows)) as completions:
            for completion in completions:
                del self._left[id(completion.row)]
                yield completion

    def close(self) -> None:
        """Break the stream off."""
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()

    def _opened(self) -> RowStream:
        if self._stream is None:
            decoder = self._decoders.decoder(self._step.id, self._plan, self._step)
            assert isinstance(decoder, StreamingDecoder), "is_streamed was asked"
            self._stream = decoder.stream()
            for row in self._left.values():
                self._stream.add(row)
        return self._stream
