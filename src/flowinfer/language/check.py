"""Checked flow: every name resolved, every option typed, every prompt and role decided, or all errors at once."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from flowinfer.errors import (
    Diagnostic,
    FlowError,
    FlowInferError,
    Severity,
    UnreadableFile,
    UnreadableFlow,
    UsageError,
)
from flowinfer.files import MOST_FLOW_BYTES, read_text
from flowinfer.language.declarations import Declared, Loader
from flowinfer.language.effects import Given
from flowinfer.language.options import (
    DECODING_KEYS,
    FUSER_KEYS,
    MODEL_KEYS,
    Scope,
    check_unique,
    did_you_mean,
    speculation_problem,
    typed,
    unknown_option,
)
from flowinfer.language.prompts import PROMPT_SETS
from flowinfer.language.resolve import Resolver
from flowinfer.language.tree import Let, Model, Option, Param, Prompt, Value
from flowinfer.output import shell
from flowinfer.registry import backends, fusers, zoos
from flowinfer.spec import DRAFTS, RENAMED, Decoding, Flow, ModelSpec, Part, nodes, speculations
from flowinfer.zoo import Zoo, damage, is_missing, resolve_ref, select_zoo, unfit

Read = Callable[[Path], str]


def check(
    text: str,
    *,
    file: str = "<flow>",
    zoo: Zoo | str | None = None,
    overrides: Mapping[str, str] | None = None,
    base: Path | None = None,
) -> Flow:
    """Read and check a `.flow` text.

    Args:
        text: the text.
        file: its name in messages.
        zoo: where undeclared names come from: a zoo, the name or path of one, or None to choose (see zoo.py).
        overrides: values for its params, or for the options of its `defaults`, as `--set NAME=VALUE` gives them.
        base: folder that imports and local models are relative to.
    Raises:
        FlowError: with all errors, and the warnings, sorted by place.
        UsageError: an override names nothing, or the zoo does not exist.
    """
    return _Checker(text, file, zoo, dict(overrides or {}), base or Path()).flow()


def check_file(path: Path, *, zoo: Zoo | str | None = None, overrides: Mapping[str, str] | None = None) -> Flow:
    """Read and check a `.flow` file; see `check`.

    Raises:
        UsageError: the file cannot be read.
    """
    return check(read_flow(path), file=str(path), zoo=zoo, overrides=overrides, base=path.parent)


def read_flow(path: Path) -> str:
    """Return a flow file's text.

    Raises:
        UnreadableFlow: see `read_text`.
    """
    if path.suffix == ".flow" and not os.path.realpath(path).endswith(".flow"):
        raise UnreadableFlow(f"cannot read '{path}': it links to a file that is no .flow file")
    try:
        return read_text(path, most_bytes=MOST_FLOW_BYTES)
    except UnreadableFile as error:
        hint = f"write the flow itself with -e: {shell.option('-e', path)}" if "->" in str(path) else error.help
        raise UnreadableFlow(f"cannot read '{path}': {error.reason}", help=hint) from error


@dataclass
class _Settings:
    """What `defaults` and overrides say."""

    decoding: dict[str, Given] = field(default_factory=dict)
    fuse_options: dict[str, tuple[Option, Any]] = field(default_factory=dict)
    prompts: str = "paper"
    zoo: str | None = None
    zoo_option: Option | None = None


_DECLARES = re.compile(r"""^[ \t]*(?:model|prompt|let|param)[ \t]+["']?([^\s"'={:\[]+)""", re.MULTILINE)
_UNKNOWN_NAMES = ("E0100", "E0101", "E0103")


def _without_follow_ons(found: list[Diagnostic], text: str) -> list[Diagnostic]:
    """Leave out what only follows from other mistakes: names of malformed declarations, texts that do not end."""
    if any(diagnostic.code == "E0112" for diagnostic in found):
        return [d for d in found if d.code != "E0100"]
    if not any(diagnostic.code.startswith("E00") for diagnostic in found):
        return found
    open_texts = {d.span for d in found if d.code == "E0003"}
    declared = {quoted for name in _DECLARES.findall(text) for quoted in (f"'{name}'", f"'${name}'")}
    return [
        d
        for d in found
        if (d.code == "E0003" or d.span not in open_texts)
        and not (d.code in _UNKNOWN_NAMES and any(name in d.message for name in declared))
    ]


class _Checker:
    """One check of one text."""

    def __init__(self, text: str, file: str, zoo: Zoo | str | None, overrides: dict[str, str], base: Path) -> None:
        self._text, self._file, self._base = text, file, base
        self._zoo = zoo
        self._overrides = overrides
        self._former: set[str] = set()
        """Options that overrides name by a former word."""
        self._loader = Loader(text, file, base)
        self._report = self._loader.report

    def flow(self) -> Flow:
        declared = self._loader.load()
        scope = Scope(self._params(declared), self._report)
        settings = self._settings(declared, scope)
        zoo = self._select_zoo(settings)
        models = self._models(declared, scope, zoo)
        for prompt in declared.prompts.values():
            self._required(prompt.template, f"prompt '{prompt.name.text}'", 'such as "Check this: {prev}"', scope)
        self._check_speculation(settings, models)
        resolver = Resolver(declared, models, scope, settings.decoding, settings.fuse_options, settings.prompts)
        root = resolver.root()
        found = _without_follow_ons(self._report.diagnostics, self._text)
        if root is None or any(d.severity is Severity.ERROR for d in found):
            raise FlowError(found, num_untold=self._report.num_untold)
        self._warn_unused(declared, scope, resolver, settings)
        self._refuse_stray_overrides()
        self._warn_renamed(declared, scope)
        called = {node.model.name: node.model for node in nodes(root)}
        self._warn_missing(declared, scope, root, zoo)
        found = self._report.diagnostics
        called |= {name: models[name] for name in speculations(root) if name in models and name not in DRAFTS}
        warnings: tuple[Diagnostic, ...] = FlowError(found).diagnostics if found else ()
        name = Path(self._file).stem if not self._file.startswith("<") else "flow"
        return Flow(
            name=name,
            source=self._text,
            root=root,
            models=called,
            prompts=settings.prompts,
            zoo=zoo.name,
            zoo_why=zoo.why,
            zoo_note=None if called.keys() <= declared.models.keys() else zoo.note,
            warnings=warnings,
            params=scope.params,
        )

    def _select_zoo(self, settings: _Settings) -> Zoo:
        if isinstance(self._zoo, Zoo):
            return self._zoo
        if self._zoo or settings.zoo_option is None or os.environ.get("FLOWINFER_ZOO"):
            return select_zoo(explicit=self._zoo, base=self._base)
        try:
            return select_zoo(declared=settings.zoo, base=self._base)
        except FlowInferError as error:
            span = settings.zoo_option.value.span
            self._report.error("E0112", error.message, span, error.help)
            return Zoo(str(settings.zoo), {})

    def _params(self, declared: Declared) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for param in declared.params.values():
            values[param.name.text] = self._param(param)  # None after its problem has been reported
        return values

    def _param(self, param: Param) -> Any:  # of the type that the param declares
        name, kind = param.name.text, param.type.text
        if kind not in _PARAM_TYPES:
            hint = did_you_mean(kind, _PARAM_TYPES) or f"types: {', '.join(_PARAM_TYPES)}"
            self._report.error("E0201", f"unknown type '{kind}' of param '{name}'", param.type.span, hint)
            return None
        if name in self._overrides:
            return _from_text(kind, self._overrides.pop(name), name)
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

    def _settings(self, declared: Declared, scope: Scope) -> _Settings:
        settings = _Settings()
        by_file: dict[str, list[Option]] = {}
        for defaults in declared.defaults:
            by_file.setdefault(defaults.span.file, []).extend(defaults.options)
        for options in by_file.values():
            check_unique(options, self._report)
            for option in options:
                self._setting(option, settings, scope)
        for name in [name for name in self._overrides if name in (*DECODING_KEYS, *RENAMED, "prompts")]:
            self._override(name, self._overrides.pop(name), settings)
            self._former |= {name} & set(RENAMED)
        return settings

    def _setting(self, option: Option, settings: _Settings, scope: Scope) -> None:
        if option.key == "prompts":
            name = str(scope.data(option.value))
            if name not in PROMPT_SETS:
                hint = did_you_mean(name, PROMPT_SETS) or f"prompt sets: {', '.join(PROMPT_SETS)}"
                self._report.error("E0110", f"unknown prompt set '{name}'", option.value.span, hint)
                return
            settings.prompts = name
        elif option.key == "zoo":
            settings.zoo, settings.zoo_option = str(scope.data(option.value)), option
        elif option.key in DECODING_KEYS:
            value = typed(option, Decoding, scope)
            if value is not None:
                settings.decoding[option.key] = Given(value[0], option, "defaults")
        elif option.key in FUSER_KEYS:
            settings.fuse_options[option.key] = (option, scope.data(option.value))
        else:
            hint = unknown_option(option.key, (*DECODING_KEYS, *FUSER_KEYS, "prompts", "zoo"))
            self._report.error("E0200", f"unknown option '{option.word}' in defaults", option.span, hint)

    def _override(self, name: str, text: str, settings: _Settings) -> None:
        """Apply --set to an option of `defaults`."""
        if name == "prompts":
            if text not in PROMPT_SETS:
                hint = did_you_mean(text, PROMPT_SETS) or f"prompt sets: {', '.join(PROMPT_SETS)}"
                raise UsageError(f"--set prompts={text}: unknown prompt set", help=hint)
            settings.prompts = text
            return
        if name == "fuse" and text not in fusers():
            hint = did_you_mean(text, fusers()) or f"fusers: {', '.join(fusers())}"
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

    def _check_speculation(self, settings: _Settings, models: Mapping[str, ModelSpec]) -> None:
        """Report a value of `speculate` in `defaults` or --set that is neither a word nor a model, known by now."""
        given = settings.decoding.get("speculate")
        if given is None:
            return
        word = given.option.word if given.option else next(iter(self._former), "speculate")
        problem = speculation_problem(word, given.value, models)
        if problem is None:
            return
        if given.option is None:
            raise UsageError(f"--set {word}={given.value}: {problem.message}", help=problem.help)
        self._report.error(problem.code, problem.message, given.option.value.span, problem.help)
        del settings.decoding["speculate"]

    def _models(self, declared: Declared, scope: Scope, zoo: Zoo) -> dict[str, ModelSpec]:
        models = dict(zoo.models)
        for model in declared.models.values():
            models[model.name.text] = self._model(model, scope, declared.folders[model.name.text])
        return models

    def _model(self, model: Model, scope: Scope, folder: Path) -> ModelSpec:
        check_unique(model.options, self._report)
        options: dict[str, Any] = {}
        for option in model.options:
            if option.key not in MODEL_KEYS:
                hint = unknown_option(option.key, MODEL_KEYS)
                self._report.error("E0200", f"unknown option '{option.word}' of a model", option.span, hint)
                continue
            value = typed(option, ModelSpec, scope)
            if value is not None:
                options[option.key] = value[0]
        hint = 'a hub id or a folder in quotes, such as "Qwen/Qwen2.5-7B-Instruct"'
        ref = self._required(model.ref, f"model '{model.name.text}'", hint, scope) or "?"
        backend = backends().get(options.get("backend", "hf"))
        is_remote = backend is not None and backend.text_only
        spec = ModelSpec(name=model.name.text, ref=ref if is_remote else resolve_ref(ref, folder), **options)
        for problem in unfit(spec):
            written = next(option for option in model.options if option.key == problem.option)
            span = written.span if problem.code == "E0208" else written.value.span
            self._report.error(problem.code, problem.message, span, problem.help)
        return spec

    def _required(self, value: Value, what: str, hint: str, scope: Scope) -> str | None:
        """Return the text in quotes, or the param, that something must be; None after reporting what it is instead."""
        data = scope.data(value)
        if data is None or (isinstance(data, str) and data.strip() and value.kind != "word"):
            return data
        self._report.error("E0201", f"{what} needs a text after '='", value.span, hint)
        return None

    def _refuse_stray_overrides(self) -> None:
        for name in self._overrides:
            known = (*self._loader.declared.params, *DECODING_KEYS, "prompts")
            hint = did_you_mean(name, known) or f"declare it: param {name}: int = 1"
            raise UsageError(f"--set {name}: the flow has no param or default option of that name", help=hint)

    def _warn_unused(self, declared: Declared, scope: Scope, resolver: Resolver, settings: _Settings) -> None:
        speculate = settings.decoding.get("speculate")
        used = {
            "model": resolver.used_models | ({speculate.value} if speculate else set()),
            "prompt": resolver.used_prompts,
            "let": resolver.used_lets,
            "param": scope.used,
        }
        tables: dict[str, Mapping[str, Model | Prompt | Let | Param]] = {
            "model": declared.models,
            "prompt": declared.prompts,
            "let": declared.lets,
            "param": declared.params,
        }
        for kind, table in tables.items():
            for name, declaration in table.items():
                if name not in used[kind] and declaration.span.file == self._file:
                    span = declaration.name.span
                    self._report.warning("W0100", f"{kind} '{name}' is never used", span, "use or remove it")

    def _warn_renamed(self, declared: Declared, scope: Scope) -> None:
        """Warn of options that are written by a former word."""
        told = [(option.word, option.span, "`fmt` writes it so") for option in scope.renamed]
        if declared.flow is not None:
            told += [(f"--set {word}", declared.flow.span, f"--set {RENAMED[word]}=...") for word in self._former]
        for word, span, hint in told:
            now = RENAMED[word.removeprefix("--set ")]
            self._report.warning("W0201", f"option '{word}' is called '{now}' now", span, hint)

    def _warn_missing(self, declared: Declared, scope: Scope, root: Part, zoo: Zoo) -> None:
        """Warn of local models that are not here or are damaged, at their declaration or else their first call."""
        first = {node.model.name: node for node in reversed(list(nodes(root)))}
        for name, node in first.items():
            is_provided = name not in declared.models and zoo.name in zoos()  # a registered zoo makes its own
            if is_provided:
                continue
            written = declared.models[name].ref if name in declared.models else None
            span, ref = (written.span, scope.data(written)) if written else (node.span, node.model.ref)
            if is_missing(node.model):
                hint = "paths are relative to the file that names them; hub ids have the form owner/name"
                self._report.warning("W0101", f"model '{name}': no folder '{ref}' here", span, hint)
            elif fault := damage(node.model):
                self._report.warning("W0101", f"model '{name}': {fault.message}", span, fault.help)


_PARAM_TYPES: Mapping[str, Any] = {"int": int, "float": (int, float), "str": str, "bool": bool}
_PARAM_SAID = {"int": "whole number", "float": "number", "str": "text in quotes", "bool": "true or false,"}


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
