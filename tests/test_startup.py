"""The clock of a start: what was waited for, until the first token."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

from flowinfer.startup import Startup
from tests.command import flowinfer


def test_parts_have_their_seconds_and_may_overlap() -> None:
    clock = Startup(age=2.0)
    clock.done("command line")
    with clock.waiting_for("weights", "Qwen"), clock.waiting_for("import", "transformers"):
        pass
    clock.first_token()
    assert [(one.part, one.of) for one in clock.parts] == [
        ("command line", ""),
        ("weights", "Qwen"),
        ("import", "transformers"),
    ]
    first, outer, inner = clock.parts
    assert first.begin == 0.0 and first.seconds is not None and first.seconds >= 2.0
    assert outer.begin <= inner.begin
    assert outer.seconds is not None and inner.seconds is not None and outer.seconds >= inner.seconds
    assert clock.seconds is not None and clock.seconds >= 2.0


def test_what_comes_after_the_first_token_is_not_the_start() -> None:
    clock = Startup()
    clock.first_token()
    before = clock.seconds
    with clock.waiting_for("graph"):
        clock.first_token()
    assert clock.parts == () and clock.seconds == before


def test_who_listens_hears_what_is_waited_for_and_when_nothing_is() -> None:
    heard: list[str] = []
    clock = Startup()
    clock.listen(heard.append)
    with clock.waiting_for("weights", "Qwen"), clock.waiting_for("check"):
        pass
    clock.first_token()
    assert heard == ["weights Qwen", "weights Qwen, check", "weights Qwen", "", ""]


def test_a_part_that_fails_has_ended_too() -> None:
    clock = Startup()
    try:
        with clock.waiting_for("weights", "Qwen"):
            raise MemoryError
    except MemoryError:
        pass
    assert clock.parts[0].seconds is not None


def test_exec_json_says_where_the_seconds_went(tmp_path: Path) -> None:
    asked = ("-e", "Qwen", "--zoo", "lab", "--prompt", "What is 2 + 2?", "--set", "max_tokens=2")
    done = flowinfer("exec", *asked, "--json", cwd=tmp_path)
    start = json.loads(done.stdout)["start"]
    assert start["seconds"] is not None
    assert all(set(part) == {"part", "of", "begin", "seconds"} for part in start["parts"])


def test_a_commands_imports_find_needless_packages_absent_and_only_they(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers asks `find_spec`, and imports what that finds."""
    monkeypatch.delitem(sys.modules, "transformers", raising=False)
    clock = Startup()
    name = "wave"  # of the standard library, and imported by nothing here
    sys.modules.pop(name, None)
    with clock.without(name):
        assert find_spec(name) is not None, "a library's process is somebody else's"
    clock.is_command = True
    with clock.without(name, "json"):
        assert find_spec(name) is None
        with pytest.raises(ModuleNotFoundError):
            import_module(name)
        assert import_module("json") is json, "what is there stays"
    assert import_module(name).__name__ == name
    sys.modules.pop(name)
    monkeypatch.setitem(sys.modules, "transformers", import_module("json"))
    with clock.without(name):
        assert find_spec(name) is None, "it was imported without"
    late = Startup()
    late.is_command = True
    with late.without(name):
        assert find_spec(name) is not None, "a plug-in has imported transformers, which has found it"
