"""What the ``status.json`` of a run folder tells: state, process, and whether the result is still whole.

The standard library alone: ``rkd ls`` reads a thousand of them.
"""

from __future__ import annotations

import json
import os
import platform
import time
from pathlib import Path
from typing import Any

_SILENT_SECONDS = 24 * 3600  # without a sign of a process on another machine
_CLOCK_SECONDS = 2  # by which the start of a process and the time of day may disagree
# What a run folder holds besides its result: a run is whole without them.
_ASIDE = {"config.yaml", "overrides.txt", "environment.json", "status.json", "metrics.jsonl", "checkpoints", ".lock"}


def read_status(folder: Path) -> dict[str, Any]:
    """Return a run's ``status.json``, empty where there is none that can be read."""
    try:
        status = json.loads((folder / "status.json").read_text())
    except (OSError, ValueError):
        return {}
    return status if isinstance(status, dict) else {}


def result_sizes(folder: Path) -> dict[str, int]:
    """Return the size in bytes of each file that a finished run's result is made of, by its path in the folder."""
    files = (file for entry in sorted(folder.iterdir()) if entry.name not in _ASIDE
             for file in ([entry] if entry.is_file() else sorted(entry.rglob("*"))))  # fmt: skip
    return {file.relative_to(folder).as_posix(): file.stat().st_size for file in files if file.is_file()}


def damaged_files(folder: Path, status: dict[str, Any]) -> dict[str, str]:
    """Return what is wrong with each file of a finished run that is not as long as it was when the run ended.

    No file is opened: a size is told in microseconds, and what a crash or a full disk damages is cut short or missing.
    """
    sizes, damaged = status.get("files"), {}
    if status.get("state") != "done" or not isinstance(sizes, dict):
        return {}
    for name, size in sizes.items():
        try:
            found = os.stat(f"{folder}/{name}").st_size
        except (OSError, ValueError):
            damaged[name] = "is missing"
            continue
        if found != size:
            damaged[name] = f"has {found} bytes instead of {size}"
    return damaged


def one_of(damaged: dict[str, str]) -> str:
    """Return the first of damaged files with what is wrong, and how many more there are."""
    name, what = next(iter(damaged.items()))
    return f"{name} {what}" + (f", and {len(damaged) - 1} more" if len(damaged) > 1 else "")


def is_running(folder: Path, status: dict[str, Any]) -> bool:
    """Say whether the process that a ``running`` status speaks of is still there.

    On this machine the process is looked for; a process that began after the run has only the same number. Of another
    machine's process nothing is known but what it writes: it is taken to be gone after a day without a change.
    """
    pid = status.get("pid")
    if status.get("host") != platform.node() or not isinstance(pid, int) or pid < 1:
        newest = max((entry.stat().st_mtime for entry in os.scandir(folder)), default=0.0)
        return time.time() - newest < _SILENT_SECONDS
    import psutil

    try:
        return psutil.Process(pid).create_time() <= status.get("started", 0) + _CLOCK_SECONDS
    except psutil.Error:
        return False
