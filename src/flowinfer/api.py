"""The Python interface: as small as the command line. Models are loaded once per flow and kept."""

from __future__ import annotations

import atexit
import queue
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, overload

import networkx as nx

from flowinfer.errors import RunError, UsageError, in_python_words, of_arguments
from flowinfer.language.check import check, check_file
from flowinfer.language.examples import located
from flowinfer.language.options import option_text
from flowinfer.planning import plan as plans
from flowinfer.planning.graph import build
from flowinfer.spec import Flow as CheckedFlow
from flowinfer.zoo import Zoo

if TYPE_CHECKING:
    from flowinfer.engine.models import ModelPool
    from flowinfer.results import Record
    from flowinfer.runs.ask import Answer
    from flowinfer.runs.evaluation import Evaluation
    from flowinfer.serving.calls import Calls


@in_python_words()
def load(path: str | Path, *, zoo: Zoo | str | None = None, params: Mapping[str, object] | None = None) -> Flow:
    """Load a `.flow` file.

    Args:
        path: the file, or the name of a packaged pipeline.
        zoo: a zoo, or the name or path of one; chosen as on the command line if not given.
        params: values for the flow's params, or for options of its defaults (max_tokens=64).
    Raises:
        FlowError: with all errors of the flow.
    """
    return Flow(check_file(located(str(path)), zoo=zoo, overrides=_texts(params)))


@in_python_words()
def parse(text: str, *, zoo: Zoo | str | None = None, params: Mapping[str, object] | None = None) -> Flow:
    """Read a flow from text; see `load`."""
    if not isinstance(text, str):
        raise TypeError(f"text must be a text, not {type(text).__name__}")
    return Flow(check(text, zoo=zoo, overrides=_texts(params)))


class Flow:
    """A checked flow that can be drawn, run and evaluated.

    Use it as a context manager, or call `close`, to free its models before it is collected.
    """

    def __init__(self, flow: CheckedFlow) -> None:
        self.flow = flow
        """The checked flow."""
        self._models: ModelPool | None = None
        self._calls: Calls | None = None

    @property
    def graph(self) -> nx.DiGraph[str]:
        """Return the flow as a graph of text and token edges."""
        return build(self.flow)

    @in_python_words()
    def plan(self) -> plans.Plan:
        """Return the plan, with the models placed on this machine's devices."""
        from flowinfer.machine import this_machine
        from flowinfer.planning.placement import place

        return place(plans.compile(self.flow), this_machine())

    @overload
    def run(self, question: str) -> Answer: ...

    @overload
    def run(self, question: list[str] | tuple[str, ...]) -> list[Answer]: ...

    @in_python_words()
    def run(self, question: str | list[str] | tuple[str, ...]) -> Answer | list[Answer]:
        """Answer one question, or many at once; each has the answer that it has alone.

        Raises:
            UsageError: one is empty.
            RunError: models cannot be loaded, or a question failed.
        """
        if isinstance(question, list | tuple):
            from flowinfer.runs.ask import ask_all

            return [_whole(answer) for answer in ask_all(self.flow, question, models=self._pool())]
        return self._answer(question)

    @in_python_words()
    def likelihood(self, question: str, texts: Sequence[str]) -> dict[str, float]:
        """Return how likely the flow is to answer with each of some texts: logarithms of probabilities.

        Earlier stages write as ever; the last one, a model or a fused group, reads the texts and writes nothing.

        Raises:
            UsageError: there is nothing to ask, or the last stage gives no probabilities.
            RunError: models cannot be loaded, or the question failed.
        """
        from flowinfer.runs.ask import likelihoods

        return likelihoods(self.flow, question, texts, models=self._pool())

    async def arun(self, question: str) -> Answer:
        """Answer one question; what several tasks ask at once is decoded together.

        Raises:
            UsageError: it is empty.
            RunError: models cannot be loaded, or the question failed.
        """
        from flowinfer.runs.ask import Answer

        trace = await self._called().answer(question)
        return _whole(Answer(trace.answer, trace, tuple(filter(None, (self.flow.zoo_note,)))))

    def astream(self, question: str) -> AsyncIterator[str]:
        """Yield the answer to one question in pieces, as it is written: `async for piece in flow.astream(...)`."""
        return self._called().pieces(question)

    def stream(self, question: str) -> Iterator[str]:
        """Yield the answer to one question in pieces, as it is written; pieces join to the whole answer.

        Who stops reading ends the answer.

        Raises: as `run`.
        """
        pieces: queue.Queue[str | BaseException | None] = queue.Queue()
        self._pool()  # made here, as two threads may stream

        is_left = threading.Event()

        def tell(text: str) -> None:
            if is_left.is_set():
                raise _Left
            if text:
                pieces.put(text)

        def leave() -> None:
            is_left.set()
            if thread is not threading.current_thread():  # which may be the one that collects this generator
                thread.join()

        def work() -> None:
            try:
                with in_python_words():
                    self._answer(question, tell)
            except BaseException as error:  # handed to the reader, who sees it raised
                pieces.put(error)
            else:
                pieces.put(None)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        atexit.register(leave)  # Python must not end below a thread that runs a model
        try:
            while (piece := pieces.get()) is not None:
                if isinstance(piece, BaseException):
                    raise piece
                yield piece
        finally:
            leave()
            atexit.unregister(leave)

    @in_python_words()
    def evaluate(
        self,
        dataset: str | Path,
        *,
        data: str | Path | Mapping[str, str | Path] | None = None,
        limit: int | None = None,
        sample: int | None = None,
        seed: int = 42,
        ids: Sequence[str] | None = None,
        answer_index: Literal[0, 1, "none"] | None = None,
        few_shot: int = 0,
        batch: int | Literal["auto"] = "auto",
        engine: Literal["auto", "packed", "reference"] = "auto",
        out: str | Path | None = None,
        resume: str | Path | None = None,
        use_cache: bool = True,
        replicas: int | Literal["auto"] = 1,
        cluster: str | None = None,
        on_record: Callable[[Record], None] | None = None,
    ) -> Evaluation:
        """Run the flow over a data set.

        Args:
            dataset: a name that `flowinfer datasets` lists, or the path of a .jsonl file.
            data: local file or folder of that data set; or by name, `NAME:dev` of its examples.
            limit, sample, seed, ids: which questions; see `flowinfer exec --help`.
            answer_index: what answers count from that are indices of options; told from the data if not given.
            few_shot: worked examples above each question, of the data set's dev split.
            batch: most rows at once; 1 is the paper's protocol.
            engine: which decoding loops may serve; see `flowinfer exec --help`.
            out: where the run folder goes ("runs" on the command line); None keeps nothing.
            resume: go on with a run under `out`, or "runs": its path, name or `latest`.
            use_cache: take finished steps of earlier runs.
            replicas: copies of the plan, each in a process with GPUs, or CPU cores, of its own where there are several.
            cluster: address of a Ray cluster that they run on, or `auto`; None for this machine.
            on_record: hears each judged answer.
        Raises:
            UsageError: an argument is not what it can be.
            DataError: the data cannot be read.
            RunError: models cannot be loaded or do not fit.
        """
        from flowinfer.runs.evaluation import Evaluation
        from flowinfer.runs.experiment import Request, evaluate
        from flowinfer.tasks.base import language_note, load_for

        _refuse_odd(
            limit=limit,
            sample=sample,
            seed=seed,
            few_shot=few_shot,
            ids=ids,
            batch=batch,
            engine=engine,
            replicas=replicas,
        )
        kept: list[Record] = []
        request = Request(
            out=Path(out) if out is not None else None,
            batch=batch,
            engine=engine,
            resume=None if resume is None else str(resume),
            use_cache=use_cache,
            replicas=replicas,
            cluster=cluster,
        )
        chosen = {"limit": limit, "sample": sample, "seed": seed, "ids": ids, "few_shot": few_shot}
        named = _paths(str(dataset), data)
        questions = load_for([self.flow], str(dataset), data=named, answer_index=answer_index, **chosen)
        results = evaluate(self.flow, questions, request, on_record=on_record, into=kept, models=self._pool())
        note = language_note(self.flow, questions.questions, questions.label)
        return Evaluation(results, tuple(kept), _python_notes(self.flow.zoo_note, note))

    def close(self) -> None:
        """Free the models."""
        if self._calls is not None:
            self._calls.close()
            self._calls = None
        if self._models is not None:
            self._models.close()
            self._models = None

    def __enter__(self) -> Flow:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        from flowinfer.drawing.text import render

        return f"Flow {self.flow.name}\n{render(self.flow)}"

    def _repr_html_(self) -> str:
        from flowinfer.drawing.svg import render

        return render(self.flow)

    def _answer(self, question: str, on_text: Callable[[str], None] | None = None) -> Answer:
        from flowinfer.runs.ask import ask

        return _whole(ask(self.flow, question, on_text=on_text, models=self._pool()))

    def _called(self) -> Calls:
        from flowinfer.serving.calls import Calls

        if self._calls is None:
            self._calls = Calls(self.flow, self._pool())
        return self._calls

    def _pool(self) -> ModelPool:
        from flowinfer.engine.models import ModelPool

        if self._models is None:
            self._models = ModelPool()
        return self._models


