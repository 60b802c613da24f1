"""A decoding loop between the rows that are asked of it and its stream, whatever a row or the memory does to it.

Where memory is short, the loop is made anew with half its batch; where a head elsewhere was cut off, as it was. A
device that is lost ends the run: it would fail whatever it is asked. What else breaks a loop is looked for in halves
of its rows, until it is known whose fault it is; the others are decoded again without it.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence

import torch

from flowinfer.engine.base import Completion, Decoder, Row, RowStream
from flowinfer.engine.budget import gpus_of
from flowinfer.engine.faults import device_lost, reason, unless_lost
from flowinfer.engine.loops.aside import AsideStream
from flowinfer.engine.loops.decoder import PackedDecoder
from flowinfer.engine.loops.rounds import RoundDecoder
from flowinfer.engine.loops.stream import PackedStream
from flowinfer.errors import DeviceLost, HeadCut, MemoryShort, RunError, is_device_lost, is_memory_short
from flowinfer.planning.plan import Plan, Step, held_models, placement_of

_MOST_ALONE = 4
"""Rows that fail alone, before any has ended well, until it is no question's fault but the step's."""
_MOST_CUTS = 5
"""Connections that break, with no row ended well in between, until it is looked for the row that breaks them."""
_MAKE_ROOM = "lower max_tokens, use dtype=bfloat16, or place its models on other devices"


class DecodingLoop:
    """The rows of one step, or of several with equal models, weights and decoding.

    Args:
        plan: knows the models.
        step: what is decoded.
        make: makes the loop's decoder, and its batch if there is none yet.
        on_halved: hears the batch that is left where memory is short.
    """

    def __init__(
        self, plan: Plan, step: Step, make: Callable[[DecodingLoop], Decoder], on_halved: Callable[[int], None]
    ) -> None:
        self.plan, self.step = plan, step
        self.gpus = gpus_of(plan, step)
        """The GPUs that its models are placed on."""
        self.batch: int | None = None
        """Most rows at once; None where it has no batch, or is not made yet."""
        self.decoder: Decoder | None = None
        """None until the first row is to be decoded, or where it was let go."""
        self.together = 1
        """Rows of one question that wait for nothing but each other: in any batch they have room side by side."""
        self.gathers = False
        """Whether its next turn decodes nothing, since more rows will come; their prompts are read."""
        self._make, self._on_halved = make, on_halved
        self._stream: RowStream | None = None
        self._rows: dict[int, Row] = {}
        """Those that are in the stream, or would be if it were open."""
        self._apart: list[list[Row]] = []
        """Groups of rows that are decoded after them, each by itself, while it is looked for what breaks the loop."""
        self._num_alone = 0
        """How many rows have failed alone; -1 once one has ended well."""
        self._num_cuts = 0
        """How many connections to heads elsewhere broke since a row ended well."""
        self._widest: int | None = None
        """The batch before memory was short."""

    @property
    def num_rows(self) -> int:
        """Return how many rows have not ended."""
        return len(self._rows) + sum(map(len, self._apart))

    @property
    def is_full(self) -> bool:
        """Return whether its rows fill a batch."""
        return self.batch is not None and self.num_rows >= self.batch

    @property
    def is_busy(self) -> bool:
        """Return whether its turns keep the host from all else."""
        return self.decoder is not None and self.decoder.keeps_host_busy

    @property
    def is_waiting(self) -> bool:
        """Return whether its last turn found nothing to do before a device or an endpoint has done its part."""
        return self._stream is not None and self._stream.is_waiting

    @property
    def reads_ahead(self) -> bool:
        """Return whether it can read prompts of rows without decoding any."""
        return isinstance(self.decoder, PackedDecoder)

    def add(self, row: Row) -> None:
        """Take a row."""
        if self._apart:
            self._apart[-1].append(row)
        else:
            self._take(row)

    def end(self, row: Row) -> None:
        """Let a row go that nobody wants any more: no completion comes for it."""
        if self._rows.pop(id(row), None) is not None and self._stream is not None:
            with unless_lost():  # the next turn meets it
                self._stream.end(row)
        self._apart = [left for group in self._apart if (left := [one for one in group if one is not row])]

    def turn(self) -> Sequence[Completion]:
        """Make the loop, or bring it on; return the rows that ended.

        Raises:
            LoadError, MemoryShort: a model cannot be loaded or not even one row fits.
            RunError: the step fails for every row.
            DeviceLost: one of its devices has failed.
            BaseException: what was raised is the run's.
        """
        if self.decoder is None:
            self._remake()
            return ()
        broken = None
        try:
            stream = self._opened()
            ended = stream.read_ahead() if self.gathers and isinstance(stream, PackedStream) else stream.turn()
        except BaseException as error:  # what is not a question's is raised
            if is_device_lost(error):
                raise self._lost(error) from error
            self.close()
            broken = self._after(error)
        if broken is not None:
            free_cached()  # only now is nothing left that the error held on to
            ended = broken
        for completion in ended:
            del self._rows[id(completion.row)]
            if completion.result is not None:
                self._num_alone, self._num_cuts = -1, 0  # it does not fail as such
        if not self._rows:
            self._go_on()
        return ended

    def wait(self) -> None:
        """Wait until another turn can do something."""
        if self._stream is not None and self._stream.is_waiting:
            with unless_lost():  # as above
                self._stream.wait()

    def close(self) -> None:
        """Break the stream off; its rows begin anew in the next one."""
        stream, self._stream = self._stream, None
        if stream is not None:
            with unless_lost():
                stream.close()

    def clear(self) -> None:
        """Break the stream off and forget all rows."""
        self._rows, self._apart, self.gathers = {}, [], False
        self.close()

    def let_go(self) -> None:
        """Give the decoder's memory back; the next turn makes another."""
        self.close()
        self.decoder = None

    def _opened(self) -> RowStream:
        if self._stream is None:
            assert self.decoder is not None, "made before"
            waits = isinstance(self.decoder, RoundDecoder) and self.decoder.waits_elsewhere
            self._stream = AsideStream(self.decoder.stream) if waits else self.decoder.stream()
            for row in self._rows.values():
                self._stream.add(row)
        return self._stream

    def _take(self, row: Row) -> None:
        self._rows[id(row)] = row
        if self._stream is not None:
            self._stream.add(row)

    def _go_on(self) -> None:
        """Take the next group of rows that were set apart; where there is none, give a host's keys and values back."""
        if self._apart:
            for row in self._apart.pop(0):
                self._take(row)
        elif not self.gpus:
            self.close()

    def _remake(self) -> None:
        """Make the decoder, with half the batch where memory is short."""
        is_short = False
        try:
            self.decoder = self._make(self)
        except (MemoryError, RuntimeError) as error:
            if is_device_lost(error):
                raise self._lost(error) from error
            self._halve(error)
            is_short = True
        if is_short:
            free_cached()

    def _after(self, error: BaseException) -> Sequence[Completion]:
        """Decide how rows go on whose stream an error broke; return those that have failed.

        Short memory halves the batch; a cut connection begins all of them anew. Else, and where one row at a time is
        too many, each half of the rows goes on alone, those with the shorter prompts first; a single row has failed.
        """
        rows = list(self._rows.values())
        if not rows:
            raise error
        if isinstance(error, HeadCut) and self._num_cuts < _MOST_CUTS:
            self._num_cuts += 1
            self.let_go()
            return ()
        is_short = is_memory_short(error)
        if is_short and self.batch != 1:
            self._halve(error)
            return ()
        problem = _too_large(self.step) if is_short else _reason(error)
        self.let_go()
        if len(rows) > 1:
            rows.sort(key=lambda row: sum(map(len, row.prompts.values())))
            self._rows = {id(row): row for row in rows[: len(rows) // 2]}
            self._apart.insert(0, rows[len(rows) // 2 :])
            return ()
        if self._num_alone >= 0:
            self._num_alone += 1
            if is_short:
                raise MemoryShort(problem, help=_MAKE_ROOM) from error
            if self._num_alone == _MOST_ALONE:
                raise RunError(f"step {self.step.id} {self.step.title} fails for every question: {problem}") from error
        if is_short:
            self.batch = self._widest
        return [Completion(rows[0], None, problem)]

    def _lost(self, error: BaseException) -> DeviceLost:
        """Return the error that names the device that has failed, as far as one can tell, and the models on it.

        Devices that exchange memory fail together, and any of their loops may be the first to meet it.
        """
        places = {name: tuple(placement_of(self.plan, name).parts) for name in self.plan.models}
        own = devices_of(self.plan, self.step)
        lost = [device for device in _every(places) if _is_lost(device)]
        devices, places = (lost, places) if lost else (_every(own), own)
        names = [f"'{name}'" for name, parts in places.items() if set(parts) & set(devices)]
        where = f"{' or '.join(devices)} with {' and '.join(names)}"
        return device_lost(where, error, when=f"in step {self.step.id} {self.step.title}")

    def _halve(self, error: BaseException) -> None:
        """Let go of the decoder; the next one gets half its batch.

        Raises:
            MemoryShort: its batch was one row.
            BaseException: the error itself, where it tells of something else or no batch was chosen yet.
        """
        if self.batch is None or not is_memory_short(error):
            raise error
        if self.batch == 1:
            raise MemoryShort(_too_large(self.step), help=_MAKE_ROOM) from error
        self._widest = self._widest or self.batch
        self.batch //= 2
        self.let_go()
        self._on_halved(self.batch)


def free_cached() -> None:
    """Give memory back that is kept for reuse; for after an error, when nothing holds on to what it broke."""
    gc.collect()  # decoders and what they hold may stand in circles
    if torch.cuda.is_available():
        with unless_lost():
            torch.cuda.empty_cache()


def devices_of(plan: Plan, step: Step) -> dict[str, tuple[str, ...]]:
    """Return the devices of each model that a step holds, by the model's name."""
    return {name: tuple(placement_of(plan, name).parts) for name in held_models(plan, step)}


def _every(places: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the devices of models, each once."""
    return list(dict.fromkeys(device for parts in places.values() for device in parts))


def _is_lost(device: str) -> bool:
    """Return whether a device fails whatever it is asked."""
    try:
        if device.startswith("cuda") and torch.cuda.is_available():
            torch.cuda.synchronize(device)
    except RuntimeError:
        return True
    return False


def _reason(error: BaseException) -> str:
    return error.message if isinstance(error, HeadCut) else reason(error)


def _too_large(step: Step) -> str:
    return f"step {step.id} {step.title} does not fit into memory even for one question"
