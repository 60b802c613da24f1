"""Chat templates, rendered as transformers renders them, but never longer than a budget of work and of text.

A template is a program that comes with a checkpoint. Jinja's sandbox keeps it from files and processes; the budget
counts its loops, calls and characters, so that one that loops or explodes stops at the same place on every machine.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sized
from datetime import datetime
from functools import wraps
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

_MOST_WORK = 1_000_000
"""Turns of loops, calls, and 256 characters each; a template of today takes a few hundred for two messages."""
_MOST_CHARACTERS = 32_000_000
"""Longest text or list that a template may make."""
_LARGEST_BITS = 256
"""Widest whole number that a template may calculate with."""
_MOST_WIDTH = 100_000
_WIDE_FIELD = re.compile(r"\d{6,}")
_FITTING = frozenset({"center", "indent", "wordwrap", "batch", "slice", "format"})
"""Filters that are told a width or a number of times."""


class TooMuch(jinja2.TemplateError):
    """A template loops or grows without end."""


class ChatTemplate:
    """One compiled chat template.

    Args:
        source: its text.
        names: what it can read besides the messages, such as `bos_token`.
    Raises:
        jinja2.TemplateError: it cannot be compiled.
    """

    def __init__(self, source: str, names: Mapping[str, object]) -> None:
        self._environment = _Environment()
        self._template = self._environment.from_string(source)
        self._names = {**names, "tools": None, "documents": None}

    def render(self, messages: list[dict[str, str]], *, add_generation_prompt: bool = True) -> str:
        """Return the messages as one text.

        Raises:
            TooMuch: it loops or grows without end.
            Exception: whatever else a program may raise.
        """
        self._environment.begin()
        parts: list[str] = []
        for part in self._template.generate(
            messages=messages, add_generation_prompt=add_generation_prompt, **self._names
        ):
            parts.append(self._environment.checked(part))
        return "".join(parts)


class _Generation(Extension):
    """The block `{% generation %}`, which marks what a model is trained on and writes what stands in it."""

    tags = {"generation"}  # noqa: RUF012  # declared so in jinja2

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Namespace(jinja2.utils.Namespace):
    """A namespace without private names, as transformers has it."""

    def __setitem__(self, name: str, value: object) -> None:
        if name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a namespace takes no name like '{name}'")
        super().__setitem__(name, value)


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox of transformers' chat templates, in which every loop, call and growth is counted."""

    intercepted_binops = frozenset({"*", "**", "+", "%"})

    def __init__(self) -> None:
        extensions = [_Generation, "jinja2.ext.loopcontrols"]
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=extensions, finalize=self.checked)
        self._work = 0
        self.filters["tojson"] = _to_json
        self.filters = {name: self._counted(name, made) for name, made in self.filters.items()}
        self.filters |= {"_turns": self._turns, "_checked": self.checked}
        self.globals = {
            **{name: self.globals[name] for name in ("range", "cycler", "joiner")},
            "dict": lambda *args, **kwargs: dict(*args, **kwargs),
            "namespace": _Namespace,
            "raise_exception": _raise_exception,
            "strftime_now": lambda form: datetime.now().strftime(form),
        }

    def begin(self) -> None:
        """Begin a rendering with all of the budget."""
        self._work = 0

    def checked(self, made: Any) -> Any:  # whatever a template makes
        """Count something that a template has made, and return it."""
        self._spend(1)
        self._measure(made)
        return made

    def concat(self, parts: Iterable[str]) -> str:  # a function in jinja2
        """Join what a block or macro wrote."""
        whole = list(parts)
        self._refuse_growth(sum(map(len, whole)))
        return str(self.checked("".join(whole)))

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
        """Calculate, unless the result would be out of all proportion."""
        del context
        if isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * (max(1, abs(right)) if operator == "**" else 1)
            if max(bits, right.bit_length()) > _LARGEST_BITS:
                raise TooMuch("it calculates with numbers out of all proportion")
        elif operator == "*":
            self._refuse_growth(abs(self._size(left) * self._size(right)))
        elif operator == "%" and isinstance(left, str):
            self._refuse_widths(left, right if "*" in left else ())
            self._refuse_growth(self._size(left) * self._size(right) // 8)
        return self.checked(self.binop_table[operator](left, right))

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # names as in jinja2
        """Call a function or method, unless it would be out of all proportion."""
        self, owner = __self, getattr(getattr(__obj, "__wrapped__", __obj), "__self__", None)
        self._spend(10)
        if isinstance(owner, str):
            is_format = getattr(__obj, "__name__", "") in ("format", "format_map")
            self._refuse_widths(owner if is_format else "", [*args, *kwargs.values()])
            self._refuse_product(owner, *args, *kwargs.values())
        return self.checked(super().call(__context, __obj, *args, **kwargs))

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        parsed: nodes.Template = _Counting().visit(super()._parse(source, name, filename))
        return parsed

    def _turns(self, iterable: Any) -> Any:
        """Count the turns of a loop."""
        if not isinstance(iterable, Iterable):
            return iterable  # jinja2 says what is wrong with it

        def turns() -> Iterator[Any]:
            for item in iterable:
                self._spend(1)
                yield item

        return turns()

    def _counted(self, name: str, made: Any) -> Any:
        """Let a filter run only on what is in proportion, and count what it makes."""

        @wraps(made)  # keeps jinja2's marks of what the filter is passed
        def counted(*args: Any, **kwargs: Any) -> Any:
            given = [*(value for value in args if not isinstance(value, _PASSED)), *kwargs.values()]
            if name in _FITTING:
                self._refuse_widths(given[0] if name == "format" else "", given[1:])
            self._refuse_product(*given)
            return self.checked(made(*args, **kwargs))

        return counted

    def _refuse_widths(self, form: object, given: object) -> None:
        """Refuse numbers that make a text wide, in what is given or written into a format."""
        values = given if isinstance(given, list | tuple) else [given]
        is_wide = any(isinstance(value, int) and abs(value) > _MOST_WIDTH for value in values)
        if is_wide or (isinstance(form, str) and _WIDE_FIELD.search(form)):
            raise TooMuch("it asks for a width or number out of all proportion")

    def _refuse_product(self, *given: object) -> None:
        """Refuse texts that are put into one another so often that far more comes out."""
        product = 1
        for value in given:
            product *= max(1, self._measure(value))
        self._refuse_growth(product // 8)

    def _measure(self, thing: object) -> int:
        """Return how many characters a thing holds at least, all its parts counted, and pay for looking at it."""
        if isinstance(thing, str | range):
            self._refuse_growth(len(thing))
            self._spend(len(thing) // (256 if isinstance(thing, str) else 4))
            return len(thing)
        if isinstance(thing, Mapping):
            return self._measure([*thing, *thing.values()])
        if isinstance(thing, list | tuple):
            self._spend(len(thing))
            size = len(thing) + sum(self._measure(part) for part in thing)
            self._refuse_growth(size)
            return size
        return 0

    @staticmethod
    def _size(thing: object) -> int:
        return thing if isinstance(thing, int) else len(thing) if isinstance(thing, Sized) else 1

    def _refuse_growth(self, size: int) -> None:
        if size > _MOST_CHARACTERS:
            raise TooMuch(f"it makes a text or list longer than {_MOST_CHARACTERS:,} characters")

    def _spend(self, work: int) -> None:
        self._work += work
        if self._work > _MOST_WORK:
            raise TooMuch("it loops or grows without end")


_PASSED = (jinja2.Environment, jinja2.runtime.Context, nodes.EvalContext)


class _Counting(NodeTransformer):
    """Wrap what loops run over and whatever else takes time or memory by its size, so that all is counted."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        """Count turns."""
        self.generic_visit(node)
        node.iter = _filtered(node.iter, "_turns")
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        """Look at each text before it is joined to others."""
        self.generic_visit(node)
        node.nodes = [_filtered(part, "_checked") for part in node.nodes]
        return _filtered(node, "_checked")

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        """Look at what is compared, or searched."""
        self.generic_visit(node)
        node.expr = _filtered(node.expr, "_checked")
        for operand in node.ops:
            operand.expr = _filtered(operand.expr, "_checked")
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        """Look at a part that is cut out."""
        self.generic_visit(node)
        return _filtered(node, "_checked") if isinstance(node.arg, nodes.Slice) else node

    def visit_List(self, node: nodes.List) -> nodes.Node:
        """Look at a list as a whole."""
        return _filtered(self.generic_visit(node), "_checked")

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        """Look at a mapping as a whole."""
        return _filtered(self.generic_visit(node), "_checked")

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        """Look at a tuple as a whole, unless it is what values are unpacked into."""
        self.generic_visit(node)
        return _filtered(node, "_checked") if node.ctx == "load" else node


def _filtered(node: Any, name: str) -> nodes.Filter:  # an expression
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)
