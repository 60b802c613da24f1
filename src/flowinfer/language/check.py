"""Checked flow: every name resolved, every option typed, every prompt and role decided, or all errors at once."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

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
from flowinfer.language.nearness import did_you_mean
from flowinfer.language.options import (
    DECODING_KEYS,
    MODEL_KEYS,
    Scope,
    check_unique,
    typed,
    unknown_option,
)
from flowinfer.language.resolve import Resolver
from flowinfer.language.settings import Said, Settings
from flowinfer.language.tree import Let, Model, Param, Prompt, Value
from flowinfer.output import shell
from flowinfer.registry import backends, zoos
from flowinfer.spec import DRAFTS, RENAMED, Flow, ModelSpec, Part, nodes, reached, speculations
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


_DECLARES = re.compile(r"""^[ \t]*(?:model|prompt|let|param)[ \t]+["']?([^\s"'={:\[]+)""", re.MULTILINE)
_PLACES = ("backend", "device", "base_url")
"""Options that say what runs a model."""
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
        self._loader = Loader(text, file, base)
        self._report = self._loader.report
        self._said = Said(overrides, self._report)

    def flow(self) -> Flow:
        declared = self._loader.load()
        scope = Scope(self._said.params(declared), self._report)
        settings = self._said.settings(declared, scope)
        zoo = self._select_zoo(settings)
        models = self._models(declared, scope, zoo)
        for prompt in declared.prompts.values():
            self._required(prompt.template, f"prompt '{prompt.name.text}'", 'such as "Check this: {prev}"', scope)
        self._said.check_speculation(settings, models)
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
        uses_zoo = not called.keys() <= declared.models.keys()
        name = Path(self._file).stem if not self._file.startswith("<") else settings.name or "flow"
        return Flow(
            name=name,
            source=self._text,
            root=root,
            models=called,
            prompts=settings.prompts,
            zoo=zoo.name,
            zoo_why=zoo.why,
            zoo_note=zoo.note if uses_zoo else None,
            uses_zoo=uses_zoo,
            warnings=warnings,
            params=scope.params,
            served_as=settings.name,
        )

    def _select_zoo(self, settings: Settings) -> Zoo:
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

    def _models(self, declared: Declared, scope: Scope, zoo: Zoo) -> dict[str, ModelSpec]:
        models = dict(zoo.models)
        for model in declared.models.values():
            models[model.name.text] = self._model(model, scope, declared.folders[model.name.text])
        return models

    def _model(self, model: Model, scope: Scope, folder: Path) -> ModelSpec:
        check_unique(model.options, self._report)
        options: dict[str, Any] = {}
        is_misplaced = False
        for option in model.options:
            if option.key not in MODEL_KEYS:
                hint = unknown_option(option.key, MODEL_KEYS)
                self._report.error("E0200", f"unknown option '{option.word}' of a model", option.span, hint)
                continue
            value = typed(option, ModelSpec, scope)
            if value is not None:
                options[option.key] = value[0]
            is_misplaced |= value is None and option.key in _PLACES
        hint = 'a hub id or a folder in quotes, such as "Qwen/Qwen2.5-7B-Instruct"'
        ref = self._required(model.ref, f"model '{model.name.text}'", hint, scope) or "?"
        options = reached(options)
        backend = backends().get(options.get("backend", "hf"))
        is_remote = backend is not None and backend.is_elsewhere
        spec = ModelSpec(name=model.name.text, ref=ref if is_remote else resolve_ref(ref, folder), **options)
        for problem in () if is_misplaced else unfit(spec):  # where it runs decides what it heeds
            written = next((option for option in model.options if option.key == problem.option), None)
            named = written.value if written else model.ref
            span = written.span if written and problem.code == "E0208" else named.span
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
        for name in self._said.overrides:
            known = (*self._loader.declared.params, *DECODING_KEYS, "prompts")
            elsewhere = unknown_option(name, known) if name in MODEL_KEYS else did_you_mean(name, known)
            hint = elsewhere or f"declare it: param {name}: int = 1"
            raise UsageError(f"--set {name}: the flow has no param or default option of that name", help=hint)

    def _warn_unused(self, declared: Declared, scope: Scope, resolver: Resolver, settings: Settings) -> None:
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
            told += [(f"--set {word}", declared.flow.span, f"--set {RENAMED[word]}=...") for word in self._said.former]
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
