"""Flows kept ready: questions go in from one thread, another decodes them all, what happens to each comes back.

The engine's thread is the only one that touches models. It hears of new questions and of those that are wanted no more
between two turns of its loops, and gives back what has happened since, in one go.
"""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Literal

from flowinfer.backends.base import TextModel, TokenModel
from flowinfer.engine.base import NoCache, Observer, TokenEvent
from flowinfer.engine.caching import Caching
from flowinfer.engine.decoders import Decoders, LoopState
from flowinfer.engine.decoding import free_cached
from flowinfer.engine.faults import question_fails
from flowinfer.engine.loops.choice import Engine
from flowinfer.engine.loops.given import Given, read
from flowinfer.engine.models import ModelPool
from flowinfer.engine.scheduler import Scheduler
from flowinfer.engine.work import Asked, trace_of
from flowinfer.errors import DeviceLost, FlowInferError, RunError, is_memory_short
from flowinfer.planning.merge import SharedStep
from flowinfer.planning.plan import members
from flowinfer.results import StepResult, Trace
from flowinfer.serving.flows import Asking, ServedFlow
from flowinfer.serving.happenings import STOPPED, Admitted, Answered, Failed, Happening, StepEnded, Wrote, WroteText
from flowinfer.serving.loading import Loading, State
from flowinfer.serving.responder import Deliver, ReplicaState
from flowinfer.serving.shifts import Shifts
from flowinfer.serving.tickets import Hear, Ticket, failed, tell_all, tell_one

SWITCH_SECONDS = 1e-3
"""Longest that one thread keeps the others from running Python: the engine's must not wait for those who ask, nor the
other way round."""
_QUIET_SECONDS = 1.0
"""How long the end waits for the engine's thread and says nothing: a turn of its loops is shorter."""
MOST_UNDER_WAY = 64
"""Questions of one flow that the engine has at once; the others wait, so that each flow gets its share."""
OURS = "an error of the server's own; its log says more"


