"""Options in brackets and braces: from written values to typed ones, with a message for each way to be wrong."""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from rapidfuzz import process
from rapidfuzz.distance import OSA

from flowinfer.language.nearness import did_you_mean, near_miss, near_or_all
from flowinfer.language.reporter import Reporter
from flowinfer.language.tree import Option, Value
from flowinfer.registry import FuserInfo, Parameter, backends, fusers
from flowinfer.spec import DRAFTS, Decoding, ModelSpec, device_words, place_help

DECODING_KEYS = tuple(name for name in Decoding.model_fields if name != "fuse_options")
TABLES = ("headers", "extra_body")
"""Options of a model that are tables, which only a zoo file can hold."""
MODEL_KEYS = tuple(name for name in ModelSpec.model_fields if name not in ("name", "ref", *TABLES))
FUSER_KEYS = tuple(dict.fromkeys(key for info in fusers().values() for key in info.parameters))

_LARGEST = 2**31 - 1
"""What a fuser's number may be where its registration says no bound: what every device can count to."""


class Scope:
    """Values of params, and which of them were used."""

    def __init__(self, params: Mapping[str, Any], report: Reporter) -> None:
        self.params = dict(params)
        self.used: set[str] = set()
        self.report = report
        self.renamed: list[Option] = []
        """Options that were written by a former word."""

    def data(self, value: Value) -> Any:  # an option's value may be of any type before it is checked
        """Return a value's data with params filled in; None after an unknown one has been reported."""
        if value.kind == "parameter":
            if value.data not in self.params:
                near = None if self.report.is_full else did_you_mean(value.data, self.params, prefix="$")
                hint = near or f"declare it: param {value.data}: int = 1"
                self.report.error("E0103", f"unknown param '${value.data}'", value.span, hint)
                return None
            self.used.add(value.data)
            return self.params[value.data]
        if value.kind == "list":
            return tuple(self.data(item) for item in value.data)
        if value.kind == "word" and value.data in ("true", "false"):
            return value.data == "true"
        return value.data


@dataclass(frozen=True)
class SpeculationProblem:
    """Why a value of `speculate` is refused."""

    code: str
    message: str
    help: str


