"""Run folders: named by what they hold, explaining themselves, built once.

A stage's output is ``<root>/<stage>/<name>-<hash8>``; the hash covers everything that changes the result, so a finished
folder can be used again without a second look, and a changed input leads to another folder.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar

from filelock import FileLock, Timeout

from rkd.config import fingerprint
from rkd.console import say
from rkd.errors import CheckpointError, Interrupted, ResourceError, RkdError
from rkd.interrupts import stopped_by_signals
from rkd.ranks import is_main
from rkd.status import damaged_files, is_running, one_of, read_status, result_sizes


@dataclass
class Step:
    """One folder of the build graph.

    Attributes:
        stage: ``prepare``, ``train-teacher``, ``distill``, ``transcribe``, ``targets`` or ``evaluate``; ``download`` or
            ``model``.
        name: first half of the folder's name.
        version: of the stage's algorithm; raised when a change of code changes results.
        inputs: plain values that change the result.
        needs: the steps that this one builds on.
        build: makes the result in the folder that it is given; None where its stage does, or the step that needs it.
    """

    root: Path
    stage: str
    name: str
    version: int
    inputs: dict[str, Any]
    needs: list[Step]
    build: Callable[[Path], None] | None
    hash: str = field(init=False)

    is_run: ClassVar[bool] = True  # whether its folder is ours, and explains itself

    def __post_init__(self) -> None:
        upstream = [step.hash for step in self.needs]
        self.hash = fingerprint([self.stage, self.version, self.inputs, upstream])

    @property
    def folder(self) -> Path:
        return self.root / self.stage / f"{self.name}-{self.hash[:8]}"

    @property
    def state(self) -> str:
        """``done``, ``running``, ``failed``, ``interrupted``, ``missing``, or ``damaged``: done but not whole."""
        status = read_status(self.folder)
        state = status.get("state", "missing")
        if state == "running" and not is_running(self.folder, status):
            return "interrupted"
        return "damaged" if damaged_files(self.folder, status) else state

    def chain(self) -> list[Step]:
        """Return this step and all it builds on, upstream first, each once."""
        ordered: dict[Path, Step] = {}
        for step in [s for need in self.needs for s in need.chain()] + [self]:
            ordered.setdefault(step.folder, step)
        return list(ordered.values())


def all_steps(targets: list[Step]) -> list[Step]:
    """Return some steps and all they build on, upstream first, each once."""
    return list({step.folder: step for target in targets for step in target.chain()}.values())


def refuse_damaged(step: Step) -> None:
    """Refuse a finished training or evaluation whose result is not whole any more: to build it again may take long.

    What is missing of a prepared store is made again.

    Raises:
        CheckpointError: with what is damaged, and what to do.
    """
    damaged = damaged_files(step.folder, read_status(step.folder))
    if damaged and step.stage != "prepare":
        raise CheckpointError(
            f"{step.folder} is damaged: {one_of(damaged)}; remove the folder, and the same command builds it again"
        )


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole or not at all."""
    new = path.with_name(path.name + ".new")
    new.write_text(json.dumps(value, indent=2) + "\n")
    os.replace(new, path)


@contextmanager
def held(step: Step, wait: bool) -> Iterator[None]:
    """Keep other processes from building the same folder meanwhile; the lock goes with the process that holds it.

    Args:
        step: whose folder it is.
        wait: until another process that builds it is done, instead of refusing. Its result may then be there.

    Raises:
        ResourceError: another process builds it, or it cannot be written.
    """
    if not (is_main() and step.is_run):
        yield
        return
    try:
        step.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(step.folder / ".lock", timeout=0)
        try:
            lock.acquire()
        except Timeout as error:
            if not wait:
                raise ResourceError(
                    f"another process builds {step.folder}: wait for it, or give this run its own name with name=..."
                ) from error
            say(f"waiting for {step.folder}, which another process builds")
            lock.acquire(timeout=-1)
    except OSError as error:
        raise ResourceError(f"cannot write the run folder {step.folder} ({error}); set root=/another/folder") from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def recorded(step: Step, config_yaml: str, overrides: list[str]) -> Iterator[Path]:
    """Make a run folder that explains itself, and keep its status while the body builds the result."""
    folder = step.folder
    if not (is_main() and step.is_run):
        yield folder
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(config_yaml)
        (folder / "overrides.txt").write_text("".join(f"{line}\n" for line in overrides))
        write_json(folder / "environment.json", environment())
    except OSError as error:
        raise ResourceError(f"cannot write the run folder {folder} ({error}); set root=/another/folder") from error
    started = time.time()

    def status(state: str, error: str | None = None, **more: Any) -> None:
        times = {"started": started, "seconds": round(time.time() - started, 1)}
        process = {"host": platform.node(), "pid": os.getpid()}
        about = {"state": state, "error": error, "fingerprint": step.hash, **times, **process, **more}
        write_json(folder / "status.json", about)

    for name in damaged_files(folder, read_status(folder)):  # what is whole is kept
        (folder / name).unlink(missing_ok=True)
    status("running")
    try:
        with stopped_by_signals():
            yield folder
    except (KeyboardInterrupt, Interrupted) as error:
        status("interrupted", str(error) or "interrupted")
        raise
    except RkdError as error:
        status("failed", str(error))
        raise
    except BaseException as error:
        status("failed", f"{type(error).__name__}: {error}")
        raise
    status("done", files=result_sizes(folder))


def environment() -> dict[str, Any]:
    """Return what a result depends on besides its configuration: versions, commit, machine."""
    versions: dict[str, str | None] = {}
    for package in (
        "rkd",
        "torch",
        "torchaudio",
        "transformers",
        "accelerate",
        "numpy",
        "soundfile",
        "espeakng-loader",
    ):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "versions": versions,
        "commit": _commit(),
    }


def _commit() -> str | None:
    source = Path(__file__).resolve().parent.parent
    if not (source / ".git").exists():
        return None
    command = ["git", "-C", str(source), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


STATE_WORDS = {
    "done": "exists",
    "missing": "to build",
    "running": "running in another process",
    "interrupted": "interrupted: to be continued",
    "failed": "failed before; will be tried again",
    "damaged": "damaged: what is missing will be made again",
}
"""What the state of a step means for who wants it built."""


def print_plan(steps: list[Step]) -> None:
    """Say what exists and what will be built."""
    for step in steps:
        say(f"{step.stage:14s} {step.folder}  {STATE_WORDS.get(step.state, step.state)}")
