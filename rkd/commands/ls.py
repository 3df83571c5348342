"""`rkd ls`: the runs below a folder as a table."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from rkd.commands.folders import STATES, Run, find_runs, read_run
from rkd.commands.help import STAGES, default_of
from rkd.commands.options import Parser
from rkd.console import duration, put
from rkd.errors import ConfigError

COLUMNS = ("stage", "name", "state", "age", "figures")
_STYLES = {"done": "green", "failed": "red", "damaged": "red", "running": "cyan", "interrupted": "yellow"}


def parser() -> Parser:
    """Return the options."""
    made = Parser(
        "ls",
        "List runs, the oldest first: stage, name, state, time since the start, key figures (or the error).\n"
        "Of an evaluation: word error rate on clean speech, and in the mean over all noisy conditions.\n"
        "A table on a terminal, tab-separated lines elsewhere.",
        "examples:\n  rkd ls\n  rkd ls --stage distill --state done\n  rkd ls /data/runs --failed --json",
    )
    made.add_argument("root", nargs="?", metavar="ROOT", help="folder with runs (default: the key root, runs)")
    made.add_argument(
        "--stage",
        choices=[*STAGES, "transcribe", "targets"],
        help="only runs of this stage; transcribe, targets: a teacher's transcripts and outputs of a corpus",
    )
    made.add_argument("--state", choices=STATES, help="only runs in this state")
    made.add_argument("--failed", action="store_const", dest="state", const="failed", help="the same as --state failed")
    made.add_argument("--json", action="store_true", help="a list of objects, numbers unrounded")
    return made


def run(options: argparse.Namespace) -> int:
    """List the runs."""
    root = Path(options.root or default_of("root"))
    if options.root and not root.is_dir():
        raise ConfigError(f"ls: there is no folder {root}")
    folders = find_runs(root) if root.is_dir() else ()
    runs = [
        found
        for folder in folders
        if options.stage in (None, folder.absolute().parent.name)
        for found in [read_run(folder)]
        if options.state in (None, found.state)
    ]
    runs.sort(key=lambda found: (found.started or 0, found.folder))
    if options.json:
        put(json.dumps([found.plain() for found in runs], indent=2))
    elif not runs:
        chosen = "such runs" if options.stage or options.state else "runs"
        print(f"no {chosen} in {root}", file=sys.stderr)
    elif sys.stdout.isatty():
        _print_table(runs)
    else:
        put("\n".join("\t".join(row) for row in [COLUMNS, *map(_row, runs)]))
    return 0


def _row(found: Run) -> tuple[str, ...]:
    age = duration(max(0.0, time.time() - found.started)) if found.started is not None else "-"
    return found.stage, found.name, found.state, age, found.summary()


def _print_table(runs: list[Run]) -> None:
    """Print aligned columns, the state in its colour: a rich Table of 1,000 rows would take half a second."""
    from rich.console import Console
    from rich.text import Text

    rows = [_row(found) for found in runs]
    widths = [max(map(len, column)) + 2 for column in zip(COLUMNS, *rows, strict=True)]
    console = Console(highlight=False)
    console.print(
        Text("".join(f"{name:{width}}" for name, width in zip(COLUMNS, widths, strict=True)).rstrip(), "bold")
    )
    lines = Text(no_wrap=True, overflow="ignore")
    for row in rows:
        stage, name, state, age, figures = (f"{cell:{width}}" for cell, width in zip(row, widths, strict=True))
        lines.append(stage + name).append(state, _STYLES[row[2]]).append(f"{age}{figures.rstrip()}\n")
    console.print(lines, end="", soft_wrap=True)
