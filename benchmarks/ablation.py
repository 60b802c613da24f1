"""Which rules of the judge change a verdict: each is taken out in turn, and every recorded output is judged again.

    python benchmarks/ablation.py OUT.jsonl [--runs FOLDER ...] [--data ../shared/data] [--workers 2] [--only FILE ...]

A rule is an alternative of a pattern, an optional group of one, an entry of a table, the condition of an `if`, one
side of an `and` or `or`, or a line that rewrites a name by itself. A mutant is the package `flowinfer.tasks.answers`
without one such stretch of source; a forked child imports it and judges those cases only that can feel it: for a line
those which run it, for an alternative those in whose texts it matches somewhere. OUT gets one JSON object per mutant:
file, line, what was removed, and by source how many verdicts went from right to wrong (lost) and from wrong to right
(won). The whole takes hours; --sample, --alike and --most leave out what is much alike, --kinds and --only the rest.
"""

from __future__ import annotations

import argparse
import ast
import csv
import gzip
import io
import json
import os
import re
import signal
import sys
import tokenize
import types
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "flowinfer.tasks.answers"
FOLDER = ROOT / "src" / "flowinfer" / "tasks" / "answers"
_MAX_SECONDS = 60
WRITTEN = ("cases", "hard_cases", "phrasings", "blind_cases", "kinds", "hostile", "formats", "fresh")


@dataclass(frozen=True)
class Case:
    """One output and whether a person calls its answer right."""

    source: str
    task: str
    output: str
    reference: str
    question: str | None
    choices: dict[str, str] | None
    is_right: bool


@dataclass(frozen=True)
class Mutant:
    """A stretch of source that is taken out, and what stands there instead."""

    file: str
    start: int
    """In characters, as `end`."""
    end: int
    instead: str
    line: int
    kind: str
    """alternative, entry, condition, operand or line."""
    pattern: str | None = None
    """What a text must hold for the mutant to matter; None: where the line runs."""


def lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSON lines file, packed or not; nothing where it is absent."""
    if path.exists():
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            yield from (json.loads(line) for line in file if line.strip())


def cases(data: Path, runs: Sequence[Path]) -> list[Case]:
    """Read every output with a label that is at hand."""
    found = []
    for name in ("given.jsonl.gz", "cases_given.jsonl"):
        for row in lines(data / "outputs" / name):
            label = (row["question"], row["choices"], row["expected_correct"])
            found.append(Case(name.split(".")[0], row["task"], row["output"], row["reference"], *label))
    for row in lines(data / "gsm8k" / "example_model_solutions_first600.jsonl"):
        for made in row.values():
            if isinstance(made, dict):
                label = (row["question"], None, made["is_correct"])
                found.append(Case("gsm8k", "gsm8k", made["solution"], row["ground_truth"], *label))
    for row in lines(data / "math500" / "qwen25math_outputs_first50.jsonl"):
        for output, score in zip(row["code"], row["score"], strict=True):
            found.append(Case("math500", "mathematics", output, row["gt"], row["question"], None, score))
    for name in WRITTEN:
        for row in lines(ROOT / "tests" / "tasks" / f"{name}.jsonl"):
            label = (row.get("question"), row.get("choices"), row["correct"])
            found.append(Case(name, row["task"], row["output"], row["reference"], *label))
    return found + list(explained(data)) + list(unmarked(found)) + recorded(runs)


def sampled(every: list[Case], at_most: int | None) -> list[Case]:
    """Return at most so many cases of each source, evenly drawn."""
    by_source: dict[str, list[Case]] = {}
    for case in every:
        by_source.setdefault(case.source, []).append(case)
    strides = {source: -(-len(found) // (at_most or len(found))) for source, found in by_source.items()}
    return [case for source, found in by_source.items() for case in found[:: strides[source]]]


def explained(data: Path) -> Iterator[Case]:
    """Yield the explanations of C-Eval's dev split, which people wrote, and which end in the right option."""
    for path in sorted((data / "ceval" / "dev").glob("*.csv")):
        for row in csv.DictReader(path.read_text("utf-8").splitlines()):
            if (row.get("explanation") or "").strip() and row["answer"] in "ABCD":
                choices = {letter: row[letter] for letter in "ABCD"}
                yield Case("ceval_dev", "ceval", row["explanation"], row["answer"], row["question"], choices, True)


