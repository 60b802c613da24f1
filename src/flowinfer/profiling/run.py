"""Profile a flow: every step taken apart, beside the same step in the real decoder and the floor of its memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import cycle

import torch

from flowinfer.backends.base import TextModel, TokenModel, network_of
from flowinfer.engine.base import Row
from flowinfer.engine.decoders import Decoders
from flowinfer.engine.faults import device_lost
from flowinfer.engine.loops.mixing import fusing_device, runs_on_host
from flowinfer.engine.work import render_prompts
from flowinfer.errors import MemoryShort, UsageError, is_device_lost
from flowinfer.machine import this_machine
from flowinfer.planning.placement import ready
from flowinfer.planning.plan import Plan, Step, fusers_of, members
from flowinfer.profiling.bandwidth import copy_bandwidth
from flowinfer.profiling.endless import EndlessPool
from flowinfer.profiling.figures import DeviceFigures, HeadFigures, Profile, Spread, StepFigures, WholeFigures
from flowinfer.profiling.parts import Parts, take_apart
from flowinfer.profiling.spans import Recorder, Span
from flowinfer.profiling.whole import Ticks, decode_whole
from flowinfer.results import Question
from flowinfer.spec import Flow
from flowinfer.zoos.toy import provide

QUESTIONS = (
    "A shop sells 12 apples in the morning and 30 more in the afternoon. How many apples does it sell?",
    "A train leaves at 3:45 and needs 90 minutes. When does it arrive?",
    "What is the derivative of 3*x**2 + 5*x?",
    "小明有3个苹果，又买了15个。他现在一共有多少个苹果？",
)
"""What is asked where no data set is named."""
_CACHED_BYTES = 1 << 26
"""Bytes per step below which a CPU may keep a step's weights in its caches."""


@dataclass(frozen=True)
class Request:
    """What to profile."""

    questions: tuple[Question, ...]
    """Asked in turn until the batch is full."""
    batch: int = 1
    steps: int = 32
    """Tokens that every row emits while measured."""
    question_text: Callable[[Question], str] | None = None


@dataclass(frozen=True)
class Profiled:
    """A profile and the phases that it was summed up from."""

    profile: Profile
    spans: tuple[Span, ...]


def built_in_questions() -> tuple[Question, ...]:
    """Return the questions that are asked where no data set is named."""
    return tuple(Question(id=f"p{i}", question=text, reference="") for i, text in enumerate(QUESTIONS))


def profile(flow: Flow, request: Request) -> Profiled:
    """Measure every step of a flow on this machine.

    Raises:
        UsageError: too many steps for a model's positions, or one that decodes nothing.
        RunError: models cannot be loaded or do not fit.
    """
    provide(flow.models.values())
    plan = ready(flow, this_machine())
    if choosing := [step.title for step in plan.steps if step.decoding.by == "likelihood"]:
        raise UsageError(f"{choosing[0]} chooses by likelihood: it decodes nothing to measure", help="--set by=text")
    pool = EndlessPool()
    try:
        return _Profiler(flow, plan, pool, request).run()
    except torch.OutOfMemoryError as error:
        raise MemoryShort(
            f"the batch of {request.batch} does not fit into memory", help="a smaller --batch or fewer --steps"
        ) from error
    except RuntimeError as error:
        if is_device_lost(error):
            lost = device_lost("the device", error, when="while it was measured")
            lost.help = "CUDA_VISIBLE_DEVICES can leave a device out"
            raise lost from error
        raise
    finally:
        pool.close()


