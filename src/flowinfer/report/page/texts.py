"""Every question's texts, stage by stage, packed for the page: equal texts are held once."""

from __future__ import annotations

import base64
import gzip
import json
import shlex
from collections.abc import Mapping
from typing import Any

from flowinfer.report.evidence import Cell, Evidence
from flowinfer.results import Record

_Pool = dict[str, int]
"""Text -> its number."""


def packed(groups: list[Evidence]) -> str:
    """Return base64 of gzipped JSON, which the page's script reads."""
    text = json.dumps(collect(groups), ensure_ascii=True, separators=(",", ":"))
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()


def collect(groups: list[Evidence]) -> Mapping[str, Any]:
    """Return what the page shows side by side."""
    pool: _Pool = {}
    questions: dict[str, dict[str, Any]] = {}
    cells: dict[str, Any] = {}
    for group in groups:
        for (wiring, dataset), cell in group.cells.items():
            for record in cell.records:
                item = record.question
                asked = [_number(item.whole, pool), item.gold]
                questions.setdefault(dataset, {}).setdefault(item.id, asked)
            cells[f"{wiring}/{dataset}"] = _cell(cell, pool)
    sets = {dataset.key: dataset.label for group in groups for dataset in group.datasets}
    return {
        "texts": list(pool),
        "sets": [{"key": key, "label": label} for key, label in sets.items()],
        "paths": [
            {"key": wiring.key, "name": f"{wiring.name}{f' ({group.setup})' if group.setup else ''}"}
            for group in groups
            for wiring in group.wirings
        ],
        "questions": questions,
        "cells": cells,
    }


def _number(text: str, pool: _Pool) -> int:
    return pool.setdefault(text, len(pool))


def _cell(cell: Cell, pool: _Pool) -> Mapping[str, Any]:
    return {
        "run": shlex.quote(str(cell.run)),
        "answers": {record.question.id: _answer(record, pool) for record in cell.records},
    }


def _answer(record: Record, pool: _Pool) -> list[Any]:
    score, trace = record.score, record.trace
    verdict = -1 if score is None else int(score.correct)
    found = (
        f"failed: {trace.error}" if trace.error else score.extracted if score and score.extracted is not None else "-"
    )
    steps = [
        [
            f"{step.step} {', '.join(head.model for head in step.heads)}",
            _number(step.text, pool),
            f"{step.tokens} tokens, {step.finish_reason}",
        ]
        for step in trace.steps
    ]
    return [verdict, found, steps]