class _Left(BaseException):
    """Nobody reads the answer any more."""


Pipeline = Flow
"""Its former name."""


def _texts(params: Mapping[str, object] | None) -> dict[str, str]:
    return {name: option_text(value) for name, value in (params or {}).items()}


def _paths(dataset: str, data: str | Path | Mapping[str, str | Path] | None) -> dict[str, Path]:
    """Return local files and folders by data set, also where there is one only."""
    given = data if isinstance(data, Mapping) else {} if data is None else {dataset: data}
    return {name: Path(path) for name, path in given.items()}


def _refuse_odd(*, batch: object, engine: object, ids: object, replicas: object, **numbers: object) -> None:
    """Refuse arguments of another kind at once, not when they are first used."""
    for name, value in numbers.items():
        if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
            raise UsageError(f"{name} must be a whole number, not {value!r}")
    if isinstance(ids, str):
        raise UsageError(f"ids must be a list of ids, not the text {ids!r}", help=f"ids=[{ids!r}]")
    for name, value in (("batch", batch), ("replicas", replicas)):
        if value != "auto" and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise UsageError(f"{name} must be 'auto' or a whole number of at least 1, not {value!r}")
    if engine not in ("auto", "packed", "reference"):
        raise UsageError(f"engine must be 'auto', 'packed' or 'reference', not {engine!r}")


def _whole(answer: Answer) -> Answer:
    """Return an answer with its notes in Python's words, unless its question failed.

    Raises:
        RunError: it did.
    """
    if answer.trace.error is not None:
        raise RunError(answer.trace.error)
    return replace(answer, notes=_python_notes(*answer.notes))


def _python_notes(*notes: str | None) -> tuple[str, ...]:
    return tuple(of_arguments(note) for note in notes if note)
