"""Names that are not Latin: written where a font can, told apart and explained where none can."""

from __future__ import annotations

from pathlib import Path

import pytest

from flowinfer.report.evidence import Evidence
from flowinfer.report.figures.draw import figures
from flowinfer.report.figures.fonts import LATIN, families, legible
from flowinfer.report.figures.style import files
from flowinfer.report.gather import gather
from tests.report.sweeps import questions, write_run


@pytest.fixture
def chinese(tmp_path: Path) -> Evidence:
    """Return evidence of two runs on a data set with a Chinese name."""
    asked = questions("ceval", 3)
    runs = [write_run(tmp_path, flow, asked, label="算术题") for flow in ("Qwen", "Qwen -> Ds")]
    return gather([str(run) for run in runs])


def test_latin_names_need_no_other_font() -> None:
    assert families("Qwen -> (Yi | Ds) é × ²") == (LATIN,)


def test_chinese_names_choose_the_first_font_that_is_here() -> None:
    assert families("并行", ("SimHei", "Noto Sans CJK SC")) == (LATIN, "Noto Sans CJK SC", "SimHei")


def test_names_that_no_font_writes_get_stand_ins_and_a_note(chinese: Evidence) -> None:
    written, lettering = legible(chinese, ())
    assert [one.label for one in written.datasets] == ["task 1"]
    assert [one.name for one in written.wirings] == ["Qwen", "Qwen -> Ds"]
    assert lettering.note == "No font of the machine that drew this writes these names: task 1 is 算术题."
    assert "fonts-noto-cjk" in lettering.cure


def test_stand_ins_are_drawn_without_warnings(chinese: Evidence) -> None:
    """Warnings about missing glyphs would fail this test."""
    drawings = figures(legible(chinese, ())[0])
    for drawing in drawings:
        drawing.figure.draw_without_rendering()
        assert drawing.families == (LATIN,)
    assert set(files(drawings[0])) == {"svg", "png", "pdf"}


def test_captions_explain_what_this_machine_cannot_write(chinese: Evidence) -> None:
    _, lettering = legible(chinese)
    drawings = figures(chinese)
    assert drawings
    assert set(files(drawings[0])) == {"svg", "png", "pdf"}
    for drawing in drawings:
        assert ("No font" in drawing.caption) == bool(lettering.stand_ins)
