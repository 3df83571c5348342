"""Many runs from one command line: every combination of the values that its overrides give.

``rkd distill -m student=tiny,base 'noise.snr=[0],[10]'`` makes four runs. What they have in common is built once: a run
waits for what another is building. What is finished is not made again, so the same command continues a sweep.
"""

from __future__ import annotations

import json
import math
import shlex
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rkd.commands.folders import read_run
from rkd.config import compose, fingerprint, instantiate, parse_override
from rkd.console import console, duration, say
from rkd.errors import ConfigError, Interrupted
from rkd.stages.plan import Plan
from rkd.sweep.launchers import Command, Outcome, passing_on_signals, stop_command, stopped
from rkd.sweep.sweepers import Dimension

WATCH_SECONDS = 2.0  # between two looks at the runs in progress

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
        hopeless: stopped on purpose, since others did better.
    """

    overrides: list[str]
    varied: list[str]
    folder: Path
    outcome: Outcome | None = None
    hopeless: bool = False


def run(stage: str, overrides: Sequence[str]) -> tuple[list[Path], int]:
    """Make all runs of a sweep, going on after failures.

    Returns:
        The folders of the finished runs, in the order in which they were proposed, and the exit code: of the first
        failure, of an interruption where a run was not begun, or 0.

    Raises:
        ConfigError: for the first run of a round whose configuration is wrong, before any of them is made.
    """
    space = dimensions(overrides)
    tree = composed(stage, with_values(overrides, [dimension.words() for dimension in space]))
    launcher, sweeper = (instantiate(tree[part], tree["trust"]) for part in ("launcher", "sweeper"))
    # The same sweep is continued by more trials, or with another launcher.
    what = [text for text in overrides if not text.startswith(("launcher", "sweeper."))]
    home = Path(tree["root"]) / "sweeps" / f"{stage}-{fingerprint(what)[:8]}"
    sweeper.begin(space, home)
    how = f"{type(sweeper).__name__.lower()}, {type(launcher).__name__.lower()}"
    say(f"sweep of {stage} ({how}); logs and summary in {home}")
    jobs: dict[Path, Job] = {}
    for varied, hopeless in sweeper.earlier():
        job = planned(stage, with_values(overrides, varied), varied)
        job.outcome, job.hopeless = Outcome(len(jobs), Interrupted.exit_code if hopeless else 0, "", 0.0), hopeless
        jobs.setdefault(job.folder, job)
    with passing_on_signals():
        while proposed := sweeper.propose():
            fresh = [planned(stage, with_values(overrides, varied), varied) for varied in proposed]
            home.mkdir(parents=True, exist_ok=True)
            launch_round(stage, fresh, jobs, launcher, sweeper, home)
            if stopped():
                break
    ordered = list(jobs.values())
    summarise(stage, ordered, home)
    outcomes = [(job, job.outcome.exit_code if job.outcome else None) for job in ordered]
    failures = [code for job, code in outcomes if code and not job.hopeless]
    not_begun = any(code is None for _, code in outcomes)
    code = failures[0] if failures else Interrupted.exit_code if not_begun else 0
    return [job.folder for job, ended in outcomes if ended == 0], code


def launch_round(
    stage: str, fresh: Sequence[Job], jobs: dict[Path, Job], launcher: Any, sweeper: Any, home: Path
) -> None:
    """Make the runs of a round, stopping those that the sweeper calls hopeless, and tell it what became of each."""
    numbers: dict[int, list[int]] = {}  # of the proposals that a run answers: two may come to the same
    commands = []
    for i, job in enumerate(fresh):
        same = jobs.setdefault(job.folder, job)
        number = list(jobs).index(job.folder)
        if number not in numbers and (same is job or same.outcome is None):
            words = [sys.executable, "-m", "rkd", stage, *job.overrides]
            commands.append(Command(number, words, home / f"{number}.log" if launcher.logs else None))
        numbers.setdefault(number, []).append(i)
    ordered = list(jobs.values())
    with watching({number: ordered[number] for number in numbers}, numbers, sweeper):
        for outcome in launcher.launch(commands, home):
            job = ordered[outcome.number]
            job.outcome = outcome
            tell(outcome, job, len(ordered), next(c.log for c in commands if c.number == outcome.number))
    for number, proposals in numbers.items():
        job = ordered[number]
        interrupted = job.outcome is None or job.outcome.exit_code in (None, Interrupted.exit_code)
        done = job.outcome is not None and job.outcome.exit_code == 0
        wer = figure(stage, job) if done or job.hopeless else None
        for proposal in proposals:
            sweeper.learn(proposal, wer, interrupted)


@contextmanager
def watching(jobs: dict[int, Job], numbers: dict[int, list[int]], sweeper: Any) -> Iterator[None]:
    """Show the sweeper each validation of the runs in progress, and stop those that it calls hopeless."""
    ended = threading.Event()
    seen: dict[int, int] = dict.fromkeys(jobs, 0)

    def look() -> None:
        for number, job in jobs.items():
            for step, wer in validations(job.folder)[seen[number] :]:
                seen[number] += 1
                if sweeper.hopeless(numbers[number][0], step, wer) and stop_command(number):
                    job.hopeless = True

    def keep_looking() -> None:
        while not ended.wait(WATCH_SECONDS):
            look()

    thread = threading.Thread(target=keep_looking, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def validations(folder: Path) -> list[tuple[int, float]]:
    """Return step and word error rate of each validation of a training so far."""
    try:
        lines = (folder / "metrics.jsonl").read_text().splitlines()
    except OSError:  # not begun
        return []
    whole = [json.loads(line) for line in lines if line.endswith("}")]  # the last may be half written
    return [(line["step"], line["validation_wer"]) for line in whole if "validation_wer" in line]


def dimensions(overrides: Sequence[str]) -> list[Dimension]:
    """Return what varies: ``key=a,b``, ``key=[0],[10]``, ``key=range(0,3)``, ``interval(a,b)``.

    Raises:
        ConfigError: no override has several values.
    """
    parsed = [parse_override(text, sweep=True) for text in overrides]
    space = [Dimension(o.written, o.values, o.interval) for o in parsed if o.values or o.interval]
    if not space:
        raise ConfigError("-m makes several runs, but no override has several values: student=tiny,base, say")
    return space


def with_values(overrides: Sequence[str], varied: Sequence[str]) -> list[str]:
    """Return the overrides of one run: each that varies with the value that it has there."""
    values = {word.partition("=")[0]: word for word in varied}
    return [values.get(text.partition("=")[0], text) for text in overrides]


def composed(stage: str, words: Sequence[str]) -> dict[str, Any]:
    """Return the configuration of a run as a plain tree."""
    from omegaconf import OmegaConf

    tree: Any = OmegaConf.to_container(compose(stage, words), resolve=True)
    return tree


def planned(stage: str, words: list[str], varied: list[str]) -> Job:
    """Return a run that is to be made.

    Raises:
        ConfigError: its configuration is wrong.
    """
    try:
        folder = Plan(composed(stage, words), stage).targets()[-1].folder
    except ConfigError as error:
        raise ConfigError(f"{error}\n(in the run {' '.join(varied)})") from error
    return Job(words, varied, folder)


def tell(outcome: Outcome, job: Job, n: int, log: Path | None) -> None:
    """Say how a run ended."""
    line = f"[{outcome.number + 1}/{n}] {' '.join(job.varied)}: {state_of(job)}"
    if outcome.exit_code is not None:
        line += f", {duration(outcome.seconds)}"
    if outcome.exit_code and log and log.is_file():
        errors = [text for text in log.read_text(errors="replace").splitlines() if text.startswith("rkd: ")]
        line += f"; {errors[-1] if errors else f'see {log}'}"
    say(line)


def state_of(job: Job) -> str:
    """Return a word for what became of a run."""
    if job.outcome is None or job.outcome.exit_code is None:
        return "not started"
    if job.hopeless and job.outcome.exit_code == Interrupted.exit_code:
        return "given up"
    return {0: "done", Interrupted.exit_code: "interrupted"}.get(
        job.outcome.exit_code, f"failed ({job.outcome.exit_code})"
    )


def figure(stage: str, job: Job) -> float | None:
    """Return the word error rate that a run is judged by; None where there is none."""
    return next((read_run(job.folder).figures.get(name) for name in FIGURES[stage].values()), None)


def summarise(stage: str, jobs: Sequence[Job], home: Path) -> None:
    """Print the table of a sweep, the lowest word error rate in noise first, and write it as ``summary.tsv``."""
    from rich.markup import escape
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
        rows.append((best_first, [" ".join(job.varied), *cells, state_of(job), str(job.folder)]))
    rows.sort(key=lambda row: row[0])
    for _, row in rows:
        table.add_row(*map(escape, row))  # brackets are lists here, not styles
    (home / "summary.tsv").write_text("".join("\t".join(row) + "\n" for row in [header, *(row for _, row in rows)]))
    console().print(table)
    ended = [(wer, job) for job in jobs if state_of(job) == "done" and (wer := figure(stage, job)) is not None]
    if ended:
        _, best = min(ended, key=lambda pair: pair[0])
        plain = [word for word in best.overrides if not word.startswith(("launcher", "sweeper"))]
        say(f"best: {shlex.join(['rkd', stage, *plain])}")