def unmarked(found: Sequence[Case]) -> Iterator[Case]:
    """Yield real outputs whose mark of the answer is taken away, so that only their sentences tell it."""
    for case in found:
        if case.source not in ("given_outputs", "given", "gsm8k") or case.task != "gsm8k":
            continue
        string = re.sub(r"\n\s*(?:A:|####)[^\n]*\s*$", "", case.output)
        string = re.sub(r"\$?\\boxed\{([^{}]*)\}\$?", r"\1", string)
        string = re.sub(r"\s*(?:So )?[Tt]he (?:final )?answer is:? [^\n]*$", "", string)
        if string != case.output and re.search(r"\d", string):
            label = (case.question, None, case.is_right)
            yield Case("unmarked", case.task, string, case.reference, *label)


def recorded(runs: Sequence[Path]) -> list[Case]:
    """Read the distinct outputs of runs, with the verdicts that they hold."""
    found = {}
    for path in (path for folder in runs for path in sorted(folder.rglob("samples.jsonl"))):
        for row in lines(path):
            item, score = row.get("question", {}), row.get("score")
            if score and item.get("reference"):
                key = (item["kind"], row["trace"]["answer"], item["reference"], item["question"])
                found[key] = Case("runs", *key, item.get("choices") or None, score["correct"])
    return list(found.values())


def source_of(file: str) -> str:
    """Return a file of the package."""
    return (FOLDER / file).read_text(encoding="utf-8")


def mutants(file: str) -> list[Mutant]:
    """List everything that can be taken out of one file."""
    source = source_of(file)
    return [*alternatives(file, source), *branches(file, source)]


def alternatives(file: str, source: str) -> Iterator[Mutant]:
    """Yield the alternatives and optional groups of every pattern."""
    starts = offsets(source)
    run: list[tuple[str, int]] = []
    docstrings = {
        node.body[0].lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node)
    }
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.STRING and token.start[0] not in docstrings and not token.string.startswith('"""'):
            prefix = re.match(r"[rRfFbB]*(?:'|\")", token.string)
            begin = starts[token.start[0] - 1] + token.start[1]
            inner = range(begin + (prefix.end() if prefix else 0), begin + len(token.string) - 1)
            run += [(source[at], at) for at in inner]
        elif token.type not in (tokenize.NL, tokenize.COMMENT):
            yield from split(file, source, run)
            run = []


def split(file: str, source: str, run: Sequence[tuple[str, int]]) -> Iterator[Mutant]:
    """Yield the alternatives of one pattern; characters come with their places in the source."""
    string = "".join(character for character, _ in run)
    if "|" not in string and "(" not in string:
        return
    opened: list[tuple[int, list[int]]] = [(-1, [])]
    groups, at = [], 0
    while at < len(string):
        character = string[at]
        if character == "\\":
            at += 1
        elif character == "[":
            at += 2 if string[at + 1 : at + 2] == "]" else 1
            while at < len(string) and string[at] != "]":
                at += 2 if string[at] == "\\" else 1
        elif (character == "{" and string[at + 1 : at + 2].isalpha()) or string.startswith("{'", at):
            at = string.find("}", at)
        elif character == "(":
            opened.append((at, []))
        elif character == "|":
            opened[-1][1].append(at)
        elif character == ")" and len(opened) > 1:
            groups.append((*opened.pop(), at))
        at += 1
    groups.append((*opened[0], len(string)))
    for begin, bars, end in groups:
        prefix = re.match(r"\((?:\?(?::|=|!|<=|<!|P<\w+>|[a-z-]+:))?", string[begin:]) if begin >= 0 else None
        inside = begin + prefix.end() if prefix else 0
        edges = [inside - 1, *bars, end]
        for one, other in pairwise(edges) if bars else ():
            cut = (one, other) if one > inside - 1 else (inside, other + 1)
            yield removed(file, source, run, cut, string[one + 1 : other])
        if begin >= 0 and string[end + 1 : end + 2] == "?":
            yield removed(file, source, run, (begin, end + 2), string[begin : end + 1])


