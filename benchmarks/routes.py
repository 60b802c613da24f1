"""What a table of very many questions costs: reading it, making it ready to pick, picking; processor time and memory.

    python benchmarks/routes.py [--questions 15000,150000]

Questions of made-up words, most of them rare: a real table of as many holds less. One process for each table.
"""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

import typed
from flowinfer.engine.routing import router_of
from flowinfer.language.routes import DataSet, Example, HeldOut, Member, Outcome, Table, as_text, read
from reporting import Report, options, setup_of

_WORDS = 40
_MEMBERS = 3


def main() -> None:
    """Measure and print the table."""
    parser = options((__doc__ or "").split("\n")[0])
    parser.add_argument("--questions", type=typed.numbers, default="15000,150000")
    parser.add_argument("--one", type=Path, help="a file to be measured in this process")
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(_measure(arguments.one)))
        return
    columns = ["questions", "file, MB", "read, s", "made ready, s", "a pick, s", "memory at most, MB"]
    report = Report("Routes of very many questions", setup_of("cpu", "float64"), columns)
    with tempfile.TemporaryDirectory() as folder:
        for count in arguments.questions:
            path = Path(folder, f"{count}.json")
            path.write_text(as_text(_table(count, arguments.seed)), encoding="utf-8")
            command = [sys.executable, __file__, "--one", str(path)]
            told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            report.add(count, path.stat().st_size / 1e6, *json.loads(told))
    report.note("seconds are those of the processor")
    report.finish(arguments)


def _measure(path: Path) -> list[float]:
    """Return seconds of each part, and the most memory beyond what Python and the libraries took before."""
    before, marks = _used().ru_maxrss, [_now()]
    table = read(path, path.name)
    routes = table.ordered(path.name, range(_MEMBERS))
    marks.append(_now())
    router = router_of(routes)
    marks.append(_now())
    asked = [f"{example.question} and more" for example in table.examples[:20]]
    for question in asked:
        router.pick(question)
    marks.append(_now())
    seconds = [end - start for start, end in pairwise(marks)]
    return [*seconds[:2], seconds[2] / len(asked), (_used().ru_maxrss - before) / 1e3]


def _used() -> resource.struct_rusage:
    return resource.getrusage(resource.RUSAGE_SELF)


def _now() -> float:
    return _used().ru_utime + _used().ru_stime


def _table(count: int, seed: int) -> Table:
    rng = random.Random(seed)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(20000)]
    one = Outcome(accuracy=0.5, interval=(0, 1), tokens=10, calls=1, seconds=None)
    members = tuple(Member(flow=f"M{k}", identity=str(k), outcome=one) for k in range(_MEMBERS))
    held = {"folds": 5, "route": one, "picked": (1,) * _MEMBERS, "best": 0, "last": 2, "oracle": one}
    examples = (
        Example(question=" ".join(rng.choices(words, k=_WORDS)), right="".join(rng.choices("01", k=_MEMBERS)))
        for _ in range(count)
    )
    return Table(
        rule="made up",
        neighbours=20,
        members=members,
        learned_on=(DataSet(name="made up", questions=count, left_out=0),),
        held_out=HeldOut(**held, gained=1, lost=0, p_value=1, pays=False),
        examples=tuple(examples),
    )


if __name__ == "__main__":
    main()
