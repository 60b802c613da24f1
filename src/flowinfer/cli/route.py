"""flowinfer route: learn from runs which flow suits which question, and tell whether that pays."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flowinfer.errors import DataError

if TYPE_CHECKING:
    from flowinfer.language.routes import Outcome, Table
    from flowinfer.runs.routing import Ran


def command(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...", help="Runs of the flows, sweeps, or folders of them: path, name, beginning, or latest."
        ),
    ],
    output: Annotated[
        Path | None, typer.Option("-o", help="Write the table there; else it is told about only.")
    ] = None,
    anyway: Annotated[bool, typer.Option("--anyway", help="Write it even if routing does not pay.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Learn which flow suits which question, for pick=... of a choice group; tell what that is worth on others."""
    import json

    from flowinfer.files import write_asked
    from flowinfer.language.routes import MOST_BYTES, as_text
    from flowinfer.runs.routing import learn

    table = learn(_read(runs))
    if json_:
        print(json.dumps(table.model_dump(mode="json", exclude={"examples"}), ensure_ascii=False))
    else:
        print("\n".join(_told(table)))
    if not table.held_out.pays and not anyway:
        best = table.members[table.held_out.best].flow
        raise DataError(
            f"routing does not pay here{'' if output is None else ': no table is written'}",
            help=f"use '{best}' alone; or learn from more questions; --anyway writes the table all the same",
        )
    if output is not None:
        data = as_text(table).encode(errors="surrogatepass")
        if len(data) > MOST_BYTES:
            raise DataError(
                f"the table would have {len(data) / 1e6:,.0f} MB, and at most {MOST_BYTES / 1e6:,.0f} are read",
                help="learn it from fewer questions: name fewer runs, or runs of a --sample",
            )
        write_asked(output, data)


def _read(named: list[str]) -> list[Ran]:
    """Return the flows of some folders with all that they answered; of two answers to a question the later counts."""
    from collections import Counter
    from dataclasses import replace

    from flowinfer.report.folders import Reading, locate, read
    from flowinfer.runs.routing import Ran
    from flowinfer.runs.store import info

    reading = Reading()
    for folder in dict.fromkeys(path for name in named for path in locate(name)):
        read(folder, reading)
    flows: dict[str, Ran] = {}
    wholes: dict[str, str] = {}
    """Flows with all options, by identity."""
    for found in reading.found:
        said = info(found.run).data.get("wiring")
        if not isinstance(said, dict):
            raise DataError(f"run '{found.run.name}' is of an older version of flowinfer", help="run its flow again")
        flows.setdefault(said["identity"], Ran(said["flow"], said["identity"], {}, {}))
        wholes.setdefault(said["identity"], str(found.whole))
    for found in sorted(reading.found, key=lambda one: one.started):
        flow = flows[info(found.run).data["wiring"]["identity"]]
        flow.records.update({(found.label, record.question.id): record for record in found.records})
        flow.seconds.update({(found.label, record.question.id): record.trace.seconds for record in found.timed})
    counts = Counter(one.flow for one in flows.values())  # flows that only their options tell apart are named by them
    return [replace(one, flow=wholes[key]) if counts[one.flow] > 1 else one for key, one in flows.items()]


def _told(table: Table) -> list[str]:
    """Return what a table is worth, line by line."""
    held = table.held_out
    best = table.members[held.best]

    def row(name: str, one: Outcome) -> str:
        low, high = one.interval
        accuracy = f"{100 * one.accuracy:5.1f} % [{100 * low:.1f}, {100 * high:.1f}]"
        more = "" if one.seconds is None else f"  {one.seconds:.3f} s"
        more += "" if one.cost is None else f"  cost {one.cost:.4g}"
        return f"  {name:<{width}}  {accuracy:<20} {one.tokens:8.1f} tokens  {one.calls:.2f} calls{more}"

    names = [member.flow for member in table.members]
    asked, questions = sum(held.picked), sum(one.questions for one in table.learned_on)
    route = "the route, held out" + (f" ({asked} of {questions})" if asked < questions else "")
    width = max(len(name) for name in [*names, route])
    data = ", ".join(
        f"{one.name}: {one.questions}" + (f" ({one.left_out} left out)" if one.left_out else "")
        for one in table.learned_on
    )
    lines = [f"questions: {data}", "always one of them:"]
    lines += [row(member.flow, member.outcome) for member in table.members]
    lines += [
        f"best single member, in hindsight: {best.flow}; always the last: {names[held.last]}",
        row(route, held.route),
        row("oracle", held.oracle),
        "picked: " + ", ".join(f"{name} {count}" for name, count in zip(names, held.picked, strict=True)),
        f"the route is right where {best.flow} is wrong {held.gained} times, and wrong where it is right {held.lost}"
        f" times (p = {held.p_value:.2g})",
    ]
    if held.pays:
        lines.append(f"routing pays: ({' / '.join(names)})[pick=...]")
        return lines
    better = held.gained > held.lost
    why = "that may be chance" if better else f"{best.flow} alone is as good or better"
    return [*lines, f"routing does not pay: {why}"]