class Service:
    """Answer questions to flows.

    Args:
        flows: see `flows.served`.
        steps: their steps.
        deliver: brings what happened to those who listen.
        batch: most rows of a decoding loop.
        engine: which loops may serve.
        models: a pool to share; else one is made and closed.
        loads_at_once: whether models are loaded before the first question.
        cpu_bytes: what of the host's memory its keys and values may count with; None: all.
        on_notice: hears what the user should know.
        on_bug: hears the traceback of a bug of ours, after which the next question is answered.
    """

    replicas: Sequence[ReplicaState] = ()
    """See `Responder`."""

    def __init__(
        self,
        flows: Sequence[ServedFlow],
        steps: Sequence[SharedStep],
        deliver: Deliver,
        *,
        batch: int | Literal["auto"] = "auto",
        engine: Engine = "auto",
        models: ModelPool | None = None,
        loads_at_once: bool = True,
        cpu_bytes: int | None = None,
        on_notice: Callable[[str], None] = lambda notice: None,
        on_bug: Callable[[str], None] = lambda told: print(told, file=sys.stderr, flush=True),
    ) -> None:
        self.flows = {flow.name: flow for flow in flows}
        self.loading = Loading()
        self.on_notice, self._on_bug = on_notice, on_bug
        self._steps, self.deliver, self._loads_at_once = tuple(steps), deliver, loads_at_once
        self._pool, self._owns_pool = models or ModelPool(), models is None
        self._ears = _Ears(self)
        self._shifts = Shifts({flow.name: flow.shift for flow in flows})
        self._new_decoders = partial(Decoders, self._pool, self._ears, batch, engine, cpu_bytes=cpu_bytes)
        self._lock = threading.Lock()
        """Guards what both threads change: the lists of questions that wait and of those that are wanted no more."""
        self._waiting: dict[str, deque[Ticket]] = {name: deque() for name in self.flows}
        self._unwanted: deque[Ticket] = deque()
        self.under_way: dict[str, Ticket] = {}
        """By question id; the engine's thread changes it."""
        self._happened: list[tuple[Ticket, Happening]] = []
        self._wake = threading.Event()
        self._is_closing = False
        self._number = 0
        self.changed = threading.Event()
        """Set once the models are loaded, or cannot be."""
        self._decoders = self._new_decoders()
        self._scheduler = self._new_scheduler()
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def start_and_wait(self) -> None:
        """Begin to work, and wait until the models are loaded.

        Raises:
            FlowInferError: they cannot be; the service is closed then.
        """
        self.start()
        self.changed.wait()
        if self.loading.problem is not None:
            self.close()
            raise self.loading.problem

    @property
    def num_waiting(self) -> int:
        """Return how many questions the engine has not taken yet."""
        return sum(map(len, self._waiting.values()))

    def submit(self, asking: Asking, hear: Hear, *, wants_tokens: bool = False, num_tops: int = 0) -> Ticket:
        """Hand a question in; what happens to it is heard until it has ended or was withdrawn."""
        with self._lock:
            self._number += 1
            given = None if asking.echoes is None else Given(asking.question, num_tops, bool(asking.echoes))
            ticket = Ticket(asking.flow, asking.asked(f"r{self._number}"), hear, wants_tokens, num_tops, given)
            if self._is_closing or self.loading.problem is not None:
                problem = self.loading.problem.message if self.loading.problem else STOPPED
                self.deliver(lambda: tell_one(ticket, failed(ticket, problem)))
            else:
                self._waiting[asking.flow.name].append(ticket)
        self._wake.set()
        return ticket

    def withdraw(self, ticket: Ticket) -> None:
        """Take a question back: nothing more is heard of it, and it stops costing anything within a turn."""
        ticket.is_over = True
        with self._lock:
            with suppress(ValueError):
                self._waiting[ticket.flow.name].remove(ticket)
                return
            self._unwanted.append(ticket)
        self._wake.set()

    def context_length(self, flow: ServedFlow) -> int | None:
        """Return the most tokens that all models of a flow read, answer included; None before they are loaded."""
        models = [self._pool.peek(flow.plan, name) for name in flow.plan.models]
        if not all(models):
            return None
        return min((model.max_positions for model in models if isinstance(model, TokenModel)), default=None)

    @property
    def loops(self) -> list[LoopState]:
        """Return how full the decoding loops are."""
        return self._decoders.states

    def told(self) -> dict[str, Any]:
        """Return how far the models are, as plain data."""
        return self.loading.to_json(tuple(self.flows.values()), self._pool)

    def close(self) -> None:
        """End all that is under way with an error, and free the models."""
        with self._lock:
            self._is_closing = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(_QUIET_SECONDS)
        if self._thread.is_alive():
            what = f"{self.loading.now} is loaded" if self.loading.now else "the models have done what they are at"
            self.on_notice(f"stopping as soon as {what}")
            self._thread.join()

    def _new_scheduler(self) -> Scheduler:
        nothing = NoCache()
        caching = Caching(lambda *_: nothing, lambda *_: "", lambda *_: "", lambda plan, step, prompts: list(prompts))
        now = {use.shared for flow in self._on_shift() for use in flow.uses.values()}
        steps = [step for step in self._steps if step.id in now]
        return Scheduler(steps, self._decoders, caching, self._ears, serves=True)

    def _renew(self) -> None:
        self._decoders = self._new_decoders()
        self._scheduler = self._new_scheduler()

    def _on_shift(self) -> list[ServedFlow]:
        """Return the flows whose models are in memory now, or may be."""
        return [flow for flow in self.flows.values() if self._shifts.is_on(flow.name)]

    def _work(self) -> None:
        """Run the engine until the service is closed; what is a bug of ours ends what is under way and nothing else."""
        try:
            if self._loads_at_once:
                self._scheduler.prepare()
            self._is_now("ready")
        except FlowInferError as error:
            if not self._is_closing:  # it need not wait for a head any more, and nobody need hear of that
                self._give_up(error)
        except BaseException:  # a bug of ours: whoever waits for the models must hear of it
            self._on_bug(traceback.format_exc())
            self._give_up(RunError(OURS))
        finally:
            self.changed.set()
        try:
            while not self._is_closing:
                try:
                    self._answer()
                    self._change_shift()
                except DeviceLost as error:
                    self._give_up(error)
                except Exception:  # whatever it is, the next question is not to blame
                    self._on_bug(traceback.format_exc())
                    self._fail_all(OURS)
                    self._scheduler = self._new_scheduler()
        finally:
            self._fail_all(STOPPED)
            self._is_now("closed")
            if self._owns_pool:
                self._pool.close()

    def _is_now(self, state: State) -> None:
        self.loading.state = state
        self.deliver(self.loading.on_change)

    def _change_shift(self) -> None:
        """Load the models of those who have waited longest, where others are in memory; these have nothing to do."""
        with self._lock:
            shift = self._shifts.following(self._waiting)
        if shift is None or self._is_closing:
            return
        start = time.perf_counter()
        self._decoders.let_go()
        self._shifts.begin(shift)
        self._pool.keep_all_of((flow.plan, name) for flow in self._on_shift() for name in flow.plan.models)
        free_cached()
        self._renew()
        names = ", ".join(flow.name for flow in self._on_shift())
        try:
            self._scheduler.prepare()
        except DeviceLost:
            raise
        except FlowInferError as error:
            self._fail_all(error.message, [flow.name for flow in self._on_shift()])
        seconds = time.perf_counter() - start
        self._shifts.has_begun(seconds)
        self.loading.swap_seconds.append(seconds)
        self._ears.notice(f"swapped: models of {names} are in memory now; that took {seconds:.1f} s")

    def _answer(self) -> None:
        for finished in self._scheduler.run(self._source()):
            ticket = self.under_way.get(finished.asked.question.id)
            if ticket is None or not finished.asked.is_done:
                continue
            del self.under_way[finished.asked.question.id]
            trace = trace_of(ticket.flow.plan, ticket.flow.uses, ticket.asked)
            self.note(ticket, Answered(trace) if trace.error is None else Failed(trace.error, trace))

    def _source(self) -> Iterator[Asked | None]:
        """Yield questions as there is room for them; between two of them, look after all that is not decoding."""
        while not self._is_closing:
            self.flush()
            self._drop_unwanted()
            ticket = self._next()
            if ticket is not None and ticket.given is not None:
                self._read(ticket, ticket.given)
            elif ticket is not None:
                self.under_way[ticket.asked.question.id] = ticket
                yield ticket.asked
            elif self.under_way:
                yield None
            elif self._shifts.gives_way(self._waiting):
                return
            else:
                self._wake.wait()
                self._wake.clear()
        for ticket in self.under_way.values():
            self._scheduler.withdraw(ticket.asked)

    def _read(self, ticket: Ticket, given: Given) -> None:
        """Read a text, between two turns of the loops."""
        plan, question_id = ticket.flow.plan, ticket.asked.question.id
        self.under_way[question_id] = ticket  # what breaks the engine is told to it too
        try:
            with question_fails(lambda why: self.note(ticket, failed(ticket, why))):
                models = [self._pool.get(plan, name, self._ears) for name in plan.models]
                named = dict(zip(plan.models, models, strict=True))
                heads = [named[member.model] for member in members(plan.steps[0].source)]
                found = read(plan.steps[0], [head for head in heads if not isinstance(head, TextModel)], given)
                result = found.result
                reason, seconds = result.finish_reason, result.seconds
                trace = Trace(
                    question_id=question_id, answer=result.text, finish_reason=reason, seconds=seconds, steps=(result,)
                )
                self.note(ticket, Answered(trace, found.tokens))
        except Exception as error:
            if not is_memory_short(error):
                raise
            free_cached()
            self.note(ticket, failed(ticket, "memory was too short to read the text"))
        del self.under_way[question_id]

    def _next(self) -> Ticket | None:
        """Return a question of the flow that has fewest under way."""
        with self._lock:
            if not any(self._waiting.values()) or self._shifts.gives_way(self._waiting):
                return None
            counts = dict.fromkeys(self.flows, 0)
            for ticket in self.under_way.values():
                counts[ticket.flow.name] += 1
            open_ = [
                name
                for name, waiting in self._waiting.items()
                if waiting and counts[name] < MOST_UNDER_WAY and self._shifts.is_on(name)
            ]
            if not open_:
                return None
            return self._waiting[min(open_, key=counts.__getitem__)].popleft()

    def _drop_unwanted(self) -> None:
        while self._unwanted:
            ticket = self._unwanted.popleft()
            if self.under_way.pop(ticket.asked.question.id, None) is not None:
                self._scheduler.withdraw(ticket.asked)

    def _give_up(self, error: FlowInferError) -> None:
        self.loading.problem = error
        self._is_now("failed")
        self._fail_all(error.message)

    def _fail_all(self, reason: str, names: Sequence[str] | None = None) -> None:
        """End what is under way, and the questions that wait for some flows, or for any."""
        with self._lock:
            queues = [waiting for name, waiting in self._waiting.items() if names is None or name in names]
            left = [*self.under_way.values(), *(ticket for waiting in queues for ticket in waiting)]
            self.under_way.clear()
            for waiting in queues:
                waiting.clear()
        for ticket in left:
            self.note(ticket, failed(ticket, reason))
        self.flush()

    def note(self, ticket: Ticket, happening: Happening) -> None:
        """Keep what has happened until the next turn; for the engine's thread."""
        if not ticket.is_over:
            self._happened.append((ticket, happening))

    def flush(self) -> None:
        """Bring what has happened to those who listen; for the engine's thread."""
        if self._happened:
            happened, self._happened = self._happened, []
            self.deliver(lambda: tell_all(happened))


