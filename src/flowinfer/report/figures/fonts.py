"""Names in figures: which fonts here can write them, and stand-ins for those that none can."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache

from matplotlib.font_manager import FontProperties, findSystemFonts, fontManager, get_font

from flowinfer.report.evidence import Evidence

LATIN = "DejaVu Sans"
"""Comes with matplotlib."""
_CHINESE = (
    "Noto Sans CJK SC",
    "Noto Sans SC",
    "Source Han Sans SC",
    "Source Han Sans CN",
    "Microsoft YaHei",
    "PingFang SC",
    "Hiragino Sans GB",
    "SimHei",
    "WenQuanYi Zen Hei",
    "WenQuanYi Micro Hei",
    "Droid Sans Fallback",
    "Noto Sans CJK JP",  # the one face of Noto's collection that older versions of matplotlib find
)
_CURE = "fonts such as Noto Sans CJK can; on Debian and Ubuntu: apt install fonts-noto-cjk"


@dataclass(frozen=True)
class Lettering:
    """How the names of a figure are written."""

    families: tuple[str, ...]
    """Fonts, asked in this order for each character."""
    stand_ins: tuple[tuple[str, str], ...] = ()
    """(what is written, the name that it stands for)."""

    @property
    def note(self) -> str:
        """Return what a reader must know, "" where every name is written as it is."""
        if not self.stand_ins:
            return ""
        told = "; ".join(f"{short} is {name}" for short, name in self.stand_ins)
        return f"No font of the machine that drew this writes these names: {told}."

    @property
    def cure(self) -> str:
        """Return how the names could be written."""
        return _CURE if self.stand_ins else ""


def families(text: str, known: Sequence[str] | None = None) -> tuple[str, ...]:
    """Return the fonts for a text; Chinese ones that are here only where its characters need them.

    Args:
        known: families to choose from; all of this machine if not given.
    """
    if not _unwritten(text, (LATIN,)):
        return (LATIN,)
    here = _chinese() if known is None else known
    return (LATIN, *(name for name in _CHINESE if name in here))


def legible(evidence: Evidence, known: Sequence[str] | None = None) -> tuple[Evidence, Lettering]:
    """Return evidence whose names can be written, and how; a name that no font writes becomes `path 3` or `task 1`."""
    names = [one.label for one in evidence.datasets] + [one.name for one in evidence.wirings]
    chosen = families("".join([*names, *(model for one in evidence.wirings for model in one.models)]), known)
    said: dict[str, str] = {}

    def short(name: str, kind: str, number: int) -> str:
        if not _unwritten(name, chosen):
            return name
        said.setdefault(name, f"{kind} {number}")
        return said[name]

    models = list(dict.fromkeys(model for one in evidence.wirings for model in one.models))
    datasets = tuple(
        replace(one, label=short(one.label, "task", number)) for number, one in enumerate(evidence.datasets, start=1)
    )
    wirings = tuple(
        replace(
            one,
            name=short(one.name, "path", number),
            models=tuple(short(model, "model", models.index(model) + 1) for model in one.models),
        )
        for number, one in enumerate(evidence.wirings, start=1)
    )
    written = replace(evidence, datasets=datasets, wirings=wirings)
    return written, Lettering(chosen, tuple((stand_in, name) for name, stand_in in said.items()))


def _unwritten(text: str, chosen: Iterable[str]) -> set[str]:
    """Return the characters of a text that none of some families has."""
    return {letter for letter in text if letter not in " \n" and not any(ord(letter) in _letters(f) for f in chosen)}


@cache
def _letters(family: str) -> frozenset[int]:
    path = fontManager.findfont(FontProperties(family=[family]), fallback_to_default=False)
    return frozenset(get_font(path).get_charmap())


def _chinese() -> set[str]:
    """Return the Chinese fonts of this machine, those included that came after matplotlib listed its fonts for good."""
    listed = {font.fname: font.name for font in fontManager.ttflist}
    if not set(_CHINESE) & set(listed.values()):
        for path in findSystemFonts():
            if path not in listed:
                fontManager.addfont(path)
    return {font.name for font in fontManager.ttflist} & set(_CHINESE)
