"""What is typed for options of benchmarks: each function reads a text, or says what is wrong with it."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch


def number(text: str) -> int:
    """Read a whole number of at least 1."""
    return _least(text, 1)


def numbers(text: str, least: int = 1) -> list[int]:
    """Read whole numbers of at least so much that commas separate."""
    return [_least(part, least) for part in text.split(",")] if text else []


def among(*known: str) -> Callable[[str], list[str]]:
    """Return what reads some of the known words, which commas separate."""

    def chosen(text: str) -> list[str]:
        for word in (words := text.split(",")):
            if word not in known:
                raise argparse.ArgumentTypeError(f"'{word}' is none of {', '.join(known)}")
        return words

    return chosen


def device(text: str) -> str:
    """Read the name of a device that is there."""
    names = ["cpu", "cuda", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    if text not in names or (text == "cuda" and len(names) == 2):
        there = ", ".join(name for name in names if name != "cuda")
        raise argparse.ArgumentTypeError(f"'{text}' is no device of this machine; it has {there}")
    return "cuda:0" if text == "cuda" else text


def devices(text: str) -> list[str]:
    """Read names of devices that are there, each once."""
    found = [device(part) for part in text.split(",")]
    if len(set(found)) < len(found):
        raise argparse.ArgumentTypeError("a device is named twice")
    return found


def folder(text: str) -> Path:
    """Read the path of a folder that is there."""
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text}: no such folder")
    return Path(text)


def _least(text: str, least: int) -> int:
    if not text.strip().isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"'{text}' is no whole number of at least {least}")
    return int(text)