class _Ears(Observer):
    """Hears the engine for a service."""

    wants_tokens = True

    def __init__(self, service: Service) -> None:
        self._service = service

    @property
    def num_tops(self) -> int:  # type: ignore[override]  # it changes with who asks
        """Return the most alternatives that anybody wants now."""
        return max((ticket.num_tops for ticket in list(self._service.under_way.values())), default=0)

    @property
    def is_leaving(self) -> bool:  # type: ignore[override]  # as above
        return self._service._is_closing

    def model_loading(self, name: str, device: str) -> None:
        self._service.loading.now = name
        self.notice(f"loading {name} on {device}")

    def model_loaded(self, name: str, seconds: float) -> None:
        self._service.loading.now = ""
        self._service.loading.loaded[name] = seconds
        self._service.deliver(self._service.loading.on_change)

    def model_failed(self, name: str) -> None:
        self._service.loading.now = ""
        self._service.deliver(self._service.loading.on_change)

    def notice(self, message: str) -> None:
        self._service.loading.notices.append(message)
        self._service.on_notice(message)
        self._service.deliver(self._service.loading.on_change)

    def batch_halved(self, batch: int) -> None:
        self.notice(f"memory was short: {batch} rows at once from now on")

    def admitted(self, question_id: str, step: str, *, opens_thinking: bool = False) -> None:
        if (ticket := self._service.under_way.get(question_id)) is not None:
            self._service.note(ticket, Admitted(step, opens_thinking))

    def emitted(self, question_id: str, step: str, event: TokenEvent) -> None:
        ticket = self._service.under_way.get(question_id)
        if ticket is not None and ticket.wants_tokens:
            self._service.note(ticket, Wrote(step, event))

    def wants_text(self, question_id: str, step: str) -> bool:
        ticket = self._service.under_way.get(question_id)
        return ticket is not None and ticket.wants_tokens

    def wrote(self, question_id: str, step: str, text: str) -> None:
        if (ticket := self._service.under_way.get(question_id)) is not None:
            self._service.note(ticket, WroteText(step, text))

    def tokens_emitted(self, count: int) -> None:
        self._service.flush()

    def finished(self, question_id: str, result: StepResult) -> None:
        if (ticket := self._service.under_way.get(question_id)) is not None:
            self._service.note(ticket, StepEnded(result))
