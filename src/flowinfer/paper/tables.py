"""The layouts of the paper's tables 4 to 10."""

from __future__ import annotations

from flowinfer.output.layout import Column, Layout

LEVEL = 0.05
"""Significance: p-values below it are marked."""
BEST = (
    "best path: the most accurate on these same questions (of equals the faster), so its accuracy is an optimistic "
    "estimate; the mean over paths is not"
)
MEAN = (
    "mean over question sets: unweighted; its interval combines theirs (Zou and Donner 2008). Mean over paths: "
    "Wilson's interval for the number of questions, which is conservative"
)
CELL = "Accuracy in %, its 95 % interval and number of questions, seconds per question"
_TASK = Column("task", "task")
_PATH = Column("path", "path")
_STRATEGY = Column("strategy", "strategy")

TABLES = (
    Layout(
        "table-4-strategies",
        "Strategies by task",
        f"{CELL} (the paper's table 4).",
        rows="tasks and mean",
        columns=(
            _TASK,
            Column("{single}", "{single}", "cell", value="single {single}"),
            Column("baseline", "mean of singles", "cell"),
            Column("{kind}", "{kind}, best path", "cell"),
        ),
        notes=(BEST, MEAN),
        marks="row",
    ),
    Layout(
        "table-4-gains",
        "Gains over the baseline",
        "Best path of each strategy less the mean of the singles and the best single, on the same questions.",
        rows="gains",
        columns=(
            _TASK,
            _STRATEGY,
            Column("path", "best path", "flow"),
            Column("gain_over_mean", "points over the mean of singles", "points"),
            Column("seconds_over_mean", "seconds less the mean of singles", "seconds"),
            Column("best_single", "best single"),
            Column("gain_over_best", "points over the best single", "points"),
            Column("p", "McNemar p", "p"),
            Column("p_holm", "p, Holm", "p", level=LEVEL),
        ),
        notes=(
            BEST,
            "p: exact McNemar test against the best single; Holm's correction over all paths on the task, from which "
            "the best were chosen",
        ),
    ),
    Layout(
        "table-5-step",
        "One token of a fused step",
        "Milliseconds per emitted token (the paper's table 5).",
        rows="parts of a step",
        columns=(
            Column("group", "group", "flow"),
            Column("part", "part"),
            Column("mean_ms", "mean ms", "ms"),
            Column("sd_ms", "deviation ms", "ms"),
            Column("variance", "variance ms²", "ms"),
            Column("share", "share %", "percent"),
            Column("n", "steps timed", "count"),
        ),
        notes=(
            "per emitted token, from questions timed at batch 1; a head's time to read its prompt is spread over the "
            "tokens; deviation and variance over questions, not over single tokens. Share: of slowest branch + transfer"
            " + aggregation, which is one step's time where heads run at the same time; one after another is their sum,"
            " measured is wall clock",
        ),
    ),
    Layout(
        "table-6-si-pi",
        "Paths of SI and PI",
        f"{CELL} (the paper's table 6).",
        rows="orders",
        columns=(_PATH, Column("{kind} {place}", "{kind} {place}", "cell")),
        notes=(MEAN,),
        kinds=("SI", "PI"),
        marks="column",
    ),
    Layout(
        "table-7-s2p-p2s",
        "Paths of S2P and P2S",
        f"{CELL} (the paper's table 7).",
        rows="orders",
        columns=(_PATH, Column("{kind} {place}", "{kind} {place}", "cell")),
        notes=("c-[a-b]: S2P is c -> (a | b), P2S is (a | b) -> c", MEAN),
        kinds=("S2P", "P2S"),
        marks="column",
    ),
    Layout(
        "table-8-volatility",
        "Volatility over paths",
        "Mean and standard deviation over the paths of each strategy (the paper's table 8).",
        rows="strategies",
        columns=(
            _STRATEGY,
            Column("num_paths", "paths", "count"),
            Column("mean_accuracy", "mean accuracy %", "percent"),
            Column("mean_seconds", "mean seconds", "seconds"),
            Column("sd_accuracy", "deviation of accuracy", "percent"),
            Column("sd_seconds", "deviation of seconds", "seconds"),
            Column("lowest", "lowest %", "percent"),
            Column("highest", "highest %", "percent"),
        ),
        notes=("each path counts with its mean over the question sets; sample deviation (n - 1)",),
    ),
    Layout(
        "table-9-accuracy",
        "Accuracy of the best path and mean over paths",
        "Accuracy in % with its 95 % interval (the paper's table 9).",
        rows="tasks",
        columns=(
            _TASK,
            Column("{kind}_best", "{kind} best", "percent"),
            Column("{kind}_mean", "{kind} mean", "percent"),
        ),
        notes=(BEST, MEAN),
    ),
    Layout(
        "table-10-seconds",
        "Seconds of the most accurate path and mean over paths",
        "Seconds per question (the paper's table 10).",
        rows="tasks",
        columns=(
            _TASK,
            Column("{kind}_best", "{kind} best", "seconds"),
            Column("{kind}_mean", "{kind} mean", "seconds"),
        ),
    ),
)
