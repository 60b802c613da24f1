"""flowinfer tune: fit the threshold of a choice to a run in which every member was tried."""

from __future__ import annotations

import math
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flowinfer.cli.inputs import PromptsOption, SetOption, ZooOption, read_input, settings, warn
from flowinfer.errors import DataError, UsageError
from flowinfer.spec import AUTO, shortest

if TYPE_CHECKING:
    from flowinfer.planning.plan import Plan, Selection
    from flowinfer.runs.tuning import Fitted, Outcome

_AUTO = re.compile(r"""#[^\n]*|"{3}.*?"{3}|"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|\b(at\s*=\s*)auto\b""", re.DOTALL)
"""A comment, a text, or at=auto."""


def command(
    file: Annotated[str, typer.Argument(metavar="FLOW", help="A .flow file with at=auto.")],
    on: Annotated[str, typer.Option("--on", metavar="RUN", help="Its run: path, name, beginning, or latest.")],
    max_tokens: Annotated[float, typer.Option(min=0, help="Most tokens of a question, mean.")] = math.inf,
    max_seconds: Annotated[float, typer.Option(min=0, help="Most seconds of a question, mean.")] = math.inf,
    min_accuracy: Annotated[float, typer.Option(min=0, max=1, help="Least accuracy; then the cheapest.")] = 0.0,
    output: Annotated[Path | None, typer.Option("-o", help="Write the flow there, not to standard output.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of run folders.")] = Path("runs"),
    zoo: ZooOption = None,
    set_: SetOption = None,
    prompts: PromptsOption = None,
) -> None:
    """Fit at=auto to a run of the same flow, and write the flow with the number in it."""
    from flowinfer.language.check import check
    from flowinfer.planning.plain import fingerprint
    from flowinfer.planning.plan import compile
    from flowinfer.runs.finding import find_run
    from flowinfer.runs.store import ordered_records, read_json
    from flowinfer.runs.tuning import Limits, fit, tried

    text, name, folder = read_input(file, None)
    flow = check(text, file=name, zoo=zoo, overrides=settings(set_, prompts), base=folder)
    warn([warning for warning in flow.warnings if warning.code != "W0304"])  # that at=auto is not fitted yet
    plan = compile(flow)
    selection = _selection(plan, text)
    run = find_run(on, out)
    if read_json(run / "plan.json").get("fingerprint") != fingerprint(plan):
        raise UsageError(
            f"run '{run.name}' is of another flow, or of this one with other settings",
            help=f"give the run's own --set, --prompts and --zoo, or make one: flowinfer exec {file} --dataset ...",
        )
    found = [tried(plan, selection, record) for record in ordered_records(run)]
    fitted = fit([one for one in found if one is not None], Limits(max_tokens, max_seconds, min_accuracy))
    _tell(fitted, selection)
    written = _AUTO.sub(lambda match: f"{match[1]}{shortest(fitted.chosen.at)}" if match[1] else match[0], text)
    if output is None:
        print(written, end="")
        return
    try:
        output.write_text(written, "utf-8")
    except OSError as error:
        raise DataError(f"cannot write '{output}': {(error.strerror or str(error)).lower()}") from error


def _selection(plan: Plan, text: str) -> Selection:
    """Return the choice whose threshold is to be fitted."""
    found = [one for one in plan.selections if one.rule.at == AUTO]
    hint = "tune fits one choice that gives the answer: (A / B)[accept=confidence, at=auto]"
    times = sum(bool(match[1]) for match in _AUTO.finditer(text))
    if len(found) != 1 or times != 1:
        raise UsageError(f"the flow has {times} times at=auto", help=hint)
    if plan.answer.texts != (found[0].id,):
        raise UsageError("stages follow the choice with at=auto: its members' answers are not judged", help=hint)
    return found[0]


def _tell(fitted: Fitted, selection: Selection) -> None:
    """Print what a threshold is worth on standard error."""
    low, high = fitted.interval.low, fitted.interval.high

    def row(name: str, one: Outcome) -> str:
        return f"  {name:<16} {100 * one.accuracy:5.1f} %  {one.tokens:8.1f} tokens  {one.seconds:7.2f} s"

    lines = [
        f"{selection.title}, {fitted.n} questions; {selection.rule.signal} has an AUC of {fitted.auc:.2f}",
        row("always the first", fitted.first),
        row("always the last", fitted.last),
        row(f"at={shortest(fitted.chosen.at)}", fitted.chosen),
        f"on questions left out of fitting: {100 * fitted.left_out:.1f} % [{100 * low:.1f}, {100 * high:.1f}],"
        f" against always the last p = {fitted.against_last:.2g}",
    ]
    print("\n".join(lines), file=sys.stderr)