def removed(file: str, source: str, run: Sequence[tuple[str, int]], cut: tuple[int, int], text: str) -> Mutant:
    """Return the mutant without a stretch of a pattern, which may go over several literals."""
    places = {place for _, place in run[cut[0] : cut[1]]}
    start, end = run[cut[0]][1], run[cut[1] - 1][1] + 1
    kept = "".join(source[at] for at in range(start, end) if at not in places)
    line = source.count("\n", 0, start) + 1
    loose = re.sub(r"\(\?<?[=!](?:[^()]|\([^()]*\))*\)|\\b|(?<!\[)\^|\$|\\Z", "", text)
    return Mutant(file, start, end, kept, line, "alternative", None if "{" in loose and "{_" in loose else loose)


def offsets(source: str) -> list[int]:
    """Return where each line begins."""
    return [0, *(match.end() for match in re.finditer("\n", source))]


def branches(file: str, source: str) -> Iterator[Mutant]:
    """Yield conditions, operands, table entries and lines that rewrite a name."""
    starts = offsets(source)

    def span(node: ast.AST) -> tuple[int, int]:
        rows = source.split("\n")
        first, last = (node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset)  # type: ignore[attr-defined]
        places = [starts[row - 1] + len(rows[row - 1].encode()[:column].decode()) for row, column in (first, last)]
        return places[0], places[1]

    def mutant(node: ast.AST, instead: str, kind: str) -> Mutant:
        return Mutant(file, *span(node), instead, node.lineno, kind)  # type: ignore[attr-defined]

    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.If | ast.IfExp):
            yield mutant(node.test, "False", "condition")
        elif isinstance(node, ast.BoolOp):
            for value in node.values:
                yield mutant(value, "True" if isinstance(node.op, ast.And) else "False", "operand")
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            if any(isinstance(part, ast.Name) and part.id == name for part in ast.walk(node.value)):
                yield mutant(node, "pass", "line")
    for statement in tree.body:
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Tuple | ast.Dict):
            table = statement.value
            for entry in table.elts if isinstance(table, ast.Tuple) else table.values:
                yield from [mutant(entry, "", "entry")] if isinstance(table, ast.Tuple) else []


def load(changed: Mutant | None) -> types.ModuleType:
    """Import the package anew, with a file changed."""
    import importlib.abc
    import importlib.machinery

    for name in [name for name in sys.modules if name.startswith(PACKAGE)]:
        del sys.modules[name]

    class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
        def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
            is_ours = changed is not None and name == f"{PACKAGE}.{changed.file[:-3]}"
            return importlib.machinery.ModuleSpec(name, self) if is_ours else None

        def exec_module(self, module: types.ModuleType) -> None:
            assert changed is not None
            source = source_of(changed.file)
            source = source[: changed.start] + changed.instead + source[changed.end :]
            source = re.sub(r",(\s*),", r",\1", source) if changed.kind == "entry" else source
            exec(compile(source, changed.file, "exec"), module.__dict__)

    sys.meta_path.insert(0, Finder())
    return importlib.import_module(PACKAGE)


def verdict(package: types.ModuleType, case: Case) -> bool:
    """Judge one case."""
    score = package.judge(case.task, case.output, case.reference, question=case.question, choices=case.choices)
    return bool(score.correct)


def traced(package: types.ModuleType, every: Sequence[Case]) -> tuple[list[bool], dict[tuple[str, int], set[int]]]:
    """Judge every case; return the verdicts, and by file and line the cases that run it."""
    ran: dict[tuple[str, int], set[int]] = {}
    files = {str(path): path.name for path in FOLDER.glob("*.py")}
    verdicts = []
    for index, case in enumerate(every):

        def trace(frame: types.FrameType, event: str, _: Any, index: int = index) -> Any:
            name = files.get(frame.f_code.co_filename)
            if name is None:
                return None
            ran.setdefault((name, frame.f_lineno), set()).add(index)
            return trace

        sys.settrace(trace)
        verdicts.append(verdict(package, case))
        sys.settrace(None)
    return verdicts, ran


