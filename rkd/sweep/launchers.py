"""Where the runs of a sweep are computed: one after another, side by side, on a cluster.

A launcher gets the commands of all runs and yields what became of each as it ends; to add one, write a class with
``launch`` and a YAML under ``conf/launcher``.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from rkd.errors import Interrupted, ResourceError
from rkd.processes import usable_cores

POLL_SECONDS = 1.0  # between two looks at the jobs of a cluster


@dataclass(frozen=True)
class Command:
    """A run to make: its number, the words of its command line, and where its lines go; None: to this terminal."""

    number: int
    words: list[str]
    log: Path | None


@dataclass(frozen=True)
class Outcome:
    """What became of a run: its exit code, the last line it wrote to stdout, and how long it took.

    The exit code is None for a run that was not begun.
    """

    number: int
    exit_code: int | None
    said: str
    seconds: float


class Launcher(Protocol):
    """A way of making runs."""

    logs: bool  # whether the runs' lines go to files, since they would mingle

    def launch(self, commands: Sequence[Command], folder: Path) -> Iterator[Outcome]:
        """Make the runs, in any order; ``folder`` is there for the launcher's own files."""
        ...


_children: dict[int, subprocess.Popen] = {}  # by the number of the run
_stopped = False


def run_command(command: Command, environment: Mapping[str, str] | None = None) -> Outcome:
    """Make a run in a process of its own; one that comes after an interruption is not begun."""
    if _stopped:
        return Outcome(command.number, None, "", 0.0)
    started = time.monotonic()
    log = command.log.open("wb") if command.log else None
    try:
        process = subprocess.Popen(
            command.words, stdout=subprocess.PIPE, stderr=log, env={**os.environ, **(environment or {})}
        )
        _children[command.number] = process
        try:
            said, _ = process.communicate()
        except BaseException:  # the job of a cluster that this is has been cancelled
            process.terminate()
            raise
        finally:
            _children.pop(command.number, None)
    finally:
        if log:
            log.close()
    lines = said.decode().strip().splitlines()
    return Outcome(command.number, process.returncode, lines[-1] if lines else "", time.monotonic() - started)


def stop_command(number: int) -> bool:
    """Let a run save its state and end, if it is a process of this machine's; say whether it was there."""
    process = _children.get(number)
    if process is None:
        return False
    with suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    return True


def stopped() -> bool:
    """Say whether the sweep was interrupted."""
    return _stopped


@contextmanager
def passing_on_signals() -> Iterator[None]:
    """Let the runs in progress save their state on SIGINT and SIGTERM, and begin no other."""
    global _stopped
    _stopped = False

    def stop(number: int, frame: Any) -> None:
        global _stopped
        _stopped = True
        for run in list(_children):
            stop_command(run)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Local:
    """One run after the other, on this terminal."""

    logs = False

    def launch(self, commands: Sequence[Command], folder: Path) -> Iterator[Outcome]:
        return map(run_command, commands)


class Joblib:
    """Several runs at a time on this machine.

    Args:
        n_jobs: how many. Each gets its share of the cores, unless OMP_NUM_THREADS is set.
    """

    logs = True

    def __init__(self, n_jobs: int = 2):
        self.n_jobs = n_jobs

    def launch(self, commands: Sequence[Command], folder: Path) -> Iterator[Outcome]:
        try:
            from joblib import Parallel, delayed
        except ImportError as error:
            raise missing("joblib") from error
        # Trainings that share cores without knowing of each other are many times slower, not half as fast.
        threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, usable_cores() // self.n_jobs))
        # Threads that wait for processes: the processes themselves are rkd's own.
        parallel = Parallel(self.n_jobs, backend="threading", return_as="generator_unordered", pre_dispatch="n_jobs")
        yield from parallel(delayed(run_command)(command, {"OMP_NUM_THREADS": threads}) for command in commands)


class Submitit:
    """Jobs of a cluster, through submitit.

    Args:
        cluster: ``slurm``, ``local`` (processes on this machine) or ``debug``; None: whatever is there.
        parameters: of submitit's executor, such as ``timeout_min``, ``gpus_per_node``, ``slurm_partition``.
    """

    logs = True

    def __init__(self, cluster: str | None = None, parameters: Mapping[str, Any] | None = None):
        self.cluster, self.parameters = cluster, dict(parameters or {})

    def launch(self, commands: Sequence[Command], folder: Path) -> Iterator[Outcome]:
        try:
            import submitit
        except ImportError as error:
            raise missing("submitit") from error
        executor = submitit.AutoExecutor(folder / "submitit", cluster=self.cluster)
        executor.update_parameters(**self.parameters)
        with executor.batch():
            jobs = [executor.submit(run_command, command) for command in commands]
        waiting = {command.number: job for command, job in zip(commands, jobs, strict=True)}
        cancelled = False
        while waiting:
            if stopped() and not cancelled:
                cancelled = True
                for job in waiting.values():
                    job.cancel()
            for number in [number for number, job in waiting.items() if job.done()]:
                try:
                    yield waiting.pop(number).result()
                except Exception:  # the scheduler ended it: its log says more
                    yield Outcome(number, ended_by(), "", 0.0)
            time.sleep(POLL_SECONDS)


class Ray:
    """Tasks of a Ray cluster, or of this machine.

    Args:
        address: of the cluster's head, ``auto``, or None: a Ray of this machine alone.
        num_cpus, num_gpus: that a run asks for.
    """

    logs = True

    def __init__(self, address: str | None = None, num_cpus: float = 1, num_gpus: float = 0):
        self.address, self.num_cpus, self.num_gpus = address, num_cpus, num_gpus

    def launch(self, commands: Sequence[Command], folder: Path) -> Iterator[Outcome]:
        try:
            import ray
        except ImportError as error:
            raise missing("ray") from error
        ray.init(self.address, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
        try:
            task = ray.remote(num_cpus=self.num_cpus, num_gpus=self.num_gpus)(run_command)
            waiting = {task.remote(command): command.number for command in commands}
            cancelled = False
            while waiting:
                if stopped() and not cancelled:
                    cancelled = True
                    for reference in waiting:
                        ray.cancel(reference)
                ended, _ = ray.wait(list(waiting), num_returns=1, timeout=POLL_SECONDS)
                for reference in ended:
                    number = waiting.pop(reference)
                    try:
                        yield ray.get(reference)
                    except ray.exceptions.RayError:
                        yield Outcome(number, ended_by(), "", 0.0)
        finally:
            ray.shutdown()


def ended_by() -> int:
    """Return the exit code of a run that its cluster ended: the sweep was interrupted, or it is the cluster's fault."""
    return Interrupted.exit_code if stopped() else ResourceError.exit_code


def missing(package: str) -> ResourceError:
    """Return the error for a launcher whose package is not installed."""
    return ResourceError(
        f"launcher={package} needs the package {package}: pip install 'rkd[{package}]', or launcher=local"
    )
