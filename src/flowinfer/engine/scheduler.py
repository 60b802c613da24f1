"""The scheduler: questions through shared steps, side by side, each step as soon as all that it reads is written.

One plan or many: `exec` is a merge of one plan, a sweep a merge of many (`planning.merge`). A step that comes to the
same prompts as one that is on its way waits for that one's result; what is in the cache is taken from there. From a
question to the first tensor there are three owners: the `Scheduler` knows which step of which question may begin, a
`DecodingLoop` holds the rows of all steps that decode together and survives what a row or the memory does to it, and
its `RowStream` decodes them, a turn at a time.

One thread and no locks; `alternation.py` says which loops are brought on next.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from hashlib import sha256
from typing import TYPE_CHECKING

from flowinfer.engine.alternation import Alternation
from flowinfer.engine.base import Completion, Observer, Row
from flowinfer.engine.caching import Caching
from flowinfer.engine.decoders import Decoders
from flowinfer.engine.faults import question_fails
from flowinfer.engine.patience import Patience
from flowinfer.engine.waiting import OnTheWay, Turn
from flowinfer.engine.work import Asked, Finished, render_prompts
from flowinfer.errors import DeviceLost, FlowInferError, HeadLost, RunError
from flowinfer.planning.merge import SharedSelection, SharedStep
from flowinfer.planning.plan import Step, held_models, members
from flowinfer.results import StepResult

if TYPE_CHECKING:
    from flowinfer.engine.routing import Router

_IDLE_SECONDS = 1e-2
"""Between looks at a source that has no question now."""


class Scheduler:
    """Run shared steps.

    Args:
        steps: all of them, each after those that it reads.
        decoders: make the loops.
        caching: where results are kept.
        observer: hears of steps that were taken from the cache.
        patience: for a loop's first step, when to give the loop up. Where it is given, what breaks a loop breaks its
            steps and nothing else; where not, it is raised.
        serves: whether questions come without end: then what breaks a loop ends the rows that are in it, the next ones
            are tried anew, and loops that keep the host busy take turns.
        clock: gives the seconds by which quorums go.
    """

    def __init__(
        self,
        steps: Sequence[SharedStep],
        decoders: Decoders,
        caching: Caching,
        observer: Observer,
        *,
        patience: Callable[[SharedStep], Patience] | None = None,
        serves: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._decoders, self._caching, self._observer, self._new_patience = decoders, caching, observer, patience
        self._serves = serves
        self._steps = {shared.id: shared for shared in steps}
        self._first: dict[str, SharedStep] = {}
        """By loop: the step whose nodes its rows have."""
        self._readers: dict[str, list[SharedStep]] = {shared.id: [] for shared in steps}
        self._selections: dict[str, list[SharedSelection]] = {}
        """Those that may be taken once a step, or another selection, has its text."""
        self._quorums: dict[str, SharedSelection] = {}
        self._routed: list[SharedSelection] = []
        self._goes_by_clock = False
        for shared in steps:
            self._first.setdefault(shared.loop, shared)
            for read in shared.before:
                self._readers[read].append(shared)
            for selection in shared.selections:
                texts = [text for candidate in selection.candidates for text in candidate]
                for text in (*texts, *selection.judges):
                    self._selections.setdefault(text, []).append(selection)
                if selection.selection.quorum is not None:
                    self._quorums[selection.id] = selection
                if selection.selection.routes is not None:
                    self._routed.append(selection)
        self._loops = {
            name: decoders.loop(name, first.plan, _widest([shared.step for shared in steps if shared.loop == name]))
            for name, first in self._first.items()
        }
        for name, loop in self._loops.items():
            loop.together = _together([shared for shared in steps if shared.loop == name])
        self._alternation = Alternation(self._loops, steps, decoders.may_begin, serves=serves)
        self._now: set[str] = set()
        """Steps that may run now."""
        self._open: dict[int, Asked] = {}
        """Questions that these steps have still something to do for."""
        self._rows = OnTheWay()
        self._patience: dict[str, Patience] = {}
        self._lost: dict[str, str] = {}
        """Loops that broke, and why."""
        self.broken: dict[str, str] = {}
        """Shared steps that could not run at all, and why."""

    def run(
        self,
        source: Iterable[Asked | None],
        *,
        most: int | None = None,
        waves: Sequence[Sequence[SharedStep]] = (),
    ) -> Iterator[Finished]:
        """Yield every wanted step of every question as it ends.

        Args:
            source: of questions, taken as others leave; None = it has none now, but may have later.
            most: questions on their way at once; None = all.
            waves: steps whose models are in memory together, where not all are; each wave over all questions.
        """
        rules = [one.selection.quorum for one in self._quorums.values()]
        has_clock = any(rule and (rule.timeout is not None or rule.wait is not None) for rule in rules)
        self._goes_by_clock = has_clock and len(waves) <= 1  # else members wait for one another's turn
        try:
            if len(waves) <= 1:
                yield from self._run(tuple(self._steps.values()), iter(source), most)
                return
            everything = list(_whole(source))
            for wave in waves:
                yield from self._run(wave, iter(everything), None, frees_models=True)
        finally:
            for loop in self._loops.values():
                loop.clear()
            self._open, self._rows = {}, OnTheWay()

    def prepare(self) -> None:
        """Make every loop now, with its models, tables, memory and routes: the first question shall not wait for them.

        Raises:
            LoadError, MemoryShort: a model cannot be loaded or not even one row fits.
        """
        together = {name: (first.plan, first.step) for name, first in self._first.items()}
        self._decoders.run_together(together, are_resident=True)
        for loop in self._loops.values():
            while loop.decoder is None:
                loop.turn()
        for one in self._routed:
            _router(one)

    def withdraw(self, asked: Asked) -> None:
        """Take a question back: its rows leave their loops, nothing more is told of it, and no other text changes.

        For the thread that runs the scheduler, between two of its answers.
        """
        for shared in list(asked.wanted):
            self._leave(asked, shared)
        asked.wanted.clear()
        self._open.pop(id(asked), None)

    def _run(
        self,
        steps: Sequence[SharedStep],
        source: Iterator[Asked | None],
        most: int | None,
        *,
        frees_models: bool = False,
    ) -> Iterator[Finished]:
        """Run some steps, whose models find room together."""
        self._now = {shared.id for shared in steps}
        firsts = [self._first[loop] for loop in dict.fromkeys(shared.loop for shared in steps)]
        together = {first.loop: (first.plan, first.step) for first in firsts}
        self._decoders.run_together(together, are_resident=self._serves)
        is_over = False
        while True:
            while not is_over and (most is None or len(self._open) < most):
                try:
                    asked = next(source)
                except StopIteration:
                    is_over = True
                    break
                if asked is None:
                    break
                self._open[id(asked)] = asked
                yield from self._pick(asked)
                yield from self._begin(asked, steps)
                self._close(asked)
            if self._rows:
                if frees_models:
                    names = [name for first in firsts for name in held_models(first.plan, first.step)]
                    self._decoders.keep_only(firsts[0].plan, names)
                    frees_models = False
                yield from self._go_on()
            elif is_over:
                return
            else:
                time.sleep(_IDLE_SECONDS)

    def _pick(self, asked: Asked) -> Iterator[Finished]:
        """Let routes pick a question's members before any of them runs; tell of the steps that need not run."""
        routed = [one for one in self._routed if asked.is_open(one) and one.id not in asked.tried]
        if not routed:
            return
        for selection in routed:
            asked.pick(selection, _router(selection).pick(asked.question.whole))
        yield from self._skip_idle(asked)

    def _skip_idle(self, asked: Asked) -> Iterator[Finished]:
        """Tell of a question's steps that need not run any more."""
        for name in [name for name in asked.wanted if self._is_idle(name, asked)]:
            self._leave(asked, name)
            asked.skip(name)
            yield Finished(self._steps[name], asked, False)

    def _begin(self, asked: Asked, steps: Iterable[SharedStep]) -> Iterator[Finished]:
        """Begin the steps of a question that can begin now; tell of those that ended at once."""
        waiting = deque(steps)
        while waiting:
            shared = waiting.popleft()
            is_new = shared.id in asked.wanted and not self._rows.has(asked, shared.id)
            if is_new and shared.id in self._now and asked.may_begin(shared):
                for lane in shared.lanes if self._goes_by_clock else ():
                    asked.begun.setdefault(lane.selection, self._clock())
                with question_fails(partial(asked.fail, shared.id)):
                    self._queue(shared, asked)
                if shared.id not in asked.wanted:
                    waiting += yield from self._told(shared, asked, is_fresh=False)

    def _queue(self, shared: SharedStep, asked: Asked) -> None:
        """Let a question's step wait for the row of its key, take it from the cache, or give its loop a row."""
        read = {own: asked.texts(name) or () for own, name in shared.reads.items()}
        passed_on = {own: [asked.results[step].passed_on for step in steps] for own, steps in read.items()}
        prompts = render_prompts(shared.plan, shared.step, asked.question, asked.text(asked.question), passed_on)
        key = self._caching.key(shared.plan, shared.step, prompts, asked.question.id)
        key += f"-{shared.draw}" if key and shared.draw else ""
        chooses = shared.step.decoding.by == "likelihood"
        candidates = (asked.candidates or tuple(asked.question.choices)) if chooses else ()
        key += f"-{sha256(repr(candidates).encode()).hexdigest()[:16]}" if key and candidates else ""
        turn = Turn(shared, asked, prompts)
        if self._rows.joined(turn, key):
            return
        adopted = self._caching.found(turn, key)
        if adopted is not None:
            self._observer.finished(asked.question.id, adopted)
            asked.accept(shared.id, adopted)
        elif shared.loop in self._lost:
            self.broken[shared.id] = self._lost[shared.loop]
            asked.fail(shared.id, self._lost[shared.loop])
        else:
            own = {member.node: member for member in members(shared.step.source)}
            there = dict(zip(self._first[shared.loop].nodes, shared.nodes, strict=True))
            row = Row(
                asked.question.id,
                shared.step.id,
                {node: prompts[here] for node, here in there.items()},
                tuple(said for texts in passed_on.values() for said in texts),
                asked.decodings.get(shared.id, shared.step.decoding),
                asked.noise_id,
                shared.step.stream,
                asked.turns.get(shared.id, ()),
                candidates,
                not asked.candidates,
                {node: own[here] for node, here in there.items()},
            )
            self._rows.add(row, turn, key)
            self._loops[shared.loop].add(row)

    def _go_on(self) -> Iterator[Finished]:
        """Give a turn to every loop whose turn it is."""
        for name in self._alternation.next():
            yield from self._bring_on(name)
        if self._goes_by_clock:
            yield from self._look_at_clock()
        self._alternation.rest()

    def _bring_on(self, name: str) -> Iterator[Finished]:
        """Give a loop a turn."""
        completions: Sequence[Completion] = ()
        problem = None
        try:
            completions = self._loops[name].turn()
        except HeadLost as error:  # it may be there again for the next rows
            if not self._bears(name):
                raise
            problem = error.message
            if self._serves:
                self._observer.notice(f"error: {problem}; the next question looks for it again")
        except DeviceLost:  # whatever else were asked of it would fail too, and be blamed
            raise
        except Exception as error:  # whatever it is, the other loops can go on; it is told with what it broke
            if self._new_patience is None and not self._serves:
                raise
            problem = error.message if isinstance(error, FlowInferError) else f"{type(error).__name__}: {error}"
        for completion in completions:
            yield from self._settle(completion)
            problem = problem or self._impatience(name, completion.error)
        if problem is not None:
            yield from self._lose(name, problem)

    def _bears(self, name: str) -> bool:
        """Return whether a loop can lose its rows and others go on: all of them are members of quorums, or others'."""
        steps = [shared for shared in self._steps.values() if shared.loop == name]
        return self._serves or self._new_patience is not None or all(shared.lanes for shared in steps)

    def _impatience(self, name: str, error: str | None) -> str | None:
        """Return why a loop is given up, if it is."""
        if self._new_patience is None:
            return None
        if name not in self._patience:
            self._patience[name] = self._new_patience(self._first[name])
        try:
            self._patience[name].hear(error)
        except RunError as stopped:
            return stopped.message
        return None

    def _lose(self, name: str, problem: str) -> Iterator[Finished]:
        """End all that a loop decodes: it is broken, for good where that is told of its steps."""
        is_final = self._new_patience is not None
        if is_final:
            self._lost[name] = problem
        self._loops[name].clear()
        self._loops[name].let_go()
        for waiting in self._rows.of_loop(name):
            if is_final:
                self.broken |= {turn.shared.id: problem for turn in waiting.turns}
            yield from self._settle(Completion(waiting.row, None, problem))

    def _settle(self, completion: Completion) -> Iterator[Finished]:
        """Take how a row ended for all that waited for it."""
        waiting = self._rows.take(completion.row)
        if waiting is None:  # it was withdrawn in the turn in which it ended
            return
        stored: StepResult | None = None
        for index, turn in enumerate(waiting.turns):
            if turn.shared.id not in turn.asked.wanted:
                continue
            with question_fails(partial(turn.asked.fail, turn.shared.id)):
                if completion.result is None:
                    turn.asked.fail(turn.shared.id, completion.error or "failed")
                else:
                    stored = stored or self._caching.keep(completion.result, waiting)
                    turn.asked.accept(turn.shared.id, self._caching.share(stored, waiting, turn))
            yield from self._ended(turn.shared, turn.asked, is_fresh=index == 0)

    def _ended(
        self, shared: SharedStep, asked: Asked, *, is_fresh: bool, lost: Sequence[SharedSelection] = ()
    ) -> Iterator[Finished]:
        """Tell of a step that ended, then begin those that waited for it.

        Args:
            lost: quorums that have lost a member.
        """
        yield from self._begin(asked, (yield from self._told(shared, asked, is_fresh=is_fresh, lost=lost)))
        self._close(asked)

    def _told(
        self, shared: SharedStep, asked: Asked, *, is_fresh: bool, lost: Sequence[SharedSelection] = ()
    ) -> Generator[Finished, None, Sequence[SharedStep]]:
        """Tell of a step that ended, and of those that need not run any more; return those that may begin."""
        has_decided, lost = False, [*lost, *self._borne(shared, asked)]
        with question_fails(partial(asked.fail, shared.id)):
            has_decided = any([self._decide(shared.id, asked), *(self._take(one, asked) for one in lost)])
        needless = asked.needless() if shared.id in asked.errors else []
        yield Finished(shared, asked, is_fresh)
        for name in needless:
            if name in asked.wanted:
                self._leave(asked, name)
                asked.fail(name, asked.errors[shared.id])
                yield Finished(self._steps[name], asked, False)
        if not has_decided and not lost:
            return self._readers[shared.id]
        yield from self._skip_idle(asked)
        return [self._steps[name] for name in asked.wanted]

    def _is_idle(self, name: str, asked: Asked) -> bool:
        """Return whether a step need not run: a condition fails, or its member of a quorum is lost."""
        lanes = self._steps[name].lanes
        is_lost = any(lane.member in asked.lost.get(lane.selection, ()) for lane in lanes)
        return is_lost or asked.holds(self._steps[name].when) is False

    def _borne(self, shared: SharedStep, asked: Asked) -> list[SharedSelection]:
        """Return the quorum that goes on without a step's member if the step has failed; the failure is then none."""
        for lane in reversed(shared.lanes) if shared.id in asked.errors else ():
            quorum = self._quorums[lane.selection]
            if asked.can_lose(quorum, 1):
                asked.lose(quorum, lane.member, asked.errors.pop(shared.id))
                asked.skip(shared.id)
                return [quorum]
        return []

    def _decide(self, text: str, asked: Asked) -> bool:
        """Go on with the selections that a text, which is there now, is a candidate of; return whether any went on."""
        return any([self._take(selection, asked) for selection in self._selections.get(text, ())])

    def _take(self, selection: SharedSelection, asked: Asked) -> bool:
        """Go on with a selection, and with those that wait for it; return whether it went on."""
        if not asked.is_open(selection) or not asked.decide(selection):
            return False
        self._decide(selection.id, asked)
        return True

    def _look_at_clock(self) -> Iterator[Finished]:
        """Let quorums go on without the members that they have waited for long enough."""
        for asked in [asked for asked in self._open.values() if asked.begun]:
            for quorum in [self._quorums[name] for name in asked.begun if name not in asked.taken]:
                late = asked.overdue(quorum, self._clock())
                steps = [step for member in asked.missing(quorum) for step in quorum.lanes[member]]
                running = next((step for step in steps if step in asked.wanted), None)
                if late is None or running is None:  # none: the question has failed, by other members of it
                    continue
                if asked.can_lose(quorum, len(asked.missing(quorum))):
                    for member in asked.missing(quorum):
                        asked.lose(quorum, member, f"no answer after {late:.3g} s", late)
                    asked.skip(running)
                else:
                    asked.fail(running, f"fewer answers than min={quorum.selection.rule.at:.0f} after {late:.3g} s")
                self._leave(asked, running)
                lost = [quorum] if running in asked.skipped else []
                yield from self._ended(self._steps[running], asked, is_fresh=False, lost=lost)

    def _leave(self, asked: Asked, shared: str) -> None:
        """Let a step of a question wait for nothing; end its row where nobody else waits for it."""
        waiting = self._rows.leave(asked, shared)
        if waiting is not None:
            self._loops[waiting.loop].end(waiting.row)

    def _close(self, asked: Asked) -> None:
        """Let a question go that has nothing left to do in these steps, so that another can come."""
        if not any(shared in self._now for shared in asked.wanted):
            self._open.pop(id(asked), None)


def _router(selection: SharedSelection) -> Router:
    """Return what picks a selection's candidate."""
    from flowinfer.engine.routing import router_of  # with scipy, which few flows need

    assert selection.selection.routes is not None, "it picks by routes"
    return router_of(selection.selection.routes)


def _widest(steps: Sequence[Step]) -> Step:
    """Return the first step with room for what the longest of them may write; a row has options of its own."""
    most = max(step.decoding.max_tokens for step in steps)
    return replace(steps[0], decoding=steps[0].decoding.model_copy(update={"max_tokens": most}))


def _together(steps: Sequence[SharedStep]) -> int:
    """Return how many rows of a loop one question has side by side, along one plan: samples, or equal members."""
    return max(Counter((shared.owner, shared.depth) for shared in steps).values())


def _whole(source: Iterable[Asked | None]) -> Iterator[Asked]:
    """Yield all questions that ever come."""
    for asked in source:
        if asked is None:
            time.sleep(_IDLE_SECONDS)
        else:
            yield asked
