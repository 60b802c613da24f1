"""Which options do something where they are written, and what is said of those that do not.

An option that nothing below its place can use is an error where it is written for these stages, and a warning where
`defaults` or --set say it for the whole flow. Where only another option's value takes its effect away, it is a warning.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from flowinfer.errors import Span
from flowinfer.language.reporter import Reporter
from flowinfer.language.tree import Option
from flowinfer.registry import backends, fusers
from flowinfer.spec import Decoding, ModelSpec

_FOR_GROUPS = ("fuse", "topk", "thinking", "lstrip_first")
"""What says how heads work together: one head alone has no use for it."""
_NOT_FOR_FUSERS = {
    "byte": {
        "context": "heads read a text in every way in which they may have written it",
        "speculate": "bytes are chosen one by one",
        "strict": "a near tie of bytes is not decided again",
    },
    "safe": {
        "context": "the writer reads its own tokens, the others those of their tokenizers",
        "speculate": "the writer writes ahead as it is",
        "strict": "a near tie is not decided again",
    },
}
"""Options that a group with one of these fusers has no use for, and why."""
_FOR_WRITING = ("max_tokens", "temperature", "top_p", "stop", "speculate", "strict")
"""Options that a step which chooses among texts has no use for."""


@dataclass(frozen=True)
class Given:
    """The value of an option, and where it comes from."""

    value: Any  # of any option's type
    option: Option | None
    """As written; None for --set."""
    origin: Literal["stage", "defaults", "set"]


@dataclass(frozen=True)
class Step:
    """What decodes on its own: a stage, or a whole `|` group."""

    models: tuple[ModelSpec, ...]
    is_group: bool
    is_first: bool
    """Whether no text comes before it."""


@dataclass(frozen=True)
class _Idle:
    """Why an option does nothing at a step."""

    code: str
    """W0200 where another option's value is the reason."""
    message: str
    help: str
    is_backend: bool = False


@dataclass
class _Uses:
    key: str
    given: Given
    is_used: bool = False
    idle: list[_Idle] = field(default_factory=list)


class Effects:
    """Hears of every step of a flow, then reports the options that do nothing."""

    def __init__(self, report: Reporter) -> None:
        self._report = report
        self._uses: dict[tuple[str, Span | None], _Uses] = {}

    def step(self, step: Step, options: Mapping[str, Given]) -> None:
        """Take note of the options that a step is decoded with."""
        for key, given in options.items():
            if _asks_nothing(key, given.value):
                continue
            uses = self._uses.setdefault((key, given.option.span if given.option else None), _Uses(key, given))
            idle = _idle(key, step, options)
            if idle is None:
                uses.is_used = True
            else:
                uses.idle.append(idle)

    def report(self, flow: Span, fuser_options: Mapping[str, Option], used: Collection[str]) -> None:
        """Report what does nothing.

        Args:
            flow: the place of the flow, for what --set says.
            fuser_options: parameters of fusers in `defaults`.
            used: those of them that a group has.
        """
        for uses in self._uses.values():
            self._tell(uses, flow)
        for key, option in fuser_options.items():
            if key not in used:
                owners = " or ".join(f"fuse={name}" for name, info in fusers().items() if key in info.parameters)
                message = f"option '{key}' of the defaults does nothing: no group of the flow has {owners}"
                self._report.warning("W0200", message, option.span, "leave it out, or choose that fuser")

    def _tell(self, uses: _Uses, flow: Span) -> None:
        given = uses.given
        from_backend = [idle for idle in uses.idle if idle.is_backend]
        if uses.is_used and not from_backend:
            return
        idle = (from_backend or uses.idle)[0]
        word = given.option.word if given.option else uses.key
        span = given.option.span if given.option else flow
        if given.origin == "stage" and not uses.is_used and idle.code != "W0200":
            self._report.error(idle.code, idle.message.replace(f"'{uses.key}'", f"'{word}'", 1), span, idle.help)
        else:
            where = {"stage": "", "defaults": " of the defaults", "set": " of --set"}[given.origin]
            message = idle.message.replace(f"'{uses.key}'", f"'{word}'{where}", 1)
            self._report.warning("W0200", message, span, idle.help)


def _asks_nothing(key: str, value: Any) -> bool:
    """Return whether a value is what would happen anyway."""
    return value == Decoding.model_fields[key].get_default(call_default_factory=True) or (key, value) == (
        "speculate",
        "off",
    )


def _idle(key: str, step: Step, options: Mapping[str, Given]) -> _Idle | None:
    """Return why an option does nothing at a step, or None."""

    def value(name: str) -> Any:
        return options[name].value if name in options else Decoding.model_fields[name].default

    is_for_all = key in _FOR_GROUPS and options[key].origin != "stage"  # then groups elsewhere may be meant
    for model in () if is_for_all else step.models:
        if not backends()[model.backend].heeds(key):
            message = f"option '{key}' does nothing at '{model.name}': backend '{model.backend}' takes no notice of it"
            heeded = ", ".join(name for name in Decoding.model_fields if backends()[model.backend].heeds(name))
            return _Idle("E0208", message, f"leave it out; such a model heeds {heeded}", is_backend=True)
    if not step.is_group and key in _FOR_GROUPS:
        hint = "it says how heads write together: (A | B)[...]"
        return _Idle("E0205", f"option '{key}' belongs to a '|' group", hint)
    for fuse, reasons in _NOT_FOR_FUSERS.items() if step.is_group else ():
        if key in reasons and fusers()[value("fuse")].target == fusers()[fuse].target:
            return _Idle("W0200", f"option '{key}' does nothing with fuse={fuse}", f"leave it out: {reasons[key]}")
    if key in _FOR_WRITING and value("by") == "likelihood":
        hint = "leave it out, or leave by=likelihood out"
        return _Idle("W0200", f"option '{key}' does nothing with by=likelihood: nothing is written", hint)
    if key == "fuse" and value("by") == "likelihood" and fusers()[value("fuse")].target == fusers()["safe"].target:
        hint = "leave it out: a given text has no writer, and its likelihood is that of the mean"
        return _Idle("W0200", "option 'fuse' does nothing with by=likelihood where it is safe", hint)
    if key == "speculate":
        return _idle_speculation(value("speculate"), step)
    if key == "top_p" and value("temperature") == 0:  # a seed may be named before anything samples
        return _Idle("W0200", "option 'top_p' does nothing at temperature 0", "add temperature=0.7, or leave it out")
    if key in ("lstrip_first", "thinking") and value("prefill"):
        return _Idle("W0200", f"option '{key}' does nothing beside prefill", "leave one of them out")
    return None


def _idle_speculation(draft: str, step: Step) -> _Idle | None:
    if draft == "upstream" and step.is_first:
        message = "option 'speculate' cannot be 'upstream' in the first stage: no text comes before it"
        return _Idle("E0206", message, "use speculate=ngram, or leave it out")
    if draft == "alternate" and not step.is_group:
        message = "option 'speculate' cannot be 'alternate' at one model: its heads would draft in turn"
        return _Idle("E0206", message, "use speculate=ngram or the name of a smaller model, or leave it out")
    return None