class _Profiler:
    """One profile of one plan."""

    def __init__(self, flow: Flow, plan: Plan, pool: EndlessPool, request: Request) -> None:
        self._flow, self._plan, self._pool, self._request = flow, plan, pool, request
        self._ticks = Ticks()
        self._decoders = Decoders(pool, self._ticks, request.batch)
        self._bandwidths: dict[torch.device, float] = {}
        self._spans: list[Span] = []
        self._asked = [
            one.model_copy(update={"id": f"{one.id}-{index}"})
            for index, one in zip(range(request.batch), cycle(request.questions), strict=False)
        ]
        self._passed_on: dict[str, dict[str, str]] = {question.id: {} for question in self._asked}
        """By question and step."""

    def run(self) -> Profiled:
        waves = self._plan.waves
        steps = []
        for wave in waves:
            if len(waves) > 1:
                self._decoders.keep_only(self._plan, wave.models)
            steps += [self._step(self._plan.step(step_id)) for step_id in wave.steps]
        devices = tuple(DeviceFigures(str(device), rate) for device, rate in self._bandwidths.items())
        notes = (*self._ticks.notices, *self._notes(steps))
        made = Profile(
            self._flow.name, self._flow.zoo, self._request.batch, devices, tuple(steps), tuple(dict.fromkeys(notes))
        )
        return Profiled(made, tuple(self._spans))

    def _row(self, question: Question, step: Step) -> Row:
        text = self._request.question_text(question) if self._request.question_text else question.question
        passed_on = {name: [said] for name, said in self._passed_on[question.id].items()}
        prompts = render_prompts(self._plan, step, question, text, passed_on)
        return Row(question.id, step.id, prompts)

    def _step(self, step: Step) -> StepFigures:
        """Measure one step and pass its texts on."""
        short = replace(step, decoding=step.decoding.model_copy(update={"max_tokens": self._request.steps, "stop": ()}))
        rows = [self._row(question, step) for question in self._asked]
        heads = [self._pool.get(self._plan, member.model, self._ticks) for member in members(step.source)]
        models = [head for head in heads if not isinstance(head, TextModel)]
        parts = take_apart(short, models, rows, self._request.steps) if models else None
        whole = decode_whole(self._decoders, self._ticks, self._plan, short, rows)
        for completion in whole.completions:
            assert completion.result is not None, "refused by decode_whole"
            self._passed_on[completion.row.question_id][step.id] = completion.result.passed_on
        if parts is None:
            return _without_parts(short, len(rows), whole.figures)
        self._spans += parts.recorder.spans
        found_heads = self._heads(short, models, parts, len(rows) * parts.context)
        return self._figures(short, found_heads, models, parts.recorder, len(rows), parts.context, whole.figures)

    def _heads(self, step: Step, models: Sequence[TokenModel], parts: Parts, num_ids: float) -> list[HeadFigures]:
        recorder = parts.recorder
        whole, found = Spread.of(recorder.by_step()), []
        heads = zip(members(step.source), models, recorder.lanes, parts.prompt_tokens, parts.networks, strict=True)
        for member, model, lane, prompt_tokens, network in heads:
            forward = Spread.of(recorder.by_step("forward", lane))
            need = self._plan.needs.get(member.model)
            found.append(
                HeadFigures(
                    node=member.node,
                    model=member.model,
                    device=str(model.device) if network is None else self._plan.models[member.model].base_url or "",
                    network=network,
                    prompt_tokens=prompt_tokens,
                    prefill_seconds=recorder.prefill(lane),
                    forward=forward,
                    transfer=Spread.of(recorder.by_step("transfer", lane)),
                    forward_share=forward.mean / whole.mean,
                    step_bytes=_step_bytes(model, need.kv_bytes_per_token if need else None, num_ids),
                )
            )
        return found

    def _figures(
        self,
        step: Step,
        heads: Sequence[HeadFigures],
        models: Sequence[TokenModel],
        recorder: Recorder,
        batch: int,
        context: float,
        whole: WholeFigures,
    ) -> StepFigures:
        fuse, parts, used = Spread.of(recorder.by_step("fuse")), Spread.of(recorder.by_step()), fusers_of(step.source)
        return StepFigures(
            step=step.id,
            title=step.title,
            batch=batch,
            steps=self._request.steps,
            context=context,
            heads=tuple(heads),
            fuse=fuse,
            fuse_share=fuse.mean / parts.mean,
            fusers=used,
            host_fusers=tuple(name for name in used if runs_on_host(name)),
            fuse_device=str(fusing_device(models)),
            append=Spread.of(recorder.by_step("append")),
            host_wait=Spread.of(recorder.waits()),
            parts=parts,
            slowest=max(heads, key=lambda head: head.forward.mean).model,
            floor_seconds=self._floor(heads),
            whole=whole,
        )

    def _floor(self, heads: Sequence[HeadFigures]) -> float | None:
        """Return the least seconds of a step: on each device the bytes of its heads over its bandwidth."""
        per_device: dict[str, int] = {}
        for head in heads:
            if head.step_bytes is None:
                return None
            per_device[head.device] = per_device.get(head.device, 0) + head.step_bytes
        return max(num_bytes / self._bandwidth(device) for device, num_bytes in per_device.items())

    def _bandwidth(self, name: str) -> float:
        device = torch.device(name)
        if device not in self._bandwidths:
            self._bandwidths[device] = copy_bandwidth(device)
        return self._bandwidths[device]

    def _notes(self, steps: Sequence[StepFigures]) -> list[str]:
        notes = []
        if self._flow.zoo_note:
            notes.append(self._flow.zoo_note)
        if self._ticks.halved_to is not None:
            notes.append(f"memory was short: the decoder ran {self._ticks.halved_to} rows at once")
        on_cpu = [step for step in steps if all(head.device == "cpu" for head in step.heads)]
        if any((step.step_bytes or _CACHED_BYTES) < _CACHED_BYTES for step in on_cpu):
            notes.append("weights of a few MB may stay in the CPU's caches, where the floor does not bind")
        for step in steps:
            if step.host_fusers:
                names = ", ".join(step.host_fusers)
                notes.append(
                    f"{step.step}: fuser {names} works on the host, {1e3 * step.fuse.mean:.2f} ms a step in all"
                )
            if not step.heads:
                notes.append(f"{step.step}: answered by an endpoint, whose parts cannot be seen")
        return notes


def _without_parts(step: Step, batch: int, whole: WholeFigures) -> StepFigures:
    """Return the figures of an endpoint's step, of which no parts can be seen."""
    none = Spread.of([])
    return StepFigures(
        *(step.id, step.title, batch, step.decoding.max_tokens, 0.0, (), none, 0.0, (), (), ""),
        *(none, none, none, "", None, whole),
    )


def _step_bytes(model: TokenModel, kv_bytes_per_token: int | None, num_ids: float) -> int | None:
    """Return the bytes that a forward of one id in every row cannot but read.

    Args:
        model: its weights count without the input embedding, of which few rows are read, unless the output uses it too.
        kv_bytes_per_token: keys and values of one token of context.
        num_ids: of all rows together.
    """
    network = network_of(model)
    if network is None or kv_bytes_per_token is None:
        return None
    embedding, head = network.get_input_embeddings(), network.get_output_embeddings()
    is_shared = head is not None and head.weight is embedding.weight
    skipped = None if is_shared else embedding.weight
    weights = sum(one.numel() * one.element_size() for one in network.parameters() if one is not skipped)
    return int(weights + kv_bytes_per_token * num_ids)
