"""Which versions are installed, and whether this release was tried with them; imports none of them."""

from __future__ import annotations

import hashlib
import platform
from functools import cache
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

TRIED = ("torch", "transformers")
"""Packages whose range in flowinfer's own requirements is what its tests ran with, from the oldest to the newest."""

_ROOMS = ("backends", "engine/caches", "engine/network")


@cache
def code() -> str:
    """Return which code decides what checks at load find, and which kernels are compiled: a digest."""
    digest = hashlib.sha256()
    root = Path(__file__).parent.parent
    for path in sorted(file for room in _ROOMS for file in (root / room).glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def installed(name: str) -> str | None:
    """Return a package's version, or None where it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def required(name: str) -> SpecifierSet:
    """Return the versions of a package that flowinfer, or an extra of it, asks for; all, where nothing is known."""
    try:
        lines = metadata.requires("flowinfer") or []
    except metadata.PackageNotFoundError:  # sources that nobody installed
        lines = []
    found = [Requirement(line) for line in lines]
    named = (one for one in found if one.name == name)
    return next((one.specifier for one in named if one.marker is None or "extra" in str(one.marker)), SpecifierSet())


def untried() -> tuple[str, ...]:
    """Name the installed packages that are outside of what this release was tried with.

    Example: ("transformers 5.99.0 (tried: 5.17 to before 5.25)",)
    """
    versions = {name: installed(name) for name in TRIED}
    return tuple(
        f"{name} {version} (tried: {in_words(required(name))})"
        for name, version in versions.items()
        if version and not required(name).contains(version, prereleases=True)
    )


def in_words(wanted: SpecifierSet) -> str:
    """Return a range as people read it. Example: >=5.17,<5.25 -> "5.17 to before 5.25"."""
    words = {">=": "", "<": "before "}
    parts = sorted(wanted, key=lambda one: one.operator != ">=")
    return " to ".join(words.get(one.operator, one.operator) + one.version for one in parts)


def banner(own: str) -> str:
    """Return what `flowinfer --version` prints, flowinfer's own version first."""
    lines = [f"flowinfer {own}", *(f"{name} {installed(name) or 'not installed'}" for name in TRIED)]
    return "\n".join([*lines, f"python {platform.python_version()}"])
