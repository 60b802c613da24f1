"""What `defaults`, params and --set say, before anything of the flow is resolved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

from pydantic import ValidationError

from flowinfer.errors import UsageError
from flowinfer.language.declarations import Declared
from flowinfer.language.effects import Given
from flowinfer.language.nearness import near_or_all
from flowinfer.language.options import (
    DECODING_KEYS,
    FUSER_KEYS,
    Scope,
    check_unique,
    speculation_problem,
    typed,
    unknown_option,
)
from flowinfer.language.prompts import PROMPT_SETS
from flowinfer.language.reporter import Reporter
from flowinfer.language.tree import Option, Param, Value
from flowinfer.registry import fusers
from flowinfer.spec import MODEL_NAMES, RENAMED, Decoding, ModelSpec, is_model_name


@dataclass
class Settings:
    """What `defaults` and overrides say."""

    decoding: dict[str, Given] = field(default_factory=dict)
    fuse_options: dict[str, tuple[Option, Any]] = field(default_factory=dict)
    prompts: str = "paper"
    zoo: str | None = None
    zoo_option: Option | None = None
    name: str | None = None


_PARAM_TYPES: Mapping[str, Any] = {"int": int, "float": (int, float), "str": str, "bool": bool}
_PARAM_SAID = {"int": "whole number", "float": "number", "str": "text in quotes", "bool": "true or false,"}


class Said:
    """What a text's `defaults` and params, and its overrides, say.

    Args:
        overrides: values of params and options by name, as `--set` gives them.
        report: for what is wrong in the text.
    """

    def __init__(self, overrides: Mapping[str, str], report: Reporter) -> None:
        self.overrides = dict(overrides)
        """Those that nothing has taken yet."""
        self.former: set[str] = set()
        """Options that overrides name by a former word."""
        self._report = report

    def params(self, declared: Declared) -> dict[str, Any]:
        """Return the values of params; None after a problem has been reported."""
        values: dict[str, Any] = {}
        for param in declared.params.values():
            values[param.name.text] = self._param(param)
        return values

    def _param(self, param: Param) -> Any:  # of the type that the param declares
        name, kind = param.name.text, param.type.text
        if kind not in _PARAM_TYPES:
            hint = near_or_all(kind, _PARAM_TYPES, "types")
            self._report.error("E0201", f"unknown type '{kind}' of param '{name}'", param.type.span, hint)
            return None
        if name in self.overrides:
            return _from_text(kind, self.overrides.pop(name), name)
        if param.default is None:
            hint = f"give it a default, or --set {name}=..."
            self._report.error("E0103", f"param '{name}' has no value", param.name.span, hint)
            return None
        data = param.default.data == "true" if _is_flag(param.default) else param.default.data
        if not isinstance(data, _PARAM_TYPES[kind]) or (kind != "bool" and isinstance(data, bool)):
            message = f"param '{name}' is declared {kind}, its default is {param.default.raw}"
            hint = f"write a {_PARAM_SAID[kind]} or another type"
            self._report.error("E0201", message, param.default.span, hint)
            return None
        return data

    def settings(self, declared: Declared, scope: Scope) -> Settings:
        """Return what `defaults` and overrides say."""
        settings = Settings()
        by_file: dict[str, list[Option]] = {}
        for defaults in declared.defaults:
            by_file.setdefault(defaults.span.file, []).extend(defaults.options)
        for options in by_file.values():
            check_unique(options, self._report)
            for option in options:
                self._setting(option, settings, scope)
        for name in [name for name in self.overrides if name in (*DECODING_KEYS, *RENAMED, "prompts")]:
            self._override(name, self.overrides.pop(name), settings)
            self.former |= {name} & set(RENAMED)
        return settings

    def _setting(self, option: Option, settings: Settings, scope: Scope) -> None:
        if option.key == "prompts":
            name = str(scope.data(option.value))
            if name not in PROMPT_SETS:
                hint = near_or_all(name, PROMPT_SETS, "prompt sets")
                self._report.error("E0110", f"unknown prompt set '{name}'", option.value.span, hint)
                return
            settings.prompts = name
        elif option.key == "zoo":
            settings.zoo, settings.zoo_option = str(scope.data(option.value)), option
        elif option.key == "name":
            settings.name = self._name(option, scope)
        elif option.key in DECODING_KEYS:
            value = typed(option, Decoding, scope)
            if value is not None:
                settings.decoding[option.key] = Given(value[0], option, "defaults")
        elif option.key in FUSER_KEYS:
            settings.fuse_options[option.key] = (option, scope.data(option.value))
        else:
            hint = unknown_option(option.key, (*DECODING_KEYS, *FUSER_KEYS, "prompts", "zoo", "name"))
            self._report.error("E0200", f"unknown option '{option.word}' in defaults", option.span, hint)

    def _name(self, option: Option, scope: Scope) -> str | None:
        """Return the name that clients of a server know the flow by; None after reporting what is wrong with it."""
        if option.span.file != self._report.file:
            hint = "write it where the flow is, or leave it out: then the file's name counts"
            self._report.error("E0205", "option 'name' belongs to the file that states the flow", option.span, hint)
            return None
        name = scope.data(option.value)
        if name is None or is_model_name(name):
            return None if name is None else str(name)
        self._report.error("E0202", f"option 'name' must be {MODEL_NAMES}, found {option.value.raw}", option.value.span)
        return None

    def _override(self, name: str, text: str, settings: Settings) -> None:
        """Apply --set to an option of `defaults`."""
        if name == "prompts":
            if text not in PROMPT_SETS:
                hint = near_or_all(text, PROMPT_SETS, "prompt sets")
                raise UsageError(f"--set prompts={text}: unknown prompt set", help=hint)
            settings.prompts = text
            return
        if name == "fuse" and text not in fusers():
            hint = near_or_all(text, fusers(), "fusers")
            raise UsageError(f"--set fuse={text}: unknown fuser", help=hint)
        key = RENAMED.get(name, name)
        if Decoding.model_fields[key].annotation in (bool, "bool") and text not in ("true", "false"):
            raise UsageError(f"--set {name}={text}: not a value of that option", help="expected true or false")
        try:
            checked = Decoding.model_validate({key: (text,) if name.startswith("stop") else text})
        except ValidationError as error:
            reason = error.errors()[0]["msg"].replace("Input should be", "expected")
            raise UsageError(f"--set {name}={text}: not a value of that option", help=reason) from error
        settings.decoding[key] = Given(getattr(checked, key), None, "set")

    def check_speculation(self, settings: Settings, models: Mapping[str, ModelSpec]) -> None:
        """Report a value of `speculate` in `defaults` or --set that is neither a word nor a model, known by now."""
        given = settings.decoding.get("speculate")
        if given is None:
            return
        word = given.option.word if given.option else next(iter(self.former), "speculate")
        problem = speculation_problem(word, given.value, models)
        if problem is None:
            return
        if given.option is None:
            raise UsageError(f"--set {word}={given.value}: {problem.message}", help=problem.help)
        self._report.error(problem.code, problem.message, given.option.value.span, problem.help)
        del settings.decoding["speculate"]


def _is_flag(value: Value) -> bool:
    return value.kind == "word" and value.data in ("true", "false")


def _from_text(kind: str, text: str, name: str) -> Any:  # of the declared type
    try:
        if kind == "bool":
            return {"true": True, "false": False}[text.lower()]
        data = {"int": int, "float": float, "str": str}[kind](text)
        if kind == "float" and not isfinite(data):
            raise ValueError("no number of a flow")
        return data
    except (ValueError, KeyError) as error:
        raise UsageError(f"--set {name}={text}: the param is declared {kind}") from error
