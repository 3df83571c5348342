"""Many runs from one command line: every combination of the values that its overrides give.

``rkd distill -m student=tiny,base 'noise.snr=[0],[10]'`` makes four runs. What they have in common is built once: a run
waits for what another is building. What is finished is not made again, so the same command continues a sweep.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rkd.commands.folders import read_run
from rkd.config import compose, fingerprint, instantiate, parse_override
from rkd.console import console, duration, say
from rkd.errors import ConfigError, Interrupted
from rkd.launchers import Command, Outcome, passing_on_signals
from rkd.stages.plan import Plan

# The columns of the table, and the figure of a run folder in each; the first one sorts.
TRAINED = {"noisy WER": "best_validation_wer"}
FIGURES = {
    "prepare": {},
    "train-teacher": TRAINED,
    "distill": TRAINED,
    "evaluate": {"noisy WER": "student_noisy_wer", "clean WER": "student_clean_wer"},
}


@dataclass
class Job:
    """One run of a sweep.

    Attributes:
        overrides: of its command line.
        varied: those that differ between the runs.
        folder: of its result.
        outcome: None until it has ended.
    """

    overrides: list[str]
    varied: list[str]
    folder: Path
    outcome: Outcome | None = None


def run(stage: str, overrides: Sequence[str]) -> tuple[list[Path], int]:
    """Make all runs of a sweep, going on after failures.

    Returns:
        The folders of the finished runs, in the order of the values, and the exit code: of the first failure, or 0.

    Raises:
        ConfigError: for the first run whose configuration is wrong, before any is made.
    """
    from omegaconf import OmegaConf

    jobs: dict[Path, Job] = {}
    for words, varied in expand(overrides):
        try:
            tree: Any = OmegaConf.to_container(compose(stage, words), resolve=True)
            folder = Plan(tree, stage).targets()[-1].folder
        except ConfigError as error:
            raise ConfigError(f"{error}\n(in the run {' '.join(varied)})") from error
        jobs.setdefault(folder, Job(words, varied, folder))  # two combinations may come to the same
    launcher = instantiate(tree["launcher"], tree["trust"])
    home = Path(tree["root"]) / "sweeps" / f"{stage}-{fingerprint(list(overrides))[:8]}"
    home.mkdir(parents=True, exist_ok=True)
    ordered = list(jobs.values())
    say(f"{len(ordered)} runs of {stage}, {type(launcher).__name__.lower()}; logs and summary in {home}")
    commands = [
        Command(n, [sys.executable, "-m", "rkd", stage, *job.overrides], home / f"{n}.log" if launcher.logs else None)
        for n, job in enumerate(ordered)
    ]
    with passing_on_signals():
        for outcome in launcher.launch(commands, home):
            job = ordered[outcome.number]
            job.outcome = outcome
            tell(outcome, job, len(ordered), commands[outcome.number].log)
    summarise(stage, ordered, home)
    codes = [job.outcome.exit_code for job in ordered if job.outcome and job.outcome.exit_code]
    return [job.folder for job in ordered if job.outcome and not job.outcome.exit_code], codes[0] if codes else 0


def expand(overrides: Sequence[str]) -> list[tuple[list[str], list[str]]]:
    """Return the overrides of each run, and those of them that vary: the last one given varies fastest.

    Values are given as Hydra has it: ``key=a,b``, ``key=[0],[10]``, ``key=range(0,3)``, ``key=choice(a,b)``.

    Raises:
        ConfigError: no override has several values.
    """
    choices: list[list[str]] = []
    varies: list[bool] = []
    for text in overrides:
        parsed = parse_override(text, sweep=True)
        choices.append([f"{parsed.written}={value}" for value in parsed.values] if parsed.values else [text])
        varies.append(bool(parsed.values))
    if not any(varies):
        raise ConfigError("-m makes several runs, but no override has several values: student=tiny,base, say")
    runs = [list(words) for words in itertools.product(*choices)]
    return [(words, [word for word, many in zip(words, varies, strict=True) if many]) for words in runs]


def tell(outcome: Outcome, job: Job, n: int, log: Path | None) -> None:
    """Say how a run ended."""
    line = f"[{outcome.number + 1}/{n}] {' '.join(job.varied)}: {state_of(outcome)}, {duration(outcome.seconds)}"
    if outcome.exit_code and log and log.is_file():
        errors = [text for text in log.read_text(errors="replace").splitlines() if text.startswith("rkd: ")]
        line += f"; {errors[-1] if errors else f'see {log}'}"
    say(line)


def state_of(outcome: Outcome | None) -> str:
    """Return a word for what became of a run."""
    if outcome is None:
        return "not run"
    return {0: "done", Interrupted.exit_code: "interrupted"}.get(outcome.exit_code, f"failed ({outcome.exit_code})")


def summarise(stage: str, jobs: Sequence[Job], home: Path) -> None:
    """Print the table of a sweep, the lowest word error rate in noise first, and write it as ``summary.tsv``."""
    from rich.table import Table

    columns = FIGURES[stage]
    header = ["run", *columns, "state", "folder"]
    table = Table(*header, box=None, header_style="bold", pad_edge=False)
    rows = []
    for job in jobs:
        found = read_run(job.folder).figures
        wers = [found.get(figure) for figure in columns.values()]
        cells = ["" if wer is None else f"{100 * wer:.1f}%" for wer in wers]
        best_first = wers[0] if wers and wers[0] is not None else math.inf
        rows.append((best_first, [" ".join(job.varied), *cells, state_of(job.outcome), str(job.folder)]))
    rows.sort(key=lambda row: row[0])
    for _, row in rows:
        table.add_row(*row)
    (home / "summary.tsv").write_text("".join("\t".join(row) + "\n" for row in [header, *(row for _, row in rows)]))
    console().print(table)
