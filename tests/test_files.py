"""Files of a user's: whatever stands at a path, one line comes of reading it; writing keeps what a file was."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from flowinfer import files
from flowinfer.cli.inputs import flow_files
from flowinfer.errors import DataError, FlowError, UnreadableFile, UnreadableFlow, UsageError
from flowinfer.files import MOST_FLOW_BYTES, read_text, write_whole
from flowinfer.language.check import check, check_file, read_flow
from flowinfer.runs.finding import find_run, list_runs
from flowinfer.runs.jsonlog import lock
from flowinfer.runs.store import info, read_json, read_records
from flowinfer.tasks.sources import json_lines
from flowinfer.zoo import read_zoo
from tests.zoos import NAMES


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _ring(path: Path) -> None:
    path.symlink_to(path.name)


_STRANGE: dict[str, Callable[[Path], object]] = {
    "a pipe without a writer": _fifo,
    "a directory": Path.mkdir,
    "a link to a device that never ends": lambda path: path.symlink_to("/dev/zero"),
    "a link to itself": _ring,
    "a link to nothing": lambda path: path.symlink_to("nowhere"),
    "nothing": lambda path: None,
    "UTF-16": lambda path: path.write_text("A -> B", encoding="utf-16"),
    "bytes that are no text": lambda path: path.write_bytes(b"\x80\xff\0" * 99),
}


@pytest.mark.parametrize("make", _STRANGE.values(), ids=_STRANGE.keys())
@pytest.mark.parametrize("name", ["x.flow", "zoo.toml", "items.jsonl", "run.json"])
def test_whatever_stands_at_a_path_gives_one_line(name: str, make: Callable[[Path], object], tmp_path: Path) -> None:
    path = tmp_path / name
    make(path)
    readers: dict[str, Callable[[], object]] = {
        "x.flow": lambda: read_flow(path),
        "zoo.toml": lambda: read_zoo(path),
        "items.jsonl": lambda: list(json_lines(path)),
        "run.json": lambda: (read_json(path), info(tmp_path)),
    }
    with pytest.raises((UnreadableFlow, DataError)) as caught:
        readers[name]()
    assert "\n" not in caught.value.message and str(path) in caught.value.message


@pytest.mark.parametrize("make", _STRANGE.values(), ids=_STRANGE.keys())
def test_an_import_of_whatever_is_refused_in_its_place(make: Callable[[Path], object], tmp_path: Path) -> None:
    make(tmp_path / "parts.flow")
    with pytest.raises(FlowError) as caught:
        check('import "parts.flow"\nQwen', zoo=NAMES, base=tmp_path)
    assert [d.code for d in caught.value.diagnostics] == ["E0107"]


@pytest.mark.parametrize("written", ["secrets", "link.flow", "../secrets"])
def test_no_line_of_a_file_that_is_no_flow_is_shown(written: str, tmp_path: Path) -> None:
    (tmp_path / "secrets").write_text("root:x:0:0\n")
    (tmp_path / "in").mkdir()
    (tmp_path / "link.flow").symlink_to("secrets")
    folder = tmp_path / "in" if written.startswith("..") else tmp_path
    with pytest.raises(FlowError) as caught:
        check(f'import "{written}"\nQwen', zoo=NAMES, base=folder)
    assert [d.code for d in caught.value.diagnostics] == ["E0107"] and "root" not in str(caught.value.diagnostics)


def test_a_chain_of_imports_ends_at_a_depth(tmp_path: Path) -> None:
    for number in range(1500):
        (tmp_path / f"f{number}.flow").write_text(f'import "f{number + 1}.flow"\n')
    with pytest.raises(FlowError) as caught:
        check('import "f0.flow"\nQwen', zoo=NAMES, base=tmp_path)
    assert [d.code for d in caught.value.diagnostics] == ["E0022"]


def test_a_flow_has_a_largest_size(tmp_path: Path) -> None:
    (tmp_path / "x.flow").write_bytes(b" " * (MOST_FLOW_BYTES + 1))
    with pytest.raises(UnreadableFlow, match="larger than 1 MB"):
        check_file(tmp_path / "x.flow")


def test_a_zoo_nested_too_deeply_is_refused(tmp_path: Path) -> None:
    (tmp_path / "zoo.toml").write_text("a = " + "[" * 10_000 + "]" * 10_000)
    with pytest.raises(DataError, match="not a valid TOML file: nested too deeply"):
        read_zoo(tmp_path / "zoo.toml")


def test_writing_keeps_the_mode_and_the_links(tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    real.write_text("before")
    real.chmod(0o640)
    link.symlink_to("real")
    write_whole(link, b"after")
    assert link.is_symlink() and real.read_text() == "after" and real.stat().st_mode & 0o777 == 0o640


def test_a_new_file_gets_the_usual_mode(tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    write_whole(tmp_path / "new", b"")
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int, before: os.stat_result) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "x").write_text("before")
    monkeypatch.setattr(files, "_keep_owner_and_mode", full)
    with pytest.raises(OSError, match="No space"):
        write_whole(tmp_path / "x", b"after")
    assert [path.name for path in tmp_path.iterdir()] == ["x"] and (tmp_path / "x").read_text() == "before"


def test_devices_are_written_as_they_are() -> None:
    write_whole(Path("/dev/null"), b"text")
    assert Path("/dev/null").is_char_device()


def test_a_folder_that_cannot_be_locked_says_so(tmp_path: Path) -> None:
    """As of another user's or a read-only run; a folder in the lock's place is refused to root as well."""
    (tmp_path / ".lock").mkdir()
    with pytest.raises(UsageError, match="cannot write to run"):
        lock(tmp_path)


def test_foreign_things_among_runs_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "pipe").mkdir()
    os.mkfifo(tmp_path / "pipe" / "run.json")
    _ring(tmp_path / "ring")
    assert list_runs(tmp_path) == [] and list(read_records(tmp_path / "pipe")) == []
    with pytest.raises(UsageError):
        find_run("pipe", tmp_path)


def test_a_folder_means_the_flows_in_it(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("b.flow", "sub/a.flow", "notes.txt"):
        (tmp_path / name).touch()
    empty = tmp_path / "empty"
    empty.mkdir()
    named = flow_files([str(tmp_path / "b.flow"), str(tmp_path)])
    assert named == {str(tmp_path / "b.flow"): False, str(tmp_path / "sub" / "a.flow"): True}
    with pytest.raises(UsageError, match=r"no \.flow files"):
        flow_files([str(empty)])


def test_text_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\xef\xbb\xbfA")
    assert read_text(tmp_path / "x") == "A"
    with pytest.raises(UnreadableFile, match="larger"):
        read_text(tmp_path / "x", most_bytes=1)