def alike(every: Sequence[Case], ran: dict[tuple[str, int], set[int]], at_most: int) -> set[int]:
    """Return the cases that are kept of those from one source which run the same lines, and only these."""
    run: dict[int, list[tuple[str, int]]] = {}
    for line, indices in sorted(ran.items()):
        for index in indices:
            run.setdefault(index, []).append(line)
    seen: Counter[tuple[str, int]] = Counter()
    kept = set()
    for index, case in enumerate(every):
        key = (case.source, hash(tuple(run.get(index, ()))))
        seen[key] += 1
        if seen[key] <= at_most:
            kept.add(index)
    return kept


def feeling(
    mutant: Mutant, every: Sequence[Case], texts: Sequence[str], ran: dict[tuple[str, int], set[int]]
) -> Sequence[int]:
    """Return the cases whose verdict the mutant may change."""
    if mutant.pattern is None:
        return (
            range(len(every))
            if mutant.kind in ("alternative", "entry")
            else sorted(ran.get((mutant.file, mutant.line), set()))
        )
    try:
        pattern = re.compile(mutant.pattern, re.I | re.M)
    except re.error:
        return range(len(every))
    if pattern.search(""):
        return range(len(every))
    return [index for index, text in enumerate(texts) if pattern.search(text)]


def tried(mutant: Mutant, every: Sequence[Case], at: Sequence[int], verdicts: Sequence[bool]) -> dict[str, Any]:
    """Judge cases with a mutant in a child of this process."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        signal.alarm(_MAX_SECONDS)  # a mutant may never end
        try:
            package = load(mutant)
            changed = [index for index in at if verdict(package, every[index]) != verdicts[index]]
            told: dict[str, Any] = {"changed": changed}
        except BaseException as error:  # a mutant may break in any way
            told = {"broken": f"{type(error).__name__}: {error}"[:200]}
        with os.fdopen(writing, "w") as file:
            json.dump(told, file)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as file:
        told = json.loads(file.read() or '{"broken": "killed"}')
    os.waitpid(child, 0)
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--runs", type=Path, nargs="*", default=[])
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--alike", type=int, default=2, help="cases judged of those that run the same lines")
    parser.add_argument("--sample", type=int, default=None, help="cases of a source at most, evenly drawn")
    parser.add_argument("--kinds", nargs="*", default=None, help="kinds of mutants; all where left out")
    parser.add_argument("--most", type=int, default=None, help="cases that a mutant may concern, if it is to be tried")
    parser.add_argument("--only", nargs="*", default=None, help="files of the package; all where left out")
    options = parser.parse_args()
    re._MAXCACHE = 20_000  # type: ignore[attr-defined]
    every = sampled(cases(options.data, options.runs), options.sample)
    verdicts, ran = traced(load(None), every)
    kept = alike(every, ran, options.alike)
    print(len(every), "cases, of which the mutants judge", len(kept), file=sys.stderr)
    texts = ["\n".join((c.output, c.question or "", c.reference, *(c.choices or {}).values())) for c in every]
    from flowinfer.tasks.answers.expressions import plain

    texts = [f"{text}\n{plain(text)}" for text in texts]
    wrong = Counter(case.source for case, right in zip(every, verdicts, strict=True) if right != case.is_right)
    print("cases", dict(Counter(case.source for case in every)), "judged wrongly", dict(wrong), file=sys.stderr)
    files = options.only or sorted(path.name for path in FOLDER.glob("*.py"))
    todo = [one for file in files for one in mutants(file) if not options.kinds or one.kind in options.kinds]

    def run(mutant: Mutant) -> dict[str, Any]:
        at = [index for index in feeling(mutant, every, texts, ran) if index in kept]
        too_many = options.most is not None and len(at) > options.most
        told = {"broken": "not tried"} if too_many else tried(mutant, every, at, verdicts) if at else {}
        changed = [every[index] for index in told.pop("changed", ())]
        lost = Counter(case.source for case in changed if verdicts[every.index(case)] == case.is_right)
        won = Counter(case.source for case in changed if verdicts[every.index(case)] != case.is_right)
        what = source_of(mutant.file)[mutant.start : mutant.end]
        return {**mutant.__dict__, "what": what, "concerned": len(at), "lost": dict(lost), "won": dict(won), **told}

    with ThreadPoolExecutor(options.workers) as pool, options.out.open("w", encoding="utf-8") as out:
        for told in pool.map(run, todo):
            out.write(json.dumps(told, ensure_ascii=False) + "\n")
            out.flush()


if __name__ == "__main__":
    main()