def option_text(value: object) -> str:
    """Write a value as options are written: true, not True."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def unknown_option(key: str, own: Sequence[str]) -> str:
    """Return the cure for an option that its place does not have: a slip of the pen, another place, or the list.

    Args:
        own: the options of the place.
    """
    if key in _ABSENT:
        return _ABSENT[key]
    places = {
        **dict.fromkeys(MODEL_KEYS, 'a model declaration: model M = "..." {{ {key}=... }}'),
        **dict.fromkeys(DECODING_KEYS, "a stage, a group or defaults: M[{key}=...]"),
        **dict.fromkeys((*FUSER_KEYS, "fuse"), "a '|' group: (A | B)[fuse=..., {key}=...]"),
        "fuse": "a '|' group: (A | B)[fuse=...]",
        "prompt": "a stage: M[prompt=...]",
        "accept": "a '/' group: (A / B)[accept=...]",
        "pick": "a '/' group: (A / B)[pick=\"routes.json\"]",
        "until": "a repeat: (A)*3[until=...]",
        **dict.fromkeys(("samples", "enough"), "a model or a '|' group: M[samples=16, temperature=0.8]"),
        **dict.fromkeys(("min", "timeout", "wait"), "a '&' group: (A & B & C)[min=2, timeout=20, wait=3]"),
        "at": "a '/' group or a repeat: (A / B)[accept=confidence, at=0.9]",
        "prompts": "the file: defaults {{ prompts=... }}",
        "zoo": "the file: defaults {{ zoo=... }}",
        "name": "the file: defaults {{ name=... }}",
    }
    if key in TABLES:
        return f"'{key}' is a table of a zoo file, below [models.NAME]: --zoo FILE"
    word = _ALIASES.get(key, key)
    if word not in own and word in places:
        known = f"'{word}' is an option of " if word == key else f"did you mean '{word}', an option of "
        return known + places[word].format(key=word)
    if word != key:
        return f"did you mean '{word}'?"
    if near := near_miss(key, own, 0.6):
        return near
    elsewhere = process.extractOne(key, list(places), scorer=OSA.normalized_similarity, score_cutoff=0.6)
    if elsewhere and len(key) > 2:
        return f"did you mean '{elsewhere[0]}', an option of {places[elsewhere[0]].format(key=elsewhere[0])}?"
    return near_or_all(key, own, "options here")


_ABSENT = {
    "top_k": "there is no top_k: top_p cuts what sampling draws from",
    "min_p": "there is no min_p: top_p cuts what sampling draws from",
    **dict.fromkeys(
        ("repetition_penalty", "frequency_penalty", "presence_penalty", "logit_bias", "num_beams"),
        "there is no such option: a step is greedy, or samples with temperature and top_p",
    ),
    "do_sample": "a step samples where temperature is above 0",
    **dict.fromkeys(("weight", "weights"), "a weight stands behind its branch: (A:0.7 | B:0.3)"),
}
"""Options of other programs that there are not here."""

_ALIASES = {
    **dict.fromkeys(("max_new_tokens", "max_length", "max_output_tokens", "num_predict"), "max_tokens"),
    **dict.fromkeys(("system_prompt", "system_message", "instructions"), "system"),
    **dict.fromkeys(("api_base", "url", "endpoint"), "base_url"),
    **dict.fromkeys(("load_in_4bit", "load_in_8bit"), "quantization"),
    **{"torch_dtype": "dtype", "api_key": "api_key_env", "temp": "temperature", "stop_sequences": "stop"},
    **{"device_map": "device", "fuser": "fuse", "template": "prompt", "prompt_set": "prompts"},
}
"""Words of other programs for options."""


def check_unique(options: Sequence[Option], report: Reporter) -> None:
    """Report options that are given twice."""
    seen: set[str] = set()
    for option in options:
        if option.key in seen:
            report.error("E0204", f"option '{option.key}' is given twice", option.span, "keep one")
        seen.add(option.key)


def typed(option: Option, model: type[BaseModel], scope: Scope) -> tuple[Any] | None:
    """Return an option's value as its field wants it, in a tuple, or None after reporting what is wrong.

    Args:
        model: `Decoding` or `ModelSpec`, whose field of the option's name says the type and range.
    """
    if option.word != option.key:
        scope.renamed.append(option)
    data = scope.data(option.value)
    if data is None:
        return None
    report, span = scope.report, option.value.span
    annotation = model.model_fields[option.key].annotation
    choices = _choices(option.key, annotation)
    if choices and not any(one == data and type(one) is type(data) for one in choices):
        hint = near_or_all(option_text(data), [option_text(one) for one in choices], "one of")
        code = "E0102" if option.key == "fuse" else "E0206"
        what = "unknown fuser" if option.key == "fuse" else f"option '{option.word}' cannot be"
        report.error(code, f"{what} '{data}'", span, hint)
        return None
    wanted = _kind(annotation)
    if isinstance(data, str) and wanted == "texts":
        data = (data,)
    if not choices and not _fits(data, wanted):
        written = option.value.raw
        report.error("E0201", f"option '{option.word}' must be {_SAID[wanted]}, found {_said(data, written)}", span)
        return None
    try:
        model(**_minimal(model), **{option.key: data})
    except ValidationError as error:
        message = error.errors()[0]["msg"].removeprefix("Input should be ")
        is_device = option.key == "device"
        message = device_words(data) if is_device else message
        cure = place_help(data) if is_device else None
        report.error("E0202", f"option '{option.word}' must be {message}, found {option.value.raw}", span, cure)
        return None
    return (data,)


def speculation_problem(word: str, name: str, models: Mapping[str, ModelSpec]) -> SpeculationProblem | None:
    """Return what is wrong with a value of `speculate`: neither one of its words nor a model that can be a head.

    Args:
        word: the option as written.
    """
    if name in DRAFTS:
        return None
    if name not in models:
        hint = (
            did_you_mean(name, DRAFTS)
            or did_you_mean(name, models)
            or f"one of: {', '.join(DRAFTS)}, or the name of a model"
        )
        return SpeculationProblem("E0206", f"option '{word}' cannot be '{name}'", hint)
    if backends()[models[name].backend].text_only:
        hint = "name a local model, or one of: " + ", ".join(DRAFTS)
        return SpeculationProblem("E0302", f"model '{name}' gives texts only and cannot draft", hint)
    return None


def fuser_option(option: Option, info: FuserInfo, names: Sequence[str], scope: Scope) -> tuple[Any] | None:
    """Return a fuser's parameter as its registration wants it, in a tuple, or None after reporting.

    Args:
        names: of the group's branches that are models, for parameters that name one.
    """
    data, parameter, span = scope.data(option.value), info.parameters[option.key], option.value.span
    if data is None:
        return None
    problem = _parameter_problem(data, parameter, names)
    if problem:
        hint = parameter.doc
        if parameter.type == "model":
            hint = near_or_all(str(data), names, "branches") if names else "leave it out: all branches are groups"
        scope.report.error("E0202", f"option '{option.key}' of fuse={info.name} {problem}", span, hint)
        return None
    return (data,)


def _parameter_problem(data: Any, parameter: Parameter, names: Sequence[str]) -> str | None:
    if parameter.type == "model":
        return None if data in names else f"must name a branch of the group, found '{data}'"
    if parameter.type == "str":
        if parameter.choices and data not in parameter.choices:
            return f"must be {' or '.join(parameter.choices)}, found '{data}'"
        return None if isinstance(data, str) else f"must be a text, found '{data}'"
    is_number = isinstance(data, int | float) and not isinstance(data, bool)
    if not is_number or (parameter.type == "int" and not isinstance(data, int)):
        return f"must be a {'whole ' if parameter.type == 'int' else ''}number, found '{data}'"
    if not isfinite(data):
        return f"must be finite, found {data}"
    low, high = parameter.minimum, _LARGEST if parameter.maximum is None else parameter.maximum
    if low is not None and data < low:
        return f"must be at least {low:g}, found {data}"
    if data > high:
        return f"must be at most {high:g}, found {data}"
    if parameter.type == "float" and "not 0" in parameter.doc and data == 0:
        return "must not be 0"
    return None


_Kind = Literal["whole", "number", "text", "texts", "either", "flag"]
_SAID: Mapping[_Kind, str] = {
    "whole": "a whole number",
    "number": "a number",
    "text": "a text",
    "texts": "a text or a list of texts",
    "either": "a text or a list of texts",
    "flag": "true or false",
}


def _kind(annotation: Any) -> _Kind:
    if get_origin(annotation) in (types.UnionType, Union):
        if str in get_args(annotation) and type(None) not in get_args(annotation):
            return "either"
        annotation = next(part for part in get_args(annotation) if part is not type(None))
    if annotation is bool:
        return "flag"
    if annotation is int:
        return "whole"
    if annotation is float:
        return "number"
    return "texts" if get_origin(annotation) is tuple else "text"


def _fits(data: Any, wanted: _Kind) -> bool:
    match wanted:
        case "flag":
            return isinstance(data, bool)
        case "whole":
            return isinstance(data, int) and not isinstance(data, bool)
        case "number":
            return isinstance(data, int | float) and not isinstance(data, bool)
        case "either" if isinstance(data, str):
            return True
        case "texts" | "either":
            return isinstance(data, tuple) and all(isinstance(item, str) for item in data)
    return isinstance(data, str)


def _said(data: Any, written: str) -> str:
    written = written if len(written) <= 40 else written[:36] + " ..."
    if isinstance(data, bool):
        return f"'{written}'"
    return f"the text {written}" if isinstance(data, str) else f"'{written}'"


def _choices(key: str, annotation: Any) -> tuple[str | bool, ...]:
    if key == "fuse":
        return tuple(fusers())
    if key == "backend":
        return tuple(backends())
    return get_args(annotation) if get_origin(annotation) is Literal else ()


def _minimal(model: type[BaseModel]) -> dict[str, Any]:
    return {"name": "x", "ref": "x"} if model is ModelSpec else {}
